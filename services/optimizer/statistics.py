"""Counting, as pure functions from state and event to state and effects. State is small JSON, one value a Kafka key.

Exactly once is made of three parts. The join gives every decision and every outcome effect once, whatever is sent again (it remembers
what it has of each decision). What it emits names the record that caused it, so an emission repeated after a crash is known to the
counter, which keeps the last source offset applied. And the shell (`app`) acknowledges a batch only after its effects are durable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


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
class Joined:
    """What is known of one decision. `adapters` is None until the decision itself has come."""

    tenant: str = ""
    adapters: tuple[tuple[str, float], ...] | None = None
    success: bool | None = None
    first_seen_s: float = 0.0

    def encode(self) -> bytes:
        """Changelog value."""
        return json.dumps([self.tenant, self.adapters, self.success, self.first_seen_s]).encode()

    @classmethod
    def decode(cls, value: bytes) -> Joined:
        """Inverse of `encode`."""
        tenant, adapters, success, first_seen_s = json.loads(value)
        return cls(tenant, None if adapters is None else tuple((a, w) for a, w in adapters), success, first_seen_s)


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


def join_decision(state: Joined | None, tenant: str, adapters: tuple[tuple[str, float], ...], now_s: float) -> tuple[Joined, list[Effect]]:
    """A decision came. A repeated one changes nothing."""
    state = state or Joined(first_seen_s=now_s)
    if state.adapters is not None:
        return state, []
    if state.success is not None and state.tenant != tenant:
        state = replace(state, success=None)  # an early outcome of another tenant is not this decision's
    joined = replace(state, tenant=tenant, adapters=adapters)
    return joined, [Effect(adapter_id, tenant, weight, True, joined.success) for adapter_id, weight in adapters]


def join_outcome(state: Joined | None, tenant: str, success: bool, now_s: float) -> tuple[Joined, list[Effect]]:
    """An outcome came, perhaps before its decision. The first verdict stands.

    Raises:
        TenantMismatchError: the decision is another tenant's.
    """
    state = state or Joined(tenant=tenant, first_seen_s=now_s)
    if state.tenant != tenant:
        raise TenantMismatchError(f"outcome of tenant {tenant!r} for a decision of another tenant")
    if state.success is not None:
        return state, []
    joined = replace(state, success=success)
    return joined, [Effect(adapter_id, tenant, weight, False, success) for adapter_id, weight in state.adapters or ()]


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
