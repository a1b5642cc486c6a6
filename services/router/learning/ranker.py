"""The learned strategy's re-ranker: the probability that an adapter succeeds, from a few features. Pure numpy.

A logistic model orders the candidates that the hybrid score found: its softmax is what is expected of each, and what outcomes said of
queries like this one corrects it (`contexts.py`). Its feature `success` is drawn from the adapter's posterior, and the correction from what
is known of it (Thompson sampling), so that new adapters get tried as often as they may be the best; how often each would have come first is
the propensity that training weighs outcomes by. The floor: only candidates whose hybrid score is near the best one are reordered, nothing
is explored before hybrid's own choice was tried, weights may not turn against what a higher score, example, task or success means, and a
model that does not beat hybrid on held-out outcomes is not published.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.router.learning.contexts import NOTHING_LEARNED, Correction
from services.router.learning.posteriors import Posterior
from smoa.errors import InvalidArgument
from smoa.strict_json import parse_json

Numbers = NDArray[np.float64]
FEATURES: Final = ("log_odds", "behind", "example", "task", "success", "evidence", "age", "load")
"""How likely it is without any outcome, as hybrid has it; how far it is behind the best; cosine with the nearest example; fit to the
hints; log odds of success; log of recent outcomes; log of days since registration; log of uses."""
RISING: Final = ("log_odds", "example", "task", "success")
"""Features that may only speak for an adapter."""
CONSIDERED: Final = 8
WITHIN: Final = 12.0
"""Candidates that are further behind the likeliest are not considered; in a mixture their weight would be a sliver."""
TRIED: Final = 2.0
"""Recent outcomes that hybrid's first choice needs before others are tried in its place."""
_SUCCESS, _EVIDENCE = FEATURES.index("success"), FEATURES.index("evidence")
_SAMPLES: Final = 64
_UNKNOWN: Final = 0.2
"""Standard deviation of a correction of which nothing is known, where hybrid is quite undecided; where it is sure, nothing is tried."""
_LEAST: Final = 1e-4
"""Probability that a weight comes from, at least."""
FORMAT: Final = 2
BUILTIN: Final = "builtin"
"""Version of the ranker before anything was trained."""


@dataclass(frozen=True)
class Ranker:
    """A logistic model: log odds of success = bias + weights . (features - mean) / scale."""

    version: str
    bias: float
    weights: tuple[float, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    report: dict[str, float] = field(default_factory=dict)
    """What training saw and measured."""

    def log_odds(self, features: Numbers) -> Numbers:
        """[..., 8] features to [...] log odds."""
        made: Numbers = (features - np.array(self.mean)) / np.array(self.scale) @ np.array(self.weights) + self.bias
        return made

    def to_bytes(self) -> bytes:
        """The artefact."""
        return json.dumps({"format": FORMAT, "features": FEATURES, **asdict(self)}, indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Ranker:
        """Inverse of `to_bytes`.

        Raises:
            InvalidArgument: not an artefact of this version, or numbers that cannot be used.
        """
        try:
            body = parse_json(data)
            if (body.pop("format"), tuple(body.pop("features"))) != (FORMAT, FEATURES):
                raise InvalidArgument("ranker", "was trained for other features", "train again with this version")
            weights, mean, scale = (tuple(float(number) for number in body[key]) for key in ("weights", "mean", "scale"))
            report = {str(name): float(value) for name, value in body["report"].items()}
            made = cls(str(body["version"]), float(body["bias"]), weights, mean, scale, report)
            numbers = [made.bias, *made.weights, *made.mean, *made.scale]
            if len(numbers) != 1 + 3 * len(FEATURES) or not np.isfinite(np.array(numbers, np.float64)).all() or 0 in made.scale:
                raise InvalidArgument("ranker", "holds numbers that cannot be used", "train again")
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise InvalidArgument("ranker", f"is not an artefact of `smoa router train` ({error})", "train again") from error
        return made


def builtin() -> Ranker:
    """Before anything was trained: hybrid's odds times the odds of success."""
    weights = tuple({"log_odds": 1.0, "success": 1.0}.get(name, 0.0) for name in FEATURES)
    return Ranker(BUILTIN, 0.0, weights, (0.0,) * len(FEATURES), (1.0,) * len(FEATURES))


@dataclass(frozen=True)
class Considered:
    """A candidate as the ranker sees it."""

    adapter_id: str
    features: tuple[float, ...]
    posterior: Posterior
    correction: Correction = NOTHING_LEARNED
    habit: float = 0.0
    """Log odds for what the user asked before."""


def considered(
    adapter_id: str,
    log_odds: float,
    best: float,
    example: float,
    task: float,
    posterior: Posterior,
    evidence: float,
    days: float,
    uses: int,
    correction: Correction = NOTHING_LEARNED,
    habit: float = 0.0,
) -> Considered:
    """A candidate with its features."""
    success = math.log(posterior.alpha / posterior.beta)
    features = (log_odds, best - log_odds, example, task, success, math.log1p(evidence), math.log1p(max(days, 0.0)), math.log1p(uses))
    return Considered(adapter_id, features, posterior, correction, habit)


@dataclass(frozen=True)
class Ranking:
    """Places of the candidates, best first; and of each candidate the log odds it was ordered by, how often it would have come first, and
    the probability of success that was expected before any correction.
    """

    order: tuple[int, ...]
    log_odds: tuple[float, ...]
    propensities: tuple[float, ...]
    expected: tuple[float, ...]


def is_tried(features: Numbers) -> bool:
    """Whether an adapter with these [8] features has enough recent outcomes for others to be tried in its place."""
    return bool(features[_EVIDENCE] >= math.log1p(TRIED))


def order(ranker: Ranker, candidates: Sequence[Considered], rng: np.random.Generator, *, explore: bool = True) -> Ranking:
    """Order candidates, hybrid's first choice first, by a draw from what is believed of them; without exploring, by what is expected.

    While hybrid's choice is untried, it is first: there is nothing yet that another could be better than.
    """
    features = np.array([candidate.features for candidate in candidates], np.float64)
    odds = ranker.log_odds(features) + [candidate.habit for candidate in candidates]
    expected = _shares(odds)
    means, spreads = np.array([candidate.correction for candidate in candidates], np.float64).T
    if not explore or not is_tried(features[0]):
        acted = expected + means
        if not is_tried(features[0]):
            acted[0] = acted.max()
        return _ranking(acted, np.eye(len(candidates))[acted.argmax()], expected)
    alphas, betas = np.array([candidate.posterior for candidate in candidates]).T
    drawn = np.clip(rng.beta(alphas, betas, (_SAMPLES, len(candidates))), 1e-4, 1 - 1e-4)
    step = ranker.weights[_SUCCESS] / ranker.scale[_SUCCESS]
    sampled = _shares(odds + step * (np.log(drawn / (1 - drawn)) - features[:, _SUCCESS]))
    undecided = 2 * np.sqrt(expected * (1 - expected))
    sampled += means + _UNKNOWN * spreads * undecided * rng.standard_normal(sampled.shape)
    firsts = np.bincount(sampled.argmax(1), minlength=len(candidates))
    return _ranking(sampled[0], firsts / _SAMPLES, expected)


def _ranking(acted: Numbers, propensities: Numbers, expected: Numbers) -> Ranking:
    places = np.argsort(-acted, kind="stable")
    log_odds = np.log(np.clip(acted, _LEAST, 1))
    return Ranking(tuple(places.tolist()), tuple(log_odds.tolist()), tuple(propensities.tolist()), tuple(expected.tolist()))


def _shares(odds: Numbers) -> Numbers:
    """Softmax of log odds [..., n]."""
    powers: Numbers = np.exp(odds - odds.max(-1, keepdims=True))
    made: Numbers = powers / powers.sum(-1, keepdims=True)
    return made
