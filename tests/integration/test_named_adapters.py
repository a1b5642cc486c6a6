"""A query that names its adapter, instead of having one chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.router.routing.router import Router
from smoa.errors import Unavailable
from smoa.publisher import EventPublisher
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2, router_pb2
from tests.integration.router_support import KNEES, MONEY, refused, running_router


async def test_an_adapter_is_named_by_its_id_or_its_name(tmp_path: Path, catalogue: str) -> None:
    async with running_router(tmp_path) as world:
        shared = await world.register(KNEES, tenant="acme", name="twice", shared=True)
        first = await world.register(KNEES, name="twice")
        second = await world.register(MONEY, name="twice", base_model="base-b")
        foreign = await world.register(MONEY, tenant="acme", name="foreign")
        route = world.client.route
        for named, tenant, wanted in (
            (first.adapter_id, "public", first),
            ("twice", "public", second),  # the newer of its own
            ("twice", "acme", shared),
            (shared.adapter_id, "public", shared),
        ):
            decision = await route(model=named, tenant=tenant)
            assert [(one.adapter_id, one.weight) for one in decision.adapters] == [(wanted.adapter_id, 1)]
            assert decision.base_model == wanted.base_model
            assert decision.decision_id
        decision = await route("my knee", model="twice", base_model="base-a")
        assert [one.adapter_id for one in decision.adapters] == [first.adapter_id]
        for named in (foreign.adapter_id, "foreign", "nobody"):
            code, message, _ = await refused(route(model=named))
            assert (code, message) == ("NOT_FOUND", f"model {named!r} was not found; list what exists and check the tenant")
        code, message, _ = await refused(route(model=first.adapter_id, base_model="base-b"))
        assert code == "FAILED_PRECONDITION"
        assert message.startswith("base_model: adapter")
        await world.client.retire("public", first.adapter_id, "to see")
        code, message, _ = await refused(route(model=first.adapter_id))
        assert (code, message) == (
            "FAILED_PRECONDITION",
            f"model: {first.adapter_id!r} is retired; restore it, name another, or let the router choose",
        )
        code, message, _ = await refused(route(model="twice", composition="c"))
        assert (code, message) == ("INVALID_ARGUMENT", "model: comes with a composition beside it; send one of the two")
        code, message, _ = await refused(route("my knee"))
        assert (code, message.partition(";")[0]) == ("UNAVAILABLE", "base_model: is empty, and no executor has told of itself")


async def test_what_a_tenant_has_named_itself_comes_before_what_others_share(tmp_path: Path, catalogue: str) -> None:
    async with running_router(tmp_path) as world:
        shared = await world.register(KNEES, tenant="acme", name="help", shared=True)
        parts = [await world.register(texts, tenant="beta", name=f"part-{at}") for at, texts in enumerate((KNEES, MONEY))]
        children = [registry_pb2.CompositionChild(adapter_id=one.adapter_id, weight=0.5) for one in parts]
        root = registry_pb2.CompositionNode(strategy=common.COMPOSITION_STRATEGY_PARALLEL, children=children)
        route = world.client.route

        async def used() -> list[str]:
            decision = await route(model="help", tenant="beta")
            stages = [one.adapter_id for stage in decision.stages for one in stage.adapters]
            return stages or [one.adapter_id for one in decision.adapters]

        assert await used() == [shared.adapter_id]
        await world.client.compose("help", root, tenant="beta")
        assert await used() == [one.adapter_id for one in parts]
        own = await world.register(KNEES, tenant="beta", name="help")
        assert await used() == [own.adapter_id]


@pytest.mark.parametrize("look", [False, True])
async def test_names_are_told_when_they_are_asked_for(tmp_path: Path, look: bool) -> None:
    async with running_router(tmp_path) as world:
        await world.register(KNEES, name="knees")
        for names in (False, True, True):  # the last one from the cache
            request = router_pb2.RouteRequest(query=KNEES[0], base_model="base-a", names=names, look=look)
            decision = await world.client.router.Route(request)
            assert [one.name for one in decision.adapters] == ["knees" if names else ""]


async def test_a_batch_tells_names_too(tmp_path: Path) -> None:
    async with running_router(tmp_path) as world:
        await world.register(KNEES, name="knees")
        requests = [router_pb2.RouteRequest(query=KNEES[0], base_model="base-a", names=names) for names in (True, False, True)]
        response = await world.client.router.RouteBatch(router_pb2.RouteBatchRequest(requests=requests))
        assert [one.adapters[0].name for one in response.decisions] == ["knees", "", "knees"]


async def test_a_name_that_cannot_be_told_counts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_router(tmp_path) as world:
        await world.register(KNEES, name="knees")

        async def away(adapter_ids: object) -> dict[str, str]:
            raise Unavailable("qdrant: is away", 1.0)

        published: list[object] = []
        monkeypatch.setattr(Router, "names", lambda self, adapter_ids: away(adapter_ids))
        monkeypatch.setattr(EventPublisher, "publish", lambda self, events, *more: published.extend(events))
        request = router_pb2.RouteRequest(query=KNEES[0], base_model="base-a", names=True)
        code, _, _ = await refused(world.client.router.Route(request))
        assert (code, published) == ("UNAVAILABLE", [])
