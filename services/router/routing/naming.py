"""What a query names, instead of having adapters chosen."""

from __future__ import annotations

from collections.abc import Iterable

from services.router.catalogue.compositions import Compositions
from services.router.catalogue.port import Catalogue
from services.router.catalogue.records import AdapterRecord, Scope
from services.router.routing.query import RouteQuery
from smoa.errors import FailedPrecondition, NotFound
from smoa.identifiers import is_ulid

MANY = 1000
"""Adapters of one name that are looked at; nobody has so many."""


async def named(catalogue: Catalogue, compositions: Compositions, query: RouteQuery) -> AdapterRecord | None:
    """The adapter that is meant by a query's `model`, None where that is a composition's name.

    An id is an adapter's. Of a name, the tenant's own adapters come first, the newest of them; then its composition; then what is shared
    with it: nobody else's adapter takes the place of what a tenant has named itself.

    Raises:
        NotFound: neither is there, or it is another tenant's.
        FailedPrecondition: the adapter is retired, its file is not there, or it is for another base model.
    """
    tenant, model = query.tenant, query.model
    found = (await catalogue.records([model])).get(model) if is_ulid(model) else None
    if found is None or not found.visible_to(tenant):
        of_name = await catalogue.scroll(Scope(tenant=tenant, name=model), "", MANY)
        found = _newest(query, (one for one in of_name if one.tenant == tenant))
        if found is None:
            if await compositions.has(tenant, model):
                return None
            found = _newest(query, of_name)
    if found is None:
        raise NotFound("model", model)
    if found.state not in ("active", "canary"):
        raise FailedPrecondition(f"model: {model[:80]!r} is {found.state}; restore it, name another, or let the router choose")
    if query.base_model not in ("", found.base_model):
        raise FailedPrecondition(
            f"base_model: adapter {model[:80]!r} was trained for {found.base_model[:12]}, not {query.base_model[:12]}; "
            "leave base_model empty"
        )
    return found


def _newest(query: RouteQuery, of_name: Iterable[AdapterRecord]) -> AdapterRecord | None:
    """The newest of those that fit the base model, or of all where none does."""
    return max(of_name, key=lambda one: (query.base_model in ("", one.base_model), one.adapter_id), default=None)
