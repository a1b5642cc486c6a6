"""A mixture of imported LoRA adapters scores what PEFT scores for the same adapters concatenated."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from services.executor.base_model import DEFAULT_BASE_MODEL, lora_xs_bases, resolve
from services.executor.mixture import BatchMixture, Mixture, load_adapter
from services.executor.model import Llama
from services.executor.runner import Runner
from smoa.adapter import decode, encode
from smoa.peft import import_folder

CONFIGS = (
    LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    LoraConfig(r=5, lora_alpha=5, use_rslora=True, target_modules=["o_proj", "down_proj"]),
    LoraConfig(r=8, lora_alpha=4, target_modules=["q_proj", "k_proj", "gate_proj", "up_proj"]),
)
WEIGHTS = (0.7, 0.5, 0.3)


@pytest.fixture(params=["tiny", "smollm2"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    if request.param == "smollm2":
        yield resolve(DEFAULT_BASE_MODEL)
        return
    monkeypatch.setenv("SMOA_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=211, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tiny")  # type: ignore[no-untyped-call]
    yield tmp_path / "tiny"


def _save_adapters(folder: Path, out: Path) -> list[Path]:
    paths = []
    for number, config in enumerate(CONFIGS):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), copy.deepcopy(config))
        generator = torch.Generator().manual_seed(number)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
        model.save_pretrained(str(out / str(number)))
        paths.append(out / str(number))
    return paths


def test_a_mixture_of_three_equals_peft_cat(folder: Path, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    paths = _save_adapters(folder, tmp_path)
    model = Llama.load(folder, torch.float32)
    runner = Runner(model, lora_xs_bases(folder, model.fingerprint), 1, 64)
    adapters = [decode(encode(import_folder(path, model.fingerprint))) for path in paths]
    mixture = Mixture.of([(load_adapter(a, model, 64), w) for a, w in zip(adapters, WEIGHTS, strict=True)], torch.float32)
    ids = torch.randint(3, model.config.vocabulary, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    ours = torch.tensor(runner.score(mixture, ids[:25], ids[25:]))

    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), paths[0], "0")
    for number in (1, 2):
        reference.load_adapter(paths[number], str(number))
    reference.add_weighted_adapter(["0", "1", "2"], list(WEIGHTS), "mixed", combination_type="cat")
    reference.set_adapter("mixed")
    with torch.inference_mode():
        logprobs = reference(torch.tensor([ids])).logits[0, 24:-1].log_softmax(-1)
    theirs = logprobs.gather(1, torch.tensor(ids[25:])[:, None])[:, 0]
    assert (ours - theirs).abs().max() < 1e-4

    plain = torch.tensor(runner.score(Mixture({}, {}), ids[:25], ids[25:]))
    assert (ours - plain).abs().max() > 1e-2, "the adapters change nothing: the comparison would be empty"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_lone_adapter_at_half_weight_gives_exactly_half_its_delta(number: int, folder: Path, tmp_path: Path) -> None:
    model = Llama.load(folder, torch.float32)
    bases = lora_xs_bases(folder, model.fingerprint)
    adapter = load_adapter(import_folder(_save_adapters(folder, tmp_path)[number], model.fingerprint), model, 64)
    whole, half = (BatchMixture([Mixture.of([(adapter, weight)], torch.float32)], bases) for weight in (1.0, 0.5))
    for layer, module in adapter.pairs:
        out, width = model.linears[layer][module].shape
        x, zero = torch.randn(1, 4, width, generator=torch.Generator().manual_seed(layer)), torch.zeros(1, 4, out)
        assert torch.equal(half.add(layer, module, x, zero), 0.5 * whole.add(layer, module, x, zero))
        assert whole.add(layer, module, x, zero).abs().max() > 0


def test_logits_equal_transformers(folder: Path) -> None:
    model = Llama.load(folder, torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(3, model.config.vocabulary, (2, 30), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours = model.logits(model.hidden(ids, torch.arange(30).expand(2, 30), None))
        theirs = reference(ids).logits
    assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()
