"""Counting, as pure functions from state and event to state and effects. State is small JSON, one value a Kafka key.

Exactly once is made of three parts. The join gives every decision and every outcome effect once, whatever is sent again: it remembers
which record brought what, durably, before it emits anything. What it emits names that record, and a replayed record emits the same again,
so the counter, which keeps the last offset applied of each source lane, knows it. And the shell (`stream`) acknowledges a batch only
after its effects are durable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

MAX_CLAIMS = 4
"""Tenants whose verdicts on a decision are kept before the decision itself has come."""


@dataclass(frozen=True)
class Source:
    """The Kafka record an effect comes from."""

    topic: str
    partition: int
    offset: int

    @property
    def lane(self) -> str:
        """Offsets rise along a lane."""
        return f"{self.topic}:{self.partition}"


@dataclass(frozen=True)
class Verdict:
    """An outcome, and the record that brought it."""

    success: bool
    source: Source


@dataclass(frozen=True)
class Joined:
    """What is known of one decision: who it chose and which record said so, and the first verdict of each tenant that gave one.

    Before the decision has come nobody knows whose it is, so the verdicts of a few tenants are kept. `early` says that the verdict was
    there first, and so travels with the decision: a replay in another order must not send it another way.
    """

    tenant: str = ""
    adapters: tuple[tuple[str, float], ...] | None = None
    decided_by: Source | None = None
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    early: bool = False
    first_seen_s: float = 0.0

    def encode(self) -> bytes:
        """Changelog value."""
        return json.dumps(
            {
                "tenant": self.tenant,
                "adapters": self.adapters,
                "decided_by": _source_to_json(self.decided_by),
                "verdicts": {tenant: [verdict.success, _source_to_json(verdict.source)] for tenant, verdict in self.verdicts.items()},
                "early": self.early,
                "first_seen_s": self.first_seen_s,
            },
            separators=(",", ":"),
        ).encode()

    @classmethod
    def decode(cls, value: bytes) -> Joined:
        """Inverse of `encode`."""
        raw: dict[str, Any] = json.loads(value)
        return cls(
            tenant=raw["tenant"],
            adapters=None if raw["adapters"] is None else tuple((name, weight) for name, weight in raw["adapters"]),
            decided_by=None if raw["decided_by"] is None else Source(*raw["decided_by"]),
            verdicts={tenant: Verdict(success, Source(*source)) for tenant, (success, source) in raw["verdicts"].items()},
            early=raw["early"],
            first_seen_s=raw["first_seen_s"],
        )


def _source_to_json(source: Source | None) -> list[object] | None:
    return None if source is None else [source.topic, source.partition, source.offset]


@dataclass(frozen=True)
class Effect:
    """What one record means to one adapter."""

    adapter_id: str
    tenant: str
    weight: float
    used: bool
    success: bool | None


class TenantMismatchError(ValueError):
    """An outcome names another tenant than its decision."""


def join_decision(
    state: Joined | None, tenant: str, adapters: tuple[tuple[str, float], ...], source: Source, now_s: float
) -> tuple[Joined, list[Effect]]:
    """A decision came. The same record again (a replay) has the same effects again; another record of it has none."""
    state = state or Joined(first_seen_s=now_s)
    if state.adapters is None:
        verdicts = {name: verdict for name, verdict in state.verdicts.items() if name == tenant}
        state = replace(state, tenant=tenant, adapters=adapters, decided_by=source, verdicts=verdicts, early=bool(verdicts))
    elif state.decided_by != source:
        return state, []
    success = state.verdicts[state.tenant].success if state.early else None
    return state, [Effect(adapter_id, state.tenant, weight, True, success) for adapter_id, weight in state.adapters or ()]


def join_outcome(state: Joined | None, tenant: str, success: bool, source: Source, now_s: float) -> tuple[Joined, list[Effect]]:
    """An outcome came, perhaps before its decision. The first verdict stands; a replay of its record has its effects again.

    Raises:
        TenantMismatchError: the decision is another tenant's, or too many tenants claim one that has not come.
    """
    state = state or Joined(first_seen_s=now_s)
    if state.adapters is not None and state.tenant != tenant:
        raise TenantMismatchError(f"outcome of tenant {tenant!r} for a decision of another tenant")
    if tenant not in state.verdicts:
        if len(state.verdicts) >= MAX_CLAIMS:
            raise TenantMismatchError(f"outcome of tenant {tenant!r} for a decision that {MAX_CLAIMS} other tenants claim")
        state = replace(state, verdicts={**state.verdicts, tenant: Verdict(success, source)})
    elif state.verdicts[tenant].source != source:
        return state, []
    if state.adapters is None or state.early:
        return state, []
    return state, [Effect(adapter_id, tenant, weight, False, state.verdicts[tenant].success) for adapter_id, weight in state.adapters]


@dataclass(frozen=True)
class Counts:
    """One adapter's lifetime counts, and how far along each lane they are."""

    uses: int = 0
    outcomes: int = 0
    successes: int = 0
    generations: int = 0
    tokens: int = 0
    tenant: str = "public"
    applied: Mapping[str, int] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Changelog value."""
        return json.dumps(self.__dict__, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, value: bytes) -> Counts:
        """Inverse of `encode`."""
        raw: dict[str, Any] = json.loads(value)
        return cls(**raw)

    def is_applied(self, lane: str, position: int) -> bool:
        """True for a record already counted."""
        return position <= self.applied.get(lane, -1)

    def _at(self, lane: str, position: int) -> dict[str, int]:
        return {**self.applied, lane: position}


def count_effect(counts: Counts | None, tenant: str, source: Source, used: bool, success: bool | None) -> Counts | None:
    """Counts after a use or a verdict; None if it was counted before."""
    counts = counts or Counts()
    if counts.is_applied(source.lane, source.offset):
        return None
    return replace(
        counts,
        tenant=tenant,
        uses=counts.uses + used,
        outcomes=counts.outcomes + (success is not None),
        successes=counts.successes + (success is True),
        applied=counts._at(source.lane, source.offset),
    )


def count_usage(counts: Counts | None, tenant: str, producer_id: str, sequence: int, tokens: int) -> Counts | None:
    """Counts after a usage event of an executor; None if it was counted before (a repeated send keeps its sequence)."""
    counts = counts or Counts()
    lane = f"usage:{producer_id}"
    if counts.is_applied(lane, sequence):
        return None
    return replace(
        counts, tenant=tenant, generations=counts.generations + 1, tokens=counts.tokens + tokens, applied=counts._at(lane, sequence)
    )
