"""The routing cache against a simple model."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.router.routing.cache import RoutingCache
from services.router.routing.query import RouteQuery
from services.router.routing.scoring import Hints
from smoa.bounded_cache import ENTRY_BYTES, BoundedCache


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _cache(entries: int = 3, ttl_s: float = 10.0) -> tuple[RoutingCache[str, int], _Clock]:
    clock = _Clock()
    return RoutingCache(entries * ENTRY_BYTES, ttl_s, clock), clock


def test_least_recently_used_goes_first() -> None:
    cache, _ = _cache(2)
    cache.put("a", 1, ["x"])
    cache.put("b", 2, ["x"])
    assert cache.get("a") == 1
    cache.put("c", 3, ["x"])
    assert [cache.get(name) for name in "abc"] == [1, None, 3]
    assert len(cache) == 2


def test_entry_lives_until_its_time_is_up() -> None:
    cache, clock = _cache(ttl_s=10)
    cache.put("a", 1, [])
    clock.now = 9.999
    assert cache.get("a") == 1
    clock.now = 10.0
    assert cache.get("a") is None
    assert len(cache) == 0


def test_reading_does_not_prolong_and_writing_does() -> None:
    cache, clock = _cache(ttl_s=10)
    cache.put("a", 1, [])
    clock.now = 6
    cache.put("a", 2, [])
    clock.now = 15
    assert cache.get("a") == 2
    clock.now = 16
    assert cache.get("a") is None


def test_drop_adapter_forgets_only_its_entries() -> None:
    cache, _ = _cache()
    cache.put("a", 1, ["x", "y"])
    cache.put("b", 2, ["y"])
    cache.adapter_changed("x", "p", arrived=False)
    cache.adapter_changed("absent", "p", arrived=False)
    assert [cache.get(name) for name in "ab"] == [None, 2]
    cache.check_integrity()


def test_overwriting_replaces_the_adapters() -> None:
    cache, _ = _cache()
    cache.put("a", 1, ["x"])
    cache.put("a", 2, ["y"])
    cache.adapter_changed("x", "p", arrived=False)
    assert cache.get("a") == 2


def test_clear_forgets_all() -> None:
    cache, _ = _cache()
    cache.put("a", 1, ["x"])
    cache.clear()
    assert (cache.get("a"), len(cache)) == (None, 0)
    cache.check_integrity()


def test_hits_and_misses_are_counted() -> None:
    cache, clock = _cache()
    cache.get("a")
    cache.put("a", 1, [])
    cache.get("a")
    cache.get("a")
    clock.now = 10
    cache.get("a")
    assert (cache.hits, cache.misses) == (2, 2)


def test_every_part_of_the_key_counts() -> None:
    cache: RoutingCache[RouteQuery, int] = RoutingCache(10_000)
    query = RouteQuery(query="q", base_model="b", hints=Hints(tags=("x", "y")))
    cache.put(query, 1, [])
    hints = (Hints(tags=("x",), specialization="y"), Hints(tags=("y", "x")), Hints(tags=("x, y",)), Hints(tags=("x",), task_id="y"))
    others = [query._replace(hints=other) for other in hints]
    others += [query._replace(tenant="u"), query._replace(base_model="c"), query._replace(strategy="task"), query._replace(top_k=4)]
    others += [query._replace(query="q "), query._replace(score_threshold=0.1)]
    assert [cache.get(other) for other in others] == [None] * len(others)
    assert cache.get(RouteQuery(query="q", base_model="b", hints=Hints(tags=("x", "y")))) == 1


NAMES, ADAPTERS, POOLS = st.sampled_from("abcdef"), st.sampled_from("xyz"), st.sampled_from("pqr")


class CacheMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cache, self.clock = _cache(3, 10)
        self.model: dict[str, tuple[int, float, tuple[str, ...], set[str]]] = {}  # least recently used first

    @rule(name=NAMES, value=st.integers(), adapters=st.lists(ADAPTERS, max_size=3), pools=st.sets(POOLS, max_size=2))
    def put(self, name: str, value: int, adapters: list[str], pools: set[str]) -> None:
        self.cache.put(name, value, adapters, sorted(pools))
        self.model.pop(name, None)
        self.model[name] = (value, self.clock.now + 10, tuple(adapters), pools)
        while len(self.model) > 3:
            self.model.pop(next(iter(self.model)))

    @rule(name=NAMES)
    def get(self, name: str) -> None:
        entry = self.model.pop(name, None)
        if entry is not None and entry[1] > self.clock.now:
            self.model[name] = entry
            assert self.cache.get(name) == entry[0]
        else:
            assert self.cache.get(name) is None

    @rule(adapter=ADAPTERS, pool=POOLS, arrived=st.booleans())
    def change(self, adapter: str, pool: str, arrived: bool) -> None:
        before = [self.cache.state_of(pools) for pools in ("p", "q", "r", "pqr")]
        self.cache.adapter_changed(adapter, pool, arrived=arrived)
        after = [self.cache.state_of(pools) for pools in ("p", "q", "r", "pqr")]
        assert [one != other for one, other in zip(before, after, strict=True)] == [*(pool == name for name in "pqr"), True]
        self.model = {name: entry for name, entry in self.model.items() if adapter not in entry[2]}
        if arrived:  # what was chosen from there is as good as expired
            self.model = {name: (e[0], e[1] if pool not in e[3] else 0.0, *e[2:]) for name, e in self.model.items()}

    @rule(pools=st.sampled_from(["p", "q", "pq"]))
    def refit(self, pools: str) -> None:
        before = self.cache.state_of(pools)
        self.cache.refitted(pools)
        assert self.cache.state_of(pools) != before
        self.model = {name: (e[0], e[1] if pools[0] not in e[3] else 0.0, *e[2:]) for name, e in self.model.items()}

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.model.clear()

    @rule(seconds=st.integers(1, 6))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @invariant()
    def agrees(self) -> None:
        self.cache.check_integrity()
        assert len(self.cache) == len(self.model)


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
TestCache = CacheMachine.TestCase


def test_bytes_are_the_bound_and_what_is_larger_is_not_kept() -> None:
    cache: BoundedCache[str, int] = BoundedCache(100)
    cache.put("a", 1, 60)
    assert cache.put("b", 2, 60) == [("a", 1)]
    assert (cache.get("a"), cache.get("b"), cache.bytes) == (None, 2, 60)
    cache.put("c", 3, 101)
    assert (cache.get("c"), cache.get("b")) == (None, 2)
    cache.put("b", 4, 10)
    assert (cache.get("b"), cache.bytes, len(cache)) == (4, 10, 1)


def test_an_answer_too_large_to_keep_leaves_nothing_behind() -> None:
    cache, _ = _cache(1)
    cache.put("a", 1, ["x"])
    cache.put("a", 2, ["x"], size=10 * ENTRY_BYTES)
    assert cache.get("a") is None
    cache.check_integrity()


def test_an_arrival_concerns_the_answers_of_its_pool_and_nobody_elses() -> None:
    cache, _ = _cache(4)
    for key, pools in (("a", ["t/b", "*/b"]), ("b", ["u/b", "*/b"]), ("c", ["t/c", "*/c"])):
        cache.put(key, 1, ["x"] if key == "c" else [], pools)
    cache.adapter_changed("new", "t/b", arrived=True)
    assert [cache.get(key) for key in "abc"] == [None, 1, 1]
    cache.adapter_changed("new", "*/b", arrived=True)
    assert [cache.get(key) for key in "abc"] == [None, None, 1]
    cache.adapter_changed("x", "t/b", arrived=False)
    assert cache.get("c") is None


def test_more_pools_than_are_counted_are_forgotten_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.router.routing.cache.MAX_POOLS", 2)
    cache, _ = _cache()
    cache.put("a", 1, [], ["p"])
    state = cache.state_of(["p"])
    for pool in ("q", "r", "s"):
        cache.adapter_changed("x", pool, arrived=True)
    assert cache.get("a") is None
    assert cache.state_of(["p"]) != state
