"""`smoa adapter import` and `push` beside a running executor and router: what could not run is refused before it is in the library."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.router.catalogue.registry import Registry
from smoa.adapter import Adapter, decode, encode
from smoa.embedding.static import StaticEmbedder
from smoa.embedding.views import Views
from smoa.errors import InvalidArgument, SmoaError
from smoa.model_shape import ModelShape
from tests.command_support import said_by
from tests.integration.executor_support import PROMPT, World, running_executor
from tests.integration.router_support import RouterWorld, adapter_file, running_router
from tests.peft_support import write_folder, write_training

ATTENTION = (("q_proj", 64, 64), ("k_proj", 64, 32), ("v_proj", 64, 32))


@dataclasses.dataclass
class Stack:
    """Both, over one store."""

    router: RouterWorld
    executor: World

    async def command(self, name: str, *arguments: str) -> tuple[int, str, str]:
        """What a command says; the sentence, where it ends in one."""
        where = ["--router", self.router.address, "--executor", self.executor.address]
        try:
            return await said_by("adapter", name, *where, *arguments)
        except SmoaError as error:
            return 1, "", str(error)


@pytest.fixture
async def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stack]:
    options: dict[str, Any] = {"max_rank": 64, "slot_bytes": 2**20}
    async with running_executor("torch", tmp_path, monkeypatch, **options) as executor, running_router(tmp_path) as router:
        yield Stack(router, executor)


def _named(folder: Path, name: str) -> Path:
    """The folder, trained on a base model of that name."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": name}))
    return folder


async def test_what_the_executor_could_not_load_is_refused_at_import(stack: Stack, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    folders = {
        "fits": _named(write_folder(runs / "fits", layers=3, sizes=ATTENTION), "somebody/Model"),
        "wide": write_folder(runs / "wide", layers=3, sizes=(("q_proj", 128, 128),)),
        "deep": write_folder(runs / "deep", layers=4, sizes=ATTENTION),
        "rank": write_folder(runs / "rank", layers=3, sizes=ATTENTION, rank=128),
        "named": _named(write_folder(runs / "named", 1, layers=3, sizes=ATTENTION), "meta-llama/Llama-3.1-8B"),
    }
    for folder in folders.values():
        write_training(folder, f"a question of {folder.name}")
    _, said, _ = await stack.command("import", str(runs))
    other = "it is of another base model; give it to an executor of the one that it was trained on"
    for name, expected in (
        ("wide", f"adapter: model.layers.0.self_attn.q_proj is 128x128, the base model's is 64x64; {other}"),
        ("deep", f"adapter: changes layer 3, the base model has layers 0 to 2; {other}"),
        ("rank", "rank: 128 is over the executor's 64 for lora; retrain with a rank up to 64, or raise SMOA_EXECUTOR_MAX_RANK and "),
        (
            "named",
            "base_model_name_or_path: is 'meta-llama/Llama-3.1-8B', the executor serves 'model'; give --any-base if that is another ",
        ),
    ):
        assert f"failed: {folders[name]}: {expected}" in said
    assert [one.name async for one in stack.router.client.list_all()] == ["fits"]
    assert len([key async for key in stack.router.store.list_objects("adapters")]) == 1, "nothing else was stored"
    code, _, said = await stack.command("import", str(folders["rank"]), "-o", str(tmp_path / "rank.safetensors"))
    assert (code, said.partition(" is ")[0], (tmp_path / "rank.safetensors").exists()) == (1, "rank: 128", False)
    code, said, _ = await stack.command("import", str(folders["named"]), "--any-base", "--json")
    assert (code, json.loads(said)["status"]) == (0, "imported")

    decision = await stack.router.client.route("a question of fits 3", base_model=stack.executor.base_model)
    text, usage = await stack.executor.client.generate(PROMPT, decision, max_tokens=4)
    assert (len(decision.adapters) >= 1, usage.adapter_misses >= 1, bool(text)) == (True, True, True)


async def test_what_the_executor_could_not_load_is_refused_at_push(stack: Stack, tmp_path: Path) -> None:
    folder, examples = write_folder(tmp_path / "fits", layers=3, sizes=ATTENTION, rank=128), write_training(tmp_path, "a question")
    file = tmp_path / "a.safetensors"
    arguments = ("import", str(folder), "-o", str(file), "--base-model", stack.executor.base_model)
    assert (await stack.command(*arguments))[0] == 0
    code, _, said = await stack.command("push", str(file), "--examples", str(examples))
    assert (code, said.partition(" is ")[0]) == (1, "rank: 128")
    assert not [key async for key in stack.router.store.list_objects("adapters")]
    assert (await stack.command("push", str(file), "--examples", str(examples), "--executor", "127.0.0.1:1"))[0] == 0, "nobody to ask"


async def test_the_executor_says_what_an_adapter_must_fit(stack: Stack) -> None:
    status = await stack.executor.client.status()
    shape = ModelShape.from_message(status.model)
    assert (shape.layers, shape.modules["q_proj"], shape.modules["v_proj"], shape.modules["down_proj"]) == (3, (64, 64), (32, 64), (64, 96))
    assert (shape.max_lora_xs_rank, shape.max_adapter_bytes, shape.weight_bytes) == (16, 2**20, 4)
    rank_bytes = 3 * 4 * sum(sum(one) for one in shape.modules.values())
    assert shape.max_rank == min(64, 2**20 // rank_bytes), "slots of the torch backend hold whole ranks of every linear"
    assert status.base_model_name == "model"


async def test_a_router_checks_against_what_live_executors_said(tmp_path: Path) -> None:
    async with running_router(tmp_path) as world:
        shape = ModelShape(layers=1, modules={"q_proj": (4, 4)}, max_rank=8, max_lora_xs_rank=1, max_adapter_bytes=2**20, weight_bytes=2)
        shapes = {"base-a": [shape], "base-b": []}

        def check(adapter: Adapter) -> None:
            for shape in shapes[adapter.manifest.base_model]:
                shape.check(adapter)

        registry = Registry(None, world.store, Views(StaticEmbedder()), lambda _: None, check=check)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match=r"^rank: 2 is over the executor's 1 for lora_xs; "):
            await registry.files.read(await world.store.put(adapter_file()))
        fits: Adapter = decode(adapter_file(base_model="base-b"))
        assert (await registry.files.read(await world.store.put(encode(fits)))).rank == 2
