"""The executor over a real socket, on a tiny random model: bad input, cancellation, deadlines, eviction, mixed batches."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest

from services.executor.app import build
from services.executor.base_model import fingerprint
from services.executor.settings import ExecutorSettings
from smoa.adapter import Adapter, Manifest, encode, new_adapter_id
from smoa.client import SmoaClient
from smoa.store import AdapterStore
from smoa.v1 import common_pb2 as common
from smoa.v1 import executor_pb2
from tests.kafka_support import until
from tests.model_support import BACKENDS, isolated_cache, make_model

PROMPT = "w1 w2 w3 w4"


@dataclasses.dataclass
class World:
    client: SmoaClient
    store: AdapterStore
    base_model: str

    async def adapter(self, seed: int, weight: float = 1.0, **changes: object) -> common.WeightedAdapter:
        """A random lora_xs adapter in the store, as a decision would name it."""
        rng = np.random.default_rng(seed)
        manifest = Manifest(
            adapter_id=new_adapter_id(),
            name=str(seed),
            kind="lora_xs",
            base_model=self.base_model,
            rank=4,
            modules=("q_proj", "down_proj"),
            layers=(0, 1, 2),
        )
        manifest = dataclasses.replace(manifest, **changes)  # type: ignore[arg-type]
        shape = (3, manifest.rank, manifest.rank)
        tensors = {name: rng.standard_normal(shape).astype(np.float32) for name in manifest.modules}
        tensors |= {f"{name}.s": np.ones(shape[:2], np.float32) for name in manifest.modules}
        digest = await self.store.put(encode(Adapter(manifest, tensors)))
        return common.WeightedAdapter(adapter_id=manifest.adapter_id, version=1, digest=digest, weight=weight)

    async def text(self, *adapters: common.WeightedAdapter, max_tokens: int = 12, **options: object) -> str:
        """The whole greedy answer."""
        pieces = [r.text async for r in self.client.stream(PROMPT, adapters, max_tokens=max_tokens, **options)]  # type: ignore[arg-type]
        return "".join(pieces)

    async def idle(self) -> None:
        """Wait until no row is taken and no lease is held."""

        async def free() -> bool:
            status = await self.client.status()
            return status.running == 0 and status.queued == 0 and not any(resident.leases for resident in status.residents)

        await until("every row and lease being free", 10, free)


@pytest.fixture(params=BACKENDS)
async def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    isolated_cache(tmp_path / "cache", monkeypatch)
    folder = make_model(tmp_path / "model")
    settings = ExecutorSettings(
        address="127.0.0.1:0",
        base_model=str(folder),
        backend=request.param,
        dtype="float32",
        slots=3,
        rows=4,
        context=200,
        max_waiting=4,
        max_tokens=150,
        drain_s=0,
        kafka_bootstrap="127.0.0.1:1",
        data_folder=tmp_path / "data",
        store=str(tmp_path / "store"),
    )
    async with AsyncExitStack() as stack:
        server = await build(settings, stack)
        await server.ready()
        client = await stack.enter_async_context(SmoaClient(executor=f"127.0.0.1:{server.port}"))
        made = World(client, AdapterStore(settings.store), fingerprint(folder))
        yield made
        await made.idle()


async def refused(world: World, **changes: object) -> tuple[str, str]:
    request = executor_pb2.GenerateRequest(**{"prompt": PROMPT, "max_tokens": 5, **changes})  # type: ignore[arg-type]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [response async for response in world.client.executor.Generate(request, timeout=20)]
    return caught.value.code().name, str(caught.value.details())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ""}, "prompt: is empty; send a text"),
        ({"prompt": "x" * 32_769}, "prompt: has 32,769 characters, over 32,768; shorten it"),
        (
            {"prompt": "w1 " * 199},
            "prompt: has 199 tokens, with max_tokens over the context of 200; shorten it or lower max_tokens",
        ),
        ({"max_tokens": 151}, "max_tokens: 151 is outside 1..150; ask for fewer tokens"),
        ({"temperature": -1.0}, "temperature: -1.0 is outside 0..10; use 0 for greedy"),
        ({"top_p": 2.0}, "top_p: 2.0 is outside 0..1; leave it out for 1"),
        ({"stop": [""]}, "stop: holds an empty text, a long one, or too many; send at most 8 of 1 to 64 characters"),
    ],
)
async def test_bad_request(world: World, changes: dict[str, object], message: str) -> None:
    assert await refused(world, **changes) == ("INVALID_ARGUMENT", message)


@pytest.mark.parametrize("weight", [-5.0, 4.5, float("nan")])
async def test_weight_over_the_limit(world: World, weight: float) -> None:
    adapter = await world.adapter(1, weight)
    expected = f"adapters.weight: {weight:g} is outside -4..4; a decision's weights add up to 1"
    assert await refused(world, adapters=[adapter]) == ("INVALID_ARGUMENT", expected)


async def test_adapter_for_another_base_model(world: World) -> None:
    adapter = await world.adapter(1, base_model="other-base-model")
    code, details = await refused(world, adapters=[adapter])
    assert code == "FAILED_PRECONDITION"
    assert details == (
        f"base_model: adapter {adapter.adapter_id} was trained for other-base-m, this executor runs {world.base_model[:12]}; "
        "send it to an executor with that base model"
    )


async def test_weights_that_are_gone_or_not_the_adapters(world: World) -> None:
    gone = common.WeightedAdapter(adapter_id=new_adapter_id(), version=1, digest="a" * 64, weight=1)
    code, details = await refused(world, adapters=[gone])
    assert (code, details) == (
        "FAILED_PRECONDITION",
        f"adapter: the weights of {gone.adapter_id} (aaaaaaaaaaaa) are gone, it was purged or never pushed; route again",
    )
    real = await world.adapter(1)
    wrong = common.WeightedAdapter(adapter_id=gone.adapter_id, version=1, digest=real.digest, weight=1)
    code, details = await refused(world, adapters=[wrong])
    expected = f"adapters.digest: {real.digest[:12]} is not {gone.adapter_id} version 1; send the decision unchanged"
    assert (code, details) == ("INVALID_ARGUMENT", expected)


async def test_rank_over_the_limit_and_the_same_adapter_twice_and_too_many(world: World) -> None:
    big = await world.adapter(1, rank=17)
    expected = "rank: 17 is over this executor's 16 for lora_xs; retrain with a rank up to 16"
    assert await refused(world, adapters=[big]) == ("INVALID_ARGUMENT", expected)
    one = await world.adapter(2)
    assert await refused(world, adapters=[one, one]) == ("INVALID_ARGUMENT", "adapters: names an adapter twice; add up its weights")
    four = [await world.adapter(seed) for seed in range(4)]
    assert await refused(world, adapters=four) == ("INVALID_ARGUMENT", "adapters: holds 4, the executor has 3 slots; send fewer")


async def test_another_tenants_adapter_is_not_found_unless_shared(world: World) -> None:
    private, shared = await world.adapter(1, tenant="acme"), await world.adapter(2, tenant="acme", shared=True)
    code, details = await refused(world, adapters=[private])
    assert (code, details) == ("NOT_FOUND", f"adapter '{private.adapter_id}' was not found; list what exists and check the tenant")
    assert await world.text(shared)


async def test_rows_of_a_batch_answer_as_they_do_alone(world: World) -> None:
    a, b = await world.adapter(1, 3.0), await world.adapter(2, -3.0)
    mixes: list[list[common.WeightedAdapter]] = [[], [a], [b], [a, b]]
    alone = [await world.text(*mix) for mix in mixes]
    assert len(set(alone)) == 4
    assert list(await asyncio.gather(*(world.text(*mix) for mix in mixes))) == alone


async def test_five_adapters_share_three_slots(world: World) -> None:
    adapters = [await world.adapter(seed) for seed in range(5)]
    alone = [await world.text(adapter) for adapter in adapters]
    assert list(await asyncio.gather(*(world.text(adapter) for adapter in adapters))) == alone
    status = await world.client.status()
    assert len(status.residents) == 3
    assert status.evictions >= 2
    assert status.store_loads == 5, "one load each: host memory keeps what leaves a slot"
    assert status.host_hits >= 2
    assert status.slot_bytes == sum(resident.bytes for resident in status.residents)
    assert status.host_bytes * 3 == status.slot_bytes * 5
    assert status.cache_blocks_free == status.cache_blocks > 0


async def test_cancellation_and_deadline_free_row_and_lease(world: World) -> None:
    adapter = await world.adapter(1)
    request = executor_pb2.GenerateRequest(prompt=PROMPT, adapters=[adapter], max_tokens=150)
    call = world.client.executor.Generate(request, timeout=20)
    await call.read()
    call.cancel()
    await world.idle()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [response async for response in world.client.executor.Generate(request, timeout=0.02)]
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await world.idle()


async def test_queue_overflow_is_refused_and_the_rest_complete(world: World) -> None:
    results = await asyncio.gather(*(world.text(max_tokens=100) for _ in range(12)), return_exceptions=True)
    errors = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert errors
    assert {error.code() for error in errors} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert str(errors[0].details()) == "queue: 8 requests are in flight; retry with backoff or add executors"
    assert len({result for result in results if isinstance(result, str)}) == 1


async def test_stop_string_sampling_and_usage(world: World) -> None:
    whole = await world.text()
    words = whole.split()
    stop = next(word for word in words[2:] if whole.index(word) > 0)
    assert (await world.text(stop=[stop])) == whole[: whole.index(stop)]
    sampled = {await world.text(temperature=1.0, seed=5) for _ in range(2)}
    assert len(sampled) == 1
    assert await world.text(temperature=1.0, seed=6, top_p=1e-6) == whole
    adapters = [await world.adapter(1, 0.5), await world.adapter(2, 0.5)]
    _ = await world.text(*adapters)
    last = [r async for r in world.client.stream(PROMPT, adapters, max_tokens=7)][-1]
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.adapter_hits, last.usage.adapter_misses) == (4, 7, 2, 0)
    assert last.usage.finish_reason == executor_pb2.FINISH_REASON_LENGTH
    assert (await world.client.status()).spooled_events == 4
