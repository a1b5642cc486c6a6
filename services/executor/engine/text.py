"""Turns token ids into text as they come, and finds stop strings. Pure."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Literal

Finish = Literal["end", "stop_string", "length"]


class TextAssembler:
    """Feeds out text that can no longer change: half a character, or what may begin a stop string, is held back.

    A token is decoded with the few before it and not with the whole answer, so its cost does not grow with the answer: decoders look no
    further back than to the last whole character, and to whether a token is the first.
    """

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, [stop for stop in stops if stop]
        self._ids: list[int] = []
        """Tokens before `_new` whose text is known, then new ones whose text may still change."""
        self._new = 0
        self._known = ""
        self._held = ""
        """Text that may begin a stop string: no stop string began before it."""
        self.stopped = False

    def push(self, token: int) -> str:
        """Text to send after one more token; sets `stopped` when a stop string came (it is left out)."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith("\ufffd"):
            return ""
        self._held += text[len(self._known) :]
        last = self._ids[self._new :]
        if known := self._decode(last):
            self._ids, text = last, known
        self._new, self._known = len(self._ids), text
        if (at := self._stop_at()) is not None:
            return self._send(at)
        held = max((n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n])), default=0)
        return self._send(len(self._held) - held)

    def finish(self) -> str:
        """What was held back, once no more tokens come."""
        if self.stopped:
            return ""
        self._held += self._decode(self._ids)[len(self._known) :]
        at = self._stop_at()
        return self._send(len(self._held) if at is None else at)

    def _stop_at(self) -> int | None:
        """Where the first stop string begins, if there is one; sets `stopped`."""
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        self.stopped = bool(found)
        return min(found, default=None)

    def _send(self, count: int) -> str:
        sent, self._held = self._held[:count], self._held[count:]
        return sent


class Answer:
    """Tokens of one answer as they come, up to what ends it: an end token, a stop string, or `max_tokens`."""

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str], eos_ids: Container[int], max_tokens: int) -> None:
        self._assembler = TextAssembler(decode, stops)
        self._eos_ids, self._max_tokens = eos_ids, max_tokens
        self.tokens = 0

    def push(self, token: int) -> tuple[str, Finish | None]:
        """Text to send after one more token, and how it ended, if it did."""
        self.tokens += 1
        ended: Finish | None = "end" if token in self._eos_ids else "length" if self.tokens == self._max_tokens else None
        text = "" if ended == "end" else self._assembler.push(token)
        if ended is not None:
            text += self._assembler.finish()
        return text, "stop_string" if self._assembler.stopped else ended
