"""The model types that are served, one row each: what their checkpoints hold and where their arithmetic differs from Llama's.

Data only. `config` reads a folder by its row, and the one forward pass of each backend reads what comes of it; no type has code of its own.
Defaults are those of transformers' config classes: what an absent field means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ROPE_TYPES: dict[str, str] = {name: name for name in ("default", "linear", "dynamic", "llama3", "yarn", "longrope")}
Windows = Literal["none", "all", "late", "unrotated", "pattern"]
"""Which layers see a window only, where `layer_types` does not say: none, all, those from `max_window_layers` on, those without rotary
positions, or all but every `sliding_window_pattern`-th."""
ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_MODULES = ("gate_proj", "up_proj", "down_proj")
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
"""Fields that every config has; there is no default."""
_GENERATION = """assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens diversity_penalty do_sample
early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff exponential_decay_length_penalty
forced_bos_token_id forced_eos_token_id length_penalty max_length max_new_tokens min_length min_p no_repeat_ngram_size num_assistant_tokens
num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences remove_invalid_values repetition_penalty suppress_tokens
target_lookbehind temperature top_k top_p typical_p"""
_TOKENS = "bos_token_id eos_token_id pad_token_id unk_token_id"
_TRAINING = "attention_dropout embd_pdrop initializer_range pretraining_tp resid_pdrop"
_OUTPUTS = "output_attentions output_hidden_states output_scores return_dict return_dict_in_generate torchscript use_cache"
_BOOKKEEPING = """_attn_implementation _attn_implementation_autoset _commit_hash _model_name_or_path _name_or_path _sliding_window_pattern
architectures attn_implementation auto_map cache_implementation dtype finetuning_task id2label is_llama_config label2id model_type
name_or_path problem_type task_specific_params tokenizer_class torch_dtype transformers.js_config transformers_version unsloth_fixed
unsloth_version use_bfloat16"""
WITHOUT_EFFECT = frozenset(" ".join((_GENERATION, _TOKENS, _TRAINING, _OUTPUTS, _BOOKKEEPING)).split())
"""Fields that change nothing in the forward pass of inference, whatever their value: training, generation, bookkeeping. `architectures`
and `model_type` choose the row, and are checked there."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model type."""

    architecture: str
    """The class of transformers whose checkpoints these are: another has other heads, or sees other tokens."""
    reads: Mapping[str, object] = field(default_factory=dict)
    """Fields that are honoured beside `SIZES` and `COMMON`, or with another default than there."""
    only: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Fields that would change the arithmetic, and the values that are implemented; an absent one means the first."""
    unread: tuple[str, ...] = ()
    """Fields in its checkpoints that have no effect, beside `WITHOUT_EFFECT`."""
    activation: str = "hidden_act"
    """The field that names the MLP's activation, one of `ACTIVATIONS`."""
    biased: tuple[str, ...] = ()
    """Modules that have a bias whatever the config says."""
    fused: bool = False
    """q, k and v are one tensor in the file, gate and up another."""
    query_key_norms: bool = False
    """Queries and keys are normed, head by head, before they are rotated."""
    post_norms: bool = False
    """What attention and MLP give is normed before it is added to the residual stream."""
    norm_offset: float = 0.0
    """Added to the weights of all norms."""
    embedding_scaled: bool = False
    """Embeddings are multiplied by the square root of the hidden size."""
    windows: Windows = "none"
    rope_types: Mapping[str, str] = field(default_factory=lambda: ROPE_TYPES)
    """Types of rotary positions as its configs name them, and as `rope` does."""
    local_rope: bool = False
    """Layers with a window have rotary positions of their own: `rope_local_base_freq`, or `rope_parameters` by layer type."""

    @property
    def defaults(self) -> Mapping[str, object]:
        """Fields that are honoured, with the value that an absent one means. Those of `SIZES` have none."""
        return COMMON | {self.activation: ACTIVATIONS[0]} | {name: values[0] for name, values in self.exact.items()} | dict(self.reads)

    @property
    def exact(self) -> Mapping[str, tuple[object, ...]]:
        """`only`, and what of every family is implemented in one way."""
        rotated: dict[str, tuple[object, ...]] = {} if "partial_rotary_factor" in self.reads else {"partial_rotary_factor": (1.0, None)}
        return {"is_causal": (True,)} | rotated | dict(self.only)


COMMON: dict[str, object] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
    "rope_scaling": None,
    "rope_parameters": None,
}
_BIASES: dict[str, object] = {"attention_bias": False, "mlp_bias": False}
_QWEN_WINDOWS: dict[str, object] = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}
_GEMMA: dict[str, object] = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,
}
_GEMMA_ONLY: dict[str, tuple[object, ...]] = {"use_bidirectional_attention": (False, None), "hidden_act": ("gelu_pytorch_tanh",)}

FAMILIES: dict[str, Family] = {
    "llama": Family(architecture="LlamaForCausalLM", reads=_BIASES),
    "mistral": Family(architecture="MistralForCausalLM", reads={"num_key_value_heads": 8, "sliding_window": 4096}, windows="all"),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        reads=_QWEN_WINDOWS | {"num_key_value_heads": 32},
        biased=("q_proj", "k_proj", "v_proj"),
        windows="late",
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        reads=_QWEN_WINDOWS | {"num_key_value_heads": 32, "head_dim": 128, "attention_bias": False},
        query_key_norms=True,
        windows="late",
    ),
    "smollm3": Family(
        architecture="SmolLM3ForCausalLM",
        reads=_BIASES
        | {
            "num_key_value_heads": 4,
            "rope_theta": 2_000_000.0,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "sliding_window": None,
            "layer_types": None,
            "no_rope_layers": None,
            "no_rope_layer_interval": 4,
        },
        unread=("max_window_layers",),
        windows="unrotated",
    ),
    "granite": Family(
        architecture="GraniteForCausalLM",
        reads=_BIASES | {"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0, "logits_scaling": 1.0},
    ),
    "gemma2": Family(
        architecture="Gemma2ForCausalLM",
        reads=_GEMMA | {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
        only=_GEMMA_ONLY | {"sliding_window_pattern": (2,)},
        activation="hidden_activation",
        post_norms=True,
        norm_offset=1.0,
        embedding_scaled=True,
        windows="pattern",
    ),
    "gemma3_text": Family(
        architecture="Gemma3ForCausalLM",
        reads=_GEMMA
        | {
            "final_logit_softcapping": None,
            "sliding_window_pattern": 6,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
        },
        only=_GEMMA_ONLY | {"attn_logit_softcapping": (None,)},  # transformers has the field and caps nothing by it
        activation="hidden_activation",
        query_key_norms=True,
        post_norms=True,
        norm_offset=1.0,
        embedding_scaled=True,
        windows="pattern",
        local_rope=True,
    ),
    "phi3": Family(
        architecture="Phi3ForCausalLM",
        reads={
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
            "partial_rotary_factor": 1.0,
            "original_max_position_embeddings": 4096,
        },
        only={"full_attn_mod": (1,), "interpolate_factor": (1,)},  # of Phi-4-mini's own code
        fused=True,
        windows="all",
        rope_types={"default": "default", "longrope": "longrope", "su": "longrope", "yarn": "longrope"},
    ),
}
