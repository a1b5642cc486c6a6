"""A full spool, or a failing disk under it, takes no finished answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import grpc
import pytest

from smoa.errors import Unavailable
from smoa.events import Event
from smoa.spool import Spool
from smoa.v1 import executor_pb2
from tests.integration.executor_support import PROMPT, refused, running_executor

SPOOL_BYTES = 2000


async def test_a_full_spool_loses_no_finished_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses what has not begun: whoever was let in has room for what his answer will be counted by."""
    async with running_executor("torch", tmp_path, monkeypatch, spool_bytes=SPOOL_BYTES) as world:
        adapter = await world.adapter(1)
        long = world.client.stream(PROMPT, [adapter], max_tokens=150)
        await anext(long)
        answered = 0

        async def fill() -> None:
            nonlocal answered
            while True:
                await world.text(adapter, max_tokens=1)
                answered += 1

        with pytest.raises(grpc.aio.AioRpcError, match="RESOURCE_EXHAUSTED"):
            await fill()
        assert answered, "the spool was full at once"
        code, details = await refused(world, adapters=[adapter])
        assert code == "RESOURCE_EXHAUSTED"
        assert details == f"spool: {answered} events fill {details.split()[4]} of 2,000 bytes and wait for Kafka; retry when Kafka is back"
        responses = [response async for response in long]
        assert responses[-1].usage.completion_tokens == 150
        assert (await world.client.status()).spooled_events == answered + 1
        assert await world.text(), "what needs no event is answered"


async def test_what_was_let_in_and_left_keeps_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_executor("torch", tmp_path, monkeypatch, spool_bytes=SPOOL_BYTES) as world:
        adapter = await world.adapter(1)
        request = executor_pb2.GenerateRequest(prompt=PROMPT, adapters=[adapter], max_tokens=150)
        for _ in range(40):
            call = world.client.executor.Generate(request, timeout=60)
            await call.read()
            call.cancel()
            await world.idle()
        assert await world.text(adapter)


async def test_a_failing_disk_takes_no_finished_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(self: Spool, events: Sequence[Event], leave_bytes: int = 0, owner: str = "", **_: object) -> NoReturn:
        raise Unavailable("spool: cannot write; check the volume")

    async with running_executor("torch", tmp_path, monkeypatch) as world:
        adapter = await world.adapter(1)
        expected = await world.text(adapter)
        monkeypatch.setattr(Spool, "append", fails)
        assert await world.text(adapter) == expected
    assert "1 usage events of a finished request are lost" in caplog.text
