"""A bounded queue of events on local disk, so that the request path never waits for Kafka and no kill loses what was accepted.

LMDB in a writable map without sync: a commit is a few microseconds of stores into pages the kernel owns, which `kill -9` of the process
does not take back. The machine's own fall may: then the file is whatever had reached the disk, one that cannot be read is set aside, and
the numbers go on under a new name. The disk is reserved when the spool is opened, so it cannot run out under a store. A row's number is
never used twice, and together with the spool's name it names an event: a reader can tell a repeated send.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import lmdb
from ulid import ULID

from smoa.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from smoa.events import Event

_log = logging.getLogger(__name__)
_UNREADABLE = (lmdb.CorruptedError, lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.PageNotFoundError)
MAX_EVENT_BYTES = 900_000
"""Brokers refuse messages of 1 MB and more (their default): one that is accepted here and never there would block all behind it."""
OWNED = 3
"""Times what is free is what one owner may have, so there is always room for another (dynamic thresholds: Choudhury and Hahne, IEEE/ACM
Transactions on Networking 6(2), 1998): three quarters of all for one, three sevenths each for two."""
_LENGTHS = struct.Struct(">HHH")
_SEQUENCE = struct.Struct(">Q")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PAGE_HEAD_BYTES, _ROW_HEAD_BYTES = 16, 18  # LMDB's: of a page; of a row, its eight-byte key and its place in the page
_SPARE_BYTES = 8 * 2**20
"""Room for the tree's own pages, and for those a removal writes before it frees others."""


def reserved_bytes(max_bytes: int) -> int:
    """What a spool for so many bytes of events takes of the disk, from its start on."""
    return 2 * max_bytes + _SPARE_BYTES


@dataclass(frozen=True)
class Spooled:
    """An event waiting to be sent."""

    sequence: int
    event: Event


class Spool:
    """First in, first out, in a folder that one process owns. Not safe from several threads."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Open or make it, with room for `max_bytes` of events.

        Raises:
            FailedPrecondition: another process has it.
            ResourceExhausted: the disk has no room for it.
            Unavailable: the files cannot be read or written.
        """
        self.folder, self.max_bytes = folder, max_bytes
        self._next, self._count, self._bytes, self._kept_bytes = 1, 0, 0, 0
        self._owned: Counter[str] = Counter()
        """Bytes of each owner's events that this process has appended, and of room that it keeps for them."""
        self._runs: deque[tuple[int, str, int]] = deque()
        """The same by their last sequences: (sequence, owner, bytes), in order."""
        with ExitStack() as opened:
            self._own(opened)
            size = max(reserved_bytes(max_bytes), self._size())  # a smaller bound must not take the room that removing needs
            try:
                self._environment = self._reserve(opened, size)
            except _UNREADABLE as error:
                aside = self._file.rename(self._file.with_name(f"unreadable-{ULID()}.mdb"))
                _log.error("%s cannot be read (%s), so its events are not sent; it is kept as %s", self._file, error, aside)
                self._environment = self._reserve(opened, size)
            self._closing = opened.pop_all()

    @property
    def _file(self) -> Path:
        return self.folder / "data.mdb"

    def _size(self) -> int:
        return self._file.stat().st_size if self._file.exists() else 0

    def _own(self, opened: ExitStack) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            owner = opened.enter_context((self.folder / "owner").open("w"))
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FailedPrecondition(f"spool: another process has {self.folder}; give each its own data folder") from error
        except OSError as error:
            raise Unavailable(f"spool: cannot write {self.folder} ({error}); check the volume") from error

    def _reserve(self, opened: ExitStack, size: int) -> lmdb.Environment:
        try:
            environment = opened.enter_context(
                lmdb.open(str(self.folder), map_size=size, max_dbs=1, max_readers=1, sync=False, metasync=False, writemap=True)
            )
            with self._file.open("r+b") as data:
                os.posix_fallocate(data.fileno(), 0, size)
            self._page_bytes = int(environment.stat()["psize"])
            self._events = environment.open_db(b"events")
            boot = _BOOT_ID.read_bytes() if _BOOT_ID.exists() else b""
            with environment.begin(write=True) as opening:
                found = opening.get(b"producer")
                if found is None or opening.get(b"boot") != boot:  # numbers may have been lost with the machine, and come again
                    found = str(ULID()).encode()
                    opening.put(b"producer", found)
                    opening.put(b"boot", boot)
                self.producer_id = found.decode()
                self._next = _number(opening.get(b"removed")) + 1
                for key, framed in opening.cursor(self._events):
                    self._next, self._count, self._bytes = _number(key) + 1, self._count + 1, self._bytes + self._cost(framed)
        except _UNREADABLE:
            raise
        except lmdb.Error as error:
            raise Unavailable(f"spool: cannot open {self.folder} ({error}); check the volume") from error
        except OSError as error:
            raise ResourceExhausted(f"spool: cannot reserve {size:,} bytes in {self.folder} ({error})", "free space") from error
        return environment

    def __len__(self) -> int:
        return self._count

    def append(self, events: Sequence[Event], leave_bytes: int = 0, owner: str = "", *, promised: bool = False) -> None:
        """Accept all of the events or none; `leave_bytes` stay free for others. An `owner`, if one is named, has a share of it, but
        for what was `promised` by `keep_room`.

        Raises:
            InvalidArgument: an event is larger than a broker takes.
            ResourceExhausted: the spool or the owner's share would pass its bound (Kafka has been away for long).
            Unavailable: the spool's file cannot be written.
        """
        framed = [_framed(event) for event in events]
        added = self._fitting(framed, leave_bytes, "" if promised else owner)
        try:
            with self._environment.begin(write=True, db=self._events) as writing:
                for number, one in enumerate(framed, self._next):
                    writing.put(_SEQUENCE.pack(number), one, append=True)
        except lmdb.Error as error:
            raise Unavailable(f"spool: cannot write {self.folder} ({error}); check the volume") from error
        self._next, self._count, self._bytes = self._next + len(framed), self._count + len(framed), self._bytes + added
        if owner and added:
            self._owned[owner] += added
            self._runs.append((self._next - 1, owner, added))

    def keep_room(self, events: Sequence[Event], owner: str = "") -> int:
        """Keep room for events of at most this size that are appended later; returns its bytes, which `give_room` takes back.

        Raises:
            InvalidArgument: an event is larger than a broker takes.
            ResourceExhausted: there is no such room (Kafka has been away for long).
        """
        size = self._fitting([_framed(event) for event in events], owner=owner)
        self._kept_bytes += size
        self._owned[owner] += size
        return size

    def give_room(self, size: int, owner: str = "") -> None:
        """End what `keep_room` began."""
        self._kept_bytes -= size
        self._disown(owner, size)

    def _fitting(self, framed: Sequence[bytes], leave_bytes: int = 0, owner: str = "") -> int:
        """Bytes that the rows take, if there is room for them."""
        size = sum(map(self._cost, framed))
        self.check_room(size + leave_bytes)
        if owner and self._owned[owner] + size > OWNED * (self.max_bytes - self._bytes - self._kept_bytes - size - leave_bytes):
            raise ResourceExhausted(f"spool: events of {owner} fill its share of it and wait for Kafka", "retry when Kafka is back")
        return size

    def check_room(self, size: int) -> None:
        """Raise unless so many bytes are free.

        Raises:
            ResourceExhausted: Kafka has been away for long.
        """
        if self._bytes + self._kept_bytes + size > self.max_bytes:
            raise ResourceExhausted(
                f"spool: {self._count:,} events fill {self._bytes:,} of {self.max_bytes:,} bytes and wait for Kafka",
                "retry when Kafka is back",
            )

    def peek(self, limit: int) -> list[Spooled]:
        """The oldest events, which stay until `remove`.

        Raises:
            Unavailable: the spool's file cannot be read.
        """
        found: list[Spooled] = []
        try:
            with self._environment.begin(db=self._events) as reading:
                for key, framed in reading.cursor():
                    if len(found) == limit:
                        break
                    found.append(Spooled(_number(key), _event(framed)))
        except lmdb.Error as error:
            raise Unavailable(f"spool: cannot read {self.folder} ({error}); check the volume") from error
        return found

    def remove(self, up_to_sequence: int) -> None:
        """Drop the events that were acknowledged.

        Raises:
            Unavailable: the spool's file cannot be written.
        """
        count = size = 0
        try:
            with self._environment.begin(write=True) as writing:
                cursor = writing.cursor(self._events)
                cursor.first()
                while (key := cursor.key()) and _number(key) <= up_to_sequence:  # no key: the end
                    count, size = count + 1, size + self._cost(cursor.value())
                    cursor.delete()  # moves on to the next
                writing.put(b"removed", _SEQUENCE.pack(max(up_to_sequence, _number(writing.get(b"removed")))))
        except lmdb.Error as error:
            raise Unavailable(f"spool: cannot write {self.folder} ({error}); check the volume") from error
        self._count, self._bytes = self._count - count, self._bytes - size
        while self._runs and self._runs[0][0] <= up_to_sequence:
            _, owner, added = self._runs.popleft()
            self._disown(owner, added)

    def _disown(self, owner: str, size: int) -> None:
        self._owned[owner] -= size
        if not self._owned[owner]:
            del self._owned[owner]

    def _cost(self, framed: bytes) -> int:
        """Bytes of disk, rounded up: what a row takes of a page that it shares with its like, or pages of its own."""
        a_page = (self._page_bytes - _PAGE_HEAD_BYTES) // (len(framed) + _ROW_HEAD_BYTES)
        if a_page > 1:
            return -(-self._page_bytes // a_page)
        return -(-(len(framed) + _PAGE_HEAD_BYTES) // self._page_bytes) * self._page_bytes

    def close(self) -> None:
        """Close the files; the events are sent by the next process that opens them."""
        self._closing.close()


def _number(key: bytes | None) -> int:
    return int(_SEQUENCE.unpack(key)[0]) if key else 0


def _framed(event: Event) -> bytes:
    topic, type_name = event.topic.encode(), event.type_name.encode()
    if (size := len(event.key) + len(event.value)) > MAX_EVENT_BYTES or len(event.key) > 0xFFFF:
        raise InvalidArgument("event", f"for {event.topic} is {size:,} bytes", f"Kafka takes {MAX_EVENT_BYTES:,}; send less text")
    return _LENGTHS.pack(len(topic), len(type_name), len(event.key)) + topic + type_name + event.key + event.value


def _event(framed: bytes) -> Event:
    topic, type_name, key = _LENGTHS.unpack_from(framed)
    topic_end = _LENGTHS.size + topic
    type_end = topic_end + type_name
    key_end = type_end + key
    return Event(
        framed[_LENGTHS.size : topic_end].decode(), framed[type_end:key_end], framed[key_end:], framed[topic_end:type_end].decode()
    )
