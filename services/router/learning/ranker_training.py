"""Learning a ranker from logged decisions and their outcomes, and judging one without serving it. Pure numpy.

A log tells only how the adapter that was tried did, and those were not tried evenly: each outcome is weighed by the inverse of its
propensity (Horvitz and Thompson 1952), clipped. Other policies are judged by the doubly robust estimate (Dudik et al. 2011) with a reward
model that was fitted on other decisions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from services.router.learning.ranker import FEATURES, RISING, Numbers, Ranker, is_tried
from smoa.errors import FailedPrecondition

MIN_LOGGED: Final = 200
LEAST_PROPENSITY: Final = 0.05
HELD_OUT: Final = 0.2
_SURE: Final = 1.645  # standard errors
_RIDGE: Final = 1.0
_STEPS: Final = 30


@dataclass(frozen=True)
class Logged:
    """A decision of the learned strategy and its outcome: [candidates, 8] features and [candidates] propensities, the one tried first."""

    features: Numbers
    propensities: Numbers
    success: float
    decided_at_us: int = 0
    ranker: str = ""
    """Version of the ranker that ordered them."""


@dataclass(frozen=True)
class Estimate:
    """Estimated success of a policy on a log, and its standard error."""

    success: float
    error: float


def train(logged: Sequence[Logged], rival: Ranker | None = None) -> Ranker:
    """A ranker of the log. Its report holds what one of half of the earlier log, hybrid, and the policy of the log reached on the latest
    fifth, by a reward model of the other half: a model that judged itself would believe its own luck; and its lead over a `rival`.

    Raises:
        FailedPrecondition: too few outcomes, or all of them the same.
    """
    ordered = sorted(logged, key=lambda one: one.decided_at_us)
    if len(ordered) < MIN_LOGGED:
        raise FailedPrecondition(f"log: holds {len(ordered)} outcomes of learned decisions; {MIN_LOGGED} are needed, collect more")
    if len({one.success for one in ordered}) < 2:
        raise FailedPrecondition("log: every outcome in it is the same, so there is nothing to learn; collect more")
    cut = int(len(ordered) * (1 - HELD_OUT))
    early, late = ordered[:cut], ordered[cut:]
    tried, rewards = fit(early[::2]), fit(early[1::2])
    by_learned, by_hybrid = values(tried, late, rewards), values(None, late, rewards)
    learned, hybrid = estimate(by_learned), estimate(by_hybrid)
    lead = estimate(np.subtract(by_learned, by_hybrid).tolist())  # decision by decision
    report = {
        "outcomes": float(len(ordered)),
        "held_out": float(len(late)),
        "logged_success": float(np.mean([one.success for one in late])),
        "learned_success": learned.success,
        "learned_error": learned.error,
        "hybrid_success": hybrid.success,
        "hybrid_error": hybrid.error,
        "lead": lead.success,
        "lead_error": lead.error,
    }
    if rival is not None:
        ahead = estimate(np.subtract(by_learned, values(rival, late, rewards)).tolist())
        report |= {"rival_lead": ahead.success, "rival_lead_error": ahead.error}
    return replace(fit(ordered), report=report)


def beats_hybrid(ranker: Ranker) -> bool:
    """Its report says that it is worth publishing: it leads, and that its lead is luck has a probability of 5 % or less."""
    return ranker.report.get("lead", 0.0) > _SURE * ranker.report.get("lead_error", 0.0)


def fit(logged: Sequence[Logged]) -> Ranker:
    """Weighted ridge logistic regression by Newton steps. A rising feature whose weight turns out negative is left out."""
    features = np.array([one.features[0] for one in logged])
    wanted = np.array([one.success for one in logged])
    weights = 1 / np.maximum(np.array([one.propensities[0] for one in logged]), LEAST_PROPENSITY)
    weights /= weights.mean()
    mean, spread = features.mean(0), features.std(0)
    scale = np.where(spread > 1e-9, spread, 1.0)
    standard = np.hstack([(features - mean) / scale, np.ones((len(features), 1))])
    used = np.append(spread > 1e-9, True)
    while True:
        solved = np.zeros(len(used))
        solved[used] = _newton(standard[:, used], wanted, weights)
        against = [place for place, name in enumerate(FEATURES) if name in RISING and solved[place] < 0]
        if not against:
            break
        used[against] = False
    made = Ranker("", float(solved[-1]), tuple(solved[:-1].tolist()), tuple(mean.tolist()), tuple(scale.tolist()))
    return replace(made, version=hashlib.sha256(made.to_bytes()).hexdigest()[:12])


def _newton(inputs: Numbers, wanted: Numbers, weights: Numbers) -> Numbers:
    solved: Numbers = np.zeros(inputs.shape[1])
    ridge = np.full(inputs.shape[1], _RIDGE)
    ridge[-1] = 1e-6  # the bias is free
    for _ in range(_STEPS):
        predicted = 1 / (1 + np.exp(-np.clip(inputs @ solved, -30, 30)))
        gradient = inputs.T @ (weights * (predicted - wanted)) + ridge * solved
        curvature = (inputs.T * (weights * predicted * (1 - predicted))) @ inputs + np.diag(ridge)
        step = np.linalg.solve(curvature, gradient)
        solved -= step
        if np.abs(step).max() < 1e-8:
            break
    return solved


def evaluate(policy: Ranker | None, logged: Sequence[Logged], rewards: Ranker) -> Estimate:
    """Doubly robust estimate of what a policy's first choices (None: hybrid's) would have reached on a log; `rewards` predicts success."""
    return estimate(values(policy, logged, rewards))


def values(policy: Ranker | None, logged: Sequence[Logged], rewards: Ranker) -> list[float]:
    """The estimate's terms, one for each decision."""
    return [_value(policy, one, rewards) for one in logged]


def _value(policy: Ranker | None, one: Logged, rewards: Ranker) -> float:
    predicted = 1 / (1 + np.exp(-np.clip(rewards.log_odds(one.features), -30, 30)))
    choice = hybrid = int(one.features[:, FEATURES.index("log_odds")].argmax())
    if policy is not None and is_tried(one.features[hybrid]):  # else hybrid's is served, whatever the policy thinks
        choice = int(policy.log_odds(one.features).argmax())
    value = float(predicted[choice])
    if choice == 0:  # it would have done what was done
        value += (one.success - float(predicted[0])) / max(float(one.propensities[0]), LEAST_PROPENSITY)
    return value


def estimate(terms: Sequence[float]) -> Estimate:
    """Mean of some terms, and its standard error."""
    return Estimate(float(np.mean(terms)), float(np.std(terms) / max(len(terms), 1) ** 0.5))
