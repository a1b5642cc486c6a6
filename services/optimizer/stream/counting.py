"""Counting: one adapter's statistics, as functions that change a protobuf value in place, and one partition's store of them.

Beside lifetime counts there are recent ones, in which an event weighs half as much after each half-life (forward decay: Cormode et al.,
"Forward decay", ICDE 2009, with the newest event as its landmark). Sums of such weights do not depend on the order in which events come.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from services.optimizer.policy.incidents import FRESH_HALF_LIFE_S
from services.optimizer.stream.examples import ExamplePartition
from services.optimizer.stream.isolating import without_failing
from services.optimizer.stream.joining import check_key
from smoa.errors import InvalidArgument
from smoa.events import Received, decode
from smoa.v1.events_pb2 import AdapterOutcome, Example, UsageEvent
from smoa.v1.state_pb2 import AdapterCounts, CountsEpoch, ExampleSet, Span, Tally, TrialPairs
from smoa.verdicts import Standing

MAX_TENANTS, MAX_TASKS = 256, 32
"""Those of one adapter that are counted by themselves; the least of them give their place to new ones, and share one."""
MAX_STRATA: Final = 256
"""Tenants and parents for which a merge's child is judged apart."""
EXAMPLES_OF: Final = "examples/"
"""Before a key: the changelog's name of its examples."""
EPOCH: Final = "epoch/"
"""The changelog's name of what a partition's counts are called. No adapter's name has a slash."""
SUMMED: Final = (
    *("uses", "verdicts", "outcomes", "successes", "aside_outcomes", "aside_successes"),
    *("generations", "tokens", "first_token_us"),
)
"""Lifetime counts of a view."""
OTHERS: Final = ""
"""The view that those past the bound share."""
FRESH_HALF_LIFE_US: Final = 1e6 * FRESH_HALF_LIFE_S
INCIDENT_GAP_US: Final = int(3600e6)
"""What is set aside after so long is of another incident."""
MAX_TOGETHER: Final = 16
MAX_PRODUCERS: Final = 64
"""Executors whose last usage event an adapter remembers."""


def decay(tally: Tally, at_us: int, half_life_us: float) -> float:
    """Bring the recent counts to `at_us` if that is later; returns what an event of `at_us` weighs in them."""
    before_us = tally.recent_at_us
    if at_us < before_us:
        return float(0.5 ** ((before_us - at_us) / half_life_us))
    if before_us and at_us > before_us:
        factor = 0.5 ** ((at_us - before_us) / half_life_us)
        tally.recent_uses *= factor
        if tally.recent_outcomes:
            tally.recent_outcomes *= factor
            tally.recent_successes *= factor
        if tally.fresh_outcomes:
            fresh = 0.5 ** ((at_us - before_us) / FRESH_HALF_LIFE_US)
            tally.fresh_outcomes *= fresh
            tally.fresh_successes *= fresh
    tally.recent_at_us = at_us
    return 1.0


def count_outcome(counts: AdapterCounts, effect: AdapterOutcome, half_life_us: float, now_us: int, *, aside: bool = False) -> bool:
    """Count a use or a verdict, once; False if it was counted before. `aside`: of an incident, by which no adapter is judged."""
    lane = f"{effect.source_topic}:{effect.source_partition}"
    if effect.source_position <= counts.applied.get(lane, -1):
        return False
    counts.applied[lane] = effect.source_position
    at_us = min(effect.occurred_at_us or now_us, now_us)  # a clock that is ahead must not age the rest
    used, judged, success = effect.used, int(effect.HasField("success")), 0.0
    if corrects := effect.HasField("corrects"):
        aside = _was_set_aside(counts, effect.tenant, at_us)
        judged, success = change_of(effect)
    elif judged:
        success = verdict_of(effect)
        if aside:
            _set_aside(counts, effect.tenant, at_us)
    if effect.HasField("trial"):
        _count_trial(counts, effect, aside)
        if effect.trial.control:
            return True  # it was not used: its parents were
    said = judged or corrects
    tally = _view(counts.tenants, effect.tenant, MAX_TENANTS)
    count_recent(tally, at_us, half_life_us, used=used, judged=judged, success=success, aside=aside)
    tallies = (tally, _view(counts.tasks, effect.task_id, MAX_TASKS)) if effect.task_id else (tally,)
    for one in tallies:
        if used:
            one.uses += 1
        if said:
            one.verdicts += 1
            one.outcomes += judged
            one.successes += success
            if aside:
                one.aside_outcomes += judged
                one.aside_successes += success
            if corrects:
                _keep_sane(one)
    if used and effect.together:
        together = counts.together
        for other in effect.together:
            _count_frequent(together, other)
    return True


def pair(pairs: TrialPairs, verdict: float, *, of_child: bool) -> None:
    """Take one more verdict into a trial's difference sequence: each of the child's with the mean of the parent's since the last pair."""
    if of_child:
        pairs.waiting_child += 1
        pairs.waiting_child_sum += verdict
    else:
        pairs.waiting_parent += 1
        pairs.waiting_parent_sum += verdict
    if pairs.waiting_child and pairs.waiting_parent:
        child = pairs.waiting_child_sum / pairs.waiting_child
        pairs.pairs += 1
        pairs.child += child
        pairs.parent += pairs.waiting_parent_sum / pairs.waiting_parent
        pairs.waiting_child -= 1
        pairs.waiting_child_sum -= child
        pairs.waiting_parent, pairs.waiting_parent_sum = 0, 0.0


def _keep_sane(tally: Tally) -> None:
    """A correction may be of what these counts do not hold: they were lost, or it was counted elsewhere. No count is under zero by it."""
    tally.outcomes = max(tally.outcomes, 0)
    tally.successes = min(max(tally.successes, 0.0), tally.outcomes)
    tally.aside_outcomes = min(max(tally.aside_outcomes, 0), tally.outcomes)
    tally.aside_successes = min(max(tally.aside_successes, 0.0), tally.aside_outcomes)


def revise(pairs: TrialPairs, change: float, outcomes: int, *, of_child: bool) -> None:
    """Take what a verdict has changed by into a trial's difference sequence, whose pairs hold the mean of each side's `outcomes`, as far as
    they do not wait.
    """
    each = change / max(outcomes, 1)
    if of_child:
        pairs.child = min(max(pairs.child + each * min(pairs.pairs, outcomes), 0.0), pairs.pairs)
        pairs.waiting_child_sum = min(max(pairs.waiting_child_sum + each * pairs.waiting_child, 0.0), pairs.waiting_child)
    else:
        pairs.parent = min(max(pairs.parent + each * min(pairs.pairs, outcomes), 0.0), pairs.pairs)
        pairs.waiting_parent_sum = min(max(pairs.waiting_parent_sum + each * pairs.waiting_parent, 0.0), pairs.waiting_parent)


def verdict_of(effect: AdapterOutcome) -> float:
    """In [0, 1], a multiple of 2^-20; 0 without a verdict."""
    if not effect.HasField("success"):
        return 0.0
    return Standing(effect.success, effect.score if effect.HasField("score") else None).value


def change_of(effect: AdapterOutcome) -> tuple[int, float]:
    """By how much outcomes and successes change: a correction takes back what was counted before it."""
    before = effect.corrects.verdict if effect.HasField("corrects") else 0.0
    return effect.HasField("success") - effect.HasField("corrects"), verdict_of(effect) - before


def _set_aside(counts: AdapterCounts, tenant: str, at_us: int) -> None:
    if tenant not in counts.aside or at_us > counts.aside[tenant].until_us + INCIDENT_GAP_US:
        if tenant not in counts.aside and len(counts.aside) >= MAX_TENANTS:
            del counts.aside[min(counts.aside, key=lambda one: (counts.aside[one].until_us, one))]
        counts.aside[tenant].CopyFrom(Span(since_us=at_us, until_us=at_us))
    span = counts.aside[tenant]
    span.since_us, span.until_us = min(span.since_us, at_us), max(span.until_us, at_us)


def _was_set_aside(counts: AdapterCounts, tenant: str, at_us: int) -> bool:
    return tenant in counts.aside and counts.aside[tenant].since_us <= at_us <= counts.aside[tenant].until_us


def _count_trial(counts: AdapterCounts, effect: AdapterOutcome, aside: bool) -> None:
    """Of a decision of a child's trial, on either side."""
    trial = effect.trial
    side = counts.control if trial.control else counts.stood_for
    judged, success = (0, 0.0) if aside else change_of(effect)
    for parent in trial.parents:
        tally = _view(side, key := stratum_key(effect.tenant, parent), MAX_STRATA)
        tally.uses += effect.used
        before = tally.outcomes
        tally.outcomes += judged
        tally.successes += success
        if effect.HasField("corrects"):
            _keep_sane(tally)
        if aside or (key not in counts.pairs and len(counts.pairs) >= MAX_STRATA):
            continue
        if effect.HasField("corrects"):  # what is taken back counts as its side's mean: the pair stays, and says nothing of its own
            mean = tally.successes / tally.outcomes if judged < 0 and tally.outcomes else 0.0
            revise(counts.pairs[key], success + mean, before, of_child=not trial.control)
        elif judged:
            pair(counts.pairs[key], verdict_of(effect), of_child=not trial.control)
    if effect.used and trial.share:
        draws, share = counts.draws, trial.share
        draws.drawn += 1
        draws.child += not trial.control
        draws.expected += share
        draws.variance += share * (1 - share)


def count_recent(tally: Tally, at_us: int, half_life_us: float, *, used: bool, judged: int, success: float, aside: bool = False) -> None:
    """Count a use, or what a verdict of `at_us` changed, in what fades."""
    weight = decay(tally, at_us, half_life_us)
    if judged or success:
        fresh = 1.0 if weight == 1.0 else 0.5 ** ((tally.recent_at_us - at_us) / FRESH_HALF_LIFE_US)
        tally.fresh_outcomes += fresh * judged
        tally.fresh_successes += fresh * success
        if not aside:
            tally.recent_outcomes += weight * judged
            tally.recent_successes += weight * success
    if used:
        tally.recent_uses += weight
        if (last_us := tally.last_used_at_us) and at_us - last_us > tally.longest_gap_us:
            tally.longest_gap_us = at_us - last_us
        if at_us > last_us:
            tally.last_used_at_us = at_us


def stratum_key(tenant: str, parent: str) -> str:
    """What the verdicts of a tenant are known by where a child on trial stood for a parent."""
    return f"{tenant}/{parent}"


def count_usage(counts: AdapterCounts, usage: UsageEvent, producer_id: str, sequence: int, now_us: int) -> bool:
    """Count what an executor ran, once (a repeated send keeps its number); False if it was counted before."""
    if producer_id in counts.producers:
        if sequence <= counts.producers[producer_id].sequence:
            return False
    elif len(counts.producers) >= MAX_PRODUCERS:
        del counts.producers[min(counts.producers, key=lambda one: (counts.producers[one].seen_at_us, one))]
    producer = counts.producers[producer_id]
    producer.sequence, producer.seen_at_us = sequence, now_us
    tally = _view(counts.tenants, usage.tenant, MAX_TENANTS)
    tally.generations += 1
    tally.tokens += usage.tokens
    tally.first_token_us += usage.first_token_us
    return True


def _view(views: MutableMapping[str, Tally], name: str, most: int) -> Tally:
    if name not in views and len(views) >= most:
        least = min((one for one in views if one), key=lambda one: (views[one].uses, one))
        others, gone = views[OTHERS], views[least]
        add_sums(others, gone)
        del views[least]
    return views[name]


def _count_frequent(frequent: MutableMapping[str, int], name: str) -> None:
    """Space-saving (Metwally et al., ICDT 2005): the rarest gives its place, and its count, to a new one."""
    if name not in frequent and len(frequent) >= MAX_TOGETHER:
        rarest = min(frequent, key=lambda one: (frequent[one], one))
        frequent[name] = frequent[rarest]
        del frequent[rarest]
    frequent[name] = frequent.get(name, 0) + 1


def add_sums(total: Tally, one: Tally) -> None:
    """Add what was counted in all."""
    for name in SUMMED:
        setattr(total, name, getattr(total, name) + getattr(one, name))


def totals(views: Iterable[Tally], half_life_us: float) -> Tally:
    """The sum of some views, as of the newest of them."""
    found = list(views)
    total = Tally(recent_at_us=max((one.recent_at_us for one in found), default=0))
    for one in found:
        add_sums(total, one)
        factor = 0.5 ** ((total.recent_at_us - one.recent_at_us) / half_life_us)
        total.recent_uses += one.recent_uses * factor
        total.recent_outcomes += one.recent_outcomes * factor
        total.recent_successes += one.recent_successes * factor
        fresh = 0.5 ** ((total.recent_at_us - one.recent_at_us) / FRESH_HALF_LIFE_US)
        total.fresh_outcomes += one.fresh_outcomes * fresh
        total.fresh_successes += one.fresh_successes * fresh
        total.last_used_at_us = max(total.last_used_at_us, one.last_used_at_us)
        total.longest_gap_us = max(total.longest_gap_us, one.longest_gap_us)  # whoever comes back once a year is waited for
    return total


@dataclass
class CountPlan:
    """What some events come to, before anything of it is so."""

    counts: dict[str, AdapterCounts] = field(default_factory=dict)
    examples: dict[str, bytes | None] = field(default_factory=dict)
    values: dict[str, bytes | None] = field(default_factory=dict)
    """Both, as the changelog is to say it by name; None where it is to say nothing any more."""
    refused: list[tuple[Received, InvalidArgument]] = field(default_factory=list)

    @classmethod
    def of_examples(cls, examples: Mapping[str, bytes | None]) -> CountPlan:
        """A plan that changes only these sets."""
        return cls(examples=dict(examples), values={f"{EXAMPLES_OF}{key}": value for key, value in examples.items()})


def check_value(name: str, value: bytes) -> None:
    """Refuse a value of the changelog that is none.

    Raises:
        DecodeError: it is not what its name says.
    """
    if name == EPOCH:
        CountsEpoch.FromString(value)
    elif name.startswith(EXAMPLES_OF):
        for one in ExampleSet.FromString(value).examples:
            Example.FromString(one)
    else:
        AdapterCounts.FromString(value)


class CountPartition:
    """The counts and the examples of one partition's adapters."""

    def __init__(
        self,
        half_life_s: float,
        values: Mapping[str, bytes],
        example_bytes: int = 0,
        retention_s: float = 0.0,
        silent: Container[str] = frozenset(),
    ) -> None:
        """`values` by name, as a plan's values are; room for examples, how long they are kept, and tenants that have none."""
        self._half_life_us = half_life_s * 1e6
        self._values = {name: value for name, value in values.items() if "/" not in name}
        self.epoch = CountsEpoch.FromString(values[EPOCH]) if EPOCH in values else None
        """What the counts are called, and since when they hold everything; None in a changelog that has just begun."""
        kept = {name.removeprefix(EXAMPLES_OF): value for name, value in values.items() if name.startswith(EXAMPLES_OF)}
        self.examples = ExamplePartition(example_bytes, retention_s, kept, silent)

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def get(self, adapter_id: str) -> AdapterCounts | None:
        """An adapter's counts."""
        value = self._values.get(adapter_id)
        return None if value is None else AdapterCounts.FromString(value)

    def __contains__(self, name: object) -> bool:
        """Whether the changelog is to say something by this name."""
        if name == EPOCH:
            return self.epoch is not None
        if isinstance(name, str) and name.startswith(EXAMPLES_OF):
            return self.examples.value(name.removeprefix(EXAMPLES_OF)) is not None
        return name in self._values

    def plan(self, events: Sequence[Received], now_us: int, aside: Container[str] = frozenset()) -> CountPlan:
        """What the events come to; nothing is changed. Verdicts of tenants in `aside` are set aside."""
        plan, left_out = without_failing(lambda these: self._plan(these, now_us, aside), events)
        plan.refused += left_out
        return plan

    def _plan(self, events: Sequence[Received], now_us: int, aside: Container[str]) -> CountPlan:
        plan = CountPlan()
        fresh: dict[str, AdapterCounts] = {}
        examples: list[Example] = []
        for one in events:
            try:
                message = decode(one.topic, one.value)
                if isinstance(message, Example):
                    check_key(one, message.key)
                    examples.append(message)
                    continue
                assert isinstance(message, AdapterOutcome | UsageEvent)
                adapter_id = message.adapter_id
                check_key(one, adapter_id)
                if "/" in adapter_id:
                    raise InvalidArgument("adapter_id", f"{adapter_id[:80]!r} has a slash", "name the id that the registry gave")
                if isinstance(message, AdapterOutcome) and message.taught:
                    continue
                if (counts := fresh.get(adapter_id)) is None:
                    counts = fresh[adapter_id] = self.get(adapter_id) or AdapterCounts()
                if isinstance(message, AdapterOutcome):
                    changed = count_outcome(counts, message, self._half_life_us, now_us, aside=message.tenant in aside)
                else:
                    changed = count_usage(counts, message, *_sender(one), now_us)
                if changed:
                    plan.counts[adapter_id] = counts
            except InvalidArgument as error:
                plan.refused.append((one, error))
        plan.values.update((adapter_id, counts.SerializeToString()) for adapter_id, counts in plan.counts.items())
        if examples:
            of_examples = CountPlan.of_examples(self.examples.plan(examples, now_us))
            plan.examples = of_examples.examples
            plan.values.update(of_examples.values)
        return plan

    def apply(self, plan: CountPlan) -> None:
        """Take what is durable."""
        self._values.update((adapter_id, value) for adapter_id in plan.counts if (value := plan.values[adapter_id]) is not None)
        self.examples.apply(plan.examples)


def _sender(one: Received) -> tuple[str, int]:
    if not one.producer_id:
        raise InvalidArgument("smoa-producer", "and smoa-sequence do not name the event", "send usage through the spool")
    return one.producer_id, one.sequence
