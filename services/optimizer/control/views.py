"""What the policy and the trials see of the registry's entries: counts that cover what is judged by them, and nothing else.

Counts that were lost are unknown, not zero. They show in the epoch of an adapter's counts, which says since when everything is in them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container
from typing import NamedTuple

from services.optimizer.policy.guards import Spent
from services.optimizer.policy.incidents import FRESH_HALF_LIFE_S
from services.optimizer.policy.library_policy import AdapterView, Family
from services.optimizer.policy.screening import START_US, Numbers
from services.optimizer.policy.trial import NO_PAIRS, NOTHING, Arm, Pairs, Stratum, Voice, with_users
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from smoa.v1.state_pb2 import AdapterCounts, Tally, TrialPairs


class Facts(NamedTuple):
    """What is kept of an active adapter."""

    adapter_id: str
    name: str
    digest: str
    family: Family
    numbers: Numbers


def facts_of(adapter: registry_pb2.Adapter, half_life_s: float) -> Facts:
    """Of a registry entry; of one that was restored, what came since. Decays are linear: what faded together may be faded apart."""
    counts, before = adapter.statistics, adapter.restored_baseline
    is_same = before.epoch == counts.epoch and before.recent_at_us > 0
    left = 0.5 ** (max(0, counts.recent_at_us - before.recent_at_us) / 1e6 / half_life_s) if is_same else 0.0
    recent_outcomes = max(0.0, counts.recent_outcomes - left * before.recent_outcomes)
    outcomes = max(0, _judged(counts) - _judged(before))
    kind = common.AdapterKind.Name(adapter.kind).removeprefix("ADAPTER_KIND_").lower()
    family = Family(adapter.tenant, adapter.shared, adapter.base_model, kind, adapter.rank, tuple(sorted(adapter.modules)))
    whose = (adapter.tenant, adapter.shared, adapter.base_model)
    return Facts(
        *(adapter.adapter_id, adapter.name, adapter.digest, family),
        Numbers(
            created_at_us=adapter.created_at_us,
            restored_at_us=adapter.restored_at_us,
            counted_since_us=counts.counted_since_us if counts.epoch else math.nan,
            uses=max(0, counts.uses - before.uses),
            outcomes=outcomes,
            successes=min(outcomes, max(0, _right(counts) - _right(before))),
            recent_at_us=counts.recent_at_us,
            recent_uses=max(0.0, counts.recent_uses - left * before.recent_uses),
            recent_outcomes=recent_outcomes,
            recent_successes=min(recent_outcomes, max(0.0, counts.recent_successes - left * before.recent_successes)),
            fresh_outcomes=counts.fresh_outcomes,
            fresh_successes=min(counts.fresh_outcomes, counts.fresh_successes),
            last_used_at_us=counts.last_used_at_us,
            longest_gap_us=counts.longest_gap_us,
            file_bytes=adapter.file_bytes,
            same_name=_number_of(*whose, adapter.name),
            same_examples=_number_of(*whose, adapter.examples_digest) if adapter.examples_digest else 0,
            pinned=adapter.pinned,
            one_epoch=len(counts.epochs) <= 1,
        ),
    )


def _number_of(*what: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=8).digest(), "big")


def protection_of(
    facts: Facts, on_trial: Container[str], composed: Container[str], counted_since_us: int | None, window_s: float, now_us: int
) -> str:
    """Why no automatic change may touch the adapter; empty if one may.

    `counted_since_us`: since when all its uses and outcomes are counted by this worker, None if it does not; the registry may know. Of
    `window_s`: for how long they have to be, or since the adapter is there, before it is judged by them.
    """
    numbers, window_us = facts.numbers, int(window_s * 1e6)
    if numbers.pinned:
        return "pinned"
    if facts.adapter_id in on_trial:
        return "its merge is on trial"
    if facts.adapter_id in composed:
        return "in a composition"
    if numbers.restored_at_us > now_us - window_us:
        return f"restored, and judged again after {window_s / 86400:.1f} days of new evidence"
    judged_from_us = max(numbers.since_us, now_us - window_us) + (START_US if numbers.one_epoch else 0)
    since_us = math.inf if counted_since_us is None else float(counted_since_us)
    if not math.isnan(numbers.counted_since_us):  # as the registry was told last, by this worker or by whose it is
        since_us = max(0.0 if counted_since_us is None else since_us, numbers.counted_since_us)
    if since_us > judged_from_us:
        return f"its counts do not reach back {window_s / 86400:.1f} days, nor to its registration"
    return ""


def view_of(facts: Facts, protected: str, half_life_s: float, now_us: int) -> AdapterView:
    """The policy's form of an adapter, as of now."""
    numbers, family = facts.numbers, facts.family
    age_us = max(0.0, now_us - numbers.recent_at_us)
    factor = 0.5 ** (age_us / 1e6 / half_life_s) if numbers.recent_at_us else 0.0
    fresh = 0.5 ** (age_us / 1e6 / FRESH_HALF_LIFE_S) if numbers.recent_at_us else 0.0
    return AdapterView(
        adapter_id=facts.adapter_id,
        digest=facts.digest,
        tenant=family.tenant,
        name=facts.name,
        kind=family.kind,
        base_model=family.base_model,
        rank=family.rank,
        modules=family.modules,
        age_s=(now_us - numbers.since_us) / 1e6,
        uses=int(numbers.uses),
        outcomes=int(numbers.outcomes),
        successes=numbers.successes,
        recent_uses=numbers.recent_uses * factor,
        recent_outcomes=numbers.recent_outcomes * factor,
        recent_successes=numbers.recent_successes * factor,
        fresh_outcomes=numbers.fresh_outcomes * fresh,
        fresh_successes=numbers.fresh_successes * fresh,
        unused_s=(now_us - max(numbers.last_used_at_us, numbers.since_us)) / 1e6,
        longest_gap_s=numbers.longest_gap_us / 1e6,
        file_bytes=int(numbers.file_bytes),
        shared=family.shared,
        protected=protected,
        examples_digest=f"{numbers.same_examples:x}" if numbers.same_examples else "",
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
