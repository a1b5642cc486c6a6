"""Joining and counting: everything once, in whatever order and however often it comes, and whoever is replaced while doing it."""

from __future__ import annotations

from itertools import count
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.optimizer.stream.counting import CountPartition
from services.optimizer.stream.effects import MAX_CLAIMS
from services.optimizer.stream.joining import JoinPartition, JoinPlan, segment_of
from smoa.dead_letters import MAX_KEPT_BYTES, letter
from smoa.errors import InvalidArgument
from smoa.events import ADAPTER_OUTCOMES, DECISIONS, OUTCOMES, Event, Received, decode, event
from smoa.topics import partition_of
from smoa.v1 import common_pb2, feedback_pb2, router_pb2
from smoa.v1.events_pb2 import AdapterOutcome, Example

SECOND_US = 1_000_000
HALF_LIFE_S = 100.0
RIGHT = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def _decision(number: int, tenant: str = "t", adapters: str = "ab", offset: int = 0, partition: int = 0) -> Received:
    message = router_pb2.Decision(decision_id=f"d{number}", tenant=tenant, decided_at_us=5, task_id="job")
    message.adapters.extend(common_pb2.WeightedAdapter(adapter_id=name, weight=1 / len(adapters)) for name in adapters)
    return Received(DECISIONS, partition, offset, 0, f"d{number}".encode(), message.SerializeToString(), "", 0)


def _outcome(number: int, success: bool = True, tenant: str = "t", offset: int = 0, partition: int = 0) -> Received:
    message = feedback_pb2.Outcome(
        decision_id=f"d{number}", tenant=tenant, success=success, score=0.75 if success else 0.25, reported_at_us=6
    )
    return Received(OUTCOMES, partition, offset, 0, f"d{number}".encode(), message.SerializeToString(), "", 0)


class _Join:
    """A partition, and what it emitted. With one partition nothing is misplaced."""

    def __init__(self) -> None:
        self.part: JoinPartition[str] = JoinPartition(0, 1, [])
        self.log: dict[str, bytes] = {}
        self._names = count()

    def write(self, plan: JoinPlan) -> None:
        name = f"{next(self._names):06d}"
        entries = list(plan.entries.values())
        self.log[name] = segment_of(entries)
        self.part.apply(name, entries)
        self.sweep()

    def sweep(self) -> None:
        for gone in self.part.obsolete:
            del self.log[gone]
        self.part.obsolete.clear()

    def take(self, *events: Received, now_us: int = 10) -> list[AdapterOutcome]:
        plan = self.part.plan(list(events), now_us)
        if plan.refused:
            raise plan.refused[0][1]
        self.write(plan)
        return [AdapterOutcome.FromString(one.value) for one in plan.effects]

    def restart(self) -> None:
        self.part = JoinPartition(0, 1, self.log.items())
        self.sweep()


def _facts(effects: list[AdapterOutcome]) -> list[tuple[str, bool, bool | None, str, int]]:
    return [
        (one.adapter_id, one.used, one.success if one.HasField("success") else None, one.source_topic, one.source_position)
        for one in effects
    ]


def test_decision_then_outcome() -> None:
    join = _Join()
    used = join.take(_decision(1, offset=3))
    assert _facts(used) == [("a", True, None, DECISIONS, 3 << 16), ("b", True, None, DECISIONS, 3 << 16)]
    assert [(one.weight, one.tenant, one.task_id, one.occurred_at_us, list(one.together)) for one in used] == [
        (0.5, "t", "job", 5, ["b"]),
        (0.5, "t", "job", 5, ["a"]),
    ]
    judged = join.take(_outcome(1, offset=4))
    assert _facts(judged) == [("a", False, True, OUTCOMES, 4 << 16), ("b", False, True, OUTCOMES, 4 << 16)]
    assert [(one.occurred_at_us, list(one.together)) for one in judged] == [(6, []), (6, [])]


@pytest.mark.parametrize("reported_at_us", [0, 1_790_000_000, 1_790_000_000_000, 1_790_000_000_000_000 - 1])
def test_an_outcome_is_of_no_time_before_its_decision(reported_at_us: int) -> None:
    """Left out, in seconds, in milliseconds, of a clock that is late: it counts in the recent window as one of its decision's time."""
    decided_at_us = 1_790_000_000_000_000
    decision = router_pb2.Decision(decision_id="d1", tenant="t", decided_at_us=decided_at_us)
    decision.adapters.add(adapter_id="a", weight=1)
    outcome = feedback_pb2.Outcome(decision_id="d1", tenant="t", success=True, input="i", output="o", reported_at_us=reported_at_us)
    join = _Join()
    join.take(Received(DECISIONS, 0, 0, 0, b"d1", decision.SerializeToString(), "", 0))
    plan = join.part.plan([Received(OUTCOMES, 0, 1, 0, b"d1", outcome.SerializeToString(), "", 0)], decided_at_us + 10)
    example, effect = (decode(one.topic, one.value) for one in plan.effects)
    assert isinstance(example, Example)
    assert isinstance(effect, AdapterOutcome)
    assert (example.occurred_at_us, effect.occurred_at_us) == (decided_at_us, decided_at_us)


def test_outcome_then_decision() -> None:
    join = _Join()
    assert join.take(_outcome(1, False)) == []
    join.restart()
    assert _facts(join.take(_decision(1))) == [("a", True, False, DECISIONS, 0), ("b", True, False, DECISIONS, 0)]


def _effects_of(decision: router_pb2.Decision, outcome: feedback_pb2.Outcome, outcome_first: bool) -> list[AdapterOutcome]:
    """Of one decision, `d1`, and its outcome, in either order, with a restart after each."""
    events = [
        Received(DECISIONS, 0, 0, 0, b"d1", decision.SerializeToString(), "", 0),
        Received(OUTCOMES, 0, 1, 0, b"d1", outcome.SerializeToString(), "", 0),
    ]
    join, effects = _Join(), list[AdapterOutcome]()
    for one in reversed(events) if outcome_first else events:
        effects += join.take(one)
        join.restart()
    return effects


@pytest.mark.parametrize("outcome_first", [False, True])
def test_an_outcome_brings_back_where_its_query_lay_and_what_was_expected(outcome_first: bool) -> None:
    decision = router_pb2.Decision(decision_id="d1", tenant="t", decided_at_us=5, context=b"c" * 64, user=b"u" * 8)
    decision.adapters.extend(common_pb2.WeightedAdapter(adapter_id=name, weight=0.5) for name in "ab")
    decision.ranked.add(adapter_id="b", expected=0.25)
    decision.ranked.add(adapter_id="a", expected=0.75)
    outcome = feedback_pb2.Outcome(decision_id="d1", tenant="t", reported_at_us=6, right_adapter_id=RIGHT)
    effects = _effects_of(decision, outcome, outcome_first)
    judged = [one for one in effects if one.HasField("success")]
    assert [(one.adapter_id, one.success, one.taught, one.weight) for one in judged] == [
        ("a", False, False, 0.5),
        ("b", False, False, 0.5),
        (RIGHT, True, True, 1.0),
    ]
    assert [(one.context, one.expected) for one in judged] == [(b"c" * 64, 0.75), (b"c" * 64, 0.25), (b"c" * 64, 0.0)]
    assert {one.user for one in judged} == {b"u" * 8}
    assert not any(one.context or one.user for one in effects if not one.HasField("success")), "a use teaches nothing"
    sent = [
        Received(ADAPTER_OUTCOMES, 0, place, 0, one.adapter_id.encode(), one.SerializeToString(), "", 0)
        for place, one in enumerate(effects)
    ]
    assert set(CountPartition(HALF_LIFE_S, {}).plan(sent, 10).counts) == {"a", "b"}, "what was not used is not counted"


@pytest.mark.parametrize("outcome_first", [False, True])
@pytest.mark.parametrize(
    ("adapter_ids", "success", "right", "told_by"),
    [("ab", True, "", ("a", True)), ("ab", False, RIGHT, ("a", False)), ("", False, RIGHT, None), ("", True, "", None)],
)
def test_one_outcome_tells_how_close_its_query_was(
    outcome_first: bool, adapter_ids: str, success: bool, right: str, told_by: tuple[str, bool] | None
) -> None:
    """Once, and whether the answer to it was right."""
    decision = router_pb2.Decision(decision_id="d1", tenant="t", base_model="base-a", decided_at_us=5)
    decision.closeness.value, decision.closeness.stands_for = -1.25, 8
    decision.adapters.extend(common_pb2.WeightedAdapter(adapter_id=name, weight=0.5) for name in adapter_ids)
    outcome = feedback_pb2.Outcome(decision_id="d1", tenant="t", success=success, reported_at_us=6, right_adapter_id=right)
    effects = _effects_of(decision, outcome, outcome_first)
    told = [one for one in effects if one.HasField("closeness")]
    assert [(one.adapter_id, one.success) for one in told] == ([] if told_by is None else [told_by])
    assert all((one.closeness, one.base_model) == (decision.closeness, "base-a") for one in told)
    assert all(one.HasField("success") for one in told)


@pytest.mark.parametrize("outcome_first", [False, True])
def test_an_outcome_says_for_whom_a_child_on_trial_stood(outcome_first: bool) -> None:
    decision = router_pb2.Decision(decision_id="d1", tenant="t", decided_at_us=5)
    decision.adapters.add(adapter_id="child", weight=0.7, trial=common_pb2.TrialSide(stands_for=["a", "b"]))
    decision.adapters.add(adapter_id="x", weight=0.3)
    effects = _effects_of(decision, feedback_pb2.Outcome(decision_id="d1", tenant="t", success=True), outcome_first)
    judged = {one.adapter_id: list(one.trial.parents) for one in effects if one.HasField("success")}
    assert judged == {"child": ["a", "b"], "x": []}


@pytest.mark.parametrize("outcome_first", [False, True])
def test_a_parent_whose_merge_is_on_trial_tells_the_child_what_it_is_compared_with(outcome_first: bool) -> None:
    decision = router_pb2.Decision(decision_id="d1", tenant="t", decided_at_us=5)
    for name, child in (("a", "child"), ("x", ""), ("b", "child")):
        decision.adapters.add(adapter_id=name, weight=0.3, trial=common_pb2.TrialSide(control_of=child, share=0.25) if child else None)
    effects = _effects_of(decision, feedback_pb2.Outcome(decision_id="d1", tenant="t", success=True), outcome_first)
    told = [one for one in effects if one.adapter_id == "child"]
    assert all((list(one.trial.parents), one.trial.control, one.trial.share) == (["a", "b"], True, 0.25) for one in told)
    assert not any(one.together for one in told)
    assert sum(one.used for one in told) == sum(one.HasField("success") for one in told) == 1
    assert len({(one.adapter_id, one.source_topic, one.source_position) for one in effects}) == len(effects), "each is counted once"


@pytest.mark.parametrize("outcome_first", [False, True])
@pytest.mark.parametrize("score", [None, 0.0, 0.75])
def test_an_outcomes_score_goes_with_it(outcome_first: bool, score: float | None) -> None:
    decision = router_pb2.Decision(decision_id="d1", tenant="t", decided_at_us=5)
    decision.adapters.add(adapter_id="a", weight=1.0)
    effects = _effects_of(decision, feedback_pb2.Outcome(decision_id="d1", tenant="t", success=True, score=score), outcome_first)
    [judged] = [one for one in effects if one.HasField("success")]
    assert (judged.score if judged.HasField("score") else None) == score


def test_nothing_of_a_silent_tenants_queries_is_kept() -> None:
    decision = router_pb2.Decision(decision_id="d1", tenant="t", context=b"c" * 64, user=b"u" * 8)
    decision.adapters.add(adapter_id="a", weight=1)
    part: JoinPartition[str] = JoinPartition(0, 1, [], silent={"t"})
    plan = part.plan([Received(DECISIONS, 0, 0, 0, b"d1", decision.SerializeToString(), "", 0)], 10)
    assert not plan.entries["d1"].context
    assert not plan.entries["d1"].user


def test_another_event_of_the_same_decision_or_outcome_changes_nothing() -> None:
    join = _Join()
    join.take(_decision(1), _outcome(1))
    assert join.take(_decision(1, adapters="z", offset=1), _outcome(1, False, offset=1)) == []


def test_a_replayed_event_has_the_same_effects_again_after_a_restart_too() -> None:
    join = _Join()
    first = join.take(_decision(1), _outcome(1))
    assert join.take(_decision(1), _outcome(1)) == first
    join.restart()
    assert [*join.take(_outcome(1)), *join.take(_decision(1))] == [*first[2:], *first[:2]]
    assert join.take(_outcome(1), _decision(1)) == first, "of one batch, decisions go first"


def test_an_early_verdict_travels_with_the_decision_in_a_replay_too() -> None:
    join = _Join()
    both = join.take(_outcome(1), _decision(1))
    assert join.take(_decision(1), _outcome(1)) == both


def test_a_repeated_early_outcome_keeps_the_first_verdict() -> None:
    join = _Join()
    assert join.take(_outcome(1, True), _outcome(1, False, offset=1)) == []
    assert [one.success for one in join.take(_decision(1))] == [True, True]


def test_an_outcome_of_another_tenant_is_refused() -> None:
    join = _Join()
    join.take(_decision(1))
    with pytest.raises(InvalidArgument, match=r"^tenant: 'u' did not ask for this decision; "):
        join.take(_outcome(1, tenant="u"))


def test_an_early_outcome_of_another_tenant_neither_counts_nor_displaces_the_owners() -> None:
    join = _Join()
    join.take(_outcome(1, False, tenant="u"), _outcome(2, False, tenant="u"), _outcome(2, True, offset=1))
    effects = join.take(_decision(1), _decision(2, offset=1))
    assert [one.HasField("success") for one in effects] == [False, False, True, True]
    assert all(one.success for one in effects[2:])
    assert len(join.take(_outcome(1, True, offset=2))) == 2


def test_claims_on_a_decision_that_has_not_come_are_bounded() -> None:
    join = _Join()
    join.take(*(_outcome(1, tenant=f"u{number}", offset=number) for number in range(MAX_CLAIMS)))
    with pytest.raises(InvalidArgument, match=r"^tenant: 't' is one of too many that claim a decision that has not come; at most 4 may$"):
        join.take(_outcome(1))


def test_a_key_that_is_not_the_decisions_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"^key: of the message is b'other', its value names 'd1'; "):
        _Join().take(_decision(1)._replace(key=b"other"))


@pytest.mark.parametrize("name", ["", "a/b"])
def test_a_decision_for_what_can_be_no_adapter_is_refused_whole(name: str) -> None:
    message = router_pb2.Decision(decision_id="d1", tenant="t")
    message.adapters.extend(common_pb2.WeightedAdapter(adapter_id=one, weight=0.5) for one in ("a", name))
    plan = _Join().part.plan([Received(DECISIONS, 0, 0, 0, b"d1", message.SerializeToString(), "", 0)], 0)
    assert (plan.entries, plan.effects) == ({}, [])
    assert str(plan.refused[0][1]) == f"adapters[1].adapter_id: {name!r} names no adapter; name the id that the registry gave"


def test_a_decision_compared_with_what_can_be_no_adapter_is_refused_whole() -> None:
    message = router_pb2.Decision(decision_id="d1", tenant="t")
    message.adapters.add(adapter_id="a", weight=1.0, trial=common_pb2.TrialSide(control_of="x/y"))
    plan = _Join().part.plan([Received(DECISIONS, 0, 0, 0, b"d1", message.SerializeToString(), "", 0)], 0)
    assert (plan.entries, plan.effects) == ({}, [])
    assert str(plan.refused[0][1]).startswith("adapters[0].trial.control_of: 'x/y' names no adapter; ")


def test_an_outcome_that_its_sender_placed_elsewhere_is_sent_on() -> None:
    right = partition_of(b"d1", 4)
    for partition in range(4):
        part: JoinPartition[str] = JoinPartition(partition, 4, [])
        one = _outcome(1, partition=partition)
        plan = part.plan([one], 0)
        assert (plan.misplaced, bool(plan.entries)) == (([], True) if partition == right else ([one], False))


def test_an_outcome_whose_decision_does_not_come_is_put_aside_as_it_came() -> None:
    join = _Join()
    late, waits = _outcome(1, False, offset=7), _outcome(2, offset=8)
    join.take(late, _decision(3), now_us=10)
    join.take(waits, now_us=20)
    join.restart()
    assert list(join.part.unmatched(older_than_us=11)) == [late]
    join.write(join.part.forgotten(["d1"]))
    for _ in range(2):
        assert list(join.part.unmatched(older_than_us=100)) == [waits]
        join.restart()


def test_old_decisions_are_forgotten_with_their_segments() -> None:
    join = _Join()
    for number in range(10):
        join.take(_decision(number, offset=number), now_us=number * SECOND_US)
    join.part.forget(older_than_us=4 * SECOND_US, max_bytes=1 << 30)
    join.sweep()
    assert len(join.part) == len(join.log) == 6
    join.restart()
    assert len(join.part) == 6
    assert join.take(_outcome(2)) == []
    assert len(join.take(_outcome(7))) == 2


def test_more_open_decisions_than_fit_lose_the_oldest() -> None:
    join = _Join()
    for number in range(100):
        join.take(_decision(number, offset=number))
    most = join.part.held_bytes // 2
    join.part.forget(older_than_us=0, max_bytes=most)
    assert join.part.held_bytes <= most
    assert 45 <= len(join.part) <= 50
    assert len(join.take(_outcome(99))) == 2
    join.part.forget(older_than_us=1 << 60, max_bytes=1 << 30)
    assert (len(join.part), join.part.held_bytes) == (0, 0)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_a_restart_at_any_moment_changes_nothing(data: st.DataObject) -> None:
    """The store made of the log behaves like the one that wrote it, whatever was rewritten, forgotten and deleted in between."""
    join, twin = _Join(), _Join()
    now = 0
    for offset in range(data.draw(st.integers(1, 12))):
        now += data.draw(st.integers(0, 3)) * SECOND_US
        number = data.draw(st.integers(0, 4))
        step = data.draw(st.sampled_from(["decision", "outcome", "forget", "unmatched"]))
        for one in (join, twin):
            if step == "decision":
                one.take(_decision(number, offset=offset), now_us=now)
            elif step == "outcome":
                one.take(_outcome(number, offset=offset), now_us=now)
            elif step == "forget":
                one.part.forget(now - 5 * SECOND_US, 1 << 30)
                one.sweep()
            else:
                one.write(one.part.forgotten({late.key.decode() for late in one.part.unmatched(now - 2 * SECOND_US)}))
        twin.restart()
    probes = [probe(number, offset=90 + number) for number in range(5) for probe in (_outcome, _decision)]
    assert twin.take(*probes, now_us=now) == join.take(*probes, now_us=now)


Record: TypeAlias = tuple[bool, int, bool]  # (is a decision, number of the decision, verdict)
Lane: TypeAlias = tuple[bool, int]


def _used_by(number: int) -> str:
    return "".join(name for bit, name in enumerate("abc") if (number + 1) >> bit & 1)


class _Worker:
    """What one owner of the partitions has in memory."""

    def __init__(self, world: _World) -> None:
        self.joins = {p: JoinPartition[str](p, 2, [(n, v) for q, n, v in world.changelog() if q == p]) for p in (0, 1)}


class _World:
    """Two topics of two partitions, the join's changelog by generation, and the counter behind it."""

    def __init__(self, logs: dict[Lane, list[Record]]) -> None:
        self.logs = logs
        self.written: list[tuple[int, int, str, bytes]] = []
        self.counter = CountPartition(HALF_LIFE_S, {})
        self.offset = 0

    def changelog(self) -> list[tuple[int, str, bytes]]:
        return [(partition, name, value) for _, partition, name, value in sorted(self.written, key=lambda one: (one[0], one[2]))]

    def read(self, lane: Lane, offset: int) -> Received:
        is_decision, number, success = self.logs[lane][offset]
        if is_decision:
            return _decision(number, adapters=_used_by(number), offset=offset, partition=lane[1])
        return _outcome(number, success, offset=offset, partition=lane[1])

    def write(self, worker: _Worker, generation: int, lane: Lane, offset: int) -> list[Event]:
        """The first half of a step: state, which is durable; the effects are the second half's."""
        part = worker.joins[lane[1]]
        plan = part.plan([self.read(lane, offset)], 0)
        name = f"{len(self.written):06d}"
        entries = list(plan.entries.values())
        self.written.append((generation, lane[1], name, segment_of(entries)))
        part.apply(name, entries)
        return plan.effects

    def emit(self, effects: list[Event]) -> None:
        self.offset += 1
        plan = self.counter.plan([Received(ADAPTER_OUTCOMES, 0, self.offset, 0, e.key, e.value, "", 0) for e in effects], 0)
        assert not plan.refused
        self.counter.apply(plan)

    def totals(self) -> dict[str, tuple[int, int, float]]:
        found = {}
        for name in self.counter:
            counts = self.counter.get(name)
            assert counts is not None
            tally = counts.tenants["t"]
            found[name] = (tally.uses, tally.outcomes, tally.successes)
        return found


def _truth(verdicts: list[bool | None]) -> dict[str, tuple[int, int, float]]:
    totals: dict[str, tuple[int, int, float]] = {}
    for number, verdict in enumerate(verdicts):
        for name in _used_by(number):
            uses, outcomes, successes = totals.get(name, (0, 0, 0))
            totals[name] = (uses + 1, outcomes + (verdict is not None), successes + {None: 0.0, True: 0.75, False: 0.25}[verdict])
    return totals


def _draw_world(data: st.DataObject) -> tuple[_World, list[bool | None]]:
    verdicts = data.draw(st.lists(st.sampled_from([None, True, False]), min_size=1, max_size=6))
    records: list[Record] = [(True, number, False) for number in range(len(verdicts))]
    records += [(False, number, verdict) for number, verdict in enumerate(verdicts) if verdict is not None]
    again = data.draw(st.lists(st.sampled_from(records), max_size=5))
    logs: dict[Lane, list[Record]] = {(kind, partition): [] for kind in (True, False) for partition in (0, 1)}
    for record in data.draw(st.permutations(records + again)):
        logs[record[0], partition_of(f"d{record[1]}".encode(), 2)].append(record)
    # A repeated outcome may say something else; which of them came first is the truth.
    first = {one[1]: one[2] for partition in (0, 1) for one in reversed(logs[False, partition])}
    return _World(logs), [first.get(number) for number in range(len(verdicts))]


def _any_order(data: st.DataObject, at: dict[Lane, int], logs: dict[Lane, list[Record]]) -> Lane | None:
    open_lanes = [lane for lane, log in logs.items() if at[lane] < len(log)]
    return data.draw(st.sampled_from(open_lanes)) if open_lanes else None


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_any_interleaving_with_restarts_and_replays_counts_the_truth(data: st.DataObject) -> None:
    """Crashes come between state and effects too; what was not committed is read again, in another order of lanes."""
    world, verdicts = _draw_world(data)
    worker, generation = _Worker(world), 1
    at, committed = dict.fromkeys(world.logs, 0), dict.fromkeys(world.logs, 0)
    crashes = 4
    while (lane := _any_order(data, at, world.logs)) is not None:
        effects = world.write(worker, generation, lane, at[lane])
        if crashes and data.draw(st.integers(0, 3)) == 0:
            crashes -= 1
            if data.draw(st.booleans()):
                world.emit(effects)
            worker, generation, at = _Worker(world), generation + 1, dict(committed)
            continue
        for _ in range(data.draw(st.integers(1, 2))):
            world.emit(effects)
        at[lane] += 1
        if data.draw(st.booleans()):
            committed = dict(at)
    assert world.totals() == _truth(verdicts)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_a_worker_that_was_replaced_while_paused_changes_nothing(data: st.DataObject) -> None:
    """The old worker stops between two steps of its batch. If its membership was confirmed, its successor has read its state, and its
    effects come late. If not, its state comes late, after its successor has begun, and its effects never.
    """
    world, verdicts = _draw_world(data)
    old = _Worker(world)
    at = dict.fromkeys(world.logs, 0)
    for _ in range(data.draw(st.integers(0, 6))):
        if (lane := _any_order(data, at, world.logs)) is not None:
            world.emit(world.write(old, 1, lane, at[lane]))
            at[lane] += 1
    committed = dict(at)
    batch = []
    for _ in range(data.draw(st.integers(0, 4))):
        if (lane := _any_order(data, at, world.logs)) is not None:
            batch.append((lane, at[lane]))
            at[lane] += 1
    confirmed = data.draw(st.booleans())
    late: list[Event] = []
    if confirmed:
        for lane, offset in batch:
            late += world.write(old, 1, lane, offset)
    new = _Worker(world)
    at, done = dict(committed), 0
    wakes = data.draw(st.integers(0, 12))
    dies = data.draw(st.integers(0, 12))
    settled = dict(committed)
    while (lane := _any_order(data, at, world.logs)) is not None:
        if done == wakes:
            if confirmed:
                world.emit(late)
            else:
                for place in batch:
                    world.write(old, 1, *place)
        if done == dies:
            new, at = _Worker(world), dict(settled)
            done += 1
            continue
        world.emit(world.write(new, 2, lane, at[lane]))
        at[lane] += 1
        done += 1
        if data.draw(st.booleans()):
            settled = dict(at)
    assert world.totals() == _truth(verdicts)


def test_effects_are_keyed_by_their_adapter() -> None:
    plan = JoinPartition[str](0, 1, []).plan([_decision(1)], 0)
    assert [one.key for one in plan.effects] == [b"a", b"b"]
    assert plan.effects[0] == event(ADAPTER_OUTCOMES, "a", AdapterOutcome.FromString(plan.effects[0].value))


def test_a_large_plan_is_split_into_segments_that_a_broker_takes() -> None:
    plan = JoinPartition[str](0, 1, []).plan([_decision(number, offset=number) for number in range(500)], 0)
    groups = plan.split(2_000)
    assert [entry for group in groups for entry in group] == list(plan.entries.values())
    assert len(groups) > 5
    assert max(len(segment_of(group)) for group in groups) < 3_000


def test_a_letter_fits_into_a_message() -> None:
    one = _outcome(1)._replace(value=b"x" * 1_100_000)
    kept = letter(one, "because", 5)
    assert kept.value == b"x" * MAX_KEPT_BYTES
    assert kept.reason == "because (its first 900,000 of 1,100,000 bytes are kept)"
