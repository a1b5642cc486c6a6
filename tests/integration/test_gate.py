"""A merge's child is scored on its parents' right answers by a real executor."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from services.optimizer.control.gate import MOST_OF_A_PARENT, Finding, Gate
from smoa.adapter import Adapter, decode, encode, new_adapter_id
from smoa.v1.common_pb2 import WeightedAdapter
from smoa.v1.events_pb2 import Example
from tests.integration.executor_support import World, running_executor

PROMPTS = [f"w{number} w{number + 1} w2" for number in range(1, 11)]


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with running_executor("native", tmp_path, monkeypatch) as made:
        yield made


async def _copy(world: World, parent: WeightedAdapter, noise: float) -> WeightedAdapter:
    """The parent's weights with so much noise, as another adapter."""
    adapter = decode(await world.store.get(parent.digest))
    rng = np.random.default_rng(5)
    tensors = {name: (one + noise * rng.standard_normal(one.shape)).astype(one.dtype) for name, one in adapter.tensors.items()}
    manifest = dataclasses.replace(adapter.manifest, adapter_id=new_adapter_id(), parents=(parent.adapter_id,))
    digest = await world.store.put(encode(Adapter(manifest, tensors)))
    return WeightedAdapter(adapter_id=manifest.adapter_id, version=1, digest=digest, weight=1.0)


async def test_a_good_child_loses_nothing_and_a_bad_one_is_refused(world: World) -> None:
    parent = await world.adapter(1, size=2.0)
    answers = {}
    for prompt in PROMPTS:
        pieces = [one.text async for one in world.client.stream(prompt, [parent], max_tokens=6)]
        answers[prompt] = "".join(pieces)
    given = [Example(key=parent.adapter_id, input=prompt, output=answer) for prompt, answer in answers.items() if answer.strip()]
    assert len(given) >= MOST_OF_A_PARENT

    async def examples(key: str) -> list[Example]:
        return given if key == f"{parent.adapter_id}/public" else []

    too_long = Example(key=given[0].key, input="w1 " * 199, output="w2")  # of the context; it says nothing
    given[-1:-1] = [too_long]
    gate = Gate(world.client, examples)

    async def found(noise: float) -> Finding:
        return await gate.compare("public", [parent], await _copy(world, parent, noise))

    unloadable = decode(await world.store.get(parent.digest))
    manifest = dataclasses.replace(unloadable.manifest, adapter_id=new_adapter_id(), base_model="another")
    digest = await world.store.put(encode(Adapter(manifest, unloadable.tensors)))
    other_base = WeightedAdapter(adapter_id=manifest.adapter_id, version=1, digest=digest, weight=1.0)
    with pytest.raises(grpc.aio.AioRpcError):
        await gate.compare("public", [parent], other_base)

    same, near, other = await found(0.0), await found(0.01), await found(3.0)
    assert list(same.losses[parent.adapter_id]) == [0.0] * MOST_OF_A_PARENT
    assert abs(near.worst[1]) < 0.05
    assert other.worst[1] > 0.1
    assert other.refusal(0.1)
    assert not near.refusal(0.1)
