"""By meaning alone: hints are not looked at."""

from __future__ import annotations

from services.router.routing.strategies.strategy import Strategy


class Semantic(Strategy):
    """The nearest."""

    name = "semantic"
