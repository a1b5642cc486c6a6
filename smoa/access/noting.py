"""How what a call changes was before, from where it is changed to where it is told of. Whoever is in no call notes for nobody."""

from __future__ import annotations

from contextvars import ContextVar

_before: ContextVar[list[str] | None] = ContextVar("before", default=None)


def note_before(state: str) -> None:
    """Of what the running call changes; of several things the first is told."""
    if (noted := _before.get()) is not None:
        noted.append(state)


def noting() -> list[str]:
    """Begin to take down, here and in all that is begun from here."""
    noted: list[str] = []
    _before.set(noted)
    return noted
