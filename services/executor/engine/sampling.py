"""How tokens are picked from logits: one pass over all rows of a step that do more than take the most probable token.

In the order of vLLM's sampler (`vllm/v1/sample/sampler.py`): logit bias; repetition, frequency and presence penalty; temperature; min-p;
top-k; top-p. Nothing is sorted. A uniform number becomes a token by the inverse of the cumulative distribution, over sums of blocks and
then inside one block. A nucleus is drawn from by rejection, as in FlashInfer's sampling without sorting: a token is outside it when those
that are more probable have top_p together, and then all that are no more probable are outside too, so the next draw leaves them out.
What is left keeps its ratios, so the token that is accepted is distributed as a draw from the nucleus.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from smoa.errors import FailedPrecondition

COLDEST = 1e-5
"""A temperature under this is greedy: dividing by it would leave float32."""
_BLOCK = 128
"""Neighbours in the vocabulary whose probabilities are summed first. Most vocabularies are a multiple, so nothing is padded."""
_FEW = 64
"""A top_k of up to this is looked for in so many blocks, whatever it is: so which of equals are found is the same in any batch."""
_LEAST = -126
"""Logarithm (base 2) of the least probability that is told apart, as a share of the highest: less leaves float32, which takes exp2 far
longer. It counts for nothing: no sum in double precision notices it beside 1."""
_BELOW = 1 - 2.0**-52
_DRAW = struct.Struct("<QQQ")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to pick an answer's tokens; `GenerateRequest` says what each field means, and its limits. The default is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    """How many alternatives' log-probabilities are told beside the picked token's; None: not even that one's."""
    ignore_eos: bool = False
    seed: int = 0
    """0 to 2^64 - 1."""

    @property
    def greedy(self) -> bool:
        """Whether it is always the token with the highest logit."""
        return self.temperature < COLDEST or self.top_k == 1

    @property
    def changes_logits(self) -> bool:
        """Whether there is a bias or a penalty."""
        return bool(self.logit_bias) or (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


@dataclass(frozen=True)
class TokenLogprob:
    """A token's natural log-probability in the model's own distribution, before anything here; the most probable ones in its place."""

    token: int
    logprob: float
    alternatives: tuple[TokenLogprob, ...] = ()
    """The first one first, without alternatives of their own."""


@dataclass(frozen=True)
class Pick:
    """A row's token, and its log-probability if it was asked for."""

    token: int
    logprob: TokenLogprob | None = None


class Sampler:
    """One sequence's sampling, and what of it depends on its tokens so far. The same seed picks the same, alone and in any batch."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int] = ()) -> None:
        self.sampling = sampling
        self.changes = _LogitChanges(sampling, prompt) if sampling.changes_logits else None
        self._taken = 0

    def uniform(self, attempt: int) -> float:
        """The random number of an attempt, from 0 on, to draw the next token: a hash of what it is for, so no state is kept.

        In (0, 1), in steps of 2^-52: never so near to 0 that a weight that should not count does.
        """
        digest = hashlib.blake2b(_DRAW.pack(self.sampling.seed, self._taken, attempt), digest_size=8).digest()
        return ((int.from_bytes(digest, "little") >> 12) + 0.5) * 2.0**-52

    def take(self, token: int) -> None:
        """Go on to the token after this one."""
        self._taken += 1
        if self.changes is not None:
            self.changes.take(token)


class _LogitChanges:
    """What one sequence changes in its logits: a few tokens', so the vocabulary is never copied for it."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self._sampling = sampling
        self._place: dict[int, int] = {}
        self._answered: Counter[int] = Counter()
        self._tokens: NDArray[np.int64] = np.zeros(64, np.int64)
        self._values: NDArray[np.float32] = np.zeros((3, 64), np.float32)
        for token, bias in sampling.logit_bias.items():
            self._of(token)[0] = bias
        if sampling.repetition_penalty != 1:
            for token in dict.fromkeys(prompt):
                self._of(token)[1] = sampling.repetition_penalty

    def take(self, token: int) -> None:
        """Penalise a token of the answer from now on."""
        sampling = self._sampling
        if (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1, 0, 0):
            return
        self._answered[token] += 1
        self._of(token)[1:] = (
            sampling.repetition_penalty,
            sampling.presence_penalty + sampling.frequency_penalty * self._answered[token],
        )

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Tokens [n], each once, and [3, n]: added to a logit; then dividing it if positive and else multiplying it; then taken away."""
        used = len(self._place)
        return self._tokens[:used], self._values[:, :used]

    def _of(self, token: int) -> NDArray[np.float32]:
        """The token's three values, to be written."""
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
            self._values = np.concatenate([self._values, np.zeros_like(self._values)], axis=1)
        if not self._values[1, place]:
            self._tokens[place], self._values[1, place] = token, 1
        return self._values[:, place]


class TokenPicker:
    """Picks the next tokens of up to `rows` sequences at a time, in two buffers [rows, vocabulary] that it makes at first and keeps."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._buffers: Tensor | None = None

    def pick(
        self, logits: Tensor, greedy: Sequence[int], rows: Sequence[int], samplers: Sequence[Sampler]
    ) -> list[Pick | FailedPrecondition]:
        """The next token of each sampler, which then goes on to the one after it.

        Args:
            logits: [any, vocabulary] float32 on any device; stays as it is.
            greedy: The arg max of each.
            rows: Which of the logits are whose: one for each sampler.
            samplers: Of the sequences in question.

        Returns:
            A pick for each sampler, or an error where logits are not finite: the adapters' weights are too large for the dtype.
        """
        if not rows:
            return []
        tokens = [greedy[row] for row in rows]
        tops = logits[torch.tensor([rows, tokens], device=logits.device).unbind()]
        finite = tops.isfinite().tolist()
        sampled = [i for i, one in enumerate(samplers) if finite[i] and not one.sampling.greedy]
        few = [i for i in sampled if 0 < samplers[i].sampling.top_k <= _FEW and logits.shape[1] > 2 * _FEW * _BLOCK]
        many = [i for i in sampled if i not in few]
        changed = [i for i, one in enumerate(samplers) if finite[i] and one.sampling.greedy and one.changes is not None]
        for group, method in ((few, self._drawn_from_few), (many, self._drawn), (changed, self._highest)):
            if group:
                picked = method(logits, [rows[i] for i in group], [samplers[i] for i in group])
                for i, (token, is_finite) in zip(group, picked, strict=True):
                    tokens[i], finite[i] = token, is_finite
        told = [i for i, one in enumerate(samplers) if finite[i] and one.sampling.logprobs is not None]
        alternatives = [samplers[i].sampling.logprobs or 0 for i in told]
        logprobs = dict(zip(told, self._logprobs(logits, [rows[i] for i in told], [tokens[i] for i in told], alternatives), strict=True))
        picks: list[Pick | FailedPrecondition] = []
        for i, sampler in enumerate(samplers):
            if finite[i]:
                sampler.take(tokens[i])
            picks.append(Pick(tokens[i], logprobs.get(i)) if finite[i] else not_finite())
        return picks

    def _copy(self, logits: Tensor, rows: Sequence[int], samplers: Sequence[Sampler] = ()) -> tuple[Tensor, Tensor]:
        """(those rows [rows, whole blocks], ended by minus infinity, with the samplers' biases and penalties; as much room)."""
        vocabulary = logits.shape[1]
        if self._buffers is None:
            self._buffers = logits.new_empty(2, self._rows, -(-vocabulary // _BLOCK) * _BLOCK)
        copy, room = self._buffers[:, : len(rows)]
        copy[:, vocabulary:] = -torch.inf
        torch.index_select(logits, 0, torch.tensor(rows, device=logits.device), out=copy[:, :vocabulary])
        _change(copy, samplers)
        return copy, room

    def _highest(self, logits: Tensor, rows: Sequence[int], samplers: Sequence[Sampler]) -> list[tuple[int, bool]]:
        """(token, whether its row is finite): the arg max, the first of equals."""
        blocks = self._copy(logits, rows, samplers)[0].view(len(rows), -1, _BLOCK)
        tops = blocks.amax(-1)  # far faster than arg max, which then has little to look through
        block = tops.argmax(-1)
        tokens = block * _BLOCK + blocks[torch.arange(len(rows), device=blocks.device), block].argmax(-1)
        return list(zip(tokens.tolist(), tops.amax(-1).isfinite().tolist(), strict=True))

    def _drawn(self, logits: Tensor, rows: Sequence[int], samplers: Sequence[Sampler]) -> list[tuple[int, bool]]:
        """(token, whether its row is finite): a draw from what each row's settings leave."""
        return _draw(*self._copy(logits, rows, samplers), samplers)

    def _drawn_from_few(self, logits: Tensor, rows: Sequence[int], samplers: Sequence[Sampler]) -> list[tuple[int, bool]]:
        """The same of rows with a top_k of at most _FEW."""
        own, room = self._copy(logits, rows, samplers)
        candidates, blocks = _best_blocks(own, _FEW)
        drawn = _draw(candidates, room[:, : candidates.shape[1]], samplers)
        of_rows = zip(blocks.tolist(), drawn, strict=True)
        return [(block[place // _BLOCK] * _BLOCK + place % _BLOCK, is_finite) for block, (place, is_finite) in of_rows]

    def _logprobs(self, logits: Tensor, rows: Sequence[int], tokens: Sequence[int], alternatives: Sequence[int]) -> list[TokenLogprob]:
        """Of one token a row, with the row's number of alternatives."""
        if not rows:
            return []
        own, _ = self._copy(logits, rows)
        own.sub_(own.amax(-1, keepdim=True))
        of_tokens = own.gather(1, torch.tensor(tokens, device=own.device)[:, None])
        candidates, blocks = _best_blocks(own, max(alternatives))
        of_best, places = candidates.topk(min(max(alternatives), logits.shape[1]))
        best = blocks.gather(1, places // _BLOCK) * _BLOCK + places % _BLOCK
        norm = _block_sums(own.mul_(math.log2(math.e)).clamp_(min=_LEAST).exp2_())[:, -1:].log()
        told = zip(tokens, (of_tokens - norm)[:, 0].tolist(), best.tolist(), (of_best - norm).tolist(), alternatives, strict=True)
        return [TokenLogprob(token, logprob, tuple(map(TokenLogprob, ids[:n], values[:n]))) for token, logprob, ids, values, n in told]


def not_finite() -> FailedPrecondition:
    """What is answered where logits are infinite or NaN."""
    return FailedPrecondition("adapters: make the model's output infinite or NaN; lower their weights, or retrain them")


def _draw(logits: Tensor, room: Tensor, samplers: Sequence[Sampler]) -> list[tuple[int, bool]]:
    """(place, whether its row is finite) in logits [rows, whole blocks], which are used up, as is as much room."""
    weights = logits
    _weigh(weights, [one.sampling for one in samplers], room)
    sums = _block_sums(weights)
    finite = sums[:, -1].isfinite().tolist()
    shares = [one.sampling.top_p if one.sampling.top_p < 1 else math.inf for one in samplers]
    bounds = (sums[:, -1] * torch.tensor(shares, dtype=sums.dtype, device=sums.device)).tolist()
    places = [0] * len(samplers)
    left = list(range(len(samplers)))
    for attempt in count():
        uniform = torch.tensor([samplers[i].uniform(attempt) for i in left], dtype=sums.dtype, device=sums.device)
        drawn = _inverse(weights, sums, uniform[:, None])
        for i, place in zip(left, drawn[:, 0].tolist(), strict=True):
            places[i] = place
        if all(shares[i] == math.inf for i in left):
            break
        weights.mul_(torch.gt(weights, weights.gather(1, drawn), out=room[: len(left)]))
        sums = _block_sums(weights)
        rejected = [at for at, mass in enumerate(sums[:, -1].tolist()) if mass >= bounds[left[at]]]
        if not rejected:
            break
        for to, at in enumerate(rejected):
            weights[to], sums[to] = weights[at], sums[at]
        left = [left[at] for at in rejected]
        weights, sums = weights[: len(left)], sums[: len(left)]
    return list(zip(places, finite, strict=True))


def _best_blocks(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Values [rows, blocks x _BLOCK] of the `count` blocks with the highest maxima, in their order, and which blocks [rows, blocks] it is.

    They hold the `count` highest values: all of another block are under as many maxima.
    """
    blocks = values.view(len(values), -1, _BLOCK)
    best = blocks.amax(-1).topk(min(count, blocks.shape[1])).indices.sort().values
    first = torch.arange(0, blocks.shape[0] * blocks.shape[1], blocks.shape[1], device=values.device)[:, None]
    return blocks.flatten(0, 1).index_select(0, (first + best).flatten()).view(len(values), -1), best


def _weigh(logits: Tensor, settings: Sequence[Sampling], room: Tensor) -> None:
    """Turn logits into probabilities relative to their row's highest, those out of top-k or under min-p into 0."""
    scale = _column([math.log2(math.e) / one.temperature for one in settings], logits)
    weights = logits.sub_(logits.amax(-1, keepdim=True)).mul_(scale).clamp_(min=_LEAST).exp2_()
    floor = [one.min_p for one in settings]
    limited = {i: one.top_k for i, one in enumerate(settings) if 0 < one.top_k < logits.shape[1]}
    for i, least in zip(limited, _kth_highest(weights, list(limited), list(limited.values())), strict=True):
        floor[i] = max(floor[i], least)
    if any(floor):
        weights.mul_(torch.ge(weights, _column(floor, weights), out=room))


def _kth_highest(weights: Tensor, rows: Sequence[int], ranks: Sequence[int]) -> list[float]:
    """Of each of those rows, the value of its rank from the top."""
    if weights.device.type == "cpu":  # selects, where torch sorts or copies: a fifth of the time and less
        return [float(np.partition(weights[row].numpy(), -rank)[-rank]) for row, rank in zip(rows, ranks, strict=True)]
    best = weights[list(rows)].topk(max(ranks, default=1)).values
    return best.gather(1, torch.tensor(ranks, dtype=torch.long, device=best.device)[:, None] - 1)[:, 0].tolist()


def _block_sums(weights: Tensor) -> Tensor:
    """Running sums [rows, blocks] at the ends of the blocks, in double precision.

    Each block by itself, so a row's bits do not depend on how torch shares out the rows: it sums a lone one in halves.
    """
    return weights.view(len(weights), -1, _BLOCK).sum(-1).double().cumsum(-1)


def _inverse(weights: Tensor, sums: Tensor, uniform: Tensor) -> Tensor:
    """The tokens [rows, 1] at which the running sums of weights [rows, blocks x _BLOCK] pass uniform [rows, 1] of their totals.

    `sums` [rows, blocks] are the running sums at the ends of the blocks. Never a token without weight, however the sums are rounded.
    """
    block, rest = _first_over(sums, uniform * sums[:, -1:])
    inside = weights.view(len(weights), -1, _BLOCK).gather(1, block[..., None].expand(-1, -1, _BLOCK))
    return block * _BLOCK + _first_over(inside[:, 0].double().cumsum(-1), rest)[0]


def _first_over(sums: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Where running sums [rows, n] are first over a target [rows, 1], which is held under the last of them, and how far before it."""
    target = torch.minimum(target, sums[:, -1:] * _BELOW)
    index = torch.searchsorted(sums, target, right=True).clamp_(max=sums.shape[1] - 1)  # a row of NaN is nowhere over it
    return index, target - F.pad(sums, (1, 0)).gather(1, index)


def _change(logits: Tensor, samplers: Sequence[Sampler]) -> None:
    """Apply biases and penalties in place: one gather and one scatter for all rows."""
    rows = [(i, one.changes.arrays()) for i, one in enumerate(samplers) if one.changes is not None]
    if not rows:
        return
    row = torch.from_numpy(np.concatenate([np.full(len(tokens), i) for i, (tokens, _) in rows])).to(logits.device)
    token = torch.from_numpy(np.concatenate([tokens for _, (tokens, _) in rows])).to(logits.device)
    bias, factor, less = torch.from_numpy(np.concatenate([values for _, (_, values) in rows], axis=1)).to(logits.device)
    values = logits[row, token] + bias
    logits[row, token] = torch.where(values > 0, values / factor, values * factor) - less


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
