"""How well a library tells its own adapters apart, before it serves: by its own examples, each left out in turn. Pure numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from services.router.catalogue.port import Vector
from services.router.learning.pool_fit import LeftOut, Numbers, PoolFit, fit_and_judge
from smoa.limits import MAX_EXAMPLES

FEW_EXAMPLES: Final = 20
MUCH_CONFUSED: Final = 0.2
_MAPPED: Final = 12
"""Examples of an adapter on the map."""
_MOST_JUDGED: Final = 20_000


class Known(NamedTuple):
    """An adapter as its owner knows it."""

    name: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class AdapterReport:
    """How its examples fare, each left out in turn, as shares."""

    adapter_id: str
    name: str
    examples: int
    first: float
    """Where it comes first."""
    among_three: float
    unanswered: float
    """Where no adapter would answer."""
    with_tags: float
    """Where it comes first among those that have its tags."""
    confused_with: tuple[tuple[str, float], ...]
    """Others that come first instead, by name; the worst three."""
    advice: str


@dataclass(frozen=True)
class LibraryReport:
    """Of all adapters with examples."""

    adapters: tuple[AdapterReport, ...]
    without_examples: int
    first: float
    among_three: float
    unanswered: float
    strangers_unanswered: float
    """Of each adapter's examples, if it were not there."""
    calibration_error: float
    """Expected, of the first one's probability."""
    can_tell: bool
    confusion: Numbers
    """[adapters, adapters], shares of a row's examples for which the column comes first."""
    places: Numbers
    """[adapters, 2] of their means on a map, on which those that are easily told apart lie apart."""
    around: tuple[Numbers, ...]
    """[n, 2] of some examples of each."""


def evaluate(examples: Mapping[str, Vector], known: Mapping[str, Known], in_scope_loss: float, without_examples: int = 0) -> LibraryReport:
    """Judge a library by its examples [n, dimension] of each adapter, of which there is at least one."""
    fit, left_out = fit_and_judge(examples, in_scope_loss, most=_MOST_JUDGED)
    ids, count = list(examples), len(examples)
    everyone = np.arange(len(left_out.of))
    order = np.argsort(-left_out.log_odds, 1)[:, :3]
    first = order[:, 0]
    is_first, is_among = first == left_out.of, (order == left_out.of[:, None]).any(1)
    unanswered = left_out.closeness < fit.threshold
    confusion = np.zeros((count, count))
    np.add.at(confusion, (left_out.of, first), 1)
    confusion /= np.maximum(confusion.sum(1, keepdims=True), 1)
    tagged = _first_among_tagged(left_out, [known[one].tags for one in ids])
    names, reports = [known[one].name for one in ids], []
    for place, adapter_id in enumerate(ids):
        own = left_out.of == place
        worst = [other for other in np.argsort(-confusion[place]) if other != place and confusion[place, other] > 0][:3]
        reports.append(
            AdapterReport(
                adapter_id,
                names[place],
                len(examples[adapter_id]),
                float(is_first[own].mean()),
                float(is_among[own].mean()),
                float(unanswered[own].mean()),
                float(tagged[own].mean()),
                tuple((names[other], float(confusion[place, other])) for other in worst),
                _advice(len(examples[adapter_id]), confusion[place], place, names, float(tagged[own].mean())),
            )
        )
    shares = np.exp(left_out.log_odds - left_out.log_odds.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    places, around = _map(fit, examples)
    return LibraryReport(
        tuple(reports),
        without_examples,
        float(is_first.mean()),
        float(is_among.mean()),
        float(unanswered.mean()),
        float((left_out.strange < fit.threshold).mean()) if count > 1 else 0.0,
        calibration_error(shares[everyone, first], is_first.astype(np.float64)),
        fit.can_tell,
        confusion,
        places,
        around,
    )


def calibration_error(said: Numbers, right: Numbers, bins: int = 10) -> float:
    """Expected calibration error (Naeini et al. 2015): how far probabilities are from the shares that are right, in bins of equal width."""
    place = np.minimum((said * bins).astype(int), bins - 1)
    gaps = [abs(float((said - right)[place == one].sum())) for one in range(bins)]
    return sum(gaps) / max(len(said), 1)


def _first_among_tagged(left_out: LeftOut, tags: Sequence[tuple[str, ...]]) -> Numbers:
    """Whether each example's adapter comes first among those that share all of its tags."""
    alike = np.array([[set(own) <= set(other) for other in tags] for own in tags])
    within = np.where(alike[left_out.of], left_out.log_odds, -np.inf)
    found: Numbers = (within.argmax(1) == left_out.of).astype(np.float64)
    return found


def _advice(examples: int, confusion: Numbers, place: int, names: Sequence[str], tagged: float) -> str:
    others = np.where(np.arange(len(confusion)) == place, 0, confusion)
    other = int(others.argmax()) if len(others) > 1 else place
    if others[other] >= 0.5:
        return f"its examples are taken for {names[other]}'s: merge the two, or give each what is its own"
    if examples < FEW_EXAMPLES:
        return f"has {examples} examples; give {FEW_EXAMPLES} to {MAX_EXAMPLES}"
    if others.sum() >= MUCH_CONFUSED and tagged - confusion[place] >= MUCH_CONFUSED / 2:
        return f"callers who send its tags get it in {tagged:.0%} instead of {confusion[place]:.0%}"
    if others.sum() >= MUCH_CONFUSED:
        return f"is confused with {names[other]}; examples in which they differ, or a tag, would help"
    return ""


def _map(fit: PoolFit, examples: Mapping[str, Vector]) -> tuple[Numbers, tuple[Numbers, ...]]:
    """Means and some examples [n, 2] on a plane that keeps how far means are apart as well as a plane can (multidimensional scaling:
    Torgerson 1952; examples are placed by their distances to the means: de Silva and Tenenbaum 2004). Long distances are drawn shorter, so
    that one adapter far off does not press the others together.
    """
    turned = np.linalg.cholesky(fit.metric.astype(np.float64) + 1e-6 * np.eye(len(fit.centre)))
    means = np.stack([group.mean(0) for group in examples.values()]) @ turned
    apart = _distances(means, means)
    usual = float(np.median(apart[apart > 0])) if (apart > 0).any() else 1.0
    squares = (apart / (apart + usual)) ** 2
    centred = squares.mean(0) - squares
    values, vectors = np.linalg.eigh((centred - centred.mean(1, keepdims=True)) / 2)
    axes = vectors[:, :-3:-1] if len(means) > 1 else np.zeros((1, 2))
    axes = np.pad(axes, ((0, 0), (0, 2 - axes.shape[1])))
    lengths = np.sqrt(np.maximum(np.pad(values, (2, 0))[:-3:-1], 1e-9))
    around = []
    for place, group in enumerate(examples.values()):
        rows = group @ turned
        scatter = float(((rows - means[place]) ** 2).sum(1).mean())  # which an example has from every mean, so that it says nothing here
        away = np.sqrt(np.maximum(_distances(rows[:_MAPPED], means) ** 2 - scatter, 0))
        around.append((squares.mean(0) - (away / (away + usual)) ** 2) / 2 @ (axes / lengths))
    return axes * lengths, tuple(around)


def _distances(rows: Numbers, others: Numbers) -> Numbers:
    found: Numbers = np.sqrt(np.maximum((rows**2).sum(1)[:, None] + (others**2).sum(1) - 2 * rows @ others.T, 0))
    return found
