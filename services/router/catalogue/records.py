"""What the router knows of an adapter and of a composition. Pure: no protobuf, no Qdrant."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from services.router.catalogue.statistics import Statistics

State = Literal["active", "canary", "retired", "purged", "missing"]
EVERY_STATE: Final[tuple[State, ...]] = ("active", "canary", "retired", "purged", "missing")
"""Only active adapters are found by a search. Missing ones were imported while their file was not in the store."""
SHARED: Final = "*"
"""In place of a tenant's name, of the pool of adapters that are shared."""
NOBODY: Final = "*none"
"""The same, of a pool that nothing is ever in."""


@dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """One adapter of the library. Times are microseconds since the epoch."""

    adapter_id: str
    version: int
    digest: str
    tenant: str
    name: str
    kind: str
    granularity: str
    specialization: str
    base_model: str
    rank: int
    modules: tuple[str, ...]
    parameter_count: int
    file_bytes: int
    tags: tuple[str, ...] = ()
    shared: bool = False
    examples: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    state: State = "active"
    state_reason: str = ""
    merge_id: str = ""
    pinned: bool = False
    canary_share: float = 0.0
    """Of a canary: how much it answers of the queries of those that it is tried against."""
    canary_taken: int = 0
    """Of a canary: how many queries routers have taken from its budget, to answer them with it."""
    canary_baseline: Mapping[str, Statistics] = field(default_factory=dict)
    """Of a canary: the counts, when its trial began, of those that it is tried against."""
    canary_since_us: int = 0
    """Of a canary: when its trial began."""
    archived_at_us: int = 0
    """When its file was moved to the archive; 0 of one whose file is where it was put."""
    restored_at_us: int = 0
    restored_baseline: Statistics = field(default_factory=Statistics)
    """When it came back last, and its counts then."""
    created_at_us: int = 0
    updated_at_us: int = 0
    statistics: Statistics = field(default_factory=Statistics)
    revision: int = 0
    """How often it was written: a write is taken if nobody has written since the revision that it is based on."""
    last_writes: tuple[str, ...] = ()
    """Ids of its last writes, by which one who writes to a server finds out whether the write was taken."""
    texts_in: tuple[str, ...] = ()
    """Objects of the registration log that hold its examples."""
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """What a newer program has added, which stays as it is."""

    @property
    def ref(self) -> AdapterRef:
        """Exactly which weights."""
        return AdapterRef(self.adapter_id, self.version, self.digest)

    @property
    def tried_against(self) -> tuple[str, ...]:
        """Of a canary, or one that was: a merge's parents, or an older version."""
        return tuple(self.canary_baseline)

    def visible_to(self, tenant: str) -> bool:
        """Own adapters and shared ones."""
        return self.shared or self.tenant == tenant

    def to_payload(self) -> dict[str, Any]:
        """Index payload."""
        # Not `dataclasses.asdict`: its deep copy was a fifth of an import.
        return {
            **self.unknown,
            **{key: value for key, value in vars(self).items() if key != "unknown"},
            **{key: list(getattr(self, key)) for key in _SEQUENCES},
            "statistics": self.statistics.to_payload(),
            "canary_baseline": {name: one.to_payload() for name, one in self.canary_baseline.items()},
            "restored_baseline": self.restored_baseline.to_payload(),
        }

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> AdapterRecord:
        """Inverse of `to_payload`."""
        known = {key: value for key, value in payload.items() if key in _FIELDS}
        if len(known) < len(payload):
            known["unknown"] = {key: value for key, value in payload.items() if key not in _FIELDS}
        for key in _SEQUENCES:
            known[key] = tuple(payload.get(key, ()))
        known["statistics"] = Statistics.from_payload(payload["statistics"])
        known["canary_baseline"] = {name: Statistics.from_payload(counts) for name, counts in payload.get("canary_baseline", {}).items()}
        known["restored_baseline"] = Statistics.from_payload(payload.get("restored_baseline", {}))
        return cls(**known)


_SEQUENCES = ("modules", "tags", "examples", "parents", "last_writes", "texts_in")
_FIELDS = frozenset(item.name for item in dataclasses.fields(AdapterRecord)) - {"unknown"}


class AdapterRef(NamedTuple):
    """Exactly which weights: all of an adapter that a decision needs."""

    adapter_id: str
    version: int
    digest: str


class RecordSummary(NamedTuple):
    """What an import compares itself with: whose an adapter is, which weights, and its state."""

    tenant: str
    digest: str
    state: State


class Labels(NamedTuple):
    """What a hint may match."""

    name: str
    tags: tuple[str, ...]
    specialization: str

    @property
    def all(self) -> frozenset[str]:
        """Without their kinds."""
        return frozenset((*self.tags, self.name, self.specialization))


class Candidate(NamedTuple):
    """An adapter and the cosine of its vector with the query's."""

    ref: AdapterRef
    cosine: float
    labels: Labels | None = None
    """Those of one that has a label which the search was told is hinted; others may come without."""
    has_examples: bool = False
    """It came with examples; `Catalogue.example_vectors` has what they were boiled down to."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What a query may be routed to: active adapters of its base model, the tenant's own and, unless it wants none, shared ones.

    The one place where routing keeps tenants apart: every adapter that may be routed to is in one pool, `pool_of`, and a search is made
    in the pools of its reach and nowhere else.
    """

    tenant: str
    base_model: str
    any_labels: tuple[str, ...] = ()
    """When not empty: only adapters with one of these among their tags, name and specialization."""
    own_only: bool = False
    """No adapter of another tenant, though it is shared, and none of its own that it shares."""

    @property
    def pools(self) -> tuple[str, str]:
        """The tenant's own pool, and the shared one."""
        return f"{self.tenant}/{self.base_model}", f"{NOBODY if self.own_only else SHARED}/{self.base_model}"

    def admits(self, record: AdapterRecord) -> bool:
        """The reach's meaning, in plain code; the index implementations are tested against it."""
        return (
            record.state == "active"
            and record.base_model == self.base_model
            and (not record.shared and record.tenant == self.tenant if self.own_only else record.visible_to(self.tenant))
            and (not self.any_labels or bool(labels_of(record).all.intersection(self.any_labels)))
        )


def pool_of(record: AdapterRecord) -> str:
    """The pool in which a search finds the adapter; empty when it may not be routed to.

    A tenant's name has neither `*` nor `/` (`checked_tenant`), so no tenant's pool is another's, or the shared one.
    """
    return home_of(record) if record.state == "active" else ""


def home_of(record: AdapterRecord) -> str:
    """The pool that the adapter is in whenever it may be routed to."""
    return pool_named(record.tenant, record.base_model, shared=record.shared)


def pool_named(tenant: str, base_model: str, *, shared: bool) -> str:
    """The pool of a tenant's adapters of a base model, or of those that it shares."""
    return f"{SHARED if shared else tenant}/{base_model}"


def labels_of(record: AdapterRecord) -> Labels:
    """The labels of a record."""
    return Labels(record.name, record.tags, record.specialization)


def label_mark(label: str) -> int:
    """A label's bit of 63. A record whose marks lack it has not the label; one whose marks have it may have it."""
    return 1 << zlib.crc32(label.encode()) % 63


def marks_of(record: AdapterRecord) -> int:
    """The marks of all labels of a record."""
    marks = 0
    for label in labels_of(record).all:
        marks |= label_mark(label)
    return marks


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What a listing may see."""

    tenant: str | None
    base_model: str | None = None
    include_shared: bool = True
    states: tuple[State, ...] = ("active",)
    all_tags: tuple[str, ...] = ()
    name: str | None = None
    digest: str | None = None

    def admits(self, record: AdapterRecord) -> bool:
        """The scope's meaning, in plain code; the index implementations are tested against it."""
        return (
            (self.tenant is None or record.tenant == self.tenant or (self.include_shared and record.shared))
            and (self.base_model is None or record.base_model == self.base_model)
            and record.state in self.states
            and set(self.all_tags) <= set(record.tags)
            and (self.name is None or record.name == self.name)
            and (self.digest is None or record.digest == self.digest)
        )
