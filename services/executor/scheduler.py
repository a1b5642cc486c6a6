"""Which sequence is in which row of the batch. Pure: touches no tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from smoa.errors import ResourceExhausted

Sequence = TypeVar("Sequence", bound=Hashable)


class Scheduler(Generic[Sequence]):
    """First come, first served into a fixed number of rows; any sequence may leave at any step."""

    def __init__(self, rows: int, max_waiting: int) -> None:
        self.rows, self.max_waiting = rows, max_waiting
        self._free = list(range(rows - 1, -1, -1))
        self._waiting: deque[Sequence] = deque()
        self._row_of: dict[Sequence, int] = {}

    @property
    def waiting(self) -> int:
        """Sequences not yet in the batch."""
        return len(self._waiting)

    @property
    def running(self) -> list[tuple[Sequence, int]]:
        """(sequence, row) of the batch, in order of arrival."""
        return list(self._row_of.items())

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            ResourceExhausted: the queue is full.
        """
        if len(self._waiting) >= self.max_waiting:
            raise ResourceExhausted(f"queue: {self.max_waiting} requests wait", "retry with backoff or add executors")
        self._waiting.append(sequence)

    def admit(self) -> list[tuple[Sequence, int]]:
        """Move waiting sequences into free rows; returns those moved."""
        admitted: list[tuple[Sequence, int]] = []
        while self._waiting and self._free:
            sequence, row = self._waiting.popleft(), self._free.pop()
            self._row_of[sequence] = row
            admitted.append((sequence, row))
        return admitted

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is; absent is fine."""
        if sequence in self._row_of:
            self._free.append(self._row_of.pop(sequence))
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def check_integrity(self) -> None:
        """Raise AssertionError if a row is lost or shared."""
        assert sorted([*self._row_of.values(), *self._free]) == list(range(self.rows)), "a row is lost or shared"
        assert not set(self._row_of) & set(self._waiting), "a sequence waits and runs"
