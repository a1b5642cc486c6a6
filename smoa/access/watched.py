"""Files that are read again when they change, while what they say is in use."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from smoa.errors import SmoaError

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Watched(Generic[T]):
    """What some files say; while they cannot be read, what they said last."""

    def __init__(self, paths: Sequence[Path], read: Callable[[], T], every_s: float = 0.0) -> None:
        """`read` makes it of the files, and raises a `SmoaError` where it cannot, here too. They are looked at every `every_s` at most."""
        self._paths, self._read, self._every_s = paths, read, every_s
        self._looked_s, self._stamp = time.monotonic(), self._stamped()
        self._told = self._stamp
        self._value = read()

    def now(self) -> T:
        """What they say."""
        if time.monotonic() - self._looked_s > self._every_s:
            self._looked_s = time.monotonic()
            if (stamp := self._stamped()) != self._stamp:
                self._read_again(stamp)
        return self._value

    def _read_again(self, stamp: Sequence[tuple[int, ...]]) -> None:
        named = ", ".join(map(str, self._paths))
        try:
            self._value = self._read()
        except SmoaError as error:  # one of them may be half written: again at the next look
            if stamp != self._told:
                _log.error("what %s said last stays: %s", named, error)
        else:
            self._stamp = stamp
            _log.info("read %s again", named)
        self._told = stamp

    def _stamped(self) -> Sequence[tuple[int, ...]]:
        return tuple(map(_stamp_of, self._paths))


def _stamp_of(path: Path) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino
