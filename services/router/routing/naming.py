"""The adapter that a query names, instead of having one chosen."""

from __future__ import annotations

from services.router.catalogue.port import Catalogue
from services.router.catalogue.records import AdapterRecord, Scope
from smoa.errors import FailedPrecondition, NotFound
from smoa.identifiers import is_ulid

MANY = 1000
"""Adapters of one name that are looked at; nobody has so many."""


async def named_adapter(catalogue: Catalogue, tenant: str, named: str, base_model: str) -> AdapterRecord:
    """An adapter that the tenant may use, by its id or its name; of several of a name its own, and of those the newest.

    Args:
        catalogue: Where records are.
        tenant: Who asks.
        named: Id or name.
        base_model: Fingerprint that it must be for; empty: whichever.

    Raises:
        NotFound: none, or another tenant's.
        FailedPrecondition: it is retired or its file is not there, or it is for another base model.
    """
    found = (await catalogue.records([named])).get(named) if is_ulid(named) else None
    if found is None or not found.visible_to(tenant):
        of_name = await catalogue.scroll(Scope(tenant=tenant, name=named), "", MANY)
        fitting = [one for one in of_name if base_model in ("", one.base_model)] or of_name
        if not fitting:
            raise NotFound("adapter", named)
        found = max(fitting, key=lambda one: (one.tenant == tenant, one.adapter_id))
    if found.state not in ("active", "canary"):
        raise FailedPrecondition(f"adapter: {named[:80]!r} is {found.state}; restore it, name another, or let the router choose")
    if base_model not in ("", found.base_model):
        raise FailedPrecondition(
            f"base_model: adapter {named[:80]!r} was trained for {found.base_model[:12]}, not {base_model[:12]}; leave base_model empty"
        )
    return found
