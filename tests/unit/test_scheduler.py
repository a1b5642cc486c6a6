"""The scheduler: bounded, fair, and nothing it gives out is ever lost."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.adapters.slots import SlotPool
from services.executor.engine.blocks import BlockPool
from services.executor.engine.scheduler import NEW_COST, Job, Scheduler
from smoa.errors import ResourceExhausted


@dataclass
class _Lease:
    """Slots of a pool for some adapters of one byte each."""

    pool: SlotPool
    sizes: dict[str, int]
    held: bool = False

    def acquire(self) -> bool:
        self.held = self.pool.acquire(self.sizes) is not None
        return self.held

    def release(self) -> None:
        if self.held:
            self.pool.release(self.sizes)
        self.held = False


@dataclass(eq=False, kw_only=True)
class _Job(Job):
    """One that ends after `max_new` more tokens."""

    max_new: int


def _scheduler(rows: int = 2, blocks: int = 100, step_tokens: int = 32, max_waiting: int = 10) -> Scheduler[_Job]:
    return Scheduler(rows=rows, blocks=BlockPool(blocks), block_tokens=16, step_tokens=step_tokens, max_waiting=max_waiting)


def _job(
    tenant: str = "a", prompt: int = 4, new: int = 4, adapters: str = "", key: bytes = b"k", slots: SlotPool | None = None, first: int = 0
) -> _Job:
    lease = _Lease(slots or SlotPool(4, 1000), dict.fromkeys(adapters, 1))
    return _Job(tenant=tenant, tokens=list(range(first, first + prompt)), max_new=new, lease=lease, mixture_key=key)


def _step(scheduler: Scheduler[_Job]) -> list[tuple[_Job, int]]:
    """One step as the engine takes it: whoever has all its tokens computed gets a new one, and ends after `max_new`."""
    for job in scheduler.admit():
        job.ready = True
    plan = scheduler.plan()
    for job, count in plan:
        scheduler.computed(job, count)
        if job.computed == len(job.tokens):
            job.tokens.append(7)
            if len(job.tokens) - job.prompt_tokens >= job.max_new:
                scheduler.remove(job)
        scheduler.check_integrity()
    return plan


def test_queue_is_bounded() -> None:
    scheduler = _scheduler(rows=1, max_waiting=2)
    scheduler.add(_job())
    scheduler.add(_job())
    with pytest.raises(ResourceExhausted) as caught:
        scheduler.add(_job())
    assert str(caught.value) == "queue: 2 requests wait; retry with backoff or add executors"
    scheduler.admit()
    scheduler.add(_job())
    assert scheduler.waiting == 2


def test_first_come_first_served_within_a_tenant_and_rows_are_used_again() -> None:
    scheduler, jobs = _scheduler(), [_job() for _ in range(3)]
    for job in jobs:
        scheduler.add(job)
    assert scheduler.admit() == jobs[:2]
    assert scheduler.admit() == []
    scheduler.remove(jobs[0])
    assert scheduler.admit() == jobs[2:]
    assert scheduler.running == jobs[1:]


def test_a_job_that_does_not_fit_is_passed_by_as_many_as_there_are_rows() -> None:
    scheduler, slots = _scheduler(rows=3, max_waiting=20), SlotPool(3, 1000)
    small = [_job(adapters=name, slots=slots) for name in "abc"]
    for job in small:
        scheduler.add(job)
    assert scheduler.admit() == small
    large, others = _job(adapters="xyz", slots=slots), [_job(adapters="b", slots=slots) for _ in range(6)]
    for job in (large, *others):
        scheduler.add(job)
    for number, gone in enumerate([small[0], small[2], others[0]]):
        scheduler.remove(gone)
        assert scheduler.admit() == [others[number]], "those behind it go on, so the batch stays full"
    scheduler.remove(others[1])
    assert scheduler.admit() == [], "three have passed it: now it is its turn"
    for job in (small[1], others[2]):
        scheduler.remove(job)
    assert scheduler.admit() == [large]
    scheduler.check_integrity()


def test_a_job_gets_cache_as_its_answer_grows_and_the_last_one_admitted_gives_way() -> None:
    scheduler = _scheduler(rows=3, blocks=5)
    first, second = _job(prompt=30, new=40), _job(prompt=15, new=30, first=100)
    scheduler.add(first)
    scheduler.add(second)
    _step(scheduler)
    assert (len(first.blocks), len(second.blocks)) == (2, 1), "the prompts' only"
    while not scheduler.preemptions:
        _step(scheduler)
    assert scheduler.running == [first]
    assert second.blocks == []
    assert scheduler.is_admitted(second), "what it waits for, its mixture too, is made ready meanwhile"
    newcomer = _job(new=2)
    scheduler.add(newcomer)
    answered = len(second.tokens)
    _step(scheduler)
    assert not scheduler.is_running(newcomer), "the one that gave way is before all others"
    for _ in range(200):
        _step(scheduler)
    assert scheduler.jobs == []
    assert len(second.tokens) == 45 > answered
    assert second.tokens[15:] == [7] * 30


def test_a_long_prompt_comes_in_chunks_beside_decoding_rows() -> None:
    scheduler = _scheduler(step_tokens=32)
    short, long = _job(new=20), _job(prompt=100, new=2)
    scheduler.add(short)
    _step(scheduler)
    scheduler.add(long)
    assert [[(job is long, count) for job, count in _step(scheduler)] for _ in range(5)] == [
        [(False, 1), (True, 31)],
        [(False, 1), (True, 31)],
        [(False, 1), (True, 31)],
        [(False, 1), (True, 7)],
        [(False, 1), (True, 1)],
    ]


def test_a_job_that_is_not_ready_computes_nothing() -> None:
    scheduler, job = _scheduler(), _job()
    scheduler.add(job)
    scheduler.admit()
    assert scheduler.plan() == []
    job.ready = True
    assert scheduler.plan() == [(job, 4)]


def test_the_tenant_served_least_goes_first() -> None:
    scheduler = _scheduler(rows=1)
    flood = [_job("flood", new=3) for _ in range(8)]
    for job in flood:
        scheduler.add(job)
    _step(scheduler)
    late = _job("late", new=3)
    scheduler.add(late)
    order: list[str] = []
    while scheduler.jobs:
        for job, _ in _step(scheduler):
            if not order or job not in flood[:1]:
                order.append(job.tenant)
    assert "late" in order[:5], "one job of the flood ends, then the newcomer runs"


def test_a_prefix_is_computed_once_for_a_mixture_and_again_for_another() -> None:
    scheduler = _scheduler(rows=3)
    first = _job(prompt=40)
    scheduler.add(first)
    _step(scheduler)
    _step(scheduler)
    same, other = _job(prompt=40), _job(prompt=40, key=b"other")
    scheduler.add(same)
    scheduler.add(other)
    for job in scheduler.admit():
        job.ready = True
    assert (same.computed, other.computed) == (32, 0)
    assert (same.blocks[:2], set(other.blocks) & set(first.blocks)) == (first.blocks[:2], set())
    assert (scheduler.prefix_hits, scheduler.prefix_lookups) == (2, 6)


def test_a_job_that_is_only_read_takes_what_is_before_the_first_token_that_is_wanted() -> None:
    scheduler = _scheduler()
    scheduler.add(_job(prompt=60, new=9))
    for _ in range(3):
        _step(scheduler)
    for wanted_from, computed in ((40, 32), (32, 32), (31, 16), (0, 0)):
        read = _job(prompt=60)
        read.wanted_from = wanted_from
        scheduler.add(read)
        scheduler.admit()
        assert read.computed == computed
        scheduler.remove(read)


def test_an_answer_is_a_prefix_of_the_next_turn() -> None:
    scheduler = _scheduler()
    first = _job(prompt=20, new=16)
    scheduler.add(first)
    while scheduler.jobs:
        _step(scheduler)
    following = _job(prompt=40)
    following.tokens[: len(first.tokens)] = first.tokens
    scheduler.add(following)
    scheduler.admit()
    assert following.computed == 32, "all but the last token of the first 36 were computed"


def test_a_tenant_that_comes_back_still_has_its_debt() -> None:
    scheduler = _scheduler(rows=1)
    scheduler.add(_job("heavy", prompt=60, new=20))
    scheduler.admit()
    for _ in range(2):
        scheduler.add(_job("light", new=1))
    while any(job.tenant == "heavy" for job in scheduler.jobs):
        for job in scheduler.running:
            job.ready = True
        _step(scheduler)
    scheduler.add(_job("heavy", new=1))
    order: list[str] = []
    while scheduler.jobs:
        order += [job.tenant for job, _ in _step(scheduler)]
    assert order == ["light", "light", "heavy"], "it was away for a moment, and was served far more"


def test_a_job_that_waits_for_slots_costs_nobody_a_cached_prefix() -> None:
    scheduler, slots = _scheduler(rows=3, blocks=8), SlotPool(1, 1000)
    remembered = _job(prompt=65, new=1, key=b"remembered")
    scheduler.add(remembered)
    while scheduler.jobs:
        _step(scheduler)
    holder = _job(prompt=4, new=30, adapters="u", slots=slots)
    scheduler.add(holder)
    _step(scheduler)
    counted = scheduler.prefix_lookups
    waiting = _job(prompt=81, new=1, adapters="v", slots=slots)
    scheduler.add(waiting)
    for _ in range(5):
        _step(scheduler)
    assert not scheduler.is_running(waiting)
    assert scheduler.prefix_lookups == counted, "it has looked nothing up until it starts"
    scheduler.remove(waiting)
    again = _job(prompt=65, new=1, key=b"remembered")
    scheduler.add(again)
    scheduler.admit()
    assert again.computed == 64


def test_a_tenant_without_a_row_is_given_one_of_whoever_has_several() -> None:
    scheduler = _scheduler(rows=3, step_tokens=64)
    greedy = [_job("greedy", new=1000) for _ in range(5)]
    for job in greedy:
        scheduler.add(job)
    for _ in range(5):
        _step(scheduler)
    one, two, three = _job("one"), _job("two"), _job("three")
    scheduler.add(one)
    assert scheduler.admit() == [one]
    assert scheduler.running == [*greedy[:2], one]
    scheduler.add(two)
    assert scheduler.admit() == [], "the one that gave its row is not made to wait for a second"
    scheduler.remove(one)
    assert scheduler.admit() == []
    assert scheduler.running == greedy[:3], "it is the next to go on"
    assert scheduler.admit() == [two]
    scheduler.remove(two)
    scheduler.admit()
    scheduler.add(three)
    assert [job.tenant for job in scheduler.admit()] == ["three"]
    scheduler.check_integrity()
    assert greedy[2].charged > 0


def test_a_first_token_does_not_wait_for_a_step_of_all_rows_of_another_tenant() -> None:
    scheduler = _scheduler(rows=4, step_tokens=8)
    for _ in range(4):
        scheduler.add(_job("greedy", new=1000))
    for _ in range(3):
        _step(scheduler)
    scheduler.add(one := _job("one", prompt=7, new=2))
    steps = [[(job.tenant, count) for job, count in _step(scheduler)] for _ in range(4)]
    decoding = [("greedy", 1)] * 3
    assert steps == [[("one", 7)], [*decoding, ("one", 1)], [*decoding, ("greedy", 5)], [*decoding, ("greedy", 1)]]
    assert len(one.tokens) == 9


def test_a_step_for_a_newcomer_alone_is_charged_as_much_as_it_takes_from_the_others() -> None:
    scheduler = _scheduler(rows=8, step_tokens=16)
    for _ in range(8):
        scheduler.add(_job("greedy", new=100_000))
    for _ in range(3):
        _step(scheduler)
    alone = 0
    for number in range(400):
        if not any(job.tenant == "quick" for job in scheduler.jobs):
            scheduler.add(_job("quick", prompt=2, new=1, first=number))
        plan = _step(scheduler)
        alone += [job.tenant for job, _ in plan] == ["quick"]
    assert 100 < alone <= 200
    assert scheduler._fairness._served["quick"] >= alone * NEW_COST * 7


def test_where_rows_are_many_tenants_prompts_come_beside_them() -> None:
    scheduler = _scheduler(rows=4, step_tokens=8)
    for tenant in "aabc":
        scheduler.add(_job(tenant, new=10))
    assert len(_step(scheduler)) == 2
    assert [count for _, count in _step(scheduler)] == [1, 1, 4, 2]
    alone = _scheduler(rows=4, step_tokens=8)
    for _ in range(4):
        alone.add(_job("a", new=10))
    assert len(_step(alone)) == 2, "it keeps nobody waiting"


def test_no_row_is_taken_for_a_job_that_does_not_fit_nor_of_whoever_has_one() -> None:
    scheduler, slots = _scheduler(rows=2, step_tokens=64), SlotPool(1, 1000)
    greedy = [_job("greedy", new=1000, adapters="x", slots=slots) for _ in range(2)]
    for job in greedy:
        scheduler.add(job)
    _step(scheduler)
    scheduler.add(_job("other", adapters="y", slots=slots))
    for _ in range(3):
        _step(scheduler)
    assert (scheduler.running, scheduler.preemptions) == (greedy, 0)
    fair = _scheduler(rows=2, step_tokens=64)
    for tenant in ("a", "b", "c"):
        fair.add(_job(tenant, new=1000))
    for _ in range(3):
        _step(fair)
    assert ([job.tenant for job in fair.running], fair.preemptions) == (["a", "b"], 0)


def test_a_full_queue_gives_up_the_newest_of_whoever_has_most() -> None:
    scheduler = _scheduler(rows=1, max_waiting=20)
    greedy, modest = [_job("greedy") for _ in range(6)], [_job("modest") for _ in range(2)]
    for job in (*greedy, *modest):
        scheduler.add(job)
    scheduler.admit()
    assert scheduler.displaceable("new", 1) == [greedy[5]]
    assert scheduler.displaceable("new", 3) == [greedy[5], greedy[4], greedy[3]], "three are left to it, as many as the new one has then"
    assert scheduler.displaceable("new", 4) == []
    assert scheduler.displaceable("greedy", 1) == []
    assert scheduler.displaceable("modest", 2) == [greedy[5], greedy[4]]
    assert len(scheduler.jobs) == 8


def test_what_is_computed_again_is_charged_once() -> None:
    scheduler = _scheduler(rows=2, blocks=8, step_tokens=64)
    jobs = [_job(tenant, prompt=40, new=40, key=tenant.encode()) for tenant in "ab"]
    for job in jobs:
        scheduler.add(job)
    while scheduler.jobs:
        _step(scheduler)
        for job in scheduler.jobs:
            assert scheduler._fairness._served[job.tenant] <= 40 + 2 * 40
    assert scheduler.preemptions


def test_fewer_step_tokens_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^step_tokens 3 is under the 4 rows: every row decodes at every step$"):
        _scheduler(rows=4, step_tokens=3)


events = st.one_of(
    st.tuples(
        st.just("add"), st.sampled_from("abc"), st.integers(1, 60), st.integers(0, 20), st.sets(st.sampled_from("uvwxyz"), max_size=3)
    ),
    st.tuples(st.just("step")),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(6, 12), st.lists(events, max_size=80))
def test_whatever_happens_all_is_given_back_and_everybody_ends(rows: int, blocks: int, happenings: list[tuple]) -> None:  # type: ignore[type-arg]
    scheduler, slots = _scheduler(rows=rows, blocks=blocks), SlotPool(3, 1000)
    jobs: list[_Job] = []
    for what, *values in happenings:
        if what == "add":
            job = _job(values[0], values[1], max(1, values[2]), "".join(sorted(values[3])), values[0].encode(), slots)
            try:
                scheduler.add(job)
            except ResourceExhausted:
                assert scheduler.waiting == scheduler.max_waiting
            else:
                jobs.append(job)
        elif what == "step":
            assert sum(count for _, count in _step(scheduler)) <= scheduler.step_tokens
        elif jobs:
            scheduler.remove(jobs[values[0] % len(jobs)])
        scheduler.check_integrity()
        slots.check_integrity()
    for _ in range(5000):
        if not scheduler.jobs:
            break
        assert _step(scheduler), "somebody waits and nobody runs"
    assert scheduler.jobs == []
    assert scheduler.blocks.available == blocks
    assert not any(leases for _, leases in slots.residents())
