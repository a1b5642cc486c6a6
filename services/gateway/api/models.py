"""`/v1/models`: base models, compositions and adapters, a page at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import grpc

from services.gateway.serving.answering import Answering
from services.gateway.serving.asked import AUTO
from services.gateway.serving.router_calls import RouterCalls
from smoa.access.principal import Principal
from smoa.errors import InvalidArgument, NotFound
from smoa.identifiers import is_ulid
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2, router_pb2

PAGE, MAX_PAGE = 100, 1000
PARAMETERS: Final = ("limit", "after", "search", "tenant")
_OWNER: Final = "smoa"


class Models:
    """Lists what a request's `model` may name."""

    def __init__(self, router: RouterCalls, answering: Answering) -> None:
        self._router, self._answering = router, answering

    async def page(self, principal: Principal, query: Mapping[str, str]) -> dict[str, Any]:
        """OpenAI's list. The first page begins with `smoa-auto`, the base models and the compositions; then come adapters, by id.

        With `search`, the adapters of that name and those nearest to it in meaning.

        Raises:
            InvalidArgument: a parameter that is unknown or bad.
            grpc.aio.AioRpcError: the router's status.
        """
        for name in query:
            if name not in PARAMETERS:
                raise InvalidArgument(name[:80], "is unknown", f"use {', '.join(PARAMETERS)}")
        limit = query.get("limit", str(PAGE))
        if not limit.isdecimal() or len(limit) > 4 or not 1 <= int(limit) <= MAX_PAGE:
            raise InvalidArgument("limit", f"{limit[:40]!r} is not 1 to {MAX_PAGE:,}", f"leave it out for {PAGE}")
        tenant = principal.tenant(query.get("tenant", ""))
        names = await self._answering.base_models()
        if "search" in query:
            return _listed(await self._search(query["search"], principal, tenant, names, int(limit)))
        first = "after" not in query
        data = [*self._roots(names), *await self._compositions(principal, tenant)] if first else []
        request = registry_pb2.ListAdaptersRequest(tenant=tenant, page_size=int(limit), page_token=query.get("after", ""))
        found = await self._router.list_adapters(principal, request)
        data += [_adapter(one, names) for one in found.adapters]
        return _listed(data, found.next_page_token)

    async def one(self, principal: Principal, name: str, query: Mapping[str, str]) -> dict[str, Any]:
        """One of them.

        Raises:
            NotFound: none of the name.
            grpc.aio.AioRpcError: the router's status.
        """
        if not name:
            raise NotFound("model", name, "name one of GET /v1/models")
        tenant = principal.tenant(query.get("tenant", ""))
        names = await self._answering.base_models()
        for root in self._roots(names):
            if name in (root["id"], root["root"]):
                return root
        adapter = await self._adapter(principal, name, tenant)
        if adapter is not None and (adapter.tenant == tenant or adapter.adapter_id == name):
            return _adapter(adapter, names)
        try:
            request = registry_pb2.GetCompositionRequest(tenant=tenant, name=name)
            found = await self._router.get_composition(principal, request)
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                raise
            if adapter is not None:
                return _adapter(adapter, names)
            raise NotFound("model", name[:200], "list what there is: GET /v1/models") from error
        return _composition(found)

    async def _adapter(self, principal: Principal, name: str, tenant: str) -> registry_pb2.Adapter | None:
        if is_ulid(name):
            try:
                request = registry_pb2.GetAdapterRequest(tenant=tenant, adapter_id=name)
                return await self._router.get_adapter(principal, request)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
        found = await self._of_name(principal, name, tenant)
        return max(found, key=lambda one: (one.tenant == tenant, one.adapter_id), default=None)

    async def _of_name(self, principal: Principal, name: str, tenant: str) -> list[registry_pb2.Adapter]:
        request = registry_pb2.ListAdaptersRequest(tenant=tenant, name=name, page_size=MAX_PAGE)
        return list((await self._router.list_adapters(principal, request)).adapters)

    async def _search(self, search: str, principal: Principal, tenant: str, names: Mapping[str, str], limit: int) -> list[dict[str, Any]]:
        found = [_adapter(one, names) for one in await self._of_name(principal, search, tenant)]
        known = {one["smoa"]["adapter_id"] for one in found}
        for base_model in names:
            request = router_pb2.RouteRequest(
                tenant=tenant, base_model=base_model, query=search, look=True, explain=True, strategy=common.ROUTING_STRATEGY_SEMANTIC
            )
            decision = await self._router.route(principal, request)
            for near in decision.explanations:
                if near.adapter_id not in known:
                    told = {"adapter_id": near.adapter_id, "similarity": round(near.cosine, 4)}
                    found.append(_model(near.name or near.adapter_id, 0, near.tenant, near.adapter_id, names[base_model], told))
        return found[:limit]

    def _roots(self, names: Mapping[str, str]) -> list[dict[str, Any]]:
        auto = _model(AUTO, 0, _OWNER, AUTO, None, {"kind": "auto"})
        return [auto, *(_model(name or base, 0, _OWNER, base, None, {"kind": "base_model"}) for base, name in names.items())]

    async def _compositions(self, principal: Principal, tenant: str) -> list[dict[str, Any]]:
        request = registry_pb2.ListCompositionsRequest(tenant=tenant, page_size=MAX_PAGE)
        found = await self._router.list_compositions(principal, request)
        return [_composition(one) for one in found.compositions]


def _listed(data: list[dict[str, Any]], after: str = "") -> dict[str, Any]:
    return {"object": "list", "data": data, "has_more": bool(after), "next_after": after or None}


def _model(name: str, created_s: int, owner: str, root: str, parent: str | None, ours: dict[str, Any]) -> dict[str, Any]:
    """In OpenAI's form, with `root` and `parent` as vLLM has them: what it is made of, and the base model that it changes."""
    return {"id": name, "object": "model", "created": created_s, "owned_by": owner, "root": root, "parent": parent, "smoa": ours}


def _adapter(one: registry_pb2.Adapter, names: Mapping[str, str]) -> dict[str, Any]:
    ours = {
        "kind": "adapter",
        "adapter_id": one.adapter_id,
        "version": one.version,
        "shared": one.shared,
        "tags": list(one.tags),
        "parameters": one.parameter_count,
    }
    parent = names.get(one.base_model) or one.base_model
    return _model(one.name or one.adapter_id, one.created_at_us // 1_000_000, one.tenant, f"sha256:{one.digest}", parent, ours)


def _composition(one: registry_pb2.Composition) -> dict[str, Any]:
    ours = {"kind": "composition", "composition_id": one.composition_id}
    return _model(one.name, one.created_at_us // 1_000_000, one.tenant, one.composition_id, None, ours)
