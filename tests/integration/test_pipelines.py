"""Pipelines of mixtures over a real socket: each stage's text is the next one's input, the last one's is streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from smoa.adapter import new_adapter_id
from smoa.v1 import common_pb2 as common
from smoa.v1 import executor_pb2
from tests.integration.executor_support import PROMPT, World, refused, running_executor
from tests.model_support import BACKENDS

Stage = common.Stage


@pytest.fixture(params=BACKENDS)
async def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with running_executor(request.param, tmp_path, monkeypatch) as made:
        yield made


async def test_a_pipeline_is_its_stages_one_after_the_other(world: World) -> None:
    a, b, c = [await world.adapter(seed, 2.0) for seed in range(3)]
    text = PROMPT
    for adapters, tokens in (([a], 6), ([b, c], 3), ([], 12)):
        text = "".join([r.text async for r in world.client.stream(text, adapters, max_tokens=tokens)])
    stages = [Stage(adapters=[a], max_tokens=6), Stage(adapters=[b, c], max_tokens=3), Stage()]
    responses = [r async for r in world.client.stream(PROMPT, max_tokens=12, stages=stages)]
    assert "".join(response.text for response in responses) == text
    assert len(responses) == 12, "only the last stage is streamed, token by token"
    usage = responses[-1].usage
    assert [stage.completion_tokens for stage in usage.stages] == [6, 3, 12]
    assert [stage.prompt_tokens for stage in usage.stages] == [4, 6, 3]
    assert (usage.prompt_tokens, usage.completion_tokens) == (13, 21)
    assert usage.adapter_hits + usage.adapter_misses == 3
    assert usage.total_us >= usage.first_token_us > sum(stage.total_us for stage in usage.stages[:-1])
    assert usage.finish_reason == executor_pb2.FINISH_REASON_LENGTH


async def test_one_stage_is_a_plain_request(world: World) -> None:
    adapter = await world.adapter(1)
    responses = [r async for r in world.client.stream(PROMPT, max_tokens=5, stages=[Stage(adapters=[adapter])])]
    assert "".join(response.text for response in responses) == await world.text(adapter, max_tokens=5)
    assert not responses[-1].usage.stages
    assert (await world.client.status()).spooled_events == 2


async def test_a_pipeline_counts_each_stage_of_an_adapter(world: World) -> None:
    adapter = await world.adapter(1)
    _ = [r async for r in world.client.stream(PROMPT, max_tokens=3, stages=[Stage(adapters=[adapter])] * 2)]
    assert (await world.client.status()).spooled_events == 2


async def test_stop_strings_end_the_last_stage_only(world: World) -> None:
    first = await world.text(max_tokens=6)
    second = "".join([r.text async for r in world.client.stream(first, max_tokens=6)])
    stop = first.split()[3]
    responses = [r async for r in world.client.stream(PROMPT, max_tokens=6, stages=[Stage(), Stage()], stop=[stop])]
    assert "".join(response.text for response in responses) == second.partition(stop)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": [Stage()] * 9}, "stages: holds 9; send at most 8"),
        ({"stages": [Stage(), Stage(max_tokens=151)]}, "max_tokens: 151 is outside 1..150; ask for fewer tokens"),
        (
            {"stages": [Stage(max_tokens=150), Stage(max_tokens=120)]},
            "stages[0].text: has 150 tokens, with max_tokens over the context of 200; shorten it or lower max_tokens",
        ),
    ],
)
async def test_bad_stages(world: World, changes: dict[str, object], message: str) -> None:
    assert await refused(world, **changes) == ("INVALID_ARGUMENT", message)


async def test_stages_beside_adapters(world: World) -> None:
    one = await world.adapter(1)
    expected = "stages: come with adapters beside them; send one of the two; a decision on a composition has stages"
    assert await refused(world, adapters=[one], stages=[Stage()]) == ("INVALID_ARGUMENT", expected)


async def test_a_bad_stage_is_found_before_the_first_one_runs(world: World) -> None:
    gone = common.WeightedAdapter(adapter_id=new_adapter_id(), version=1, digest="a" * 64, weight=1)
    code, details = await refused(world, stages=[Stage(max_tokens=150), Stage(adapters=[gone])])
    assert (code, details) == (
        "FAILED_PRECONDITION",
        f"adapter: the weights of {gone.adapter_id} (aaaaaaaaaaaa) are gone, it was purged or never pushed; route again",
    )
    assert (await world.client.status()).prefix_lookups == 0, "nothing was admitted"


async def test_a_cancelled_pipeline_frees_what_it_holds(world: World) -> None:
    adapter = await world.adapter(1)
    stages = [Stage(adapters=[adapter], max_tokens=4), Stage(adapters=[adapter], max_tokens=150)]
    call = world.client.executor.Generate(executor_pb2.GenerateRequest(prompt=PROMPT, stages=stages), timeout=20)
    await call.read()
    call.cancel()
    await world.idle()
    status = await world.client.status()
    assert (status.running, status.queued, status.cache_blocks_free) == (0, 0, status.cache_blocks)


async def test_pipelines_that_fill_host_memory_do_not_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_executor("torch", tmp_path, monkeypatch, host_bytes=1200, max_waiting=20) as world:
        # 384 bytes each: a pipeline of two and nobody else.
        adapters = [await world.adapter(seed) for seed in range(6)]
        pairs = [(one, other) for one in adapters for other in adapters if one is not other]
        stages = [[Stage(adapters=[one], max_tokens=3), Stage(adapters=[other])] for one, other in pairs]

        async def text(pipeline: list[common.Stage]) -> str:
            request = executor_pb2.GenerateRequest(prompt=PROMPT, stages=pipeline, max_tokens=3)
            return "".join([response.text async for response in world.client.executor.Generate(request, timeout=30)])

        alone = [await text(pipeline) for pipeline in stages[:16]]
        assert list(await asyncio.gather(*(text(pipeline) for pipeline in stages[:16]))) == alone
        code, details = await refused(world, stages=[Stage(adapters=[one]) for one in adapters])
        assert (code, details) == (
            "INVALID_ARGUMENT",
            "adapters: take more than the 1,200 bytes of the executor's host memory; send fewer, or raise SMOA_EXECUTOR_HOST_BYTES",
        )
