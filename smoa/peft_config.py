"""What `adapter_config.json` of a PEFT LoRA asks for: the rank and scaling of every linear, as PEFT finds them (0.21).

A field that is not known to leave `W x + scaling B A x` as it is, is refused by its name: served without it, the adapter would give other
answers than PEFT does.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from smoa.errors import InvalidArgument

_FILE: Final = "adapter_config.json"
_SAVE_AGAIN: Final = "save the adapter again with PEFT"
READ_FIELDS: Final = frozenset(
    {
        "peft_type",
        "base_model_name_or_path",
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "init_lora_weights",
    }
)
FIELDS_WITHOUT_EFFECT: Final = frozenset(
    {
        "auto_mapping",
        "bias",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "fan_in_fan_out",
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)
"""On a linear's forward pass. Biases and embeddings are seen by their tensors."""
_REMEDIES: Final[Mapping[str, str]] = {
    "use_dora": "train again without it: DoRA rescales the base model's weights, which other adapters use at the same time",
    "modules_to_save": "train again without it: whole modules beside the LoRA would change the base model for every other adapter",
    "trainable_token_indices": "train again without it: new embeddings would change the base model for every other adapter",
    "layer_replication": "train again without it: it makes another base model",
    "alora_invocation_tokens": "train again without it: an adapter applies to every token",
}
_PLAIN_ONLY: Final = "only plain LoRA can be imported: train again without it, or remove it from the file if no answer depends on it"
_PLAIN_INITS: Final = ("gaussian", "eva", "orthogonal", "mica")
_CONVERTED_BY_PEFT: Final = ("pissa", "olora", "corda", "lora_ga")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The fields that say what a LoRA's tensors mean. `key` is always a linear's name in the model that was trained, without wrappers."""

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: str | tuple[str, ...] | None
    exclude_modules: str | tuple[str, ...] | None
    layers_to_transform: tuple[int, ...]
    layers_pattern: tuple[str, ...]
    base_model_name: str
    """Empty where it is not said."""

    def rank_of(self, key: str) -> int:
        """Rank of a linear's pair."""
        return self.rank_pattern.get(_matching(self.rank_pattern, key), self.rank)

    def scaling_of(self, key: str) -> float:
        """Factor on B A."""
        rank = self.rank_of(key)
        return self.alpha_pattern.get(_matching(self.alpha_pattern, key), self.alpha) / (math.sqrt(rank) if self.rslora else rank)

    def targets(self, key: str) -> bool:
        """Whether PEFT would adapt the linear."""
        if self.exclude_modules is not None and _names(self.exclude_modules, key):
            return False
        if self.target_modules is None or (isinstance(self.target_modules, str) and self.target_modules.lower() == "all-linear"):
            return True
        if isinstance(self.target_modules, str) or key in self.target_modules or not self.layers_to_transform:
            return _names(self.target_modules, key)
        patterns = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in self.layers_pattern] or [r".*?\.[^.]*\.(\d+)\."]
        layer = next((found for pattern in patterns if (found := re.match(pattern, key))), None)
        return _names(self.target_modules, key) and layer is not None and int(layer[1]) in self.layers_to_transform


def parse_config(config: object) -> LoraSettings:
    """The settings of a parsed `adapter_config.json`.

    Raises:
        InvalidArgument: not a LoRA, an initialisation that changed the base model, or a field that asks for more than plain LoRA.
    """
    if not isinstance(config, dict):
        raise InvalidArgument(_FILE, "is not an object", _SAVE_AGAIN)
    if config.get("peft_type") != "LORA":
        problem = f"has peft_type {str(config.get('peft_type'))[:80]!r}"
        raise InvalidArgument(_FILE, problem, "only LoRA adapters can be imported: train one of them")
    _check_initialisation(config.get("init_lora_weights", True))
    for name, value in config.items():
        if value and name not in READ_FIELDS and name not in FIELDS_WITHOUT_EFFECT:
            raise InvalidArgument(_FILE, f"asks for {name[:80]}", _REMEDIES.get(name, _PLAIN_ONLY))
    layers, name = config.get("layers_to_transform"), config.get("base_model_name_or_path")
    layers = [layers] if type(layers) is int else layers or []
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise _wrong("layers_to_transform", layers)
    layers_pattern = _names_or_pattern(config, "layers_pattern")
    return LoraSettings(
        rank=int(_number("r", config.get("r", 8), whole=True)),
        alpha=_number("lora_alpha", config.get("lora_alpha", 8)),
        rslora=bool(config.get("use_rslora")),
        rank_pattern={key: int(_number("rank_pattern", value, whole=True)) for key, value in _patterns(config, "rank_pattern").items()},
        alpha_pattern={key: _number("alpha_pattern", value) for key, value in _patterns(config, "alpha_pattern").items()},
        target_modules=_names_or_pattern(config, "target_modules"),
        exclude_modules=_names_or_pattern(config, "exclude_modules"),
        layers_to_transform=tuple(layers),
        layers_pattern=(layers_pattern,) if isinstance(layers_pattern, str) else layers_pattern or (),
        base_model_name=name if isinstance(name, str) else "",
    )


def _check_initialisation(value: object) -> None:
    if value is None or isinstance(value, bool) or (isinstance(value, str) and value.lower() in _PLAIN_INITS):
        return
    name = value.lower() if isinstance(value, str) else ""
    if name.startswith(_CONVERTED_BY_PEFT):
        what = "which changed the base model's weights before the training"
        how = "save the adapter again with save_pretrained(..., path_initial_model_for_weight_conversion=...), which makes it a plain LoRA"
    else:
        what = "which changed the base model's weights" if name == "loftq" else "which may have changed the base model's weights"
        how = f"train again with the default, or with one of {', '.join(_PLAIN_INITS)}"
    raise InvalidArgument("init_lora_weights", f"is {str(value)[:80]!r}, {what}", how)


def _wrong(name: str, value: object) -> InvalidArgument:
    return InvalidArgument(_FILE, f"has {name} {str(value)[:80]!r}", _SAVE_AGAIN)


def _number(name: str, value: object, *, whole: bool = False) -> float:
    good = type(value) is int or (type(value) is float and not whole)
    if not good or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max or (whole and value < 1):
        raise _wrong(name, value)
    return value if whole else float(value)


def _patterns(config: Mapping[str, Any], name: str) -> Mapping[str, object]:
    patterns = config.get(name) or {}
    if not isinstance(patterns, dict):
        raise _wrong(name, patterns)
    for pattern in patterns:
        _check_pattern(name, rf"(.*\.)?({pattern})$")
    return patterns


def _names_or_pattern(config: Mapping[str, Any], name: str) -> str | tuple[str, ...] | None:
    value = config.get(name)
    if isinstance(value, str) and value:
        _check_pattern(name, value)
        return value
    if value and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        raise _wrong(name, value)
    return tuple(value) if value else None


def _check_pattern(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidArgument(_FILE, f"has {name} {pattern[:80]!r}, no regular expression ({error})", _SAVE_AGAIN) from error


def _matching(patterns: Mapping[str, object], key: str) -> str:
    """The first pattern that a name ends in; `peft.utils.other.get_pattern_key`."""
    return next((pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", key)), key)


def _names(modules: str | tuple[str, ...], key: str) -> bool:
    """A regular expression for all of a name, or the name or an end of it."""
    if isinstance(modules, str):
        return re.fullmatch(modules, key) is not None
    return key in modules or any(key.endswith(f".{module}") for module in modules)
