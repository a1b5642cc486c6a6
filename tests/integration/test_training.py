"""Training on a tiny random model: it learns, stops early, keeps the best, and refuses what cannot work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from services.executor.base_model import lora_xs_bases
from services.executor.model import Llama
from services.executor.prompt import PromptTokenizer
from services.executor.torch_backend import TorchBackend
from services.executor.training import Pair, Progress, TrainSettings, completion_loss, read_pairs, train
from smoa.adapter import Kind, decode, encode
from smoa.errors import InvalidArgument
from tests.model_support import isolated_cache, load, make_model

PAIRS = [Pair(f"w{n} w{n + 1} w{n + 2}", f"w{100 + n % 2}") for n in range(60)]
SETTINGS = TrainSettings(name="t", rank=4, modules=("q_proj", "v_proj", "down_proj"), steps=60, tags=("x",))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Llama, Path, PromptTokenizer]:
    isolated_cache(tmp_path / "cache", monkeypatch)
    folder = make_model(tmp_path / "model")
    model = Llama.load(folder, torch.float32)
    return model, folder, PromptTokenizer(folder, model.config)


@pytest.mark.parametrize("kind", ["lora_xs", "lora"])
def test_the_loss_falls_and_the_file_holds_what_was_trained(kind: Kind, tiny: tuple[Llama, Path, PromptTokenizer]) -> None:
    model, folder, tokenizer = tiny
    seen: list[Progress] = []
    settings = dataclasses.replace(SETTINGS, kind=kind, learning_rate=3.0 if kind == "lora_xs" else 0.01)  # its weights are small
    adapter = decode(encode(train(model, folder, tokenizer, PAIRS, settings, seen.append)))
    before = float(completion_loss(model, tokenizer, PAIRS, None))
    bases = lora_xs_bases(folder, model.fingerprint)
    backend = TorchBackend(model, bases, blocks=1, context=16, rows=len(PAIRS), slot_bytes=2**20)
    mixture = backend.mix([(load(adapter, backend), 1.0)])
    after = float(completion_loss(model, tokenizer, PAIRS, backend.delta([mixture] * len(PAIRS))))
    assert after < before - 0.3
    assert [p.step for p in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].seconds_left >= 0
    assert seen[-1].best_loss == min(p.held_out_loss for p in seen if p.held_out_loss is not None)
    manifest = adapter.manifest
    assert (manifest.kind, manifest.rank, manifest.base_model) == (kind, 4, model.fingerprint)
    assert (manifest.modules, manifest.tags, manifest.layers) == (SETTINGS.modules, ("x",), (0, 1, 2))


def test_it_stops_early_when_held_out_loss_does_not_fall(tiny: tuple[Llama, Path, PromptTokenizer]) -> None:
    model, folder, tokenizer = tiny
    noise = [Pair(f"w{n}", f"w{(n * 7919) % 90 + 100}") for n in range(40)]
    seen: list[Progress] = []
    settings = dataclasses.replace(SETTINGS, steps=2000, evaluate_every=5, patience=2, learning_rate=0.2)
    train(model, folder, tokenizer, noise, settings, seen.append)
    assert len(seen) < 1000
    held_out = [p.held_out_loss for p in seen if p.held_out_loss is not None]
    assert min(held_out[:-2]) <= min(held_out[-2:])


def test_the_same_seed_gives_the_same_weights(tiny: tuple[Llama, Path, PromptTokenizer]) -> None:
    model, folder, tokenizer = tiny
    settings = dataclasses.replace(SETTINGS, steps=5)
    first, second = (train(model, folder, tokenizer, PAIRS, settings, lambda _: None) for _ in range(2))
    assert all((first.tensors[name] == second.tensors[name]).all() for name in first.tensors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modules": ("q_proj", "wide_proj")}, "modules: wide_proj is not in the base model; use some of q_proj, k_proj, "),
        ({"rank": 17}, "rank: 17 is over 16 for lora_xs; use a lower one, or --kind lora"),
        ({"learning_rate": float("nan")}, "learning_rate: nan is outside 0..10; use 0.03 for lora_xs, 0.002 for lora"),
    ],
)
def test_bad_settings(changes: dict[str, object], message: str, tiny: tuple[Llama, Path, PromptTokenizer]) -> None:
    model, folder, tokenizer = tiny
    with pytest.raises(InvalidArgument) as caught:
        train(model, folder, tokenizer, PAIRS, dataclasses.replace(SETTINGS, **changes), lambda _: None)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


def test_bad_data(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    good = json.dumps({"input": "a", "output": "b"})
    path.write_text(f"{good}\n" * 9)
    with pytest.raises(InvalidArgument, match=r"^data: .*data\.jsonl has 9 examples; give at least 10$"):
        read_pairs(path)
    path.write_text(f"{good}\n[1, 2]\n")
    with pytest.raises(
        InvalidArgument, match=r"^data: line 2 of .*data\.jsonl is not an object with input and output \(.*\); fix the line$"
    ):
        read_pairs(path)
