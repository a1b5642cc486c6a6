"""`--since`: a time that people write as how long ago, or as a date."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import click

_AGO: Final = re.compile(r"^(\d{1,6})([smhdw])$")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Since(click.ParamType):
    """`7d`, `12h`, or `2026-11-01` (UTC) with or without `T12:00`: microseconds since 1970."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See click."""
        if isinstance(value, int):
            return value
        if found := _AGO.match(value):
            return int((time.time() - int(found[1]) * _SECONDS[found[2]]) * 1e6)
        try:
            at = datetime.fromisoformat(value)
            return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1e6)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time; write how long ago, as 7d or 12h, or a date, as 2026-11-01", param, ctx)


def since_option(default: str | None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option, as `since_us`."""
    help_text = "From when on: how long ago (30m, 12h, 7d, 4w), or a date (UTC)."
    return click.option("--since", "since_us", type=Since(), default=default, show_default=default is not None, help=help_text)
