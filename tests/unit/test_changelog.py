"""What is to be written again before it falls out of a log of which only the end is kept."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.optimizer.changelog import Window


def test_what_was_there_before_is_written_first() -> None:
    window = Window([b"a", b"b"])
    window.wrote(b"c", b"123")
    assert window.stale(100, 10) == [b"a", b"b"]
    window.wrote(b"a", b"1")
    window.wrote(b"b", None)
    assert window.stale(100, 10) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10)), max_size=200), st.integers(100, 300), st.integers(1, 5))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_whoever_writes_what_is_stale_finds_every_newest_value_at_the_end(writes: list[tuple[int, int]], room: int, most: int) -> None:
    window, log, values = Window([]), list[tuple[bytes, bytes]](), dict[bytes, bytes]()

    def write(name: bytes, value: bytes) -> None:
        window.wrote(name, value)
        values[name] = value
        log.append((name, value))

    for number, size in writes:
        write(b"%02d" % number, b"x" * size)
        while stale := window.stale(room, most):  # six values of at most twelve bytes fit, so this ends
            for name in stale:
                write(name, values[name])
        kept, held = dict[bytes, bytes](), 0
        for name, value in reversed(log):
            held += len(name) + len(value)
            if held > room + 12:
                break
            kept.setdefault(name, value)
        assert kept == values
