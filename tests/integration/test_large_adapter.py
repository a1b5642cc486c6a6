"""An adapter of 41.9 million parameters in an 8B model's shapes, from its PEFT folder to an answer, within budgets that hold one of two."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

from smoa.adapter import decode, encode
from smoa.peft import import_folder
from smoa.v1 import common_pb2 as common
from tests.command_support import said_by
from tests.integration.executor_support import PROMPT, World, running_executor
from tests.integration.router_support import KNEES, MONEY, RouterWorld, running_router
from tests.model_support import CAN_RUN_NATIVE, make_model

RANK, LAYERS, HIDDEN, INTERMEDIATE = 256, 2, 4096, 14336
SHAPES = {
    "self_attn.q_proj": (4096, HIDDEN),
    "self_attn.k_proj": (1024, HIDDEN),
    "self_attn.v_proj": (1024, HIDDEN),
    "self_attn.o_proj": (HIDDEN, 4096),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
"""(outputs, inputs) of an 8B Llama's linears."""
PARAMETERS = RANK * LAYERS * sum(map(sum, SHAPES.values()))
BUDGET = 100 * 2**20
"""Of the slots, and of host memory: two adapters take 168 million bytes."""


def _numbers(seed: int) -> Callable[..., Tensor]:
    """Random matrices, of the same numbers again and again: making them all would take most of the test. A prime of them: no two rows are
    the same.
    """
    some = torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed)).bfloat16()

    def made(*shape: int, size: float) -> Tensor:
        count = shape[0] * shape[1]
        return (some.repeat(count // len(some) + 1)[:count] * size).reshape(shape)

    return made


def write_model(folder: Path) -> Path:
    """A model of an 8B's width in bfloat16, with two layers and few words."""
    numbers = _numbers(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=200,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=256,
        eos_token_id=None,
        bos_token_id=None,
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    weights = {"model.embed_tokens.weight": numbers(200, HIDDEN, size=1.0), "lm_head.weight": _numbers(9)(200, HIDDEN, size=0.02)}
    weights["model.norm.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
    for layer in range(LAYERS):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{norm}.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
        for path, (outputs, inputs) in SHAPES.items():
            weights[f"model.layers.{layer}.{path}.weight"] = numbers(outputs, inputs, size=inputs**-0.5)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_adapter(folder: Path, seed: int) -> Path:
    """A PEFT folder of an adapter of every linear, in bfloat16."""
    numbers, tensors = _numbers(seed), {}
    for layer in range(LAYERS):
        for path, (outputs, inputs) in SHAPES.items():
            name = f"base_model.model.model.layers.{layer}.{path}"
            tensors[f"{name}.lora_A.weight"] = numbers(RANK, inputs, size=inputs**-0.5)
            tensors[f"{name}.lora_B.weight"] = numbers(outputs, RANK, size=0.05)
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": "all-linear", "base_model_name_or_path": "8b/wide"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
async def worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[World, RouterWorld]]:
    """An executor that serves the wide model, and a router, over one store."""
    backend = "native" if CAN_RUN_NATIVE else "torch"
    wide = write_model(tmp_path / "wide")
    shutil.copy(make_model(tmp_path / "small") / "tokenizer.json", wide)
    options: dict[str, Any] = {"base_model": str(wide), "dtype": "bfloat16"}
    options |= {"slot_bytes": BUDGET, "host_bytes": BUDGET, "cache_bytes": 2**24}
    async with running_executor(backend, tmp_path, monkeypatch, **options) as executor, running_router(tmp_path) as router:
        yield executor, router


@pytest.mark.timeout(300)
async def test_it_is_imported_routed_to_loaded_and_run(worlds: tuple[World, RouterWorld], tmp_path: Path) -> None:
    executor, router = worlds
    base_model = (await executor.client.status()).base_model
    where = ["--executor", executor.address, "--router", router.address]
    for seed, (name, examples) in enumerate((("knees", KNEES), ("money", MONEY)), 1):
        folder = write_adapter(tmp_path / "runs" / name, seed)
        (folder / "examples.txt").write_text("\n".join(examples))
    code, said, _ = await said_by("adapter", "import", str(tmp_path / "runs"), *where)
    assert (code, ": 2 imported, " in said) == (0, True), said
    [knees] = [one async for one in router.client.list_all(name="knees")]
    assert (knees.parameter_count, knees.rank, knees.granularity) == (PARAMETERS, RANK, common.GRANULARITY_LARGE)
    assert PARAMETERS == 41_943_040
    assert knees.file_bytes < 2.01 * PARAMETERS, "bfloat16 stays bfloat16"

    peaks = [0, 0]

    async def watch() -> None:
        while True:
            status = await executor.client.status()
            peaks[:] = max(peaks[0], status.slot_bytes), max(peaks[1], status.host_bytes)
            await asyncio.sleep(0.005)

    watching = asyncio.create_task(watch())
    decisions = [await router.client.route(examples[0], base_model=base_model) for examples in (KNEES, MONEY)]
    assert [len(decision.adapters) for decision in decisions] == [1, 1]
    plain, _ = await executor.client.generate(PROMPT, max_tokens=4)
    alone = [(await executor.client.generate(PROMPT, decision, max_tokens=4))[0] for decision in decisions]
    assert len({plain, *alone}) == 3, "each adapter has a say"
    crowd = [executor.client.generate(PROMPT, decisions[number % 2], max_tokens=4) for number in range(4)]
    answers = [text for text, _ in await asyncio.gather(*crowd)]
    watching.cancel()
    assert answers == [*alone, *alone], "one waits for the other's room"
    assert 2 * PARAMETERS <= peaks[0] <= BUDGET
    assert 2 * PARAMETERS <= peaks[1] <= BUDGET
    assert (await executor.client.status()).evictions >= 2
    both = [*decisions[0].adapters, *decisions[1].adapters]
    with pytest.raises(grpc.aio.AioRpcError, match="take more than the 104,857,600 bytes of the executor's"):
        await executor.text(*both)


def test_reading_and_writing_it_takes_a_moment(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", 1)
    times = [time.process_time()]
    adapter = import_folder(folder, "base")
    times.append(time.process_time())
    data = encode(adapter)
    times.append(time.process_time())
    decode(data)
    times.append(time.process_time())
    took = [end - start for start, end in itertools.pairwise(times)]
    assert max(took) < 1.5, f"seconds of a processor to import, encode and decode it: {took}"
