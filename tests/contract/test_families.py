"""Every model that is served says what transformers says, to 1e-4 in log-probability, and writes the same tokens; any other is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from services.executor.backends.port import BLOCK_TOKENS, AnyBackend, Batch, Chunk
from services.executor.backends.torch.model import Llama
from services.executor.models.config import ModelConfig
from services.executor.models.families import FAMILIES as ROWS
from services.executor.models.families import WITHOUT_EFFECT
from smoa.errors import FailedPrecondition
from tests.model_support import BACKENDS, FAMILIES, isolated_cache, logits_of, make_backend, make_model, reference_model

TOKENS = torch.randint(0, 200, (60,), generator=torch.Generator().manual_seed(3)).tolist()
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"short_factor": [1.0, 1.1, 1.3, 1.4], "long_factor": [2.0] * 4}
VARIATIONS: list[tuple[str, dict[str, object]]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True}),
    ("llama", {"rope_theta": 500.0, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}}),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16, "mscale": 0.7, "mscale_all_dim": 0.5}}),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 3.0}}),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 3.0}}),
    ("llama", {"rope_theta": 500.0, "rope_scaling": LLAMA3 | {"type": "llama3"}}),
    ("llama", {"head_dim": 48, "num_key_value_heads": 1}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}),
    ("qwen2", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 500.0}}),
    ("qwen3", {"attention_bias": True, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 16, "layer_types": ["sliding_attention"] + ["full_attention"] * 2}),
    ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2, "use_sliding_window": False}),
    ("granite", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("gemma2", {"attn_logit_softcapping": None, "layer_types": ["full_attention"] * 3, "attention_bias": True}),
    ("gemma3_text", {"rope_scaling": None, "final_logit_softcapping": None, "sliding_window_pattern": 3}),
    ("phi3", {"rope_scaling": LONG | {"type": "su", "original_max_position_embeddings": 128}, "original_max_position_embeddings": 128}),
    ("phi3", {"rope_scaling": LONG | {"type": "longrope"}, "original_max_position_embeddings": 64, "tie_word_embeddings": True}),
    ("phi3", {"sliding_window": 24, "partial_rotary_factor": 1.0}),
]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolated_cache(tmp_path / "cache", monkeypatch)


def greedy(backend: AnyBackend, prompt: list[int], count: int) -> list[int]:
    """The answer by the cache, token by token."""
    tokens, mixture, blocks = list(prompt), backend.mix([]), list(range(-(-(len(prompt) + count) // BLOCK_TOKENS)))
    start = 0
    for _ in range(count):
        start, new = len(tokens), tokens[start:]
        tokens += backend.forward(Batch.of([Chunk(new, start - len(new), blocks, mixture, 1)]))[1]
    return tokens[len(prompt) :]


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize(
    ("family", "fields"),
    [*((family, {}) for family in FAMILIES), *VARIATIONS],
    ids=lambda one: one if isinstance(one, str) else "-".join(f"{name}={value}" for name, value in one.items())[:60] or "plain",
)
def test_log_probabilities_and_greedy_tokens_equal_transformers(kind: str, family: str, fields: dict[str, object], tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", family, fields=fields)
    reference, backend = reference_model(folder), make_backend(kind, folder)
    with torch.inference_mode():
        theirs = reference(torch.tensor([TOKENS])).logits[0].log_softmax(-1)
        answer = list(TOKENS[:40])
        for _ in range(12):
            answer.append(int(reference(torch.tensor([answer]), use_cache=False).logits[0, -1].argmax()))
    assert theirs.amax(-1).min() < -0.1, "the model is sure of everything: the comparison would be empty"
    assert (logits_of(backend, TOKENS).log_softmax(-1) - theirs).abs().max() < 1e-4
    assert greedy(backend, TOKENS[:40], 12) == answer[40:]


PLAUSIBLE: dict[str, list[object]] = {
    "attention_bias": [True, False],
    "attention_multiplier": [0.0, 0.5, 2],
    "attn_logit_softcapping": [None, 1.5],
    "embedding_multiplier": [1.0, 3.5],
    "final_logit_softcapping": [None, 1.5],
    "head_dim": [None, 16, 32],
    "hidden_act": ["silu", "gelu", "gelu_pytorch_tanh", "relu"],
    "hidden_activation": ["silu", "gelu", "gelu_pytorch_tanh", "relu"],
    "hidden_size": [32, 128],
    "intermediate_size": [64, 128],
    "layer_types": [["full_attention"] * 3, ["sliding_attention", "full_attention", "sliding_attention"], ["chunked_attention"] * 3],
    "logits_scaling": [1.0, 4],
    "max_window_layers": [0, 1, 5],
    "mlp_bias": [True, False],
    "no_rope_layer_interval": [1, 2],
    "no_rope_layers": [None, [1, 1, 0], [0, 0, 0]],
    "num_attention_heads": [2, 8],
    "num_hidden_layers": [2, 4],
    "num_key_value_heads": [1, 2, 4, None],
    "original_max_position_embeddings": [None, 48, 128],
    "partial_rotary_factor": [0.25, 0.5, 1.0],
    "query_pre_attn_scalar": [1, 64],
    "residual_multiplier": [0.2, 1],
    "rms_norm_eps": [1e-6, 1e-2],
    "rope_local_base_freq": [100.0, 10000],
    "rope_parameters": [
        None,
        {"rope_type": "default", "rope_theta": 100.0},
        {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0},
        {"full_attention": {"rope_type": "linear", "factor": 2.0}, "sliding_attention": {"rope_type": "yarn", "factor": 2.0}},
    ],
    "rope_scaling": [
        None,
        {"type": "linear", "factor": 2},
        {"type": "dynamic", "factor": 2.0},
        {"type": "yarn", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5, "beta_fast": 8, "truncate": False},
        {"rope_type": "yarn", "factor": 0.5, "original_max_position_embeddings": 32},
        LLAMA3 | {"rope_type": "llama3"},
        LONG | {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 100},
        {"rope_type": "proportional", "factor": 2.0},
        {"rope_type": "default", "mrope_section": [4, 2, 2]},
    ],
    "rope_theta": [100.0, 10000],
    "sliding_window": [None, 8, 1000],
    "sliding_window_pattern": [2, 3],
    "tie_word_embeddings": [True, False],
    "use_bidirectional_attention": [None, True, False],
    "use_sliding_window": [True, False],
}
"""Values that a config might have, of every field that changes the arithmetic of some family."""
UNKNOWN: dict[str, list[object]] = {
    "attention_sink": [1, True, [4]],
    "chunk_size_feed_forward": [0, 16],
    "clip_qkv": [None, 1.0],
    "is_encoder_decoder": [False, True],
    "per_layer_config": [{"0": {"hidden_act": "gelu"}}],
    "qk_layernorm": [True, False],
    "quantization_config": [None, {"quant_method": "gptq"}],
    "use_rms_bias": [None, "all"],
}
CHANGE = st.sampled_from([(name, value) for name, values in (PLAUSIBLE | UNKNOWN).items() for value in values])


def test_every_field_of_transformers_is_tried() -> None:
    """So a field that a new version adds is seen here: put it into `PLAUSIBLE`, and into a family's row if it changes the arithmetic."""
    for kind in ROWS:
        fields = {one.name for one in dataclasses.fields(type(AutoConfig.for_model(kind)))}
        assert fields <= {*PLAUSIBLE, *UNKNOWN, *WITHOUT_EFFECT, "vocab_size", "max_position_embeddings"}, kind


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(family=st.sampled_from(sorted(FAMILIES)), fields=st.tuples(CHANGE, CHANGE).map(dict), weights_too=st.booleans())
def test_a_config_with_other_fields_is_refused_or_means_what_it_means_in_transformers(
    family: str, fields: dict[str, object], weights_too: bool, tmp_path: Path
) -> None:
    """`weights_too`: the files are of the changed config, else of the one before."""
    folder = make_model(tmp_path / "model", family)
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | fields))
    refusal = ""
    try:
        ModelConfig.from_folder(folder)
        if weights_too:
            make_model(folder, family, fields=fields)
        model, reference = Llama.load(folder, torch.float32), reference_model(folder)
    except FailedPrecondition as error:
        event("refused")
        refusal = str(error)
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:  # transformers refuses it, too
        event(f"no reference: {error!r:.80}")
        return
    if refusal:
        assert refusal.startswith("base_model: ")
        assert refusal.count("; ") == 1
        return
    event("served")
    text = TOKENS[: model.config.context]
    with torch.inference_mode():
        theirs = reference(torch.tensor([text])).logits[0].log_softmax(-1)
        ours = model.logits(model.hidden_of_texts([text]))[0].log_softmax(-1)
    assert (ours - theirs).abs().max() < 1e-4
