"""LoRA folders of every shape that PEFT writes: imported they answer as PEFT does, exported PEFT takes them back, and what is no plain LoRA
is refused.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from services.executor.models.base_model import MODULES
from smoa.adapter import decode, encode
from smoa.errors import InvalidArgument
from smoa.peft import export_folder, import_folder
from smoa.peft_config import parse_config
from tests.model_support import CAN_RUN_NATIVE, isolated_cache, load, logits_of, make_backend

LAYERS = 4
IDS = [5, 17, 3, 150, 42, 8, 99, 120, 7, 61, 33, 2]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LAYER_3 = r".*\.layers\.3\..*(q_proj|k_proj|v_proj|o_proj)$"


def _random_model(folder: Path, family: str = "llama", **changes: object) -> Path:
    torch.manual_seed(3)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2}
    tokens = {"vocab_size": 200, "max_position_embeddings": 64, "eos_token_id": None, "bos_token_id": None, "pad_token_id": None}
    config = AutoConfig.for_model(family, **sizes, **tokens, **changes)
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data = torch.randn_like(parameter) * 0.15
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patched:
        isolated_cache(folder / "cache", patched)
        yield _random_model(folder / "base")


def _plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _saved(base: Path, folder: Path, config: LoraConfig, **options: Any) -> Path:
    """A trained adapter: every number of it is random."""
    model = get_peft_model(_plain(base), config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.15 / config.r**0.5
    model.save_pretrained(str(folder), **options)
    return folder


@torch.inference_mode()
def _by_peft(base: Path, folder: Path) -> Tensor:
    logits: Tensor = PeftModel.from_pretrained(_plain(base), folder)(torch.tensor([IDS])).logits[0]
    return logits.log_softmax(-1)


def _by_us(base: Path, folder: Path) -> Tensor:
    """Of the native backend where there is one, imported and through the adapter's file."""
    backend = make_backend("native" if CAN_RUN_NATIVE else "torch", base, blocks=4, context=64)
    adapter = decode(encode(import_folder(folder, backend.fingerprint)))
    found = logits_of(backend, IDS, backend.mix([(load(adapter, backend), 1.0)])).log_softmax(-1)
    assert (found - logits_of(backend, IDS).log_softmax(-1)).abs().max() > 1e-2, "the adapter changes nothing: nothing is compared"
    return found


def _check(base: Path, folder: Path, tmp_path: Path) -> None:
    """Imported it answers as PEFT does, and exported PEFT answers as before."""
    wanted = _by_peft(base, folder)
    assert (_by_us(base, folder) - wanted).abs().max() < 1e-4
    export_folder(import_folder(folder, "base"), tmp_path / "exported")
    assert (_by_peft(base, tmp_path / "exported") - wanted).abs().max() < 1e-5


CONFIGS: dict[str, dict[str, Any]] = {
    "patterns": {"target_modules": ATTENTION, "rank_pattern": {LAYER_3: 32}, "alpha_pattern": {LAYER_3: 128}},
    "patterns that end a name": {"target_modules": ATTENTION, "rank_pattern": {"q_proj": 3, "1.self_attn.v_proj": 5}},
    "the first pattern counts": {"target_modules": ["q_proj"], "alpha_pattern": {r"layers\.[12]\..*": 3, r"layers\.2\..*": 50}},
    "rank stabilised": {"target_modules": MODULES, "use_rslora": True, "rank_pattern": {"down_proj": 2}},
    "some layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0, 3]},
    "a layer by a pattern": {"target_modules": ["q_proj"], "layers_to_transform": 2, "layers_pattern": "layers"},
    "a regular expression": {"target_modules": r"model\.layers\.(1|2)\.(self_attn\.[qv]_proj|mlp\.down_proj)"},
    "whole names": {"target_modules": ["model.layers.0.self_attn.q_proj", "model.layers.3.mlp.gate_proj"]},
    "all linears": {"target_modules": "all-linear"},
    "all but some": {"target_modules": "all-linear", "exclude_modules": ["k_proj", "layers.1.mlp.up_proj"]},
    "all but a pattern": {"target_modules": ATTENTION, "exclude_modules": r".*\.layers\.[02]\..*"},
    "an initialisation that leaves the base": {"target_modules": ["q_proj"], "init_lora_weights": "mica"},
    "biases that there are none of": {"target_modules": ["q_proj"], "bias": "lora_only"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_answers_as_it_does_in_peft(name: str, base: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=8, lora_alpha=16, **CONFIGS[name])
    _check(base, _saved(base, tmp_path / "adapter", config), tmp_path)
    if name == "patterns":
        manifest = import_folder(tmp_path / "adapter", "base").manifest
        scalings = {layer: manifest.scaling_of(f"model.layers.{layer}.self_attn.k_proj") for layer in range(LAYERS)}
        assert scalings == {0: 2.0, 1: 2.0, 2: 2.0, 3: 4.0}


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match")
@pytest.mark.parametrize("seed", range(4))
def test_any_ranks_alphas_and_targets(seed: int, base: Path, tmp_path: Path) -> None:
    rng = random.Random(seed)
    names = rng.sample(MODULES, rng.randint(1, len(MODULES)))
    patterns = [rng.choice([name, rf"layers\.{rng.randrange(LAYERS)}\..*", rf".*\.{name}"]) for name in rng.sample(MODULES, 3)]
    targets: Any = rng.choice([names, rf".*\.({'|'.join(names)})"])
    config = LoraConfig(
        r=rng.choice([1, 3, 8, 33]),
        lora_alpha=rng.choice([1, 16, 20]),
        use_rslora=rng.random() < 0.5,
        target_modules=targets,
        rank_pattern={pattern: rng.choice([2, 5, 64]) for pattern in patterns[:2]},
        alpha_pattern={pattern: rng.choice([1, 7, 64]) for pattern in patterns[1:]},
    )
    _check(base, _saved(base, tmp_path / "adapter", config), tmp_path)


def test_bfloat16_weights_answer_as_they_do_in_peft(base: Path, tmp_path: Path) -> None:
    file = _saved(base, tmp_path / "adapter", LoraConfig(r=8, target_modules=ATTENTION)) / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    _check(base, tmp_path / "adapter", tmp_path)


@pytest.mark.parametrize(
    "renamed",
    [
        lambda name: name.replace(".model.layers.", ".model.language_model.layers."),
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: f"_orig_mod.{name}",
    ],
    ids=["of a model that also sees", "with the adapter's name", "of a compiled model"],
)
def test_names_that_other_trainers_write_are_the_same_adapter(renamed: Callable[[str], str], base: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=8, target_modules=ATTENTION, rank_pattern={LAYER_3: 2}, alpha_pattern={LAYER_3: 3})
    folder = _saved(base, tmp_path / "adapter", config)
    wanted = _by_peft(base, folder)
    file = folder / "adapter_model.safetensors"
    save_file({renamed(name): tensor for name, tensor in load_file(file).items()}, file)
    assert (_by_us(base, folder) - wanted).abs().max() < 1e-4


@pytest.mark.usefixtures("base")
def test_fused_linears_are_taken_apart(tmp_path: Path) -> None:
    """Phi-3 is a Llama whose q, k, v and gate, up are one linear each: the same weights unfused, under the same adapter."""
    fused = _random_model(tmp_path / "fused", "phi3")
    apart = _random_model(tmp_path / "apart", rms_norm_eps=AutoConfig.from_pretrained(fused).rms_norm_eps)
    weights: dict[str, Tensor] = {}
    for name, tensor in load_file(fused / "model.safetensors").items():
        if "qkv_proj" in name:
            parts = dict(zip(("q_proj", "k_proj", "v_proj"), torch.split(tensor, [64, 32, 32]), strict=True))
            weights |= {name.replace("qkv_proj", part): rows.clone() for part, rows in parts.items()}
        elif "gate_up_proj" in name:
            weights |= {name.replace("gate_up", part): rows.clone() for part, rows in zip(("gate", "up"), tensor.chunk(2), strict=True)}
        else:
            weights[name] = tensor
    save_file(weights, apart / "model.safetensors", {"format": "pt"})
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", alpha_pattern={"qkv_proj": 3, r"layers\.1\..*gate_up_proj": 20})
    folder = _saved(fused, tmp_path / "adapter", config)
    assert (_by_us(apart, folder) - _by_peft(fused, folder)).abs().max() < 1e-4


@pytest.mark.filterwarnings("ignore:.* changes the base weights of the model")
@pytest.mark.parametrize("init", ["pissa", "olora", "pissa_niter_4"])
def test_an_initialisation_that_changed_the_base_is_refused_until_it_is_converted(init: Any, base: Path, tmp_path: Path) -> None:
    def trained(number: float) -> Any:
        torch.manual_seed(0)
        model = get_peft_model(_plain(base), LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=init))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * number
        return model

    start, model = trained(0.0), trained(0.05)
    start.peft_config["default"].init_lora_weights = True  # as PEFT's documents say, so that it is not changed again when it is loaded
    start.save_pretrained(str(tmp_path / "start"))
    model.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(InvalidArgument, match=rf"^init_lora_weights: is '{init}', which changed the base model's weights "):
        import_folder(tmp_path / "adapter", "base")
    with torch.inference_mode():
        wanted = model(torch.tensor([IDS])).logits[0].log_softmax(-1)
    model.save_pretrained(str(tmp_path / "converted"), path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    assert (_by_us(base, tmp_path / "converted") - wanted).abs().max() < 1e-3


@pytest.mark.parametrize("seed", range(20))
def test_targets_are_those_that_peft_finds(seed: int) -> None:
    """Every way to spell them, against PEFT's own function."""
    rng = random.Random(seed)
    names = [f"model.layers.{layer}.{module}" for layer in (0, 1, 11) for module in ("self_attn.q_proj", "mlp.up_proj")]
    spellings = ["q_proj", "up_proj", "proj", "11.mlp.up_proj", rng.choice(names)]
    targets: list[Any] = [rng.sample(spellings, 2), r".*\.(0|11)\..*_proj", r"model\.layers\.1.*", "q_proj"]
    config = LoraConfig(
        target_modules=rng.choice(targets),
        exclude_modules=rng.choice([None, ["up_proj"], r".*\.1\..*", [names[0]]]),
    )
    if not isinstance(config.target_modules, str):
        config.layers_to_transform = rng.choice([None, 1, [0, 11], []])
        config.layers_pattern = rng.choice([None, "layers", ["h", "layers"], "h"])
    fields = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
    plain = {name: list(value) if isinstance(value, set) else value for name, value in vars(config).items() if name in fields}
    ours = parse_config({"peft_type": "LORA", **plain})
    for name in names:
        theirs = check_target_module_exists(config, name)
        assert ours.targets(name) == bool(theirs and "Excluded" not in type(theirs).__name__), (name, config)
