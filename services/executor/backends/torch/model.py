"""The forward pass of Llama and its relatives in torch, with one hook: every linear module may add a per-token adapter delta.

Where a family differs (see `models.families`), it reads that from the `ModelConfig`. The reference: training differentiates it, GPUs serve
with it, and the native forward pass is held equal to it. It is itself held equal to `transformers` by `tests/contract/test_backend.py`.
Between the linear modules it does three things, each of which is one kernel on a GPU: `Attention`, and the two of `Between`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from services.executor.adapters.mixture import Bases, Delta
from services.executor.backends.native.library import AVX512_BF16, processor_variants
from services.executor.models.base_model import INPUTS, fingerprint
from services.executor.models.config import LayerAttention, ModelConfig
from services.executor.models.linear import Linear
from services.executor.models.weights import EMBEDDING, FINAL_NORM, HEAD, load_weights, norm_names

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh")}


class Attention(Protocol):
    """How tokens see those before them, and where the keys and values of those are."""

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What the tokens read [tokens, heads * head_dim].

        Queries [tokens, heads * head_dim], keys and values [tokens, kv_heads * head_dim] are as the linear modules gave them: not normed or
        rotated yet, and rows of something wider.
        """


class Between(NamedTuple):
    """What is computed of each token alone between the linear modules."""

    added: Callable[[Tensor, Tensor, Tensor | None, float, Tensor, float], tuple[Tensor, Tensor]]
    """The residual stream [tokens, hidden], what is added to it, the weight of the norm of that (if there is one), its scale, the weight of
    the norm that follows, and the norms' epsilon -> the new stream, and the norm of it."""
    gated: Callable[[Tensor, Tensor, str], Tensor]
    """Activation(gate) * up [tokens, intermediate], by the activation's name."""


def _added(stream: Tensor, y: Tensor, post: Tensor | None, scale: float, norm: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if post is not None:
        y = normed(y, post, eps)
    stream = stream + (y if scale == 1 else y * scale)
    return stream, normed(stream, norm, eps)


def _gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    return _ACTIVATIONS[activation](gate) * up


PLAIN = Between(_added, _gated)
"""In torch: it can be differentiated."""


def masked_attention(queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor, how: LayerAttention) -> Tensor:
    """Attention of queries [rows, tokens, heads, head_dim] to keys and values [rows, keys, kv_heads, head_dim], where seen.

    `seen` [rows, tokens, keys] is of bool; the window is in it already.
    """
    q, k, v = (part.transpose(1, 2) for part in (queries, keys, values))
    if not how.soft_cap:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None], scale=how.scale, enable_gqa=True).transpose(1, 2)
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
    scores = soft_capped((q @ k.transpose(2, 3)).float() * how.scale, how.soft_cap).masked_fill(~seen[:, None], float("-inf"))
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2)


def soft_capped(x: Tensor, cap: float) -> Tensor:
    """Near x where that is small against the cap, and never over it; 0 is no cap."""
    return torch.tanh(x / cap) * cap if cap else x


def seen_from(positions: Tensor, at: Tensor, window: int) -> Tensor:
    """Whether a token at positions [rows, tokens] sees the key at [rows, keys]: not later ones, nor those out of its window (0: none)."""
    seen = at[:, None, :] <= positions[:, :, None]
    return seen & (at[:, None, :] > positions[:, :, None] - window) if window else seen


class PlainAttention(ABC):
    """`Attention` in torch. Queries and keys are normed and rotated here."""

    def __init__(self, model: Llama, positions: Tensor) -> None:
        """`positions` [tokens]."""
        self._model = model
        self._angles = {rope: [part[positions].unsqueeze(1) for part in parts] for rope, parts in model.angles.items()}

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Attention`."""
        config, norms, rope = self._model.config, self._model.layers[layer].norms, self._model.config.ropes[layer]
        queries, keys, values = (torch.unflatten(part, 1, (-1, config.head_dim)) for part in (queries, keys, values))
        if "query" in norms:
            queries, keys = normed(queries, norms["query"], config.norm_eps), normed(keys, norms["key"], config.norm_eps)
        if rope is not None:
            queries, keys = (rotate(part, *self._angles[rope]) for part in (queries, keys))
        return self._read(layer, queries, keys, values).flatten(1)

    @abstractmethod
    def _read(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What queries [tokens, heads, head_dim] read, in their shape; new keys and values are [tokens, kv_heads, head_dim]."""


class WholeTexts(PlainAttention):
    """Within whole texts. The tokens that all of them begin with, a system turn for one, are there once; nothing is padded but this."""

    def __init__(self, model: Llama, texts: Sequence[Sequence[int]]) -> None:
        shared = next((at for at, tokens in enumerate(zip(*texts, strict=False)) if len(set(tokens)) > 1), min(map(len, texts)))
        most, own = max(map(len, texts)), [len(text) - shared for text in texts]
        flat = [*texts[0][:shared], *(token for text in texts for token in text[shared:])]
        self.tokens = torch.tensor(flat, device=model.device)
        """[tokens] what the model reads: what is shared, then each text's own."""
        at, starts = torch.arange(most), torch.tensor([*accumulate(own, initial=shared)][:-1])[:, None]
        # Where each text's tokens are among those, and where those are among the texts'.
        index = torch.where(at < shared, at, (starts + at - shared).clamp(max=len(flat) - 1))
        places = [*range(shared), *(text * most + shared + place for text, count in enumerate(own) for place in range(count))]
        self._index, self._places = index.to(model.device), torch.tensor(places, device=model.device)
        super().__init__(model, self._places % most)
        at = torch.arange(most, device=model.device)[None]
        self._seen = {how.window: seen_from(at, at, how.window) for how in set(model.config.attention)}

    def by_text(self, of_tokens: Tensor) -> Tensor:
        """[texts, longest, ...] of what each token has [tokens, ...]; past a text's end it may be anything."""
        return torch.unflatten(of_tokens.index_select(0, self._index.flatten()), 0, self._index.shape)

    def _read(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        how = self._model.config.attention[layer]
        q, k, v = map(self.by_text, (queries, keys, values))
        read = masked_attention(q, k, v, self._seen[how.window], how)
        return read.flatten(0, 1).index_select(0, self._places)


@dataclass(frozen=True)
class LayerWeights:
    """One layer's tensors, in the model's dtype; norms by what they do (see `weights.norm_names`)."""

    linears: Sequence[Linear]
    """As `base_model.INPUTS` has them."""
    norms: Mapping[str, Tensor]


class Llama:
    """A frozen base model. Not a `Module`: nothing in it trains."""

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor], name: str) -> None:
        """`weights` are by Llama's names, on one device and in one dtype; the linear modules' are taken out of it."""
        self.config, self.fingerprint = config, name
        self.embedding = weights[EMBEDDING]
        self.head = weights.get(HEAD, self.embedding)
        self.final_norm = _norm(weights[FINAL_NORM], config)
        self.layers = [
            LayerWeights(
                linears=[Linear(weights, config, layer, modules) for modules in INPUTS],
                norms={norm: _norm(weights[name], config) for norm, name in norm_names(config, layer).items()},
            )
            for layer in range(config.layers)
        ]
        self._embedding_scale = torch.tensor(config.embedding_scale).to(self.embedding)  # rounded, as it was in training
        self.angles = {
            rope: [torch.cat((part, part), -1).to(self.embedding) for part in rope.table(config.context)]
            for rope in set(config.ropes)
            if rope is not None
        }
        """Rotary positions -> cosines and sines [context, rotated dimensions], the second half as the first."""

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, device: str = "cpu") -> Llama:
        """Load a model folder onto `device` in `dtype`; its fingerprint is taken from the files, before the cast."""
        return cls.of(ModelConfig.from_folder(folder), load_weights(folder), fingerprint(folder), dtype, device)

    @classmethod
    def of(cls, config: ModelConfig, weights: dict[str, Tensor], name: str, dtype: torch.dtype, device: str) -> Llama:
        """Move weights onto `device` in `dtype`, emptying the mapping as it goes."""
        return cls(config, {key: weights.pop(key).to(device, dtype) for key in list(weights)}, name)

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    def set_bases(self, bases: Bases) -> None:
        """Take the bases that `lora_xs` adapters read by, of BASES_RANK columns. Forward passes without such adapters may run meanwhile."""
        for layer in self.layers:
            for linear in layer.linears:
                linear.set_bases([bases[path][1] for path in linear.paths])

    def hidden(self, tokens: Tensor, delta: Delta | None, attention: Attention, between: Between = PLAIN) -> Tensor:
        """Final normed hidden states [tokens, hidden] of token ids [tokens], of any number of texts; `attention` knows their positions."""
        config, eps = self.config, self.config.norm_eps
        stream = F.embedding(tokens, self.embedding)
        if config.embedding_scale != 1:
            stream = stream * self._embedding_scale

        def added(stream: Tensor, y: Tensor, norms: Mapping[str, Tensor], post: str, norm: Tensor) -> tuple[Tensor, Tensor]:
            return between.added(stream, y, norms.get(post), config.residual_scale, norm, eps)

        x = normed(stream, self.layers[0].norms["attention"], eps)
        following = [*(layer.norms["attention"] for layer in self.layers[1:]), self.final_norm]
        for index, (layer, norm) in enumerate(zip(self.layers, following, strict=True)):

            def applied(linear: Linear, x: Tensor, index: int = index) -> Sequence[Tensor]:
                return linear.parts(linear(x)) if delta is None else delta.apply(index, linear, x)

            attention_in, attention_out, mlp_in, mlp_out = layer.linears
            (y,) = applied(attention_out, attention.attend(index, *applied(attention_in, x)))
            stream, x = added(stream, y, layer.norms, "attention_post", layer.norms["mlp"])
            gate, up = applied(mlp_in, x)
            (y,) = applied(mlp_out, between.gated(gate, up, config.activation))
            stream, x = added(stream, y, layer.norms, "mlp_post", norm)
        return x

    def hidden_of_texts(self, texts: Sequence[Sequence[int]], delta: Delta | None = None) -> Tensor:
        """`hidden` [texts, longest, hidden] of whole texts, each from position 0 on; past a text's end it may be anything."""
        attention = WholeTexts(self, texts)
        return attention.by_text(self.hidden(attention.tokens, delta, attention))

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [..., vocabulary] of hidden states [..., hidden], float32."""
        logits = F.linear(hidden, self.head).float()
        if self.config.logits_scale != 1:
            logits = logits / self.config.logits_scale
        return soft_capped(logits, self.config.logits_soft_cap)


def _norm(weight: Tensor, config: ModelConfig) -> Tensor:
    """A norm's factors; in float32 where they are offset from what the file has, which has digits that the sum would lose."""
    return weight.float() + config.family.norm_offset if config.family.norm_offset else weight


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm over the last dimension, computed in the weight's dtype."""
    return F.rms_norm(x.to(weight.dtype), weight.shape, weight, eps).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of the leading dimensions, in the half-split layout of Llama checkpoints."""
    turned, kept = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, -1)
    turned = turned * cos + torch.cat((-second, first), -1) * sin
    return torch.cat((turned, kept), -1) if kept.shape[-1] else turned


def training_dtype(device: str) -> torch.dtype:
    """What to compute in: bfloat16 where the device multiplies it, else float32.

    On a CPU without such a unit torch multiplies bfloat16 number by number: a step takes minutes instead of a second.
    """
    return torch.bfloat16 if device != "cpu" or AVX512_BF16 in processor_variants() else torch.float32
