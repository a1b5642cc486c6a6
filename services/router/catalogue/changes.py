"""What may happen to an adapter of the library, and what is told of it. Pure."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from services.router.catalogue.port import Entry, Vector
from services.router.catalogue.records import AdapterRecord, State
from smoa.access.principal import caller
from smoa.errors import AlreadyExists, FailedPrecondition, InvalidArgument

Action = Literal["registered", "updated", "retired", "restored", "purged", "merged", "canary", "promoted", "rolled_back"]
ARRIVALS: Final = frozenset[Action]({"registered", "updated", "restored", "merged", "promoted"})
"""After these, an adapter may be the better answer to a query that was answered before."""


@dataclass(frozen=True)
class Change:
    """Something that happened to an adapter."""

    action: Action
    record: AdapterRecord
    reason: str = ""
    evidence: Mapping[str, float] = field(default_factory=dict)
    """The numbers behind it."""


def came_back(record: AdapterRecord) -> AdapterRecord:
    """The record as of an adapter that is judged by what it does from now on."""
    return dataclasses.replace(record, restored_at_us=now_us(), restored_baseline=record.statistics, archived_at_us=0)


def check_move(record: AdapterRecord, states: Sequence[State], action: str) -> None:
    """Raise FailedPrecondition unless it is in one of the states."""
    if record.state not in states:
        raise FailedPrecondition(
            f"adapter: {record.adapter_id} is {record.state}, so it cannot be {action}; see its state with `smoa adapter show`"
        )


def check_owner(record: AdapterRecord, tenant: str) -> None:
    """Refuse a file that was made for another tenant, or that the caller may not bring.

    Raises:
        InvalidArgument: it is another's.
        PermissionDenied: it is shared, and they may not publish.
    """
    if record.tenant != tenant:
        raise InvalidArgument(
            "tenant", f"{tenant!r} is not the manifest's {record.tenant!r}", "register it for the tenant it was trained for"
        )
    check_publishable(record)


def check_publishable(record: AdapterRecord, *roles: str) -> None:
    """Refuse what would reach every tenant's queries to a caller who may not publish, and has none of these roles either.

    Raises:
        PermissionDenied: it is shared, and they may not.
    """
    if record.shared:
        caller().require(frozenset({"publish", *roles}), "shared")


def as_it_is(record: AdapterRecord, evidence: Mapping[str, float] | None = None) -> Change:
    """What there is to tell of an adapter, by its state."""
    arrived: Action = "merged" if record.merge_id else "registered"
    actions: dict[State, Action] = {
        "active": arrived,
        "canary": "canary",
        "retired": "retired",
        "purged": "purged",
        "missing": "updated",
    }
    return Change(actions[record.state], record, record.state_reason, evidence or {})


def same_content(record: AdapterRecord, digest: str, tenant: str) -> AdapterRecord:
    """The record; raises AlreadyExists unless it is the tenant's and has this content."""
    if record.tenant != tenant or record.digest != digest:
        raise taken(record.adapter_id)
    return record


def retired(record: AdapterRecord, vector: Vector, why: str) -> Entry:
    """The adapter as one that is not routed to any more."""
    return Entry(dataclasses.replace(record, state="retired", state_reason=why, updated_at_us=now_us()), vector)


def in_state(entry: Entry, state: State) -> Entry:
    """The entry, of an adapter whose file is there or missing."""
    reason = "its file is not in the store" if state == "missing" else ""
    return entry._replace(record=dataclasses.replace(entry.record, state=state, state_reason=reason, updated_at_us=now_us()))


def taken(adapter_id: str) -> AlreadyExists:
    """The id is another adapter's."""
    return AlreadyExists(f"adapter_id: {adapter_id} is taken by other content; train or import again to get a new id")


def gone(record: AdapterRecord) -> FailedPrecondition:
    """What whoever registers a retired or purged adapter again is told: its file is in the store by then."""
    why = f" ({record.state_reason})" if record.state_reason else ""
    return FailedPrecondition(
        f"adapter: {record.name!r} is there as {record.adapter_id}, {record.state}{why}; bring it back with `smoa adapter restore "
        f"{record.adapter_id}`"
    )


def now_us() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000
