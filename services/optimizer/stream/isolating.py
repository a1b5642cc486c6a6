"""Finding the one event that nothing can be made of. Pure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from smoa.errors import InvalidArgument
from smoa.events import Received

_log = logging.getLogger(__name__)
P = TypeVar("P")


def without_failing(
    plan: Callable[[Sequence[Received]], P], events: Sequence[Received]
) -> tuple[P, list[tuple[Received, InvalidArgument]]]:
    """The plan of those events that one can be made of, and the others. Whatever an event is, those behind it are counted: planning changes
    nothing, so events that it fails with are halved until the one is found.
    """
    left_out = list[tuple[Received, InvalidArgument]]()
    rest = list(events)
    while True:
        try:
            return plan(rest), left_out
        except MemoryError:  # nobody's fault: it may be read again
            raise
        except Exception as error:
            found = _failing(plan, rest)
            if found is None:
                raise
            _log.exception("an event of %s is put aside", found.topic)
            why = InvalidArgument("event", f"cannot be used ({error!r:.200})", "this is a bug: report it with the event")
            left_out.append((found, why))
            rest.remove(found)


def _failing(plan: Callable[[Sequence[Received]], object], events: Sequence[Received]) -> Received | None:
    """The first event without which those before it can be planned; None if it is none of them."""
    low, high = 0, len(events)  # what is before `low` can be planned, what is before `high` cannot
    while high - low > 1:
        middle = (low + high) // 2
        try:
            plan(events[:middle])
            low = middle
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  as above
            high = middle
    return events[low] if events else None
