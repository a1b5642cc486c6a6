"""Corrected, late and withdrawn verdicts, and several sources: what is counted is what stands, whatever is sent again."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.optimizer.control.reporting import statistics_of
from services.optimizer.stream.counting import CountPartition, pair, revise, totals
from services.optimizer.stream.effects import FAILURES
from services.optimizer.stream.joining import JoinPartition, segment_of
from smoa.errors import InvalidArgument
from smoa.events import DECISIONS, OUTCOMES, Received
from smoa.v1 import common_pb2, router_pb2
from smoa.v1.feedback_pb2 import Outcome
from smoa.v1.state_pb2 import AdapterCounts, CountsEpoch, Tally, TrialPairs
from smoa.verdicts import MAX_VERDICTS, Standing, is_new, source_weights, standing

DECIDED_AT_US = 10**9
HALF_LIFE_S = 100.0
WEIGHTS = {"judge": 0.5, "rumour": 0.0}


def _said(success: bool = True, revision: int = 0, *, source: str = "", score: float | None = None, withdrawn: bool = False) -> Outcome:
    return Outcome(
        decision_id="d",
        tenant="t",
        success=success,
        score=score,
        source=source,
        revision=revision,
        withdrawn=withdrawn,
        reported_at_us=DECIDED_AT_US + 10 + revision,
        input="i",
        output="o" if success else "",
        corrected_output="" if success else f"c{revision}",
    )


class _Loop:
    """A join and a count, of one partition each; a restart forgets everything but the changelogs."""

    def __init__(self) -> None:
        self.log: list[tuple[int, bytes]] = []
        self.kept: dict[str, bytes] = {}
        self.restart()

    def restart(self, weights: Mapping[str, float] = WEIGHTS) -> None:
        self.join: JoinPartition[int] = JoinPartition(0, 1, self.log, weights=weights)
        self.count = CountPartition(HALF_LIFE_S, self.kept, 2**20, 1e9)

    def take(self, *events: Received, aside: Sequence[str] = ()) -> None:
        plan = self.join.plan(list(events), DECIDED_AT_US)
        if plan.refused:
            raise plan.refused[0][1]
        name = len(self.log)
        self.log.append((name, segment_of(plan.entries.values())))
        self.join.apply(name, list(plan.entries.values()))
        effects = [Received(one.topic, 0, 0, 0, one.key, one.value, "", 0) for one in plan.effects]
        counted = self.count.plan(effects, DECIDED_AT_US * 2, aside)
        assert not counted.refused
        self.kept |= {key: value for key, value in counted.values.items() if value is not None}
        for key in [key for key, value in counted.values.items() if value is None]:
            self.kept.pop(key, None)
        self.count.apply(counted)

    def counts(self, adapter_id: str = "a") -> AdapterCounts:
        return self.count.get(adapter_id) or AdapterCounts()

    def tally(self) -> Tally:
        return self.counts().tenants["t"]

    def examples(self, key: str) -> list[str]:
        return [one.output for one in self.count.examples.get(key, DECIDED_AT_US)]


def _decided(position: int = 0, trial: common_pb2.TrialSide | None = None) -> Received:
    decision = router_pb2.Decision(decision_id="d", tenant="t", decided_at_us=DECIDED_AT_US, task_id="job")
    decision.adapters.add(adapter_id="a", weight=1.0)
    if trial is not None:
        decision.adapters[0].trial.CopyFrom(trial)
    return Received(DECISIONS, 0, position, 0, b"d", decision.SerializeToString(), "", 0)


def _event(outcome: Outcome, position: int) -> Received:
    return Received(OUTCOMES, 0, position, 0, b"d", outcome.SerializeToString(), "", 0)


def _after(*outcomes: Outcome) -> _Loop:
    loop = _Loop()
    loop.take(_decided())
    for position, one in enumerate(outcomes, 1):
        loop.take(_event(one, position))
    return loop


def test_a_correction_takes_the_place_of_what_it_corrects() -> None:
    loop = _after(_said(True), _said(False, 1))
    assert (loop.tally().outcomes, loop.tally().successes, loop.tally().verdicts) == (1, 0.0, 2)
    assert (loop.counts().tasks["job"].outcomes, loop.counts().tasks["job"].successes) == (1, 0.0)
    assert loop.tally().recent_outcomes == pytest.approx(1.0)
    assert loop.tally().recent_successes == pytest.approx(0.0)


def test_what_is_taken_back_counts_as_never_said_and_may_be_said_again() -> None:
    loop = _after(_said(True), _said(False, 1, withdrawn=True))
    assert (loop.tally().uses, loop.tally().outcomes, loop.tally().successes) == (1, 0, 0.0)
    assert loop.tally().recent_outcomes == pytest.approx(0.0)
    again = _after(_said(True), _said(False, 1, withdrawn=True), _said(True, 2, score=0.25))
    assert (again.tally().outcomes, again.tally().successes) == (1, 0.25)


@pytest.mark.parametrize("late", [_said(False), _said(False, 3), _said(False, 2)])
def test_a_verdict_of_no_higher_revision_changes_nothing(late: Outcome) -> None:
    loop = _after(_said(True, 3), late)
    assert (loop.tally().outcomes, loop.tally().successes, loop.tally().verdicts) == (1, 1.0, 1)


def test_verdicts_of_several_sources_count_by_their_weight() -> None:
    loop = _after(_said(True, source="user"), _said(False, source="judge"), _said(False, source="rumour"))
    assert loop.tally().outcomes == 1
    assert loop.tally().successes == pytest.approx(2 / 3, abs=2**-20)
    corrected = _after(_said(True, source="user"), _said(False, source="judge"), _said(False, 1, source="user"))
    assert corrected.tally().successes == 0.0
    alone = _after(_said(True, source="judge"))
    assert (alone.tally().outcomes, alone.tally().successes) == (1, 1.0)
    assert _after(_said(True, source="rumour")).tally().outcomes == 0


def test_what_came_before_its_decision_travels_with_it_as_it_stands_then() -> None:
    loop = _Loop()
    loop.take(_event(_said(True), 1), _event(_said(False, 1), 2))
    loop.restart()
    loop.take(_decided())
    assert (loop.tally().uses, loop.tally().outcomes, loop.tally().successes) == (1, 1, 0.0)
    loop.take(_event(_said(True, 2), 3))
    assert (loop.tally().outcomes, loop.tally().successes) == (1, 1.0)


def test_examples_go_with_the_verdict_that_gave_them() -> None:
    assert _after(_said(True)).examples("a/t") == ["o"]
    wrong = _after(_said(True), _said(False, 1))
    assert (wrong.examples("a/t"), wrong.examples(f"{FAILURES}t")) == ([], ["c1"])
    better = _after(_said(False), _said(False, 1))
    assert better.examples(f"{FAILURES}t") == ["c1"]
    gone = _after(_said(True), _said(False, 1, withdrawn=True))
    assert gone.examples("a/t") == []
    disputed = _after(_said(True, source="user"), _said(False, source="judge"))
    assert (disputed.examples("a/t"), disputed.examples(f"{FAILURES}t")) == (["o"], [])


def test_a_source_that_is_left_out_gives_and_takes_nothing() -> None:
    loop = _after(_said(True, source="user"), _said(False, source="rumour"), _said(True, 1, source="rumour"))
    assert (loop.tally().outcomes, loop.tally().verdicts, loop.examples("a/t")) == (1, 1, ["o"])


def test_texts_of_a_source_go_when_it_takes_back_what_it_said_whoever_agrees() -> None:
    other = _said(True, source="judge")
    other.input = ""
    loop = _after(_said(True, source="user"), other, _said(True, 1, source="user", withdrawn=True))
    assert (loop.tally().outcomes, loop.tally().successes, loop.examples("a/t")) == (1, 1.0, [])


def test_new_weights_are_those_of_verdicts_to_come() -> None:
    loop = _after(_said(True, source="user"))
    loop.restart({"user": 0.0})
    loop.take(_event(_said(True, source="judge"), 2))
    assert (loop.tally().outcomes, loop.tally().successes) == (1, 1.0)
    loop.restart({})
    loop.take(_event(_said(True, source="user"), 1))  # a replay
    loop.take(_event(_said(False, 1, source="judge", withdrawn=True), 3))
    assert (loop.tally().outcomes, loop.tally().successes) == (1, 1.0)
    loop.take(_event(_said(False, 1, source="user", withdrawn=True), 4))
    assert (loop.tally().outcomes, loop.tally().successes) == (0, 0.0)


@pytest.mark.parametrize("correction", [_said(False, 1), _said(True, 1), _said(True, 1, withdrawn=True)])
def test_a_correction_of_what_was_counted_elsewhere_leaves_no_count_under_zero(correction: Outcome) -> None:
    loop = _Loop()
    loop.take(_decided(trial=common_pb2.TrialSide(stands_for=["p"], share=0.5)))
    loop.take(_event(_said(not correction.success), 1))
    loop.kept.clear()  # the counts are lost, and the open decisions are not
    loop.restart()
    loop.take(_event(correction, 2))
    for tally in (loop.tally(), loop.counts().stood_for["t/p"]):
        assert 0 <= tally.successes <= tally.outcomes
    told = statistics_of(loop.counts(), "t", HALF_LIFE_S, CountsEpoch(epoch="e", began_at_us=1))
    assert 0 <= told.successes <= told.outcomes
    assert told.verdicts == 1


def test_an_open_decision_fits_into_a_message_however_often_it_is_judged() -> None:
    loop, size = _Loop(), 0
    for tenant in "tuvw":
        for number in range(MAX_VERDICTS):
            said = _said(True, number, source="user")
            said.tenant, said.input, said.output, said.corrected_output = tenant, *("\U0001f600" * 8192,) * 3
            size += said.ByteSize()
            loop.take(_event(said, 100 * ord(tenant) + number))
    assert len(loop.log[-1][1]) < 500_000 < size


def test_verdicts_that_wait_for_a_pair_are_corrected_there() -> None:
    pairs = TrialPairs()
    for _ in range(10):
        pair(pairs, 1.0, of_child=True)
    pair(pairs, 1.0, of_child=False)
    for _ in range(10):
        revise(pairs, -1.0, 10, of_child=True)
    assert pairs.pairs == 1
    assert pairs.child + pairs.waiting_child_sum == pytest.approx(0.0)


def test_a_correction_of_an_incident_s_verdict_is_set_aside_as_that_was() -> None:
    loop = _Loop()
    loop.take(_decided())
    loop.take(_event(_said(False), 1), aside=["t"])
    assert (loop.tally().outcomes, loop.tally().aside_outcomes) == (1, 1)
    loop.take(_event(_said(True, 1), 2))
    tally = loop.tally()
    assert (tally.outcomes, tally.successes, tally.aside_outcomes, tally.aside_successes) == (1, 1.0, 1, 1.0)
    assert tally.recent_outcomes == 0.0
    loop.take(_event(_said(True, 2, withdrawn=True), 3))
    tally = loop.tally()
    assert (tally.outcomes, tally.aside_outcomes, tally.aside_successes) == (0, 0, 0.0)


def test_a_trial_counts_what_stands() -> None:
    loop = _Loop()
    side = common_pb2.TrialSide(stands_for=["p"], share=0.5)
    loop.take(_decided(trial=side))
    loop.take(_event(_said(True), 1))
    assert loop.counts().stood_for["t/p"].successes == 1.0
    loop.take(_event(_said(False, 1), 2))
    assert (loop.counts().stood_for["t/p"].outcomes, loop.counts().stood_for["t/p"].successes) == (1, 0.0)


def test_a_decision_is_judged_so_often_and_no_more() -> None:
    loop = _after(*(_said(bool(number % 2), number) for number in range(MAX_VERDICTS)))
    with pytest.raises(InvalidArgument, match="revision: is the decision's 17th verdict; at most 16 are counted"):
        loop.take(_event(_said(True, 99), 99))
    with pytest.raises(InvalidArgument, match="revision: is 0, and the outcome is withdrawn"):
        loop.take(_event(_said(withdrawn=True), 100))


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.lists(st.tuples(*[st.integers(0, 3)] * 4), min_size=1, max_size=12))
def test_what_is_counted_is_what_stands_whatever_is_sent_again(rng: random.Random, parts: list[tuple[int, int, int, int]]) -> None:
    """Every event may come again with what followed it, after a restart, and the decision anywhere among the verdicts."""
    sources, scores = ("", "user", "judge", "rumour"), (None, 0.3)
    said = [
        _said(bool(first % 2), revision, source=sources[source], score=scores[first // 2], withdrawn=taken == 0 < revision)
        for first, revision, source, taken in parts
    ]
    events = [_event(one, position) for position, one in enumerate(said)]
    events.insert(rng.randrange(len(events) + 1), _decided())
    loop, begin = _Loop(), 0
    while begin < len(events):
        end = rng.randint(begin + 1, len(events))
        loop.take(*events[begin:end])
        if rng.random() < 0.4:
            loop.restart()
        begin = end if rng.random() < 0.6 else rng.randint(0, end)
        if begin < end and rng.random() < 0.5:
            loop.take(*events[begin:end])
            begin = end
    taken: list[Outcome] = []
    for one in said:
        if one.source != "rumour" and is_new(one, taken):
            taken.append(one)
    stands, tally = standing(taken, WEIGHTS), loop.tally()
    assert (tally.uses, tally.outcomes) == (1, stands is not None)
    assert tally.successes == (stands.value if stands else 0.0)
    assert tally.recent_outcomes == pytest.approx(float(stands is not None), abs=0.01)


def test_counts_of_corrected_verdicts_can_be_reported() -> None:
    loop = _after(_said(True), _said(False, 1, withdrawn=True))
    told = statistics_of(loop.counts(), "t", HALF_LIFE_S, CountsEpoch(epoch="e", began_at_us=1))
    assert (told.verdicts, told.outcomes, told.successes) == (2, 0, 0.0)
    assert 0 <= told.recent_successes <= told.recent_outcomes
    assert totals([loop.tally()], HALF_LIFE_S * 1e6).verdicts == 2


@pytest.mark.parametrize("text", ["judge", "judge=", "judge=-1", "judge=nan", "judge=1e308", "=1", "judge:1"])
def test_weights_of_sources_are_refused_by_their_name(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^SMOA_OUTCOME_SOURCES: has .*write SOURCE=WEIGHT"):
        source_weights(text)


def test_weights_of_sources() -> None:
    assert source_weights(" reviewer = 2, judge-model=0.5,") == {"reviewer": 2.0, "judge-model": 0.5}
    assert standing([], {}) is None
    assert standing([_said(True, score=0.5)], {}) == Standing(success=True, score=0.5)
