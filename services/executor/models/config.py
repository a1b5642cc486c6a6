"""What a base model's `config.json` says: its shape, and where its arithmetic differs from Llama's.

A whitelist: a field that the forward pass does not honour is refused unless it has the value at which transformers does what Llama does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.executor.models.base_model import config_of
from services.executor.models.families import ACTIVATIONS, ATTENTION_MODULES, FAMILIES, MLP_MODULES, SIZES, WITHOUT_EFFECT, Family
from services.executor.models.fields import REMEDY, Fields
from services.executor.models.rope import Rope, ropes_of
from smoa.errors import FailedPrecondition

_SLIDING, _FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class LayerAttention:
    """How one layer's queries read keys and values."""

    window: int
    """Tokens that a token sees, itself included; 0 is all."""
    scale: float
    """What products of queries and keys are multiplied by."""
    soft_cap: float
    """Scores s become soft_cap tanh(s / soft_cap), before the softmax; 0: they stay."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and arithmetic of a base model."""

    family: Family
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    norm_eps: float
    tied: bool
    """The embedding is the head, where the files have no other."""
    biased: frozenset[str]
    """Modules that have a bias."""
    activation: str
    """Of the MLP: one of `families.ACTIVATIONS`."""
    attention: tuple[LayerAttention, ...]
    """Of each layer."""
    ropes: tuple[Rope | None, ...]
    """Of each layer; None: positions do not matter to it but for what is before what."""
    embedding_scale: float
    """Embeddings are multiplied by it."""
    residual_scale: float
    """What attention and MLP give is multiplied by it before it is added to the residual stream."""
    logits_scale: float
    """Logits are divided by it."""
    logits_soft_cap: float
    """Logits l become logits_soft_cap tanh(l / logits_soft_cap); 0: they stay."""
    folder: Path

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """Read `config.json`.

        Raises:
            FailedPrecondition: a model type, field or value that the forward pass does not implement; the message names it.
        """
        raw = config_of(folder)
        family = _family_of(folder, raw)
        _check_known(raw, family)
        honoured = {*SIZES, *family.defaults}
        return _read(folder, dict(family.defaults) | {name: value for name, value in raw.items() if name in honoured}, family)

    def shape(self, module: str) -> tuple[int, int]:
        """(outputs, inputs) of a linear module.

        Raises:
            KeyError: no such module.
        """
        query, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (query, self.hidden),
            "k_proj": (key_value, self.hidden),
            "v_proj": (key_value, self.hidden),
            "o_proj": (self.hidden, query),
            "gate_proj": (self.intermediate, self.hidden),
            "up_proj": (self.intermediate, self.hidden),
            "down_proj": (self.hidden, self.intermediate),
        }[module]


def module_path(layer: int, module: str) -> str:
    """Name of a linear module in Llama's checkpoints, without `.weight`: every family's modules go by it."""
    block = "self_attn" if module in ATTENTION_MODULES else "mlp"
    return f"model.layers.{layer}.{block}.{module}"


def _family_of(folder: Path, raw: Mapping[str, object]) -> Family:
    kind = raw.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if raw.get("text_config") is not None:
        raise FailedPrecondition(f"base_model: {folder} is {kind!r}, which reads more than text; save its language model alone first")
    if family is None:
        raise FailedPrecondition(f"base_model: model_type {kind!r} of {folder} is not served; use a model of {', '.join(FAMILIES)}")
    if raw.get("quantization_config") is not None:
        raise FailedPrecondition(
            f"base_model: quantization_config says that {folder} is quantised, which is not served; convert it to bf16 safetensors first"
        )
    if (named := raw.get("architectures") or [family.architecture]) != [family.architecture]:
        raise FailedPrecondition(
            f"base_model: architectures is {named!r}, and of {kind} only {family.architecture} is served; use a checkpoint of that class"
        )
    return family


def _check_known(raw: Mapping[str, object], family: Family) -> None:
    """Raise of any field that is neither honoured nor without effect, and of honoured ones that have a value out of their list."""
    fields = Fields(raw)
    known, exact = {*SIZES, *family.defaults, *WITHOUT_EFFECT, *family.unread}, family.exact
    for name, value in raw.items():
        only = exact.get(name)
        if only is not None and not any(value is one or (value == one and not isinstance(value, bool)) for one in only):
            values = " or ".join(map(repr, only))
            raise fields.refused(name, f"is {value!r}, and only {values} is implemented", "use another base model")
        if name not in known and value is not None and value is not False and not _is_default(str(raw["model_type"]), name, value):
            raise fields.refused(
                name,
                f"is {value!r}, which this executor knows nothing of for {raw['model_type']}",
                "remove it from config.json if the model does without, or use another base model",
            )


def _is_default(kind: str, name: str, value: object) -> bool:
    """Whether a field has the value that the config class of transformers gives it anyway."""
    from transformers import AutoConfig  # late: a second, and seldom needed

    return bool(getattr(AutoConfig.for_model(kind), name, None) == value)


def _read(folder: Path, values: dict[str, object], family: Family) -> ModelConfig:
    fields = Fields(values)
    layers, hidden, heads = (fields.size(name) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    kv_heads, context = fields.size("num_key_value_heads", heads), fields.size("max_position_embeddings")
    if heads % kv_heads:
        raise fields.refused("num_key_value_heads", f"is {kv_heads}, which does not divide {heads} heads", REMEDY)
    if values["head_dim"] is None and hidden % heads:
        raise fields.refused("hidden_size", f"is {hidden}, which {heads} heads do not divide", REMEDY)
    head_dim = fields.size("head_dim", hidden // heads)
    activation = values[family.activation]
    if activation not in ACTIVATIONS:
        raise fields.refused(family.activation, f"{activation!r} is not implemented", f"use a model with {' or '.join(ACTIVATIONS)}")
    rotated = _rotated(values, fields, layers)
    sliding = _sliding(values, fields, family, rotated)
    ropes = ropes_of(values, family, head_dim, context)
    context = min(context, *(rope.context or context for rope in ropes))
    window = fields.size("sliding_window") if any(sliding) else 0
    scale, soft_cap = _attention_scale(values, fields, head_dim), _soft_cap(values, fields, "attn_logit_softcapping")
    attention = [LayerAttention(reach if reach < context else 0, scale, soft_cap) for reach in (0, window)]
    return ModelConfig(
        family=family,
        layers=layers,
        hidden=hidden,
        intermediate=fields.size("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=fields.size("vocab_size"),
        context=context,
        norm_eps=fields.positive("rms_norm_eps"),
        tied=fields.flag("tie_word_embeddings", False),
        biased=_biased(fields, family),
        activation=str(activation),
        attention=tuple(attention[one] for one in sliding),
        ropes=tuple(ropes[is_sliding] if turns else None for is_sliding, turns in zip(sliding, rotated, strict=True)),
        embedding_scale=hidden**0.5 if family.embedding_scaled else fields.number("embedding_multiplier", 1.0),
        residual_scale=fields.number("residual_multiplier", 1.0),
        logits_scale=fields.positive("logits_scaling", 1.0),
        logits_soft_cap=_soft_cap(values, fields, "final_logit_softcapping"),
        folder=folder,
    )


def _biased(fields: Fields, family: Family) -> frozenset[str]:
    attention = ATTENTION_MODULES if fields.flag("attention_bias", False) else ()
    mlp = MLP_MODULES if fields.flag("mlp_bias", False) else ()
    return frozenset((*family.biased, *attention, *mlp))


def _attention_scale(values: Mapping[str, object], fields: Fields, head_dim: int) -> float:
    if "attention_multiplier" in values:
        return fields.number("attention_multiplier")
    return float(fields.positive("query_pre_attn_scalar", head_dim) ** -0.5)


def _soft_cap(values: Mapping[str, object], fields: Fields, name: str) -> float:
    return 0.0 if values.get(name) is None else fields.positive(name)


def _rotated(values: Mapping[str, object], fields: Fields, layers: int) -> list[bool]:
    """Whether each layer rotates its queries and keys."""
    if (given := values.get("no_rope_layers")) is not None:
        if not isinstance(given, list) or len(given) != layers or not all(one in (0, 1) for one in given):
            raise fields.refused("no_rope_layers", f"is {given!r}, not a 0 or 1 for each of {layers} layers", REMEDY)
        return [bool(one) for one in given]
    if "no_rope_layer_interval" in values:
        return [(layer + 1) % fields.size("no_rope_layer_interval") != 0 for layer in range(layers)]
    return [True] * layers


def _sliding(values: Mapping[str, object], fields: Fields, family: Family, rotated: list[bool]) -> list[bool]:
    """Whether each layer sees a window only."""
    layers = len(rotated)
    windowed = values.get("sliding_window") is not None and fields.flag("use_sliding_window", True)
    if (given := values.get("layer_types")) is not None:
        if not isinstance(given, list) or len(given) != layers or not all(one in (_SLIDING, _FULL) for one in given):
            raise fields.refused("layer_types", f"is {given!r}, not {_SLIDING} or {_FULL} for each of {layers} layers", REMEDY)
        if _SLIDING in given and not windowed:
            raise fields.refused("layer_types", f"has {_SLIDING}, and the config no sliding_window", REMEDY)
        return [one == _SLIDING for one in given]
    match family.windows:
        case "all":
            sliding = [True] * layers
        case "late":
            first = fields.number("max_window_layers")
            sliding = [layer >= first for layer in range(layers)]
        case "unrotated":
            sliding = [not one for one in rotated]
        case "pattern":
            period, windowed = fields.size("sliding_window_pattern"), bool(fields.size("sliding_window"))
            sliding = [(layer + 1) % period != 0 for layer in range(layers)]
        case "none":
            sliding = [False] * layers
    return [one and windowed for one in sliding]
