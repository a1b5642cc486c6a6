"""What the policy and the trials see of the registry's entries: counts that cover what is judged by them, and nothing else.

Counts that were lost are unknown, not zero. They show in the epoch of an adapter's counts, which says since when everything is in them.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from services.optimizer.policy.guards import Spent
from services.optimizer.policy.library_policy import AdapterView
from services.optimizer.policy.trial import NO_PAIRS, NOTHING, Arm, Pairs, Stratum, Voice, with_users
from services.optimizer.stream.counting import FRESH_HALF_LIFE_US
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from smoa.v1.state_pb2 import AdapterCounts, Tally, TrialPairs

START_US: Final = 10 * 60 * 10**6
"""An optimizer that is started after the router reads what happened before from Kafka: its first epoch holds the minutes before it, too."""


def protection_of(
    adapter: registry_pb2.Adapter,
    on_trial: Container[str],
    composed: Container[str],
    counted_since_us: int | None,
    window_s: float,
    now_us: int,
) -> str:
    """Why no automatic change may touch the adapter; empty if one may.

    `counted_since_us`: since when all its uses and outcomes are counted, None if nobody knows. `window_s`: for how long they have to be, or
    since the adapter is there, before it is judged by them.
    """
    window_us = int(window_s * 1e6)
    if adapter.pinned:
        return "pinned"
    if adapter.adapter_id in on_trial:
        return "its merge is on trial"
    if adapter.adapter_id in composed:
        return "in a composition"
    if adapter.restored_at_us > now_us - window_us:
        return f"restored, and judged again after {window_s / 86400:.1f} days of new evidence"
    slack_us = START_US if len(adapter.statistics.epochs) <= 1 else 0
    judged_from_us = max(adapter.created_at_us, adapter.restored_at_us, now_us - window_us)
    if counted_since_us is None or counted_since_us > judged_from_us + slack_us:
        return f"its counts do not reach back {window_s / 86400:.1f} days, nor to its registration"
    return ""


def view_of(adapter: registry_pb2.Adapter, protected: str, half_life_s: float, now_us: int) -> AdapterView:
    """The policy's form of a registry entry: of one that was restored, what came since."""
    counts, before = adapter.statistics, adapter.restored_baseline

    def faded(statistics: registry_pb2.AdapterStatistics, value: float) -> float:
        """Decays are linear: what faded together may be faded apart."""
        return value * 0.5 ** (max(0, now_us - statistics.recent_at_us) / 1e6 / half_life_s) if statistics.recent_at_us else 0.0

    def recent(name: str) -> float:
        earlier = faded(before, getattr(before, name)) if before.epoch == counts.epoch else 0.0
        return max(0.0, faded(counts, getattr(counts, name)) - earlier)

    def fresh(value: float) -> float:
        return value * 0.5 ** (max(0, now_us - counts.recent_at_us) / FRESH_HALF_LIFE_US) if counts.recent_at_us else 0.0

    return AdapterView(
        adapter_id=adapter.adapter_id,
        digest=adapter.digest,
        tenant=adapter.tenant,
        name=adapter.name,
        kind=common.AdapterKind.Name(adapter.kind).removeprefix("ADAPTER_KIND_").lower(),
        base_model=adapter.base_model,
        rank=adapter.rank,
        modules=tuple(adapter.modules),
        age_s=(now_us - max(adapter.created_at_us, adapter.restored_at_us)) / 1e6,
        uses=max(0, counts.uses - before.uses),
        outcomes=(outcomes := max(0, _judged(counts) - _judged(before))),
        successes=min(outcomes, max(0, _right(counts) - _right(before))),
        recent_uses=recent("recent_uses"),
        recent_outcomes=(recent_outcomes := recent("recent_outcomes")),
        recent_successes=min(recent_outcomes, recent("recent_successes")),
        fresh_outcomes=(fresh_outcomes := fresh(counts.fresh_outcomes)),
        fresh_successes=min(fresh_outcomes, fresh(counts.fresh_successes)),
        unused_s=(now_us - max(counts.last_used_at_us, adapter.created_at_us, adapter.restored_at_us)) / 1e6,
        longest_gap_s=counts.longest_gap_us / 1e6,
        file_bytes=adapter.file_bytes,
        shared=adapter.shared,
        protected=protected,
        examples_digest=adapter.examples_digest,
    )


def stratum_of(
    counts: AdapterCounts, parent: registry_pb2.Adapter, began: registry_pb2.AdapterStatistics, original: Arm = NOTHING
) -> Stratum:
    """How a child on trial does for one of its parents: verdicts on decisions in which it stood for the parent, beside those, of the same
    time, in which the parent was itself; of its owner, and of the others that use it where it is shared.

    Args:
        counts: The child's, as this worker has them.
        parent: The parent now.
        began: Its counts when the trial began.
        original: What it was merged from itself, all their outcomes.
    """
    ending, voices = f"/{parent.adapter_id}", dict[str, Voice]()
    for key in {*counts.stood_for, *counts.control, *counts.pairs}:
        if key.endswith(ending) and (tenant := key.removesuffix(ending)):
            pairs = counts.pairs.get(key) or TrialPairs()
            sides = _arm(counts.stood_for.get(key)), _arm(counts.control.get(key))
            voices[tenant] = Voice(*sides, Pairs(pairs.pairs, pairs.child, pairs.parent))
    owner = voices.pop(parent.tenant, Voice(NOTHING, NOTHING, NO_PAIRS))
    return with_users(Stratum(owner.child, owner.parent, lifetime_of(began), original, owner.pairs), voices)


def _arm(tally: Tally | None) -> Arm:
    return NOTHING if tally is None else Arm(max(0, tally.outcomes), min(max(0.0, tally.successes), max(0, tally.outcomes)))


def spent_of(counts: registry_pb2.AdapterStatistics) -> Spent:
    """What an adapter's answers took, all together."""
    return Spent(counts.uses, counts.generations, counts.tokens, counts.first_token_us)


def lifetime_of(counts: registry_pb2.AdapterStatistics) -> Arm:
    """All outcomes by which an adapter may be judged."""
    return Arm(_judged(counts), min(_judged(counts), _right(counts)))


def _judged(counts: registry_pb2.AdapterStatistics) -> int:
    """Outcomes by which an adapter may be judged."""
    return max(0, counts.outcomes - counts.aside_outcomes)


def _right(counts: registry_pb2.AdapterStatistics) -> float:
    return max(0, counts.successes - counts.aside_successes)
