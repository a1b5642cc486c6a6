"""The spool: bounded, ordered, and it keeps every event that it accepted."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import smoa.spool
from smoa.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from smoa.events import Event
from smoa.spool import Spool

ROOM = 1 << 24
ONE = -(-4096 // (4080 // (18 + 6 + len("topic") + len("type") + len("key-0") + 3)))


def _event(number: int) -> Event:
    return Event("topic", f"key-{number}".encode(), bytes([number % 256, 0, 255]), "type")


def _events(count: int, start: int = 0) -> list[Event]:
    return [_event(number) for number in range(start, start + count)]


def _fill(spool: Spool, batch: list[Event]) -> None:
    """Until it refuses for its bound, and for nothing else."""
    refused = ""
    while not refused:
        try:
            spool.append(batch)
        except ResourceExhausted as error:
            refused = str(error)
    assert " events fill " in refused


def test_events_come_out_in_order_and_stay_until_removed(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", ROOM)
    spool.append(_events(3))
    spool.append(_events(2, 3))
    assert [spooled.event for spooled in spool.peek(10)] == _events(5)
    assert [spooled.sequence for spooled in spool.peek(10)] == [1, 2, 3, 4, 5]
    assert [spooled.event for spooled in spool.peek(2)] == _events(2)
    assert len(spool) == 5
    spool.close()


def test_one_owner_leaves_room_for_others_while_kafka_is_away(tmp_path: Path) -> None:
    spool, taken = Spool(tmp_path / "spool", ROOM), Counter[str]()

    def fill(owner: str) -> int:
        while True:
            try:
                spool.append(_events(50), owner=owner)
            except ResourceExhausted as error:
                assert str(error).startswith(f"spool: events of {owner} fill its share of it and wait for Kafka; ")  # noqa: PT017
                return taken[owner]
            taken[owner] += 50 * ONE

    assert fill("greedy") == pytest.approx(3 / 4 * ROOM, rel=0.03)
    assert fill("other") == pytest.approx(3 / 16 * ROOM, rel=0.03)
    spool.append(_events(1), owner="third")
    spool.append(_events(50))  # of the service itself
    with pytest.raises(ResourceExhausted, match="of greedy"):
        spool.keep_room(_events(50), "greedy")
    spool.remove(spool.peek(10**9)[-1].sequence)
    assert not spool._owned
    assert not spool._runs
    taken.clear()
    assert fill("other") == pytest.approx(3 / 4 * ROOM, rel=0.03)
    spool.close()


def test_what_was_promised_is_taken_whatever_its_owner_has(tmp_path: Path) -> None:
    spool, kept, refused = Spool(tmp_path / "spool", ROOM), list[int](), False
    while not refused:
        try:
            kept.append(spool.keep_room(_events(500), "alice"))
        except ResourceExhausted:
            refused = True
    assert sum(kept) == pytest.approx(3 / 4 * ROOM, rel=0.03)
    spool.append(_events(50), owner="bob")
    for size in kept:
        spool.give_room(size, "alice")
        spool.append(_events(500), owner="alice", promised=True)
    assert len(spool) == 500 * len(kept) + 50
    spool.close()


def test_remove_drops_up_to_the_sequence(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", ROOM)
    spool.append(_events(5))
    spool.remove(3)
    assert (len(spool), [spooled.sequence for spooled in spool.peek(10)]) == (2, [4, 5])
    spool.remove(3)
    assert len(spool) == 2
    spool.close()


def test_bound_refuses_all_of_a_batch(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 3 * ONE)
    spool.append(_events(2))
    with pytest.raises(ResourceExhausted) as caught:
        spool.append(_events(2, 2))
    assert str(caught.value) == f"spool: 2 events fill {2 * ONE} of {3 * ONE} bytes and wait for Kafka; retry when Kafka is back"
    assert [spooled.event for spooled in spool.peek(10)] == _events(2)
    spool.append(_events(1, 2))
    assert len(spool) == 3
    spool.close()


def test_room_returns_when_events_are_removed(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 2 * ONE)
    spool.append(_events(2))
    spool.remove(2)
    spool.append(_events(2, 2))
    assert [spooled.event for spooled in spool.peek(10)] == _events(2, 2)
    spool.close()


def test_bound_counts_what_an_earlier_process_left(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    first = Spool(path, 2 * ONE)
    first.append(_events(2))
    first.close()
    second = Spool(path, 2 * ONE)
    with pytest.raises(ResourceExhausted, match=r"^spool: 2 events fill "):
        second.append(_events(1))
    second.close()


def test_an_event_no_broker_takes_is_refused_and_blocks_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", ROOM)
    with pytest.raises(InvalidArgument, match=r"^event: for topic is 900,001 bytes; Kafka takes 900,000; send less text$"):
        spool.append([_event(0), Event("topic", b"k", bytes(900_000), "type")])
    spool.append([Event("topic", b"k", bytes(899_999), "type")])
    assert [len(spooled.event.value) for spooled in spool.peek(10)] == [899_999]
    spool.close()


def test_a_second_process_is_told_whose_it_is(tmp_path: Path) -> None:
    spool = Spool(tmp_path, ROOM)
    with pytest.raises(FailedPrecondition, match=r"^spool: another process has .*; give each its own data folder$"):
        Spool(tmp_path, ROOM)
    spool.close()
    Spool(tmp_path, ROOM).close()


def test_a_disk_without_room_is_told_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ResourceExhausted, match=r"^spool: cannot reserve 41,943,040 bytes in .*No space left on device.*; free space$"):
        Spool(tmp_path / "spool", ROOM)


def test_room_that_is_kept_is_nobody_elses(tmp_path: Path) -> None:
    spool, one = Spool(tmp_path / "spool", 1 << 20), [Event("topic", b"key", bytes(5000), "type")]
    size = spool.keep_room(one * 2)
    _fill(spool, one)
    spool.give_room(size)
    spool.append(one)
    with pytest.raises(ResourceExhausted, match=r"^spool: \d+ events fill .* bytes and wait for Kafka; retry when Kafka is back$"):
        spool.keep_room(one * 2)
    spool.append(one)
    spool.close()


@pytest.mark.parametrize("size", [10, 1000, 1400, 1700, 2100, 3000, 5000])
def test_whatever_their_size_it_fills_to_its_bound_and_empties_again(tmp_path: Path, size: int) -> None:
    """Rows that do not divide a page waste some of it; a map that is full before the bound could not even be emptied."""
    spool, one = Spool(tmp_path / "spool", 1 << 26), [Event("topic", b"key", bytes(size), "type")]
    _fill(spool, one * 100)
    assert len(spool) * size > (1 << 26) / 3 or size == 10
    while batch := spool.peek(500):
        spool.remove(batch[-1].sequence)
    spool.append(one)
    assert len(spool) == 1
    spool.close()


def test_a_smaller_bound_can_still_be_emptied(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 1 << 25)
    _fill(spool, [Event("topic", b"key", bytes(1400), "type")] * 100)
    spool.close()
    smaller = Spool(tmp_path / "spool", 1 << 20)
    with pytest.raises(ResourceExhausted):
        smaller.append(_events(1))
    while batch := smaller.peek(500):
        smaller.remove(batch[-1].sequence)
    smaller.append(_events(1))
    smaller.close()


def test_after_the_machine_fell_it_has_a_new_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that were given may not have reached the disk: under the old name they would pass for repeated sends."""
    first = Spool(tmp_path / "spool", ROOM)
    first.append(_events(1))
    first.close()
    boot = tmp_path / "boot_id"
    boot.write_text("another")
    monkeypatch.setattr(smoa.spool, "_BOOT_ID", boot)
    second = Spool(tmp_path / "spool", ROOM)
    assert second.producer_id != first.producer_id
    assert [spooled.event for spooled in second.peek(10)] == _events(1)
    second.close()


def test_a_file_that_cannot_be_read_is_set_aside(tmp_path: Path) -> None:
    first = Spool(tmp_path / "spool", ROOM)
    first.close()
    (tmp_path / "spool" / "data.mdb").write_bytes(b"torn" * 10_000)
    second = Spool(tmp_path / "spool", ROOM)
    assert second.producer_id != first.producer_id
    second.append(_events(1))
    assert [path.read_bytes()[:4] for path in (tmp_path / "spool").glob("unreadable-*.mdb")] == [b"torn"]
    second.close()


def test_its_disk_is_reserved_when_it_is_opened(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", ROOM)
    used = (tmp_path / "spool" / "data.mdb").stat().st_blocks * 512
    assert used > ROOM
    _fill(spool, [Event("topic", b"key", bytes(3000), "type")] * 50)
    assert len(spool) * 3000 > ROOM / 2
    assert (tmp_path / "spool" / "data.mdb").stat().st_blocks * 512 == used
    last = spool.peek(1_000_000)[-1].sequence
    for up_to in range(0, last + 50, 50):
        spool.remove(up_to)
    assert (len(spool), spool.peek(1)) == (0, [])
    spool.close()


@given(
    steps=st.lists(
        st.one_of(st.lists(st.integers(0, 9000), max_size=4), st.integers(0, 12)),
        max_size=30,
    )
)
@settings(deadline=None, max_examples=50)
def test_it_is_a_queue_whatever_is_asked_of_it(steps: list[list[int] | int]) -> None:
    """Against a list: the same events in the same order after any appends, removals and reopenings, and room for all that was removed."""
    with TemporaryDirectory() as folder:
        spool, model, last = Spool(Path(folder), 60_000), list[tuple[int, Event]](), 0
        for step in steps:
            if isinstance(step, int):
                removed = model[min(step, len(model)) - 1][0] if model and step else 0
                spool.remove(removed)
                model = [one for one in model if one[0] > removed]
                spool.close()
                spool = Spool(Path(folder), 60_000)
            else:
                events = [Event("topic", b"key", bytes([size % 256]) * size, "type") for size in step]
                try:
                    spool.append(events)
                except ResourceExhausted:
                    assert sum(len(one.value) + 4200 for _, one in model) + sum(size + 4200 for size in step) > 60_000
                    continue
                model += list(enumerate(events, last + 1))
                last += len(events)
            assert [(one.sequence, one.event) for one in spool.peek(1000)] == model
            assert len(spool) == len(model)
        spool.close()


def test_survives_reopening(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "spool"
    first = Spool(path, ROOM)
    first.append(_events(4))
    first.remove(1)
    first.close()
    second = Spool(path, ROOM)
    assert [(spooled.sequence, spooled.event) for spooled in second.peek(10)] == [(n + 1, _event(n)) for n in (1, 2, 3)]
    assert len(second) == 3
    second.close()


def test_sequences_are_never_reused(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    first = Spool(path, ROOM)
    first.append(_events(3))
    first.remove(3)
    first.close()
    second = Spool(path, ROOM)
    second.append(_events(1))
    assert [spooled.sequence for spooled in second.peek(10)] == [4]
    second.close()


def test_producer_id_is_stable_and_its_own(tmp_path: Path) -> None:
    first = Spool(tmp_path / "a", ROOM)
    first.close()
    again, other = Spool(tmp_path / "a", ROOM), Spool(tmp_path / "b", ROOM)
    assert again.producer_id == first.producer_id
    assert other.producer_id != first.producer_id
    assert len(first.producer_id) == 26
    again.close()
    other.close()


CHILD = """
import sys
from collections import Counter
from pathlib import Path
from smoa.events import Event
from smoa.spool import Spool
spool = Spool(Path(sys.argv[1]), 1 << 24)
number = 0
while True:
    spool.append([Event("topic", str(number).encode(), b"v", "type"), Event("topic", str(number + 1).encode(), b"v", "type")])
    number += 2
    print(number, flush=True)
"""


def test_sigkill_loses_nothing_that_was_accepted(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    with subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= 200:
                os.kill(child.pid, signal.SIGKILL)
                break
        rest = [int(line) for line in child.stdout.read().split("\n")[:-1]]
    accepted = max([200, *rest])
    assert child.returncode == -signal.SIGKILL
    spool = Spool(path, ROOM)
    found = [int(spooled.event.key) for spooled in spool.peek(1_000_000)]
    assert found == list(range(len(found)))
    assert len(found) in (accepted, accepted + 2)
    spool.close()
