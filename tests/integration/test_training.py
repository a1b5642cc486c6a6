"""Training on a tiny random model: it learns, stops early, keeps the best, and refuses what cannot work."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.adapters.training import Progress, TrainSettings, completion_loss, train
from services.executor.adapters.training_data import Pair, split_held_out, tokenized
from services.executor.backends.native.library import AMX, AVX2, AVX512, AVX512_BF16
from services.executor.backends.torch import model as torch_model
from services.executor.backends.torch.backend import TorchBackend
from services.executor.backends.torch.model import Llama, training_dtype
from services.executor.commands import train as train_command
from services.executor.models.lora_xs_bases import LoraXsBases
from services.executor.models.prompt import PromptTokenizer
from smoa.adapter import Kind, decode, encode
from smoa.errors import InvalidArgument
from tests.model_support import Everywhere, isolated_cache, load, make_model

PAIRS = [Pair.of(f"w{n} w{n + 1} w{n + 2}", f"w{100 + n % 2}") for n in range(60)]
SETTINGS = TrainSettings(name="t", rank=4, modules=("q_proj", "v_proj", "down_proj"), steps=60, tags=("x",))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Llama]:
    folder = tmp_path_factory.mktemp("models")
    return {family: Llama.load(make_model(folder / family, family), torch.float32) for family in ("llama", "gemma2")}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Llama, Path, PromptTokenizer]:
    isolated_cache(tmp_path / "cache", monkeypatch)
    folder = make_model(tmp_path / "model")
    model = Llama.load(folder, torch.float32)
    return model, folder, PromptTokenizer(folder)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    shared=st.lists(st.integers(0, 199), max_size=6),
    tails=st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=4),
    family=st.sampled_from(["llama", "gemma2"]),
)
def test_texts_that_begin_alike_are_what_each_is_alone(
    shared: list[int], tails: list[list[int]], family: str, models: dict[str, Llama]
) -> None:
    """What they share is computed once, and nothing else is."""
    model, texts = models[family], [[5, *shared, *tail] for tail in tails]
    with torch.no_grad():
        together = model.hidden_of_texts(texts)
        for text, hidden in zip(texts, together, strict=True):
            torch.testing.assert_close(hidden[: len(text)], model.hidden_of_texts([text])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora_xs", "lora"])
def test_the_loss_falls_and_the_file_holds_what_was_trained(kind: Kind, tiny: tuple[Llama, Path, PromptTokenizer]) -> None:
    model, folder, tokenizer = tiny
    seen: list[Progress] = []
    settings = dataclasses.replace(SETTINGS, kind=kind, learning_rate=3.0 if kind == "lora_xs" else 0.01)  # its weights are small
    trained = train(model, folder, tokenizer, PAIRS, settings, seen.append)
    adapter = decode(encode(trained.adapter))
    before = float(completion_loss(model, tokenized(tokenizer, PAIRS, 256, 200), None))
    bases = LoraXsBases(folder, model.fingerprint)
    backend = TorchBackend(model, bases, blocks=1, context=16, rows=len(PAIRS), slot_bytes=2**20)
    mixture = backend.mix([(load(adapter, backend), 1.0)])
    after = float(completion_loss(model, tokenized(tokenizer, PAIRS, 256, 200), Everywhere(backend, mixture)))
    assert after < before - 0.3
    assert [p.step for p in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].seconds_left >= 0
    assert [one.step for one in seen[-1].evaluations] == list(range(0, len(seen) + 1, settings.evaluate_every))
    assert seen[-1].evaluations == tuple(trained.evaluations)
    assert trained.kept.loss == min(one.loss for one in trained.evaluations)
    assert (trained.training_pairs, trained.held_out_pairs) == (52, 8)
    manifest = adapter.manifest
    assert (manifest.kind, manifest.rank, manifest.base_model) == (kind, 4, model.fingerprint)
    assert (manifest.modules, manifest.tags, manifest.layers) == (SETTINGS.modules, ("x",), (0, 1, 2))


def test_it_stops_when_held_out_loss_is_flat_and_keeps_the_best_weights(tiny: tuple[Llama, Path, PromptTokenizer]) -> None:
    model, folder, tokenizer = tiny
    noise = [Pair.of(f"w{n}", f"w{(n * 7919) % 90 + 100}") for n in range(40)]
    settings = dataclasses.replace(SETTINGS, steps=2000, evaluate_every=5, patience=2, learning_rate=0.2)
    trained = train(model, folder, tokenizer, noise, settings, lambda _: None)
    assert trained.flat
    assert trained.steps == trained.evaluations[-1].step < 1000
    least = min(one.loss for one in trained.evaluations[:-2])
    assert least - min(one.loss for one in trained.evaluations[-2:]) <= settings.min_gain
    bases = LoraXsBases(folder, model.fingerprint)
    backend = TorchBackend(model, bases, blocks=1, context=16, rows=8, slot_bytes=2**20)
    mixture = backend.mix([(load(trained.adapter, backend), 1.0)])
    _, held_out = split_held_out(tokenized(tokenizer, noise, 256, 200), settings.seed)
    loss = float(completion_loss(model, held_out, Everywhere(backend, mixture)))
    assert loss == pytest.approx(trained.kept.loss, abs=0.01)


def test_steps_that_are_asked_for_are_taken(tiny: tuple[Llama, Path, PromptTokenizer]) -> None:
    model, folder, tokenizer = tiny
    noise = [Pair.of(f"w{n}", f"w{(n * 7919) % 90 + 100}") for n in range(40)]
    settings = dataclasses.replace(SETTINGS, steps=93, evaluate_every=5, patience=0, learning_rate=0.2)
    trained = train(model, folder, tokenizer, noise, settings, lambda _: None)
    assert (trained.steps, trained.flat, trained.evaluations[-1].step) == (93, False, 93)


def test_the_same_seed_gives_the_same_weights(tiny: tuple[Llama, Path, PromptTokenizer]) -> None:
    model, folder, tokenizer = tiny
    settings = dataclasses.replace(SETTINGS, steps=5)
    first, second = (train(model, folder, tokenizer, PAIRS, settings, lambda _: None).adapter for _ in range(2))
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


def test_training_is_in_a_dtype_that_the_processor_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_model, "processor_variants", lambda: [AVX512, AVX2])
    assert training_dtype("cpu") is torch.float32
    monkeypatch.setattr(torch_model, "processor_variants", lambda: [AMX, AVX512_BF16, AVX512, AVX2])
    assert training_dtype("cpu") is torch.bfloat16
    assert training_dtype("cuda") is torch.bfloat16


def test_the_command_in_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolated_cache(tmp_path / "cache", monkeypatch)
    folder, data, file = make_model(tmp_path / "model"), tmp_path / "data.jsonl", tmp_path / "out.safetensors"
    data.write_text("".join(json.dumps({"prompt": pair.messages[0].content, "completion": pair.answer}) + "\n" for pair in PAIRS))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # the command sets it, for a process in which torch is not yet loaded
    arguments = [str(data), "-o", str(file), "--base-model", str(folder), "--rank", "4", "--device", "cpu"]
    done = CliRunner().invoke(train_command, arguments, catch_exceptions=False)
    assert "\r" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == f"{data}: 60 examples; loading the base model"
    assert re.fullmatch(r"training data on \d+ CPU threads in \w+: until the held-out loss is flat, at most 300 steps; .*", lines[1])
    assert re.fullmatch(r"step 1 of at most 300, held-out loss [\d.]+ \(best [\d.]+ at 0\), at most \d+ .* left", lines[2])
    assert re.fullmatch(r"ended after step \d+: the held-out loss was flat .*; kept: the weights of step \d+, held-out loss .*", lines[-1])
    assert decode(file.read_bytes()).manifest.name == "data"
    twice = ["--module", "k_proj", "--module", "q_proj", "--module", "k_proj"]
    fixed = CliRunner().invoke(train_command, [*arguments, "--steps", "12", *twice], catch_exceptions=False)
    assert decode(file.read_bytes()).manifest.modules == ("k_proj", "q_proj")
    assert "step 12 of 12, " in fixed.stderr
    assert fixed.stderr.splitlines()[-1].startswith("ended after step 12: all 12 steps are done; kept: ")


def test_the_command_sets_how_threads_wait_before_torch_is_loaded() -> None:
    check = "import sys, services.executor.commands, services.executor.adapters.training_data; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
