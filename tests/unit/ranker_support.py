"""Logs of decisions and outcomes whose truth is known."""

from __future__ import annotations

import numpy as np

from services.router.learning.posteriors import Posterior
from services.router.learning.ranker import considered
from services.router.learning.ranker_training import Logged


def success_log(count: int, seed: int = 0, *, against: bool = False) -> list[Logged]:
    """Success hangs on the feature `success`, and not on the score; tried uniformly of three."""
    rng, logged = np.random.default_rng(seed), []
    for number in range(count):
        posteriors = [Posterior(*rng.uniform(1, 9, 2)) for _ in range(3)]
        scores = rng.uniform(0.4, 0.5, 3)
        features = np.array(
            [considered("a", s, scores.max(), s, 0.0, p, 5.0, 1.0, 3).features for s, p in zip(scores, posteriors, strict=True)]
        )
        chance = 1 - posteriors[0].mean if against else posteriors[0].mean
        logged.append(Logged(features, np.full(3, 1 / 3), float(rng.random() < chance), number))
    return logged
