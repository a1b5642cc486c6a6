"""A mixture scores what PEFT scores for the same adapters concatenated, on every backend."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from services.executor.backends.torch.backend import TorchBackend
from services.executor.backends.torch.model import Llama
from services.executor.models.base_model import DEFAULT_BASE_MODEL, MODULES, resolve
from services.executor.models.config import module_path
from services.executor.models.lora_xs_bases import LoraXsBases
from smoa.adapter import Adapter, Manifest, decode, encode, new_adapter_id
from smoa.peft import import_folder
from tests.model_support import BACKENDS, CAN_RUN_NATIVE, Everywhere, isolated_cache, load, logits_of, make_backend, make_model


@pytest.fixture(params=["tiny", "smollm2"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    if request.param == "smollm2":
        yield resolve(DEFAULT_BASE_MODEL)
        return
    isolated_cache(tmp_path / "cache", monkeypatch)
    yield make_model(tmp_path / "tiny", "llama", seed=3)


def _random_config(rng: random.Random) -> LoraConfig:
    """Ranks 1 to 64, scaling alpha/r or alpha/sqrt(r), any modules."""
    return LoraConfig(
        r=rng.choice([1, 2, 3, 8, 16, 33, 64]),
        lora_alpha=rng.choice([1, 4, 16]),
        use_rslora=rng.random() < 0.5,
        target_modules=rng.sample(MODULES, rng.randint(1, len(MODULES))),
    )


def _save_adapters(folder: Path, out: Path, configs: list[LoraConfig]) -> list[Path]:
    paths = []
    for number, config in enumerate(configs):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), config)
        generator = torch.Generator().manual_seed(number)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05 / config.r**0.5
        model.save_pretrained(str(out / str(number)))
        paths.append(out / str(number))
    return paths


def _lora_xs_twin(folder: Path, name: str, path: Path, seed: int) -> Adapter:
    """A `lora_xs` adapter of ours, written to `path` as the PEFT adapter with A = V^T and B = U S R."""
    bases = LoraXsBases(folder, name)
    modules, rank = ("q_proj", "v_proj", "down_proj"), 8
    model: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), LoraConfig(r=rank, lora_alpha=rank, target_modules=list(modules))
    )
    layers = tuple(range(model.config.num_hidden_layers))
    cores = {m: torch.randn(len(layers), rank, rank, generator=torch.Generator().manual_seed(seed)) * 0.05 for m in modules}
    parameters = dict(model.named_parameters())
    for layer in layers:
        for module in modules:
            left, right = (basis[:, :rank] for basis in bases[module_path(layer, module)])
            prefix = f"base_model.model.{module_path(layer, module)}"
            parameters[f"{prefix}.lora_A.default.weight"].data = right.T.contiguous()
            parameters[f"{prefix}.lora_B.default.weight"].data = left @ cores[module][layer]
    model.save_pretrained(str(path))
    manifest = Manifest(adapter_id=new_adapter_id(), name="xs", kind="lora_xs", base_model=name, rank=rank, modules=modules, layers=layers)
    tensors = {m: stack.numpy() for m, stack in cores.items()}
    tensors |= {m + ".s": torch.ones(len(layers), rank).numpy() for m in modules}
    return decode(encode(Adapter(manifest, tensors)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_mixture_equals_peft_cat(seed: int, folder: Path, tmp_path: Path) -> None:
    rng = random.Random(seed)
    name = Llama.load(folder, torch.float32).fingerprint
    # The plain one comes first: PEFT gives the mixture the first one's config, and scales it once more when that says rsLoRA.
    adapters = [_lora_xs_twin(folder, name, tmp_path / "xs", seed)]
    paths = [tmp_path / "xs", *_save_adapters(folder, tmp_path, [_random_config(rng) for _ in range(3)])]
    adapters += [decode(encode(import_folder(path, name))) for path in paths[1:]]
    weights = [0.7, rng.choice([-0.4, 0.3]), rng.choice([0.0, 0.5]), rng.choice([-0.6, 1.0])]

    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), paths[0], "0")
    for number in range(1, len(paths)):
        reference.load_adapter(paths[number], str(number))
    reference.add_weighted_adapter([str(n) for n in range(len(paths))], weights, "mixed", combination_type="cat")
    reference.set_adapter("mixed")
    ids = torch.randint(3, reference.config.vocab_size, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.inference_mode():
        theirs = reference(torch.tensor([ids])).logits[0].log_softmax(-1)

    for kind in ["torch"] + ["native"] * CAN_RUN_NATIVE:
        backend = make_backend(kind, folder, blocks=4, context=64, slot_mib=300)
        mixture = backend.mix([(load(adapter, backend), weight) for adapter, weight in zip(adapters, weights, strict=True)])
        ours = logits_of(backend, ids, mixture).log_softmax(-1)
        wanted = theirs.gather(1, torch.tensor([*ids[1:], 0])[:, None])
        assert (ours.gather(1, torch.tensor([*ids[1:], 0])[:, None]) - wanted).abs().max() < 1e-4
        plain = logits_of(backend, ids).log_softmax(-1)
        assert (ours - plain).abs().max() > 1e-2, "the adapters change nothing: the comparison would be empty"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_lone_adapter_at_half_weight_gives_exactly_half_its_delta(number: int, folder: Path, tmp_path: Path) -> None:
    model = Llama.load(folder, torch.float32)
    if number == 0:
        adapter = _lora_xs_twin(folder, model.fingerprint, tmp_path / "xs", 0)
    else:
        adapter = import_folder(_save_adapters(folder, tmp_path, [_random_config(random.Random(number))])[0], model.fingerprint)
    backend = TorchBackend(model, LoraXsBases(folder, model.fingerprint), blocks=1, context=16, slot_bytes=80 * 2**20)
    loaded = load(adapter, backend)
    for layer in adapter.manifest.layers:
        for linear in model.layers[layer].linears:
            linear.weight[: linear.outputs] = 0  # the deltas alone
            x = torch.randn(4, linear.weight.shape[1], generator=torch.Generator().manual_seed(layer))
            whole, half = (Everywhere(backend, backend.mix([(loaded, weight)])).apply(layer, linear, x) for weight in (1.0, 0.5))
            for module, all_of_it, half_of_it in zip(linear.modules, whole, half, strict=True):
                assert torch.equal(half_of_it, 0.5 * all_of_it)
                assert (all_of_it.abs().max() > 0) == (module in adapter.manifest.modules)


@pytest.mark.parametrize("kind", BACKENDS)
def test_logits_equal_transformers_on_the_real_model(kind: str) -> None:
    folder = resolve(DEFAULT_BASE_MODEL)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(3, reference.config.vocab_size, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        theirs = reference(torch.tensor([ids])).logits[0]
    ours = logits_of(make_backend(kind, folder, blocks=4, context=64), ids)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
