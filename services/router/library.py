"""What the router knows of an adapter and of a composition. Pure: no protobuf, no Qdrant."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from smoa.errors import InvalidArgument

DEFAULT_TENANT = "public"
TENANT_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
State = Literal["active", "retired", "purged"]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The optimizer's counts, as last reported."""

    uses: int = 0
    outcomes: int = 0
    successes: int = 0
    generations: int = 0
    tokens: int = 0


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
    created_at_us: int = 0
    updated_at_us: int = 0
    statistics: Statistics = field(default_factory=Statistics)

    def visible_to(self, tenant: str) -> bool:
        """Own adapters and shared ones."""
        return self.shared or self.tenant == tenant

    def to_payload(self) -> dict[str, Any]:
        """Index payload."""
        sequences = {key: list(getattr(self, key)) for key in ("modules", "tags", "examples", "parents")}
        return {**dataclasses.asdict(self), **sequences}

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> AdapterRecord:
        """Inverse of `to_payload`."""
        sequences = {key: tuple(payload[key]) for key in ("modules", "tags", "examples", "parents")}
        names = {item.name for item in dataclasses.fields(cls)}
        known = {key: value for key, value in payload.items() if key in names}
        return cls(**{**known, **sequences, "statistics": Statistics(**payload["statistics"])})


@dataclass(frozen=True)
class Candidate:
    """An adapter and the cosine of its vector with the query's."""

    record: AdapterRecord
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What a search or a listing may see. The one place where tenants are kept apart."""

    tenant: str | None
    base_model: str | None = None
    include_shared: bool = True
    states: tuple[State, ...] = ("active",)
    all_tags: tuple[str, ...] = ()
    any_tags: tuple[str, ...] = ()
    name: str | None = None
    digest: str | None = None

    def admits(self, record: AdapterRecord) -> bool:
        """The scope's meaning, in plain code; the index implementations are tested against it."""
        return (
            (self.tenant is None or record.tenant == self.tenant or (self.include_shared and record.shared))
            and (self.base_model is None or record.base_model == self.base_model)
            and record.state in self.states
            and set(self.all_tags) <= set(record.tags)
            and (not self.any_tags or bool(set(self.any_tags) & {*record.tags, record.name, record.specialization}))
            and (self.name is None or record.name == self.name)
            and (self.digest is None or record.digest == self.digest)
        )


def checked_tenant(tenant: str) -> str:
    """The tenant, `public` when empty.

    Raises:
        InvalidArgument: characters a tenant's name cannot have.
    """
    name = tenant or DEFAULT_TENANT
    if not TENANT_PATTERN.fullmatch(name):
        raise InvalidArgument("tenant", f"{name[:80]!r} is not a valid name", "use 1 to 63 of a-z, 0-9, '.', '_' and '-'")
    return name
