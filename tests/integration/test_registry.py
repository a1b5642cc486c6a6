"""The library's life over a real socket: routing to what is there, retiring, purging, merging, tenants, compositions, restarts."""

from __future__ import annotations

import asyncio
import re
import threading
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.local import free_port
from services.router.routing.query import RoutedQuery, RouteQuery
from services.router.routing.router import Router
from smoa.adapter import new_adapter_id
from smoa.embedding.static import StaticEmbedder
from smoa.errors import InvalidArgument
from smoa.v1 import common_pb2 as common
from smoa.v1 import feedback_pb2, registry_pb2, router_pb2
from tests.integration.router_support import KNEES, MONEY, RouterWorld, adapter_file, refused, running_router

pytestmark = pytest.mark.usefixtures("catalogue")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RouterWorld]:
    async with running_router(tmp_path) as made:
        yield made


async def test_routes_to_the_adapter_whose_examples_are_nearest(world: RouterWorld) -> None:
    await world.register(KNEES)
    await world.register(MONEY, name="money", tags=("billing",))
    assert (await world.routed("the knee aches on stairs"))[0] == "knees"
    assert (await world.routed("give me a refund for this order"))[0] == "money"
    assert await world.routed("give me a refund for this order", score_threshold=0.99) == []
    decision = await world.client.route("a refund, my knee hurts", base_model="base-a", score_threshold=-1.0)
    assert sum(item.weight for item in decision.adapters) == pytest.approx(1.0)
    assert await world.routed("the knee aches on stairs", strategy=common.ROUTING_STRATEGY_TASK, tags=["billing"]) == ["money"]
    assert (await world.routed("the knee aches", strategy=common.ROUTING_STRATEGY_HYBRID, task_id="money"))[0] == "money"


async def test_the_cache_answers_again_and_forgets_what_changed(world: RouterWorld) -> None:
    knees = await world.register(KNEES)
    first = await world.client.route("my knee hurts", base_model="base-a")
    second = await world.client.route("my knee hurts", base_model="base-a")
    assert (first.cached, second.cached) == (False, True)
    assert list(first.adapters) == list(second.adapters)
    assert first.decision_id != second.decision_id
    await world.client.retire("public", knees.adapter_id, "by the test")
    third = await world.client.route("my knee hurts", base_model="base-a")
    assert (third.cached, list(third.adapters)) == (False, [])
    await world.client.restore("public", knees.adapter_id)
    assert await world.routed("my knee hurts") == ["knees"]
    await world.register([f"knee pain, swollen knee {n}" for n in range(5)], name="better")
    assert "better" in await world.routed("my knee hurts swollen knee pain")


async def test_batch_keeps_the_order(world: RouterWorld) -> None:
    await world.register(KNEES)
    least = (-1.0, 0.99, -1.0)
    requests = [router_pb2.RouteRequest(query="the knee hurts", base_model="base-a", score_threshold=one) for one in least]
    answer = await world.client.router.RouteBatch(router_pb2.RouteBatchRequest(requests=requests), timeout=10)
    assert [bool(decision.adapters) for decision in answer.decisions] == [True, False, True]


async def test_purge_waits_for_the_grace_period_and_then_deletes(tmp_path: Path) -> None:
    async with running_router(tmp_path, purge_grace_s=3600.0) as world:
        made = await world.register(KNEES)
        request = registry_pb2.PurgeAdapterRequest(adapter_id=made.adapter_id)
        code, details, _ = await refused(world.client.registry.PurgeAdapter(request, timeout=10))
        assert code == "FAILED_PRECONDITION"
        assert details == f"adapter: {made.adapter_id} is active, so it cannot be purged; see its state with `smoa adapter show`"
        await world.client.retire("public", made.adapter_id, "no")
        code, details, _ = await refused(world.client.registry.PurgeAdapter(request, timeout=10))
        assert code == "FAILED_PRECONDITION"
        assert "the grace period is 3600 s" in details
    async with running_router(tmp_path, purge_grace_s=0.0) as world:
        purged = await world.client.registry.PurgeAdapter(request, timeout=10)
        assert purged.state == common.ADAPTER_STATE_PURGED
        assert not list(Path(world.store.location).rglob("*.safetensors"))
        code, _, _ = await refused(world.client.restore("public", made.adapter_id))
        assert code == "FAILED_PRECONDITION"


async def test_a_retired_adapter_s_file_is_archived_and_comes_back(world: RouterWorld) -> None:
    made = await world.register(KNEES)
    folder = Path(world.store.location)
    code, details, _ = await refused(world.client.archive("public", made.adapter_id))
    assert (code, details.split(",")[0]) == ("FAILED_PRECONDITION", f"adapter: {made.adapter_id} is active")
    retired = await world.client.retire("public", made.adapter_id, "no")
    archived = await world.client.archive("public", made.adapter_id)
    assert archived.archived_at_us > 0
    assert archived.updated_at_us == retired.updated_at_us, "how long it is away does not begin anew"
    assert await world.client.archive("public", made.adapter_id) == archived
    assert (folder / world.store.archive_key(made.digest)).exists()
    assert not (folder / world.store.key(made.digest)).exists()
    assert await world.routed("my knee hurts") == []
    back = await world.client.restore("public", made.adapter_id)
    assert (back.archived_at_us, back.state) == (0, common.ADAPTER_STATE_ACTIVE)
    assert (folder / world.store.key(made.digest)).exists()
    assert await world.routed("my knee hurts") == [made.name]


async def test_the_parents_of_a_merge_that_is_undone_come_back_from_the_archive(world: RouterWorld) -> None:
    first, second = await world.register(KNEES), await world.register(KNEES, name="knees-2", value=0.6)
    parents = [first.adapter_id, second.adapter_id]
    digest = await world.store.put(adapter_file(name="child", parents=tuple(parents)))
    child = await world.client.apply_merge("public", "m1", digest, parents, "alike")
    for parent in parents:
        await world.client.archive("public", parent)
    await world.client.settle_trial("public", child.adapter_id, promote=False, reason="undone")
    assert all((Path(world.store.location) / world.store.key(one.digest)).exists() for one in (first, second))


async def test_a_file_that_another_adapter_uses_stays(world: RouterWorld) -> None:
    made = await world.register(KNEES)
    twin = registry_pb2.ImportedAdapter(adapter=made, examples=KNEES)
    twin.adapter.adapter_id = "0" * 26
    twin.adapter.name = "twin"
    assert [one.added async for one in world.client.import_adapters([[twin]])] == [1]
    await world.client.retire("public", made.adapter_id, "no")
    assert (await world.client.archive("public", made.adapter_id)).archived_at_us == 0
    assert (Path(world.store.location) / world.store.key(made.digest)).exists()


async def test_merge_is_one_step_and_idempotent(world: RouterWorld) -> None:
    first, second = await world.register(KNEES), await world.register(KNEES, name="knees-2", value=0.6)
    parents = [first.adapter_id, second.adapter_id]
    digest = await world.store.put(adapter_file(name="child", parents=tuple(parents)))
    child = await world.client.apply_merge("public", "m1", digest, parents, "alike")
    assert await world.client.apply_merge("public", "m1", digest, parents, "alike") == child
    assert await world.routed("my knee hurts") == ["child"]
    retired = [a async for a in world.client.list_all(states=[common.ADAPTER_STATE_RETIRED])]
    assert {a.adapter_id for a in retired} == set(parents)
    assert all(a.state_reason == f"merged into {child.adapter_id}: alike" for a in retired)
    third = await world.register(MONEY, name="money")
    bad = await world.store.put(adapter_file(name="child", parents=(first.adapter_id, third.adapter_id)))
    code, details, _ = await refused(world.client.apply_merge("public", "m2", bad, [first.adapter_id, third.adapter_id], "x"))
    assert code == "FAILED_PRECONDITION"
    assert details == f"parent: {first.adapter_id} is retired on base-a; merge active ones of one base"
    code, _, _ = await refused(world.client.apply_merge("public", "m3", bad, parents, "x"))
    assert code == "INVALID_ARGUMENT"


async def test_tenants_are_apart_and_shared_adapters_are_explicit(world: RouterWorld) -> None:
    private = await world.register(KNEES, tenant="acme", name="private")
    await world.register(KNEES, tenant="acme", name="for-all", shared=True)
    assert await world.routed("my knee hurts") == ["for-all"]
    decision = await world.client.route("my knee hurts", base_model="base-a", tenant="acme")
    assert len(decision.adapters) == 2
    assert await world.routed("my knee hurts", own_only=True) == [], "who wants none that others share is given none"
    own = await world.client.route("my knee hurts", base_model="base-a", tenant="acme", own_only=True, session="s")
    assert [one.adapter_id for one in own.adapters] == [private.adapter_id]
    assert [a.name async for a in world.client.list_all("public")] == ["for-all"]
    assert {a.name async for a in world.client.list_all(all_tenants=True)} == {"private", "for-all"}, "nobody is asked who they are here"


async def test_pages_and_foreign_page_tokens(world: RouterWorld) -> None:
    made = {(await world.register(KNEES, name=str(number), value=number / 10)).adapter_id for number in range(5)}
    request = registry_pb2.ListAdaptersRequest(page_size=2)
    seen: list[str] = []
    while True:
        page = await world.client.registry.ListAdapters(request, timeout=5)
        seen += [adapter.adapter_id for adapter in page.adapters]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == sorted(made)
    request.tenant = "acme"
    code, details, _ = await refused(world.client.registry.ListAdapters(request, timeout=5))
    expected = "page_token: belongs to another listing; keep tenant and filters the same from page to page"
    assert (code, details) == ("INVALID_ARGUMENT", expected)


async def test_a_restart_keeps_the_library_and_the_spool(tmp_path: Path) -> None:
    async with running_router(tmp_path) as world:
        made = await world.register(KNEES)
        decision = await world.client.route("my knee hurts", base_model="base-a")
        await world.client.report(decision, success=True)
    async with running_router(tmp_path, spool_bytes=1) as world:  # four events wait: registered and who did it, decision, outcome
        assert [a.adapter_id async for a in world.client.list_all()] == [made.adapter_id]
        outcome = feedback_pb2.ReportOutcomeRequest(outcome=feedback_pb2.Outcome(decision_id=decision.decision_id, success=True))
        code, details, _ = await refused(world.client.feedback.ReportOutcome(outcome, timeout=5))
        assert code == "RESOURCE_EXHAUSTED"
        assert re.fullmatch(r"spool: 4 events fill [\d,]+ of 1 bytes and wait for Kafka; retry when Kafka is back", details)


async def test_routing_goes_on_when_the_spool_is_full_unless_it_must_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running_router(tmp_path) as world:
        made = await world.register(KNEES)
    port = free_port()
    async with running_router(tmp_path, spool_bytes=1, metrics_address=f"127.0.0.1:{port}") as world:
        for _ in range(3):
            decision = await world.client.route("my knee hurts", base_model="base-a")
            assert [one.adapter_id for one in decision.adapters] == [made.adapter_id]
            assert decision.decision_id
        told = [one for one in caplog.messages if one.startswith("decisions are given and not counted: spool: 2 events fill ")]
        assert len(told) == 1, "not for each"

        def read() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                return str(answer.read().decode())

        assert "smoa_router_dropped_decisions_total 3.0" in await asyncio.to_thread(read)
    async with running_router(tmp_path, spool_bytes=1, when_spool_is_full="refuse") as world:
        code, details, _ = await refused(world.client.route("my knee hurts", base_model="base-a"))
        assert (code, details.startswith("spool: 2 events fill ")) == ("RESOURCE_EXHAUSTED", True)
    with pytest.raises(InvalidArgument, match=r"^SMOA_ROUTER_WHEN_SPOOL_IS_FULL: 'wait' is unknown; use drop or refuse$"):
        async with running_router(tmp_path, when_spool_is_full="wait"):
            pass


async def test_what_nobody_could_be_told_of_is_not_done(tmp_path: Path) -> None:
    """Decisions and outcomes leave an eighth of the spool to what happens to adapters; and once half of that is full, nothing happens."""
    async with running_router(tmp_path, spool_bytes=512 * 1024) as world:
        made = await world.register(KNEES)
        for _ in range(200):
            await world.client.route("my knee hurts", base_model="base-a", task_id="x" * 256)
        outcome = feedback_pb2.Outcome(decision_id=new_adapter_id(), input="x" * 8192)

        async def report() -> None:
            while True:
                await world.client.feedback.ReportOutcome(feedback_pb2.ReportOutcomeRequest(outcome=outcome), timeout=5)

        code, _, _ = await refused(report())
        assert code == "RESOURCE_EXHAUSTED"
        assert (await world.client.pin("public", made.adapter_id)).pinned, "there is room for that"

        async def change() -> None:
            for number in range(200):
                done.append(await world.client.retire("public", made.adapter_id, f"{number}" + "x" * 1990))
                done.append(await world.client.restore("public", made.adapter_id))

        done: list[registry_pb2.Adapter] = []
        code, details, _ = await refused(change())
        assert (code, details.endswith("retry when Kafka is back")) == ("RESOURCE_EXHAUSTED", True)
        assert await world.client.get(made.adapter_id) == done[-1], "what was refused was not done"


async def test_many_with_a_common_tag_do_not_crowd_out_the_one_of_the_task_id(world: RouterWorld) -> None:
    for number in range(40):
        await world.register([f"{text} {number}" for text in KNEES], name=f"knee-{number}", tags=("busy",))
    await world.register(MONEY, name="ledger", tags=("quiet",))
    routed = await world.routed("my knee hurts", strategy=common.ROUTING_STRATEGY_TASK, tags=["busy"], task_id="ledger")
    assert routed[0] == "ledger"


async def test_a_large_batch_lets_others_in_between(world: RouterWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held to turns of the loop, not to time: so many more than the call itself takes."""
    await world.register(KNEES)
    requests = [router_pb2.RouteRequest(query=f"my knee hurts {number}", base_model="base-a", look=True) for number in range(256)]
    turns = 0
    route = Router.route

    async def counted(self: Router, query: RouteQuery, *, look: bool = False) -> RoutedQuery:
        seen.append(turns)
        return await route(self, query, look=look)

    seen: list[int] = []
    monkeypatch.setattr(Router, "route", counted)

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(turn())
    await world.client.router.RouteBatch(router_pb2.RouteBatchRequest(requests=requests), timeout=30)
    task.cancel()
    assert len(seen) == 256
    assert len(set(seen)) >= 256 // 8


async def test_long_examples_are_embedded_beside_the_loop(world: RouterWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set[int]()
    vector_of = StaticEmbedder.vector_of

    def noted(self: StaticEmbedder, text: str) -> Any:
        threads.add(threading.get_ident())
        return vector_of(self, text)

    monkeypatch.setattr(StaticEmbedder, "vector_of", noted)
    made = await world.register([f"{number} " + "a long example " * 100 for number in range(50)])
    update = registry_pb2.UpdateAdapterRequest(tenant="public", adapter_id=made.adapter_id, examples=KNEES)
    await world.client.registry.UpdateAdapter(update, timeout=30)
    assert threads
    assert threading.get_ident() not in threads
