"""Logs of decisions and outcomes whose truth is known."""

from __future__ import annotations

import numpy as np

from services.router.learning.posteriors import Posterior
from services.router.learning.ranker import considered
from services.router.learning.ranker_training import Logged


def success_log(count: int, seed: int = 0, *, against: bool = False) -> list[Logged]:
    """Success hangs on the feature `success`, and not on hybrid's odds; tried uniformly of three."""
    rng, logged = np.random.default_rng(seed), []
    for number in range(count):
        posteriors = [Posterior(*rng.uniform(1, 9, 2)) for _ in range(3)]
        odds = rng.uniform(20, 25, 3)
        features = np.array(
            [considered("a", o, odds.max(), o / 50, 0.0, p, 5.0, 1.0, 3).features for o, p in zip(odds, posteriors, strict=True)]
        )
        chance = 1 - posteriors[0].mean if against else posteriors[0].mean
        logged.append(Logged(features, np.full(3, 1 / 3), float(rng.random() < chance), number))
    return logged
