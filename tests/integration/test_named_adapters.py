"""A query that names its adapter, instead of having one chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

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
            decision = await route(adapter=named, tenant=tenant)
            assert [(one.adapter_id, one.weight) for one in decision.adapters] == [(wanted.adapter_id, 1)]
            assert decision.base_model == wanted.base_model
            assert decision.decision_id
        decision = await route("my knee", adapter="twice", base_model="base-a")
        assert [one.adapter_id for one in decision.adapters] == [first.adapter_id]
        for named in (foreign.adapter_id, "foreign", "nobody"):
            code, message, _ = await refused(route(adapter=named))
            assert (code, message) == ("NOT_FOUND", f"adapter {named!r} was not found; list what exists and check the tenant")
        code, message, _ = await refused(route(adapter=first.adapter_id, base_model="base-b"))
        assert code == "FAILED_PRECONDITION"
        assert message.startswith("base_model: adapter")
        await world.client.retire("public", first.adapter_id, "to see")
        code, message, _ = await refused(route(adapter=first.adapter_id))
        assert (code, message) == (
            "FAILED_PRECONDITION",
            f"adapter: {first.adapter_id!r} is retired; restore it, name another, or let the router choose",
        )
        code, message, _ = await refused(route(adapter="twice", composition="c"))
        assert (code, message) == ("INVALID_ARGUMENT", "adapter: comes with a composition beside it; send one of the two")
        code, message, _ = await refused(route("my knee"))
        assert code == "INVALID_ARGUMENT"
        assert message.startswith("base_model: is empty, and executors run none that has told of itself; name one")


@pytest.mark.parametrize("look", [False, True])
async def test_names_are_told_when_they_are_asked_for(tmp_path: Path, look: bool) -> None:
    from smoa.v1 import router_pb2

    async with running_router(tmp_path) as world:
        await world.register(KNEES, name="knees")
        for names in (False, True, True):  # the last one from the cache
            request = router_pb2.RouteRequest(query=KNEES[0], base_model="base-a", names=names, look=look)
            decision = await world.client.router.Route(request)
            assert [one.name for one in decision.adapters] == ["knees" if names else ""]
