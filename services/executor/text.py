"""Turns token ids into text as they come, and finds stop strings. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class TextAssembler:
    """Feeds out text that can no longer change: half a character, or what may begin a stop string, is held back."""

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, [stop for stop in stops if stop]
        self._ids: list[int] = []
        self._sent = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """Text to send after one more token; sets `stopped` when a stop string came (it is left out)."""
        self._ids.append(token)
        text = self._decode(self._ids)
        found = [at for stop in self._stops if (at := text.find(stop, max(0, self._sent - len(stop)))) >= 0]
        if found:
            self.stopped = True
            return self._send(text[: min(found)])
        held = max((n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        end = len(text) - held
        return "" if text.endswith("\ufffd") else self._send(text[:end])

    def finish(self) -> str:
        """What was held back, once no more tokens come."""
        return "" if self.stopped else self._send(self._decode(self._ids))

    def _send(self, text: str) -> str:
        new, self._sent = text[self._sent :], max(self._sent, len(text))
        return new
