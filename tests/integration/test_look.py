"""A look at routing: the answer of a decision, and none of what a decision leaves behind. And the commands about decisions."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.local import free_port
from services.router.catalogue.compositions import Compositions
from services.router.catalogue.registry import Registry
from services.router.routing.cache import RoutingCache
from services.router.routing.canaries import FIRST_QUERIES
from services.router.routing.query import RouteQuery
from services.router.routing.router import Router
from smoa.embedding.static import StaticEmbedder
from smoa.embedding.views import Views
from smoa.store import AdapterStore
from smoa.v1 import registry_pb2, router_pb2
from tests.command_support import said_by
from tests.integration.router_support import KNEES, MONEY, RouterWorld, adapter_file, refused, running_router
from tests.library_support import sqlite_library

METRICS = f"127.0.0.1:{free_port()}"
QUERY = "my knee hurts when I climb stairs"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RouterWorld]:
    async with running_router(tmp_path, metrics_address=METRICS) as made:
        yield made


async def spooled() -> int:
    """Events on their way to Kafka, which is away."""

    def read() -> str:
        with urllib.request.urlopen(f"http://{METRICS}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    (line,) = [line for line in (await asyncio.to_thread(read)).splitlines() if line.startswith("smoa_router_spooled_events ")]
    return int(float(line.split()[1]))


async def test_a_look_decides_alike_but_has_no_id_and_is_not_sent_to_kafka(world: RouterWorld) -> None:
    await world.register(KNEES)
    before = await spooled()
    looked = [await world.client.route(QUERY, base_model="base-a", look=True) for _ in range(2)]
    assert ([one.decision_id for one in looked], [one.cached for one in looked]) == (["", ""], [False, True])
    assert await spooled() == before
    decision = await world.client.route(QUERY, base_model="base-a")
    assert (list(decision.adapters), len(decision.decision_id)) == (list(looked[0].adapters), 26)
    assert await spooled() == before + 1
    code, message, _ = await refused(world.client.report(looked[0], success=True))
    assert (code, message) == ("INVALID_ARGUMENT", "outcome.decision_id: '' is not a ULID; send the id that Route returned")
    requests = [router_pb2.RouteRequest(query=QUERY, base_model="base-a", look=look) for look in (True, False)]
    batch = await world.client.router.RouteBatch(router_pb2.RouteBatchRequest(requests=requests), timeout=10)
    assert [bool(one.decision_id) for one in batch.decisions] == [False, True]
    assert await spooled() == before + 2


async def test_a_look_uses_up_no_query_of_a_canary(world: RouterWorld) -> None:
    parents = [await world.register(KNEES, name=name) for name in ("a", "b")]
    ids = [parent.adapter_id for parent in parents]
    digest = await world.store.put(adapter_file(name="child", parents=tuple(ids)))
    child = await world.client.apply_merge("public", "m1", digest, ids, "because", 0.5)

    async def answered_by_child(times: int, *, look: bool) -> int:
        decisions = [await world.client.route(QUERY, base_model="base-a", look=look) for _ in range(times)]
        return sum(child.adapter_id in [one.adapter_id for one in decision.adapters] for decision in decisions)

    assert await answered_by_child(100, look=True) == 0
    assert await answered_by_child(100, look=False) >= FIRST_QUERIES


async def test_a_look_does_not_explore(tmp_path: Path) -> None:
    embedder, store = Views(StaticEmbedder()), AdapterStore(str(tmp_path / "store"))
    library = await sqlite_library(tmp_path / "index", embedder.dimension)
    registry = Registry(library.catalogue, store, embedder, lambda _: None)
    made = [await registry.register("public", await store.put(adapter_file(name=name)), KNEES) for name in ("a", "b")]
    compositions = Compositions(library.catalogue)
    looking, other = (Router(library.near, library.search, embedder, RoutingCache(2**20), compositions, seed=7) for _ in range(2))
    for router in (looking, other):
        for number in range(40):
            router.learned.posteriors.observe("public", made[number % 2].adapter_id, number % 3 > 0, 1.0)
    query = RouteQuery(QUERY, "base-a", strategy="learned")
    for _ in range(20):
        looks = [(await looking.route(query, look=True)).choice for _ in range(3)]
        assert {look.propensities for look in looks} == {(1.0, 0.0)}
        assert (await looking.route(query)).choice.chosen == (await other.route(query)).choice.chosen
    await registry.close()
    await library.close()


async def test_route_is_a_look_unless_it_counts(world: RouterWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.register(KNEES)
    before = await spooled()

    async def base_model(_: object) -> Any:
        return registry_pb2.Adapter(base_model="base-a")

    monkeypatch.setattr("smoa.client.SmoaClient.status", base_model)  # there is no executor here
    _, said, _ = await said_by("route", QUERY, "--json", "--router", world.address)
    assert "decision_id" not in json.loads(said)
    _, said, _ = await said_by("route", QUERY, "--router", world.address)
    assert "a look, in " in said
    assert await spooled() == before
    _, said, _ = await said_by("route", QUERY, "--count", "--json", "--router", world.address)
    assert len(json.loads(said)["decision_id"]) == 26
    assert await spooled() == before + 1


async def test_report_says_how_a_decision_turned_out(world: RouterWorld) -> None:
    before = await spooled()
    decision = await world.client.route("what is it?", base_model="base-a")
    name, router = decision.decision_id, ("--router", world.address)
    assert await said_by("report", name, "--success", *router) == (0, f"success reported on {name}\n", "")
    _, said, _ = await said_by("report", name, "--failure", "--input", "a", "--corrected", "b", "--score", "0.2", "--json", *router)
    assert json.loads(said) == {"decision_id": name, "outcome": "failure"}
    assert await spooled() == before + 3
    code, said, _ = await said_by("report", name, "--withdraw", "--revision", "1", "--source", "user", *router)
    assert (code, said) == (0, f"withdrawal reported on {name}\n")
    assert await spooled() == before + 4
    for options in ((), ("--success", "--withdraw", "--revision", "1")):
        code, _, said = await said_by("report", name, *options, *router)
        assert (code, "say --success, --failure or --withdraw" in said) == (2, True)
    code, _, said = await said_by("report", name, "--withdraw", *router)
    assert (code, "--withdraw goes with --revision" in said) == (2, True)
    code, _, said = await said_by("report", name, "--success", "--corrected", "b", *router)
    assert (code, "--corrected goes with --failure and --input" in said) == (2, True)
    status, message, _ = await refused(said_by("report", "x", "--success", *router))
    assert (status, message) == ("INVALID_ARGUMENT", "outcome.decision_id: 'x' is not a ULID; send the id that Route returned")


@pytest.mark.parametrize("strategy", ["hybrid", "semantic", "hierarchical", "mixture", "learned", "task"])
async def test_a_decision_explains_itself_and_does_not_tell_kafka(world: RouterWorld, strategy: str) -> None:
    knees, money = await world.register(KNEES, name="knees", tags=("medical",)), await world.register(MONEY, name="money")
    tags = ["medical"] if strategy == "task" else []
    options: dict[str, Any] = {"base_model": "base-a", "strategy": f"ROUTING_STRATEGY_{strategy.upper()}", "tags": tags, "top_k": 1}
    plain = await world.client.route(QUERY, **options)
    before = await spooled()
    told = await world.client.route(QUERY, **options, explain=True)
    assert await spooled() == before + 1
    assert not plain.explanations
    assert [one.adapter_id for one in told.adapters] == [one.adapter_id for one in plain.adapters] == [knees.adapter_id]
    first, *others = told.explanations
    assert (first.adapter_id, first.name, first.weight, first.reason) == (knees.adapter_id, "knees", 1.0, "chosen")
    assert first.score == pytest.approx(told.adapters[0].score, abs=1e-6)
    assert first.confidence == pytest.approx(told.confidence, abs=1e-6)
    assert min(first.example_cosine, first.cosine) > 0.9
    assert first.task == (1.0 if tags else 0.0)
    assert [(one.adapter_id, one.weight) for one in others] in ([(money.adapter_id, 0.0)], [])
    assert all(one.reason and one.reason != "chosen" for one in others)


async def test_route_explains_on_the_command_line(world: RouterWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await world.register(KNEES, name="knees")

    async def base_model(_: object) -> Any:
        return registry_pb2.Adapter(base_model="base-a")

    monkeypatch.setattr("smoa.client.SmoaClient.status", base_model)  # there is no executor here
    _, said, _ = await said_by("route", QUERY, "--explain", "--json", "--router", world.address)
    (told,) = json.loads(said)["explanations"]
    assert (told["adapter_id"], told["reason"]) == (made.adapter_id, "chosen")
    asked = ("route", "what is the capital of France?", "--explain", "--router", world.address)
    _, said, _ = await said_by(*asked)
    assert "confidence unknown" in said, "five examples do not tell"
    await world.client.retire("public", made.adapter_id, "by the test")
    _, said, _ = await said_by(*asked)
    assert "no adapter fits: the base model answers" in said
