"""The spool: bounded, ordered, and it keeps every event that it accepted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from smoa.errors import ResourceExhausted
from smoa.events import Event
from smoa.spool import Spool


def _event(number: int) -> Event:
    return Event("topic", f"key-{number}".encode(), bytes([number % 256, 0, 255]), "type")


def _events(count: int, start: int = 0) -> list[Event]:
    return [_event(number) for number in range(start, start + count)]


def test_events_come_out_in_order_and_stay_until_removed(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.db", 100)
    spool.append(_events(3))
    spool.append(_events(2, 3))
    assert [spooled.event for spooled in spool.peek(10)] == _events(5)
    assert [spooled.sequence for spooled in spool.peek(10)] == [1, 2, 3, 4, 5]
    assert [spooled.event for spooled in spool.peek(2)] == _events(2)
    assert len(spool) == 5
    spool.close()


def test_remove_drops_up_to_the_sequence(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.db", 100)
    spool.append(_events(5))
    spool.remove(3)
    assert (len(spool), [spooled.sequence for spooled in spool.peek(10)]) == (2, [4, 5])
    spool.remove(3)
    assert len(spool) == 2
    spool.close()


def test_bound_refuses_all_of_a_batch(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.db", 3)
    spool.append(_events(2))
    with pytest.raises(ResourceExhausted) as caught:
        spool.append(_events(2, 2))
    assert str(caught.value) == "spool: 2 of 3 events wait for Kafka; retry when Kafka is back"
    assert [spooled.event for spooled in spool.peek(10)] == _events(2)
    spool.append(_events(1, 2))
    assert len(spool) == 3
    spool.close()


def test_room_returns_when_events_are_removed(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.db", 2)
    spool.append(_events(2))
    spool.remove(2)
    spool.append(_events(2, 2))
    assert [spooled.event for spooled in spool.peek(10)] == _events(2, 2)
    spool.close()


def test_bound_counts_what_an_earlier_process_left(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    first = Spool(path, 2)
    first.append(_events(2))
    first.close()
    second = Spool(path, 2)
    with pytest.raises(ResourceExhausted, match=r"^spool: 2 of 2 events wait for Kafka; "):
        second.append(_events(1))
    second.close()


def test_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.db", 1_000_000)
    spool.append(_events(1))
    pages = int(spool._database.execute("PRAGMA page_count").fetchone()[0])
    spool._database.execute(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(ResourceExhausted, match=r"^spool: the disk under .* is full; free space and retry"):
        spool.append([Event("topic", b"key", bytes(4000), "type")] * 50)
    assert (len(spool), [spooled.event for spooled in spool.peek(100)]) == (1, _events(1))
    spool.append(_events(1, 1))
    assert [spooled.event for spooled in spool.peek(100)] == _events(2)
    spool.close()


def test_survives_reopening(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "spool.db"
    first = Spool(path, 10)
    first.append(_events(4))
    first.remove(1)
    first.close()
    second = Spool(path, 10)
    assert [(spooled.sequence, spooled.event) for spooled in second.peek(10)] == [(n + 1, _event(n)) for n in (1, 2, 3)]
    assert len(second) == 3
    second.close()


def test_sequences_are_never_reused(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    first = Spool(path, 10)
    first.append(_events(3))
    first.remove(3)
    first.close()
    second = Spool(path, 10)
    second.append(_events(1))
    assert [spooled.sequence for spooled in second.peek(10)] == [4]
    second.close()


def test_producer_id_is_stable_and_its_own(tmp_path: Path) -> None:
    first = Spool(tmp_path / "a.db", 10)
    first.close()
    again, other = Spool(tmp_path / "a.db", 10), Spool(tmp_path / "b.db", 10)
    assert again.producer_id == first.producer_id
    assert other.producer_id != first.producer_id
    assert len(first.producer_id) == 26
    again.close()
    other.close()


CHILD = """
import sys
from pathlib import Path
from smoa.events import Event
from smoa.spool import Spool
spool = Spool(Path(sys.argv[1]), 1_000_000)
number = 0
while True:
    spool.append([Event("topic", str(number).encode(), b"v", "type"), Event("topic", str(number + 1).encode(), b"v", "type")])
    number += 2
    print(number, flush=True)
"""


def test_sigkill_loses_nothing_that_was_accepted(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    with subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= 200:
                os.kill(child.pid, signal.SIGKILL)
                break
        rest = [int(line) for line in child.stdout.read().split("\n")[:-1]]
    accepted = max([200, *rest])
    assert child.returncode == -signal.SIGKILL
    spool = Spool(path, 1_000_000)
    found = [int(spooled.event.key) for spooled in spool.peek(1_000_000)]
    assert found == list(range(len(found)))
    assert len(found) in (accepted, accepted + 2)
    spool.close()
