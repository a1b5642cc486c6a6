"""What the optimizer leaves alone: because a person said so, or because so much fails there now that nothing can be judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.router.catalogue.changes import now_us
from services.router.catalogue.pagination import every_document
from services.router.catalogue.port import Catalogue, Document
from services.router.catalogue.retrying import until_taken
from smoa.access.principal import known_caller
from smoa.errors import FailedPrecondition
from smoa.identifiers import checked_tenant, ulid_of

_KIND: Final = "freeze"


@dataclass(frozen=True, kw_only=True)
class Freeze:
    """A tenant (empty: all of them), or a base model of it (empty: all of them), that is left alone."""

    tenant: str
    base_model: str
    reason: str
    by: str
    incident: bool
    thawed: bool = False
    """A person let it go on while the incident is not over."""
    created_at_us: int
    seen_at_us: int = 0
    """Of an incident."""

    def holds(self, tenant: str, base_models: Collection[str]) -> bool:
        """Whether it holds a change of a tenant's adapters of these base models."""
        return not self.thawed and self.tenant in ("", tenant) and (not self.base_model or self.base_model in base_models)

    @property
    def why(self) -> str:
        """As a sentence's part."""
        of = " of ".join([*([f"base model {self.base_model[:12]}"] if self.base_model else []), self.tenant or "every tenant"])
        return f"{'an incident' if self.incident else 'a freeze'} of {of}" + (f" ({self.reason})" if self.reason else "")


class Freezes:
    """Owner of the freezes."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    async def freeze(self, tenant: str | None, base_model: str, reason: str, *, incident: bool = False) -> Freeze:
        """Leave it alone; None is every tenant. An incident is seen once more, and takes nothing from what a person said."""

        async def work() -> Freeze:
            document = await self._document(tenant, base_model)
            there = _freeze_of(document)
            made = Freeze(
                tenant=document.tenant,
                base_model=base_model,
                reason=reason,
                by=known_caller(),
                incident=incident,
                created_at_us=now_us(),
                seen_at_us=now_us() if incident else 0,
            )
            if incident and there is not None:
                made = dataclasses.replace(there, seen_at_us=now_us()) if there.incident else there
            if made != there:
                await self._catalogue.write_document(_KIND, document._replace(body=dataclasses.asdict(made)))
            return made

        return await until_taken(work)

    async def thaw(self, tenant: str | None, base_model: str, *, incident: bool = False) -> None:
        """Let it go on. With `incident`, one is over, and nothing else is thawed.

        Raises:
            FailedPrecondition: a person wants to thaw what is not frozen.
        """

        async def work() -> None:
            document = await self._document(tenant, base_model)
            there = _freeze_of(document)
            if incident and (there is None or not there.incident):
                return
            if there is None:
                of = Freeze(tenant=document.tenant, base_model=base_model, reason="", by="", incident=False, created_at_us=0)
                raise FailedPrecondition(f"freeze: there is not {of.why}; see `smoa optimizer status`")
            if there.incident and not incident:
                thawed = dataclasses.replace(there, thawed=True, by=known_caller())
                await self._catalogue.write_document(_KIND, document._replace(body=dataclasses.asdict(thawed)))
            else:
                await self._catalogue.delete_document(_KIND, document)

        await until_taken(work)

    async def all(self, tenant: str | None) -> list[Freeze]:
        """Those that concern a tenant, or, for None, all."""
        found = [_freeze_of(document) async for document in every_document(self._catalogue, _KIND)]
        return [one for one in found if one and (tenant is None or one.tenant in ("", tenant))]

    async def holding(self, tenant: str, base_models: Collection[str]) -> Freeze | None:
        """One that holds a change of a tenant's adapters of these base models."""
        return next((one for one in await self.all(tenant) if one.holds(tenant, base_models)), None)

    async def _document(self, tenant: str | None, base_model: str) -> Document:
        of = "" if tenant is None else checked_tenant(tenant)
        at = ulid_of(of, base_model)
        return await self._catalogue.get_document(_KIND, at) or Document(at, of, {})


def _freeze_of(document: Document) -> Freeze | None:
    body: Mapping[str, Any] = document.body
    return Freeze(**{one.name: body[one.name] for one in dataclasses.fields(Freeze)}) if body else None
