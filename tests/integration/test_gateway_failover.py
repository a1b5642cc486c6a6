"""An executor that dies under streams, of which those that nobody has seen anything are answered by another."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from typing import Any

import pytest

from smoa.sync_client import SyncSmoaClient
from smoa.v1 import events_pb2
from tests.gateway_support import BASE, MOST_TOKENS, GatewayWorld, events_of
from tests.integration.router_support import MONEY
from tests.kafka_support import read_events, until

pytestmark = pytest.mark.asyncio(loop_scope="session")
STREAMS = 24
"""More than an executor has rows (16): some have not begun when it dies."""


async def _stream(gateway: GatewayWorld, number: int, began: asyncio.Queue[int]) -> dict[str, Any]:
    """What came of a stream: its text's length in chunks, how it ended, which executors its headers and chunks name."""
    body = {
        "model": "refunds",
        "messages": [{"role": "user", "content": f"Tell story {number} of a refund."}],
        "max_tokens": 30,
        "ignore_eos": True,
        "stream": True,
    }
    chunks, end = 0, "cut off"
    async with gateway.http.post(f"{gateway.url}/chat/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        began.put_nowait(number)
        async for name, chunk in events_of(answer):
            if name == "error":
                end = chunk["error"]["code"]
            elif chunk == "[DONE]":
                end = "done"
            else:
                chunks += 1
        return {"chunks": chunks, "end": end, "executor": answer.headers["smoa-executor"], "decision": answer.headers["smoa-decision-id"]}


async def test_kill_9_of_an_executor_under_streams(gateway: GatewayWorld) -> None:
    await gateway.idle()
    began: asyncio.Queue[int] = asyncio.Queue()
    tasks = [asyncio.create_task(_stream(gateway, number, began)) for number in range(STREAMS)]
    for _ in range(4):
        await began.get()
    (victim,) = {address for address in gateway.executors if (await gateway.status(address)).running >= 4} or {gateway.executors[0]}
    name = f"executor-{gateway.executors.index(victim)}"
    os.kill(gateway.processes.processes[name].pid, signal.SIGKILL)
    results = await asyncio.gather(*tasks)
    ends = Counter(one["end"] for one in results)
    assert ends["done"] + ends["service_unavailable"] == STREAMS, ends
    cut = [one for one in results if one["end"] != "done"]
    assert all(one["executor"] == victim for one in cut), "only what the dead one had begun is lost"
    assert all(one["chunks"] == 30 for one in results if one["end"] == "done")
    moved = [one for one in results if one["end"] == "done" and one["executor"] != victim]
    assert moved, "those that had not begun were answered by the other"
    await gateway.processes.processes[name].wait_ready()
    await gateway.known()

    async def counted() -> bool:
        events = [events_pb2.UsageEvent.FromString(one.value) for one in await read_events(gateway.kafka, "smoa.usage.v1")]
        mine = Counter(one.decision_id for one in events if one.decision_id in {one["decision"] for one in results})
        assert not [one for one, times in mine.items() if times > 1], "nothing is counted twice"
        return mine.keys() == {one["decision"] for one in results if one["end"] == "done"}

    await until("each whole answer's usage being on its topic once", 20, counted)


async def _moved(gateway: GatewayWorld) -> float:
    async with gateway.http.get(f"http://{gateway.gateway}/metrics") as answer:
        return next(float(line.split()[1]) for line in (await answer.text()).splitlines() if line.startswith("smoa_gateway_moved_total "))


async def test_a_whole_answer_begins_anew_elsewhere(gateway: GatewayWorld) -> None:
    await gateway.idle()
    body = {"model": BASE, "messages": [{"role": "user", "content": "Tell a story."}], "max_tokens": MOST_TOKENS, "ignore_eos": True}
    asked = asyncio.create_task(gateway.post("/v1/chat/completions", body))

    async def runs() -> list[str]:
        return [address for address in gateway.executors if (await gateway.status(address)).running]

    await until("it running", 10, runs)
    (victim,), before = await runs(), await _moved(gateway)
    name = f"executor-{gateway.executors.index(victim)}"
    os.kill(gateway.processes.processes[name].pid, signal.SIGKILL)
    status, answer, headers = await asked
    assert status == 200, answer
    assert answer["usage"]["completion_tokens"] == MOST_TOKENS
    assert headers["smoa-executor"] == answer["smoa"]["executor"] != victim
    assert await _moved(gateway) == before + 1
    await gateway.processes.processes[name].wait_ready()
    await gateway.known()


async def test_one_call_of_the_client_and_its_report(gateway: GatewayWorld) -> None:
    answer = await gateway.client.chat(MONEY[0], max_tokens=4)
    assert answer.executor in gateway.executors
    assert [one.adapter_id for one in answer.decision.adapters] == [gateway.adapters["refunds"]]
    await answer.report(success=True)
    named = await gateway.client.chat([{"role": "user", "content": MONEY[0]}], model="knees", max_tokens=4, top_k=5)
    assert [one.adapter_id for one in named.decision.adapters] == [gateway.adapters["knees"]]

    def synchronous() -> str:
        with SyncSmoaClient(router=gateway.router) as smoa:
            answered = smoa.chat(MONEY[0], max_tokens=4)
            answered.report(success=False, corrected_output="refund")
            return answered.text

    assert await asyncio.to_thread(synchronous) == answer.text


async def test_the_contracts_are_told_to_who_asks(gateway: GatewayWorld) -> None:
    """As README's `grpcurl` lines do, without a file."""
    import sys
    from pathlib import Path

    grpcurl = Path(sys.executable).parent / "grpcurl"
    for address, service in (
        (gateway.router, "smoa.v1.RegistryService"),
        (gateway.executors[0], "smoa.v1.ExecutorService"),
        (gateway.envoy, "envoy.service.ext_proc.v3.ExternalProcessor"),
    ):
        listed = await asyncio.create_subprocess_exec(grpcurl, "-plaintext", address, "list", stdout=asyncio.subprocess.PIPE)
        out, _ = await listed.communicate()
        assert service in out.decode().split()
        described = await asyncio.create_subprocess_exec(
            grpcurl, "-plaintext", address, "describe", service, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await described.communicate()
        assert f"service {service.rpartition('.')[2]}" in out.decode()
    query = json.dumps({"query": MONEY[0], "names": True})
    routed = await asyncio.create_subprocess_exec(
        grpcurl, "-plaintext", "-d", query, gateway.router, "smoa.v1.RouterService/Route", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await routed.communicate()
    assert json.loads(out)["adapters"][0]["name"] == "refunds"
