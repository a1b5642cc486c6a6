"""What the examples of a pool's adapters tell of a query: which adapter it is for, how likely, and whether it is for any. Pure numpy.

Which: a linear discriminant with one covariance for all (Fisher 1936; Hastie, Tibshirani and Friedman, "The Elements of Statistical
Learning", 4.3): the log-likelihood of an adapter is that of a normal distribution around the mean of its examples. The covariance is that
of examples within their adapters, shrunk towards a multiple of the identity as far as the data asks for (Ledoit and Wolf 2004, "A
well-conditioned estimator for large-dimensional covariance matrices"). Of the few likeliest, the nearest example counts, too: not
every adapter's examples are one cloud around their mean. How likely: the softmax of both, with the temperature, and the worth of nearness,
under which the examples themselves are most likely (Guo et al. 2017, "On calibration of modern neural networks").

Whether: how close a query is to an adapter is its cosine with the mean plus that with the nearest example, both seen from the pool's
centre, in standard deviations of how close the adapter's own examples are. A query is left unanswered if that is less than for the least
share `in_scope_loss` of examples (split conformal prediction: Vovk et al. 2005, "Algorithmic learning in a random world"; Angelopoulos
and Bates 2021, eq. 1): of queries that are drawn as the examples were, at most that share is lost.

Every example is judged by what the others tell. For how close it is, the tenth of its adapter's examples that are most like it are left
out, too: people write examples by variation, and queries vary more (leave-one-out with a buffer: Le Rest et al. 2014). So of queries that
are quite as the examples are, fewer are lost than may be; outcomes mend that (`thresholds.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.router.catalogue.port import Vector
from smoa.embedding import surface
from smoa.embedding.port import unit_rows

Numbers = NDArray[np.float64]
Places = NDArray[np.int64]
MAX_FITTED: Final = 2_048
"""Adapters that are fitted one by one; a larger pool is judged by so many of them, and ranked by cosine."""
_JUDGED: Final = 4_096
"""Examples by which the temperature and the threshold are found."""
_BUFFER: Final = 0.1
"""Share of an adapter's examples that are left out beside the one that is judged."""
_OWN_WORTH: Final = 10.0
"""Examples of which an adapter's own mean and spread are worth as much as the pool's."""
_TEMPERATURES: Final = np.geomspace(0.25, 4096, 113)
_COARSE: Final = 8
"""Every so many of them are tried first, and then those about the best: the likelihood has one top."""
LOOKED_AT: Final = 4
"""Likeliest adapters whose nearest examples count."""
_NEARNESS: Final = (0.0, 2.0, 4.0, 6.0, 8.0, 11.0, 16.0)
_COMPARED: Final = 32
"""Likeliest adapters, among which examples should be likely: as many as the router compares."""
_LEAST_SPREAD: Final = 0.1
"""Standard deviation of how close examples are, at least."""
LEAST_ODDS: Final = 10.0
"""Log odds by which an adapter may be behind the likeliest."""
_LEAST_WIDTH: Final = -1.0
"""A query that is so many standard deviations closer or less is answered, whatever the examples say: they may all be of one pattern."""
_USUAL_SCATTER, _USUAL_WORTH = 0.4, 20.0
"""How far examples are from their adapter's mean, squared, where there are none to tell; and how many that is worth."""


class Fitted(NamedTuple):
    """What a fit knows of an adapter."""

    weights: Vector
    bias: float
    usual: float
    """How close its own examples are, on average."""
    spread: float
    """And their standard deviation."""


@dataclass(eq=False)
class PoolFit:
    """Of one pool, or of a tenant's own and the shared one. Adapters come and go; the rest stays until the pool is fitted again."""

    centre: Vector
    """[dimension], from where cosines are taken: the mean of all examples, but of one adapter the origin."""
    metric: Vector
    """[dimension, dimension], the inverse covariance."""
    temperature: float
    nearness: float
    """Log odds that 1 more of cosine with the nearest example is worth."""
    threshold: float
    """Least closeness of a query that is answered, in standard deviations; minus infinity where there is too little to tell."""
    usual: float
    spread: float
    slope: float
    middle: float
    """Of the logistic curve from closeness to probability."""
    ranks: bool
    """Whether the discriminant ranks: not in a pool of more than `MAX_FITTED` adapters."""
    known: dict[str, Fitted] = field(default_factory=dict)
    _groups: tuple[Vector, Vector, Vector] | None = field(default=None, repr=False)
    """Means that were asked about last, and their weights and biases."""

    @property
    def bytes(self) -> int:
        """Memory, about."""
        return self.metric.nbytes + len(self.known) * (4 * len(self.centre) + 300)

    @property
    def can_tell(self) -> bool:
        """Whether there were examples enough to say which queries are out of scope."""
        return bool(np.isfinite(self.threshold))

    @property
    def matters(self) -> bool:
        """Whether a decision may be another with it than without."""
        return self.can_tell or (self.ranks and len(self.known) > 1)

    def whole(self, query: Vector) -> Vector:
        """A query of which only one view is known, as if it looked as this pool's examples do on average."""
        if surface.is_known(query):
            return query
        meaning = len(query) - surface.DIMENSION
        return np.concatenate([query[:meaning] / np.sqrt(2), self.centre[meaning:]]).astype(np.float32)

    def learn(self, adapter_id: str, examples: Vector) -> None:
        """Know one more adapter, or one anew, by its examples [n, dimension]."""
        self.know(adapter_id, examples.mean(0), _own_closeness(examples, self.centre))

    def know(self, adapter_id: str, mean: Vector, own: Vector) -> None:
        """Know an adapter by the mean of its examples, and how close each of them is to the others, [n]."""
        weights = self.metric @ mean
        usual, spread = _blended(own, self.usual, self.spread) if len(own) > 1 else (self.usual, self.spread)
        self.known[adapter_id] = Fitted(weights, -0.5 * float(weights @ mean), usual, spread)

    def log_odds(self, query: Vector, adapter_ids: Sequence[str]) -> list[float]:
        """Log-likelihood of the query under each of some known adapters, by the temperature and behind the likeliest."""
        fitted = [self.known[one] for one in adapter_ids]
        found = np.array([one.weights for one in fitted]) @ query + np.array([one.bias for one in fitted])
        behind = (found - found.max()) / self.temperature
        return [float(value) for value in behind]

    def with_nearest(self, log_odds: Sequence[float], cosines: Mapping[int, float]) -> list[float]:
        """Log odds of adapters, of some of which the cosine with the nearest example is known, by place; of others, the least of these.
        None is behind the likeliest without end: examples do not tell what is a million times less likely.
        """
        least = min(cosines.values(), default=0.0)
        found = [value + self.nearness * (cosines.get(place, least) - least) for place, value in enumerate(log_odds)]
        top = max(found)
        return [max(value - top, -LEAST_ODDS) for value in found]

    def ahead(self, query: Vector, means: Vector, adapter_id: str) -> float:
        """Log odds that a query is of some group with one of these means [groups, dimension], rather than of a known adapter, by the
        temperature (a class of several normal distributions: Hastie and Tibshirani 1996, "Discriminant analysis by Gaussian mixtures").
        """
        if self._groups is None or self._groups[0] is not means:
            weights = means @ self.metric
            self._groups = means, weights, -0.5 * np.einsum("gd,gd->g", weights, means)
        _, weights, biases = self._groups
        own = self.known[adapter_id]
        found = (weights @ query + biases - query @ own.weights - own.bias) / self.temperature
        return float(found.max() + np.log(np.exp(found - found.max()).mean()))

    def closeness(self, query: Vector, adapter_id: str, examples: Vector) -> float:
        """How close a query is to an adapter with these examples, in standard deviations of how close those are."""
        seen = unit_rows(np.concatenate([query[None], examples.mean(0)[None], examples]) - self.centre)
        cosines = seen[1:] @ seen[0]
        fitted = self.known.get(adapter_id)
        usual, spread = (self.usual, self.spread) if fitted is None else (fitted.usual, fitted.spread)
        return (float(cosines[0] + cosines[1:].max()) - usual) / spread

    def probability(self, closeness: float) -> float:
        """That a query which is so close to an adapter is in its scope, where as many queries are out of all scopes as in one."""
        return float(1 / (1 + np.exp(-np.clip(self.slope * (closeness - self.middle), -30, 30))))


class LeftOut(NamedTuple):
    """Examples of a pool, each judged by what the others tell."""

    of: Places
    """[n], the place of each one's adapter."""
    log_odds: Numbers
    """[n, adapters], log-likelihoods by the temperature, up to a constant in each row."""
    closeness: Numbers
    """[n], to the likeliest adapter, by which it is answered or not, in standard deviations."""
    strange: Numbers
    """[n], to the likeliest of the others, as if its own were not there; empty where there is no other."""


def fit(examples: Mapping[str, Vector], in_scope_loss: float, *, ranks: bool = True) -> PoolFit | None:
    """A fit to the examples [n, dimension] of a pool's adapters; None where there are none.

    Args:
        examples: By adapter id.
        in_scope_loss: Share of queries in scope that may be lost; 0 to lose none.
        ranks: See `PoolFit`.
    """
    return fit_and_judge(examples, in_scope_loss, ranks=ranks)[0] if examples else None


def fit_and_judge(
    examples: Mapping[str, Vector], in_scope_loss: float, *, ranks: bool = True, most: int = _JUDGED
) -> tuple[PoolFit, LeftOut]:
    """A fit, and the examples, at most so many, by which it was calibrated; `examples` are not empty."""
    groups = list(examples.values())
    sizes = np.array([len(group) for group in groups])
    means = np.stack([group.mean(0) for group in groups])
    metric, share = _inverse_covariance(groups, means)
    centre = (sizes @ means / sizes.sum() * (1 - 1 / len(groups))).astype(np.float32)
    owns = [_own_closeness(group, centre) for group in groups]
    every = np.concatenate(owns)
    made = PoolFit(centre, metric, 1.0, 0.0, -np.inf, float(every.mean()), max(float(every.std()), _LEAST_SPREAD), 2.0, 0.0, ranks)
    for adapter_id, mean, each in zip(examples, means, owns, strict=True):
        made.know(adapter_id, mean, each)
    judged = _judged(sizes, most)
    of = np.repeat(np.arange(len(groups)), [len(one) for one in judged])
    rows = np.concatenate([group[one] for group, one in zip(groups, judged, strict=True)])
    own = np.concatenate([each[one] for each, one in zip(owns, judged, strict=True)])
    odds = _left_out(rows, of, means, sizes, metric, share)
    if len(groups) > 1:
        looked, nearest, only = _nearest(odds, rows, of, groups)
        made.temperature, made.nearness = _worth(odds[only], of[only], looked[only], nearest[only])
        odds /= made.temperature
        np.put_along_axis(odds, looked, np.take_along_axis(odds, looked, 1) + made.nearness * nearest, 1)
    fitted = [made.known[one] for one in examples]

    def standard(closeness: Numbers | Vector, adapters: Places) -> Numbers:
        found: Numbers = (closeness - [fitted[one].usual for one in adapters]) / [fitted[one].spread for one in adapters]
        return found

    inside, strange = standard(own, of), np.empty(0)
    if len(groups) > 1:
        wrong = odds.copy()
        wrong[np.arange(len(of)), of] = -np.inf
        likeliest = wrong.argmax(1)
        strange = standard(_closeness(rows, likeliest, groups, centre), likeliest)
    answered = np.where(odds.argmax(1) == of, inside, strange) if len(groups) > 1 else inside
    # One that is farther than all is counted in: few examples hardly show what there is.
    place = int(in_scope_loss * (len(answered) + 1)) - 1
    if place >= 1:
        made.threshold = min(float(np.partition(answered, place - 1)[place - 1]), _LEAST_WIDTH)
    made.slope, made.middle = _logistic(inside, strange) if len(groups) > 1 else (2.0, made.threshold if place >= 1 else 0.0)
    return made, LeftOut(of, odds, answered, strange)


def _judged(sizes: Places, most: int) -> list[Places]:
    """Which examples of each adapter are judged: about so many in all, of each one in proportion, and of none none."""
    rng, share = np.random.default_rng(0), min(1.0, most / sizes.sum())
    return [np.sort(rng.permutation(size)[: math.ceil(share * size)]) for size in sizes.tolist()]


def _inverse_covariance(groups: Sequence[Vector], means: Vector) -> tuple[Vector, float]:
    """Inverse of the shrunk covariance within groups, and how much of the scatter is in it. Group by group: a large pool's examples are
    hundreds of megabytes.
    """
    dimension, count = means.shape[1], sum(map(len, groups))
    scatter, fourth = np.zeros((dimension, dimension)), 0.0
    for group, mean in zip(groups, means, strict=True):
        residuals = (group - mean).astype(np.float64)
        scatter += residuals.T @ residuals
        squares = np.einsum("ij,ij->i", residuals, residuals)
        fourth += float(squares @ squares)
    covariance = scatter / count
    scale = float(np.trace(covariance)) / dimension
    noise = fourth / count**2 - float((covariance**2).sum()) / count
    distance = float((covariance**2).sum()) - dimension * scale**2
    shrinkage = min(1.0, max(noise / distance, 1e-3)) if distance > 0 else 1.0
    free = max(count - len(groups), 1)
    share = (1 - shrinkage) / (free + _USUAL_WORTH)
    shrunk = share * count * covariance
    usual = _USUAL_SCATTER * _USUAL_WORTH / (free + _USUAL_WORTH) / dimension
    shrunk[np.diag_indices(dimension)] += shrinkage * scale * count / (free + _USUAL_WORTH) + usual
    return np.linalg.inv(shrunk).astype(np.float32), share


def _left_out(rows: Vector, of: Places, means: Vector, sizes: Places, metric: Vector, share: float) -> Numbers:
    """Log-likelihoods [rows, adapters] of examples that the fit has not seen: their adapters' means are those of the others, and the
    covariance is without what each adds to it (Sherman and Morrison 1950): of n, n / (n - 1) times the square of how far it is from their
    mean.
    """
    everyone, count = np.arange(len(rows)), sizes[of].astype(np.float32)
    fewer = np.maximum(count - 1, 1)
    taken_out = share * count / fewer
    residuals = rows - means[of]
    others = (count[:, None] * means[of] - rows) / fewer[:, None]
    turned = residuals @ metric
    by_metric = rows @ metric
    squares: Numbers = (by_metric * rows).sum(1)[:, None] - 2 * by_metric @ means.T + ((means @ metric) * means).sum(1)
    along: Numbers = (turned * rows).sum(1)[:, None] - turned @ means.T
    away = rows - others
    squares[everyone, of] = ((away @ metric) * away).sum(1)
    along[everyone, of] = (turned * away).sum(1)
    leverage = np.minimum(taken_out * (turned * residuals).sum(1), 0.95)
    found: Numbers = -0.5 * (squares + (taken_out / (1 - leverage))[:, None] * along**2).astype(np.float64)
    return found


def _nearest(odds: Numbers, rows: Vector, of: Places, groups: Sequence[Vector]) -> tuple[Places, Vector, NDArray[np.bool_]]:
    """The likeliest adapters of each row [rows, `LOOKED_AT`]; its cosines with the nearest example of each but itself, above the least of
    them; and which rows say of which adapter they are: not those that several have, nor those beside which theirs has no other; else all.
    """
    count, only = min(LOOKED_AT, len(groups)), np.array([len(group) > 1 for group in groups])[of]
    looked = np.argpartition(-odds, count - 1, 1)[:, :count]
    found, squares = np.empty(looked.shape, np.float32), np.einsum("ij,ij->i", rows, rows)
    for adapter, group in enumerate(groups):
        here, column = np.nonzero(looked == adapter)
        cosines = rows[here] @ group.T
        same = cosines >= squares[here, None] - 1e-5  # as stored, vectors of examples are not quite of length 1
        only[here[same.all(1) | (same.any(1) & (of[here] != adapter))]] = False
        found[here, column] = np.where(same, -1, cosines).max(1)
    return looked, found - found.min(1, keepdims=True), only if only.any() else ~only


def _worth(odds: Numbers, of: Places, looked: Places, nearest: Vector) -> tuple[float, float]:
    """Temperature, and worth of nearness, under which the examples are likeliest, and one more that was another's: as sure as if none was
    wrong, nobody may be (Laplace).
    """
    everyone, count = np.arange(len(of)), min(_COMPARED, odds.shape[1])
    compared = np.argpartition(-odds, count - 1, 1)[:, :count]
    strangers = ~(compared == of[:, None]).any(1)
    compared[strangers, 0] = of[strangers]
    behind = np.take_along_axis(odds, compared, 1)
    behind -= behind.max(1, keepdims=True)
    close = np.zeros(odds.shape, np.float32)
    np.put_along_axis(close, looked, nearest, 1)
    closer, own = np.take_along_axis(close, compared, 1), (compared == of[:, None]).argmax(1)

    def likely(temperature: float, nearness: float) -> float:
        powers = behind / temperature + nearness * closer
        powers = np.exp(powers - powers.max(1, keepdims=True))
        right = np.clip(powers[everyone, own] / powers.sum(1), 1e-300, 1 - 1e-15)
        return float(np.log(right).mean() + np.log(1 - right).mean() / len(of))

    def best(nearness: float) -> tuple[float, float, float]:
        near = int(np.argmax([likely(one, nearness) for one in _TEMPERATURES[::_COARSE]])) * _COARSE
        return max((likely(one, nearness), one, nearness) for one in _TEMPERATURES[max(0, near - _COARSE + 1) : near + _COARSE])

    _, temperature, nearness = max(best(one) for one in _NEARNESS)
    return float(temperature), nearness


def _own_closeness(group: Vector, centre: Vector) -> Vector:
    """How close each of an adapter's examples is to the others but those most like it, [n]."""
    count = len(group)
    if count == 1:
        return np.ones(1, np.float32)
    seen = unit_rows(group - centre)
    cosines = seen @ seen.T
    left_out = 1 + min(int(_BUFFER * count), count - 2)
    nearest = np.argsort(-np.where(np.eye(count, dtype=bool), np.inf, cosines), 1, kind="stable")[:, :left_out]
    np.put_along_axis(cosines, nearest, -np.inf, 1)
    stay = np.isfinite(cosines).astype(np.float32)
    means = unit_rows(stay @ group / (count - left_out) - centre)
    found: Vector = (seen * means).sum(1) + cosines.max(1)
    return found


def _closeness(rows: Vector, adapters: Places, groups: Sequence[Vector], centre: Vector) -> Numbers:
    """How close each row is to the adapter beside it, which is not its own."""
    found = np.empty(len(rows))
    for adapter in np.unique(adapters):
        here = np.flatnonzero(adapters == adapter)
        seen, group = unit_rows(rows[here] - centre), groups[adapter]
        mean = unit_rows((group.mean(0) - centre)[None])[0]
        found[here] = seen @ mean + (seen @ unit_rows(group - centre).T).max(1)
    return found


def _blended(own: Vector, usual: float, spread: float) -> tuple[float, float]:
    """An adapter's mean and spread, drawn towards the pool's while its examples are few."""
    share = len(own) / (len(own) + _OWN_WORTH)
    variance = share * float(own.var()) + (1 - share) * spread**2
    return share * float(own.mean()) + (1 - share) * usual, max(variance**0.5, _LEAST_SPREAD)


def _logistic(inside: Numbers, outside: Numbers, steps: int = 30) -> tuple[float, float]:
    """Slope and middle of the logistic curve that tells two kinds of numbers apart, each kind worth as much (Platt 1999)."""
    values = np.concatenate([inside, outside])
    wanted = np.arange(len(values)) < len(inside)
    worth = np.where(wanted, 1 / len(inside), 1 / len(outside))
    inputs, solved = np.stack([values, np.ones_like(values)], 1), np.zeros(2)
    for _ in range(steps):
        predicted = 1 / (1 + np.exp(-np.clip(inputs @ solved, -30, 30)))
        gradient = inputs.T @ (worth * (predicted - wanted)) + 1e-3 * solved
        curvature = (inputs.T * (worth * predicted * (1 - predicted))) @ inputs + 1e-3 * np.eye(2)
        solved = solved - np.linalg.solve(curvature, gradient)
    slope = max(float(solved[0]), 0.05)
    return slope, -float(solved[1]) / slope
