"""Rotary position embeddings (RoFormer, arXiv 2104.09864) and the ways in which checkpoints stretch them.

In float32 and in the order of transformers' operations: far into a context an angle's rounding shows, and models were trained with this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from services.executor.models.families import Family
from services.executor.models.fields import REMEDY, Fields

_ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True)
class Rope:
    """One layer's rotation: of the first dimensions of a head, in halves; the others stay as they are."""

    frequencies: tuple[float, ...]
    """Radians a position, of each pair of dimensions; float32 values."""
    amplitude: float = 1.0
    """What cosine and sine are multiplied by."""
    context: int = 0
    """Positions up to which this is right, where that is fewer than the model has; 0: all."""

    @property
    def dimensions(self) -> int:
        """Dimensions of a head that are rotated."""
        return 2 * len(self.frequencies)

    def table(self, context: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each position's angles, [context, dimensions / 2] float32."""
        angles = torch.outer(torch.arange(context, dtype=torch.float32), torch.tensor(self.frequencies))
        return angles.cos() * self.amplitude, angles.sin() * self.amplitude


@dataclass(frozen=True)
class _Head:
    """What a stretch works on."""

    theta: float
    dimensions: int
    context: int

    def frequencies(self) -> Tensor:
        """Unstretched, [dimensions / 2] float32."""
        return 1.0 / self.wavelengths()

    def wavelengths(self) -> Tensor:
        """Positions a radian, unstretched, [dimensions / 2] float32."""
        powers: Tensor = self.theta ** (torch.arange(0, self.dimensions, 2, dtype=torch.float32) / self.dimensions)
        return powers


def _plain(head: _Head, fields: Fields) -> Rope:
    return _rope(head.frequencies())


def _linear(head: _Head, fields: Fields) -> Rope:
    return _rope(head.frequencies() / fields.positive("factor"))


def _dynamic(head: _Head, fields: Fields) -> Rope:
    fields.positive("factor")  # It stretches what is past the context, and nothing is served past it.
    return _rope(head.frequencies())


def _llama3(head: _Head, fields: Fields) -> Rope:
    """Llama 3.1: long waves are slowed, short ones kept, and what is between is blended."""
    factor, low, high = (fields.positive(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    context = fields.size(_ORIGINAL, head.context)
    if low >= high:
        raise fields.refused("high_freq_factor", "is not over low_freq_factor", REMEDY)
    kept = head.frequencies()
    length = 2 * math.pi / kept
    slowed = torch.where(length > context / low, kept / factor, kept)
    share = (context / length - low) / (high - low)
    between = (length >= context / high) & (length <= context / low)
    return _rope(torch.where(between, (1 - share) * slowed / factor + share * slowed, slowed))


def _yarn(head: _Head, fields: Fields) -> Rope:
    """YaRN (arXiv 2309.00071)."""
    factor = fields.positive("factor")
    context = fields.size(_ORIGINAL, head.context)
    fast, slow = fields.positive("beta_fast", 32.0), fields.positive("beta_slow", 1.0)

    def dimension(turns: float) -> float:
        return head.dimensions * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(head.theta))

    low, high = dimension(fast), dimension(slow)
    if fields.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head.dimensions - 1)
    ramp = ((torch.arange(head.dimensions // 2, dtype=torch.float32) - low) / (high - low if high != low else 0.001)).clamp(0.0, 1.0)

    def scale(of: float) -> float:
        return 0.1 * of * math.log(factor) + 1.0 if factor > 1 else 1.0

    amplitude = fields.positive("attention_factor", 0.0)
    if not amplitude:
        parts = fields.positive("mscale", 0.0), fields.positive("mscale_all_dim", 0.0)
        amplitude = scale(parts[0]) / scale(parts[1]) if all(parts) else scale(1.0)
    kept = 1 - ramp
    return _rope(1.0 / (factor * head.wavelengths()) * (1 - kept) + head.frequencies() * kept, amplitude)


def _longrope(head: _Head, fields: Fields) -> Rope:
    """LongRoPE (arXiv 2402.13753), within the context that the model had first.

    A longer text takes the long factors for all of its positions, those in the cache too: so a sequence would change as it grows.
    """
    context = fields.size(_ORIGINAL, head.context)
    for name in ("short_factor", "long_factor"):
        if len(fields.numbers(name)) != head.dimensions // 2:
            raise fields.refused(name, f"has not {head.dimensions // 2} numbers", REMEDY)
    factor = fields.positive("factor", head.context / context)
    amplitude = fields.positive("attention_factor", 0.0)
    if not amplitude:
        amplitude = math.sqrt(1 + math.log(factor) / math.log(context)) if factor > 1 < context else 1.0
    return _rope(1.0 / (torch.tensor(fields.numbers("short_factor")) * head.wavelengths()), amplitude, context)


_STRETCHES: dict[str, tuple[Callable[[_Head, Fields], Rope], tuple[str, ...]]] = {
    "default": (_plain, ()),
    "linear": (_linear, ("factor",)),
    "dynamic": (_dynamic, ("factor",)),
    "llama3": (_llama3, ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL)),
    "yarn": (_yarn, ("factor", _ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")),
    "longrope": (_longrope, ("short_factor", "long_factor", _ORIGINAL, "factor", "attention_factor")),
}
"""What each type does, and the parameters that it knows."""


def ropes_of(values: Mapping[str, object], family: Family, head_dim: int, context: int) -> tuple[Rope, Rope]:
    """The rotations of layers that see all, and of those that see a window, of a config's fields with their defaults.

    `rope_scaling` with `rope_theta` beside it is the old spelling, `rope_parameters` the new one.

    Raises:
        FailedPrecondition: a type, a parameter or a value that is not implemented.
    """
    fields = Fields(values)

    def rope(name: str, parameters: dict[str, object], theta: str) -> Rope:
        outside = {"rope_theta": values[theta], "partial_rotary_factor": values.get("partial_rotary_factor")}
        return _rope_of(name, outside | parameters, values, family, head_dim, context)

    old, new = fields.parameters("rope_scaling"), fields.parameters("rope_parameters")
    if not family.local_rope:
        same = rope("rope_scaling", old, "rope_theta") if old else rope("rope_parameters", new, "rope_theta")
        return same, same
    if other := sorted(set(new) - {"full_attention", "sliding_attention"}):
        raise fields.refused("rope_parameters", f"has {', '.join(other)} beside full_attention and sliding_attention", REMEDY)
    by_type = Fields(new, "rope_parameters.")
    # So transformers reads an old `type` beside the default `rope_type` that it puts there: what it means is refused below.
    whole = (by_type.parameters("full_attention") or {"rope_type": "default"}) | old
    return (
        rope("rope_scaling" if old else "rope_parameters.full_attention", whole, "rope_theta"),
        rope("rope_parameters.sliding_attention", by_type.parameters("sliding_attention"), "rope_local_base_freq"),
    )


def _rope_of(name: str, parameters: dict[str, object], values: Mapping[str, object], family: Family, head_dim: int, context: int) -> Rope:
    fields = Fields(parameters, f"{name}.")
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    kind = family.rope_types.get(kind) if isinstance(kind, str) else None
    if kind is None:
        raise fields.refused("rope_type", "is not implemented", f"use a model with one of {', '.join(family.rope_types)}")
    stretch, known = _STRETCHES[kind]
    if _ORIGINAL in known and _ORIGINAL in family.reads:
        parameters[_ORIGINAL] = values[_ORIGINAL]
    for key, value in parameters.items():
        if value is not None and key not in (*known, "rope_type", "type", "rope_theta", "partial_rotary_factor"):
            raise fields.refused(key, f"is not known of type {kind!r}", "remove it if the model does without")
    share = fields.positive("partial_rotary_factor", 1.0)
    dimensions = int(head_dim * share)
    if (share != 1 and "partial_rotary_factor" not in family.reads) or not 0 < dimensions <= head_dim or dimensions % 2:
        raise fields.refused("partial_rotary_factor", f"would rotate {dimensions} of {head_dim} dimensions", "use another base model")
    if (base := fields.positive("rope_theta")) <= 1:
        raise fields.refused("rope_theta", f"is {base!r}, not over 1", REMEDY)
    return stretch(_Head(base, dimensions, context), fields)


def _rope(frequencies: Tensor, amplitude: float = 1.0, context: int = 0) -> Rope:
    return Rope(tuple(frequencies.tolist()), amplitude, context)
