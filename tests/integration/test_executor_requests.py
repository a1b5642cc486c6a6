"""The executor over a real socket, on a tiny random model: bad input, cancellation, deadlines, eviction, mixed batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest

from smoa.access.channels import Channels
from smoa.adapter import Adapter, Manifest, digest_of, encode, new_adapter_id
from smoa.statuses import MAX_ERROR_BYTES
from smoa.v1 import common_pb2 as common
from smoa.v1 import executor_pb2, executor_pb2_grpc
from tests.integration.executor_support import PROMPT, World, refused, running_executor
from tests.model_support import BACKENDS


@pytest.fixture(params=BACKENDS)
async def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with running_executor(request.param, tmp_path, monkeypatch) as made:
        yield made


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ""}, "prompt: is empty, and there are no messages; send one of the two"),
        ({"prompt": "x" * 25_601}, "prompt: has more tokens than the context of 200; shorten it"),
        (
            {"prompt": "w1 " * 199},
            "prompt: has 199 tokens, with max_tokens over the context of 200; shorten it or lower max_tokens",
        ),
        ({"max_tokens": 151}, "max_tokens: 151 is outside 1..150; ask for fewer tokens"),
        ({"temperature": -1.0}, "temperature: -1 is outside 0..10; use 0 for greedy"),
        ({"top_p": 2.0}, "top_p: 2 is outside 0..1; leave it out for 1"),
        ({"stop": [""]}, "stop: holds an empty text, a long one, or too many; send at most 8 of 1 to 64 characters"),
    ],
)
async def test_bad_request(world: World, changes: dict[str, object], message: str) -> None:
    assert await refused(world, **changes) == ("INVALID_ARGUMENT", message)


async def test_a_long_wrong_value_is_still_a_bad_request(world: World) -> None:
    """A status is metadata, of which clients take 16 KiB: over that they would see RESOURCE_EXHAUSTED, which they retry."""
    code, details = await refused(world, prompt="", messages=[executor_pb2.Message(role="\U0001f600" * 5000, content="x")])
    assert code == "INVALID_ARGUMENT"
    assert details.startswith("messages: have the role ")
    assert len(details.encode()) <= MAX_ERROR_BYTES


async def test_an_adapter_that_nobody_can_have_named(world: World) -> None:
    adapter = common.WeightedAdapter(adapter_id="\U0001f600" * 5000, version=1, digest="0" * 64, weight=1.0)
    said = "adapters[0].adapter_id: has 5,000 characters; must be at most 64 characters"
    assert await refused(world, adapters=[adapter]) == ("INVALID_ARGUMENT", said)


@pytest.mark.parametrize("weight", [-5.0, 4.5, float("nan")])
async def test_weight_over_the_limit(world: World, weight: float) -> None:
    adapter = await world.adapter(1, weight)
    expected = f"adapters.weight: {weight:g} is outside -4..4; a decision's weights add up to 1"
    if weight != weight:
        expected = "adapters[0].weight: is nan; must be finite"
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
    expected = "rank: 17 is over the executor's 16 for lora_xs; retrain with a rank up to 16"
    assert await refused(world, adapters=[big]) == ("INVALID_ARGUMENT", expected)
    one = await world.adapter(2)
    assert await refused(world, adapters=[one, one]) == ("INVALID_ARGUMENT", "adapters: names an adapter twice; add up its weights")
    four = [await world.adapter(seed) for seed in range(4)]
    assert await refused(world, adapters=four) == ("INVALID_ARGUMENT", "adapters: holds 4, the executor has 3 slots; send fewer")


def _damaged(change: Callable[[Manifest, dict[str, np.ndarray]], None], base_model: str) -> tuple[str, bytes]:
    layers, path = (0, 1, 2), "model.layers.{}.self_attn.q_proj.lora_{}"
    tensors = {path.format(layer, "A"): np.ones((2, 64), np.float32) for layer in layers}
    tensors |= {path.format(layer, "B"): np.ones((64, 2), np.float32) for layer in layers}
    manifest = Manifest(
        adapter_id=new_adapter_id(), name="x", kind="lora", base_model=base_model, rank=2, modules=("q_proj",), layers=layers
    )
    change(manifest, tensors)
    return manifest.adapter_id, encode(Adapter(manifest, tensors))


def _wrong_shape(manifest: Manifest, tensors: dict[str, np.ndarray]) -> None:
    tensors["model.layers.1.self_attn.q_proj.lora_A"] = np.ones((2, 63), np.float32)


def _unknown_layer(manifest: Manifest, tensors: dict[str, np.ndarray]) -> None:
    object.__setattr__(manifest, "layers", (0, 1, 7))
    for side in "AB":
        tensors[f"model.layers.7.self_attn.q_proj.lora_{side}"] = tensors.pop(f"model.layers.2.self_attn.q_proj.lora_{side}")


OTHER_MODEL = "it is of another base model; give it to an executor of the one that it was trained on"


async def _undisturbed(world: World, bad: common.WeightedAdapter) -> tuple[str, str]:
    """The error of a request with a bad adapter, sent while others decode: theirs are the answers they give alone."""
    good = await world.adapter(1)
    alone = [await world.text(max_tokens=60), await world.text(good, max_tokens=60)]
    beside = [asyncio.create_task(world.text(*mix, max_tokens=60)) for mix in ([], [good])]
    error = await refused(world, adapters=[bad])
    assert [await task for task in beside] == alone
    return error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_wrong_shape, f"adapter: model.layers.1.self_attn.q_proj is 64x63, the base model's is 64x64; {OTHER_MODEL}"),
        (_unknown_layer, f"adapter: changes layer 7, the base model has layers 0 to 2; {OTHER_MODEL}"),
    ],
)
async def test_an_adapter_that_does_not_fit_the_model(
    world: World, change: Callable[[Manifest, dict[str, np.ndarray]], None], message: str
) -> None:
    adapter_id, data = _damaged(change, world.base_model)
    bad = common.WeightedAdapter(adapter_id=adapter_id, version=1, digest=await world.store.put(data), weight=1.0)
    assert await _undisturbed(world, bad) == ("INVALID_ARGUMENT", message)
    assert not [one for one in (await world.client.status()).residents if one.adapter_id == adapter_id]


async def test_an_adapter_file_with_nan(world: World) -> None:
    adapter_id, data = _damaged(lambda manifest, tensors: None, world.base_model)
    data = data.replace(np.ones(1, np.float32).tobytes(), np.full(1, np.nan, np.float32).tobytes(), 1)
    path = Path(world.store.location) / world.store.key(digest_of(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    bad = common.WeightedAdapter(adapter_id=adapter_id, version=1, digest=digest_of(data), weight=1.0)
    code, details = await _undisturbed(world, bad)
    assert (code, details) == (
        "INVALID_ARGUMENT",
        "file: model.layers.0.self_attn.q_proj.lora_A holds NaN or infinite weights; retrain with a lower learning rate",
    )


async def test_an_adapter_deleted_between_routing_and_execution(world: World) -> None:
    bad = await world.adapter(5)
    await world.store.delete(bad.digest)
    assert await _undisturbed(world, bad) == (
        "FAILED_PRECONDITION",
        f"adapter: the weights of {bad.adapter_id} ({bad.digest[:12]}) are gone, it was purged or never pushed; route again",
    )


async def test_an_adapter_that_makes_nan_fails_its_own_request_only(world: World) -> None:
    bad = await world.adapter(5, size=1e30, modules=("q_proj", "k_proj"))
    expected = "adapters: make the model's output infinite or NaN; lower their weights, or retrain them"
    assert await _undisturbed(world, bad) == ("FAILED_PRECONDITION", expected)
    assert await refused(world, adapters=[bad], temperature=0.5) == ("FAILED_PRECONDITION", expected)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.client.executor.Score(executor_pb2.ScoreRequest(prompt=PROMPT, completion="w5 w6", adapters=[bad]), timeout=5)
    assert (caught.value.code().name, caught.value.details()) == ("FAILED_PRECONDITION", expected)


async def test_what_is_left_in_the_cache_is_nobody_elses(world: World) -> None:
    """A request that made NaN leaves it in the blocks that others get."""
    before = await world.text(max_tokens=40)
    bad = await world.adapter(5, size=1e30, modules=("q_proj", "k_proj"))
    await asyncio.gather(*(refused(world, adapters=[bad], prompt=f"w{number} " * 100) for number in range(8)))
    others = [f"w{number} w3" for number in range(20, 40)]
    assert await world.text(max_tokens=40) == before
    for prompt in others:
        assert [r async for r in world.client.stream(prompt, max_tokens=40)][-1].usage.completion_tokens == 40


async def test_a_temperature_next_to_zero_is_greedy(world: World) -> None:
    assert await world.text(temperature=1e-38) == await world.text()


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
    async with AsyncExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]  # or the channels would share a connection
        channels = [await stack.enter_async_context(Channels().to(world.address, options)) for _ in range(3)]

        async def text(channel: grpc.aio.Channel) -> str:
            request = executor_pb2.GenerateRequest(prompt=PROMPT, max_tokens=100)
            answers = executor_pb2_grpc.ExecutorServiceStub(channel).Generate(request, timeout=60)
            return "".join([answer.text async for answer in answers])

        results = await asyncio.gather(*(text(channel) for channel in channels for _ in range(4)), return_exceptions=True)
    errors = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert errors
    assert {error.code() for error in errors} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert str(errors[0].details()) == "queue: 8 of 8 requests are in flight; retry with backoff or add executors"
    assert len({result for result in results if isinstance(result, str)}) == 1


async def test_what_one_connection_has_too_much_of_waits_at_its_client(world: World) -> None:
    results = await asyncio.gather(*(world.text(max_tokens=100) for _ in range(12)))
    assert len(set(results)) == 1


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


async def test_ids_and_tenants_that_no_event_could_carry(world: World) -> None:
    code, details = await refused(world, decision_id="x" * 800_000)
    assert (code, details) == ("INVALID_ARGUMENT", "decision_id: has 800,000 characters; send the id that Route returned")
    code, details = await refused(world, tenant="T" * 800_000)
    assert code == "INVALID_ARGUMENT"
    assert details.endswith("is not a valid name; use 1 to 63 of a-z, 0-9, '.', '_' and '-'")


async def test_completions_of_a_prompt_together_and_one_by_one(world: World) -> None:
    adapter, completions = await world.adapter(1), ["w5 w6", "w7", "w8 w9 w10"]
    together = await world.client.score_all(PROMPT, completions, [adapter])
    for completion, scores in zip(completions, together, strict=True):
        assert await world.client.score(PROMPT, completion, [adapter]) == pytest.approx(scores, abs=1e-4)
    request = executor_pb2.ScoreRequest(prompt=PROMPT, completion="w5", completions=["w6"])
    with pytest.raises(grpc.aio.AioRpcError, match="completions: come with a completion beside them; send one completion, or 1 to 64"):
        await world.client.executor.Score(request, timeout=5)
