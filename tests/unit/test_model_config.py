"""What is read of a `config.json`, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from services.executor.models.config import ModelConfig
from services.executor.models.families import FAMILIES, WITHOUT_EFFECT
from smoa.errors import FailedPrecondition

SIZES = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
OF_THE_HUB: dict[str, dict[str, object]] = {
    "SmolLM2-1.7B": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "is_llama_config": True,
        "mlp_bias": False,
        "model_type": "llama",
        "pretraining_tp": 1,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 130000,
        "tie_word_embeddings": True,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        "use_cache": True,
    },
    "Llama-3.1-8B": {
        "architectures": ["LlamaForCausalLM"],
        "eos_token_id": [128001, 128008, 128009],
        "model_type": "llama",
        "num_key_value_heads": 2,
        "rope_scaling": LLAMA3 | {"rope_type": "llama3"},
        "rope_theta": 500000.0,
    },
    "Mistral-7B-v0.3": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_key_value_heads": 2, "sliding_window": None},
    "Qwen2.5-7B": {
        "architectures": ["Qwen2ForCausalLM"],
        "max_window_layers": 28,
        "model_type": "qwen2",
        "num_key_value_heads": 2,
        "sliding_window": 131072,
        "use_mrope": False,
        "use_sliding_window": False,
    },
    "Qwen3-8B": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 128,
        "max_window_layers": 36,
        "model_type": "qwen3",
        "num_key_value_heads": 2,
        "rope_scaling": None,
        "sliding_window": None,
        "use_sliding_window": False,
    },
    "SmolLM3-3B": {
        "architectures": ["SmolLM3ForCausalLM"],
        "layer_types": ["full_attention"] * 4,
        "max_window_layers": 28,
        "model_type": "smollm3",
        "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0],
        "num_key_value_heads": 4,
        "pretraining_tp": 2,
        "sliding_window": None,
        "use_sliding_window": False,
    },
    "granite-3.1-8b": {
        "architectures": ["GraniteForCausalLM"],
        "attention_dropout": 0.1,
        "attention_multiplier": 0.0078125,
        "embedding_multiplier": 12.0,
        "logits_scaling": 16.0,
        "model_type": "granite",
        "num_key_value_heads": 2,
        "residual_multiplier": 0.22,
        "rope_theta": 10000000.0,
        "tie_word_embeddings": True,
    },
    "gemma-2-2b": {
        "architectures": ["Gemma2ForCausalLM"],
        "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "model_type": "gemma2",
        "query_pre_attn_scalar": 256,
        "sliding_window": 64,
    },
    "gemma-3-1b": {
        "architectures": ["Gemma3ForCausalLM"],
        "attn_logit_softcapping": None,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "model_type": "gemma3_text",
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 64,
        "sliding_window_pattern": 2,
    },
    "Phi-3-mini-4k": {
        "architectures": ["Phi3ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "model_type": "phi3",
        "original_max_position_embeddings": 4096,
        "rope_scaling": None,
        "sliding_window": 64,
    },
    "Phi-4-mini": {
        "architectures": ["Phi3ForCausalLM"],
        "full_attn_mod": 1,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "model_type": "phi3",
        "num_key_value_heads": 2,
        "original_max_position_embeddings": 100,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {"long_factor": [2.0] * 6, "short_factor": [1.0] * 6, "type": "longrope"},
        "tie_word_embeddings": True,
    },
}


def read(folder: Path, **fields: object) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(SIZES | fields))
    return ModelConfig.from_folder(folder)


def windows(config: ModelConfig) -> list[int]:
    return [how.window for how in config.attention]


@pytest.mark.parametrize("name", list(OF_THE_HUB))
def test_configs_as_they_are_on_the_hub_are_read(name: str, tmp_path: Path) -> None:
    config = read(tmp_path, torch_dtype="bfloat16", transformers_version="4.40.0", **OF_THE_HUB[name])
    assert config.family is FAMILIES[str(OF_THE_HUB[name]["model_type"])]


def test_phi_3_goes_as_far_as_its_short_factors(tmp_path: Path) -> None:
    config = read(tmp_path, **OF_THE_HUB["Phi-4-mini"])
    (rope,) = set(config.ropes)
    assert rope is not None
    assert (config.context, rope.dimensions) == (100, 12)
    assert rope.amplitude == pytest.approx(math.sqrt(1 + math.log(2.56) / math.log(100)))


def test_what_of_gemma_3(tmp_path: Path) -> None:
    config = read(tmp_path, **OF_THE_HUB["gemma-3-1b"])
    assert windows(config) == [64, 0, 64, 0]
    assert {how.scale for how in config.attention} == {1 / 16}
    local, whole, *_ = config.ropes
    assert local is not None
    assert whole is not None
    assert [local.frequencies[1], whole.frequencies[1]] == pytest.approx([10_000 ** (-2 / 256), 1e6 ** (-2 / 256)])
    assert (config.embedding_scale, config.tied, config.head_dim) == (8.0, True, 256)


def test_qwen_2_has_windows_from_max_window_layers_on(tmp_path: Path) -> None:
    fields = {"model_type": "qwen2", "num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}
    assert windows(read(tmp_path, **fields)) == [0, 0, 16, 16]
    kinds = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    assert windows(read(tmp_path, **fields | {"layer_types": kinds})) == [0, 16, 0, 0]
    assert windows(read(tmp_path, **fields | {"use_sliding_window": False})) == [0, 0, 0, 0]


@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic", "llama3"])
def test_both_spellings_of_rotary_parameters_mean_the_same(kind: str, tmp_path: Path) -> None:
    parameters = {"yarn": YARN, "linear": {"factor": 4.0}, "dynamic": {"factor": 4.0}, "llama3": LLAMA3}[kind]
    old = read(tmp_path, model_type="llama", rope_theta=5e5, rope_scaling={"type": kind, **parameters})
    mixed = read(tmp_path, model_type="llama", rope_theta=5e5, rope_scaling={"rope_type": kind, **parameters})
    new = read(tmp_path, model_type="llama", rope_parameters={"rope_type": kind, "rope_theta": 5e5, **parameters})
    assert old == mixed == new
    assert (old.ropes != read(tmp_path, model_type="llama", rope_theta=5e5).ropes) == (kind != "dynamic")  # which stretches longer texts


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' of {folder} is not served; use a model of llama, mistral, qwen2, "),
        (
            {"model_type": "gemma3", "text_config": {}},
            "{folder} is 'gemma3', which reads more than text; save its language model alone first",
        ),
        (
            {"model_type": "llama", "quantization_config": {"quant_method": "fp8"}},
            "quantization_config says that {folder} is quantised, which is not served; convert it to bf16 safetensors first",
        ),
        (
            {"model_type": "llama", "architectures": ["LlamaBiForMNTP"]},
            "architectures is ['LlamaBiForMNTP'], and of llama only LlamaForCausalLM is served; use a checkpoint of that class",
        ),
        (
            {"model_type": "llama", "sparse_attention": {"block": 4}},
            "sparse_attention is {{'block': 4}}, which this executor knows nothing of for llama; "
            "remove it from config.json if the model does without, or use another base model",
        ),
        ({"model_type": "qwen2", "is_causal": False}, "is_causal is False, and only True is implemented; use another base model"),
        ({"model_type": "llama", "is_causal": None}, "is_causal is None, and only True is implemented; use another base model"),
        (
            {"model_type": "llama", "rope_theta": 10**400},
            "rope_parameters.rope_theta is 1000000000000000000000000000000000000000, not a number; ",
        ),
        (
            {"model_type": "llama", "rope_scaling": {"type": "llama3", **LLAMA3, "low_freq_factor": 8.0}},
            "rope_scaling.high_freq_factor is not over low_freq_factor; take the model's own config.json",
        ),
        ({"model_type": "llama", "sliding_window": 128}, "sliding_window is 128, which this executor knows nothing of for llama; "),
        ({"model_type": "llama", "hidden_act": "relu"}, "hidden_act 'relu' is not implemented; use a model with silu or gelu_pytorch_tanh"),
        ({"model_type": "llama", "hidden_size": "64"}, "hidden_size is '64', not a whole number over 0; take the model's own config.json"),
        ({"model_type": "llama", "num_key_value_heads": 3}, "num_key_value_heads is 3, which does not divide 4 heads; "),
        ({"model_type": "llama", "rms_norm_eps": None}, "rms_norm_eps is missing; take the model's own config.json"),
        ({"model_type": "llama", "rope_scaling": {"type": "mrope"}}, "rope_scaling.rope_type is not implemented; use a model with one of "),
        (
            {"model_type": "qwen2", "num_key_value_heads": 2, "rope_scaling": {"type": "default", "mrope_section": [4, 2, 2]}},
            "rope_scaling.mrope_section is not known of type 'default'; remove it if the model does without",
        ),
        (
            {"model_type": "llama", "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "rope_parameters.partial_rotary_factor would rotate 8 of 16 dimensions; use another base model",
        ),
        ({"model_type": "llama", "rope_scaling": {"type": "yarn"}}, "rope_scaling.factor is missing; take the model's own config.json"),
        (
            {"model_type": "phi3", "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_scaling.rope_type is not implemented; use a model",
        ),
        (
            {"model_type": "gemma2", "use_bidirectional_attention": True},
            "use_bidirectional_attention is True, and only False or None is implemented; use another base model",
        ),
        (
            {"model_type": "gemma3_text", "attn_logit_softcapping": 50.0},
            "attn_logit_softcapping is 50.0, and only None is implemented; use another base model",
        ),
        (
            {"model_type": "gemma3_text", "rope_parameters": {"rope_type": "default"}},
            "rope_parameters has rope_type beside full_attention and ",
        ),
        (
            {"model_type": "qwen3", "num_key_value_heads": 2, "layer_types": ["sliding_attention"] * 4},
            "layer_types has sliding_attention, and the config no sliding_window; take the model's own config.json",
        ),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "no_rope_layers is [1, 0], not a 0 or 1 for each of 4 layers; "),
    ],
)
def test_what_is_not_implemented_is_refused_in_one_sentence(fields: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        read(tmp_path, **fields)
    assert str(caught.value).startswith("base_model: " + message.format(folder=tmp_path))


@pytest.mark.parametrize(
    "fields",
    [
        {"no_repeat_ngram_size": 0, "typical_p": 1.0, "diversity_penalty": 0.0},
        {"partial_rotary_factor": 1.0},
        {"partial_rotary_factor": None},
        {"is_causal": True},
        {"text_config": None},
    ],
)
def test_fields_that_say_what_is_done_anyway_change_nothing(fields: dict[str, object], tmp_path: Path) -> None:
    assert read(tmp_path, model_type="llama", **fields) == read(tmp_path, model_type="llama")


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_field_is_in_one_list_only(family: str) -> None:
    row = FAMILIES[family]
    assert not {*row.defaults, *row.unread} & WITHOUT_EFFECT
    assert not row.reads.keys() & row.exact.keys()
