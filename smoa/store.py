"""Content-addressed adapter store over `obstore`: a directory by default; S3, GCS or Azure by URL. The key is the digest.

Its blocking calls run on threads of the store's own. Not its `*_async` ones: they finish on threads that Python does not know of, and a
process that ends in that moment is aborted (SIGABRT).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, ParamSpec, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from smoa.adapter import digest_of
from smoa.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable

if TYPE_CHECKING:
    from obstore import GetResult

_log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")
_THREADS: Final = 16
"""Requests to the store at a time."""


class AdapterStore:
    """Immutable blobs by sha256. Any process may hold one over the same location.

    With `max_bytes`, larger files are not read; `limit_name` is what its owner calls that limit, for whoever meets it.
    """

    def __init__(self, location: str, max_bytes: int | None = None, limit_name: str = "") -> None:
        self.location, self._max_bytes, self._limit_name = location, max_bytes, limit_name
        self._threads = ThreadPoolExecutor(_THREADS, "store")
        self._folder = None if "://" in location else Path(location).absolute()
        self._store: ObjectStore = from_url(location) if self._folder is None else LocalStore(self._folder, mkdir=True)

    async def _call(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: function(*arguments, **named))

    @staticmethod
    def key(digest: str) -> str:
        """Object key of a digest; two levels, so that a directory of millions stays listable.

        Raises:
            InvalidArgument: not 64 hex digits.
        """
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise InvalidArgument(
                "digest", f"{digest[:80]!r} is not a sha256 in lower-case hex", "use the digest `smoa adapter push` printed"
            )
        return f"adapters/{digest[:2]}/{digest}.safetensors"

    @classmethod
    def archive_key(cls, digest: str) -> str:
        """Where a file is that is not used: a prefix by itself, so that a bucket's own rules can keep it where it costs less.

        Raises:
            InvalidArgument: see `key`.
        """
        return f"archive/{cls.key(digest)}"

    @staticmethod
    def sketch_key(digest: str) -> str:
        """Where an optimizer keeps a file's sketch; it goes with the file."""
        return f"sketches/{digest[:2]}/{digest}"

    async def put(self, data: bytes) -> str:
        """Write once and return the digest; the same content twice is one object.

        Raises:
            ResourceExhausted: the disk or bucket refused for lack of space.
            Unavailable: any other failure of the store.
        """
        digest = await self._call(digest_of, data)
        await self.put_object(self.key(digest), data)
        return digest

    async def put_object(self, key: str, data: bytes | BinaryIO) -> None:
        """Write an object under a key of the caller's: bytes, or a file from where it stands to its end, which is not read as a whole.

        Raises:
            ResourceExhausted: the disk or bucket refused for lack of space.
            Unavailable: any other failure of the store.
        """
        try:
            await self._call(obstore.put, self._store, key, data)
        except (BaseError, OSError) as error:
            if any(
                word in str(error) for word in ("No space left", "StorageFull", "os error 28", "File too large", "os error 27", "quota")
            ):
                raise ResourceExhausted(
                    f"store: {self.location} is full", "free space or purge retired adapters, then push again"
                ) from error
            raise Unavailable(f"store: cannot write to {self.location} ({error}); check that it is mounted and writable") from error

    async def get_object(self, key: str) -> bytes:
        """Read an object of the caller's.

        Raises:
            NotFound: there is none.
            Unavailable: the store failed.
        """
        try:
            return await self._call(lambda: bytes(obstore.get(self._store, key).bytes()))
        except FileNotFoundError as error:
            raise NotFound("object", key, "look at what is in the store") from error
        except (BaseError, OSError) as error:
            raise Unavailable(f"store: cannot read from {self.location} ({error}); check that it is mounted") from error

    async def delete_object(self, key: str) -> None:
        """Remove an object of the caller's; absent is fine.

        Raises:
            Unavailable: the store failed.
        """
        try:
            await self._call(obstore.delete, self._store, key)
        except FileNotFoundError:
            return
        except (BaseError, OSError) as error:
            raise Unavailable(f"store: cannot delete from {self.location} ({error}); check that it is mounted") from error

    async def list_objects(self, prefix: str) -> AsyncIterator[str]:
        """Keys of the objects under a prefix, in no order.

        Raises:
            Unavailable: the store failed.
        """
        try:
            batches: Any = obstore.list(self._store, prefix)
            while batch := await self._call(next, batches, ()):
                for item in batch:
                    yield item["path"]
        except (BaseError, OSError) as error:
            raise Unavailable(f"store: cannot list {self.location} ({error}); check that it is mounted") from error

    async def parts(self, digest: str, part_bytes: int) -> AsyncGenerator[bytes, None]:
        """One file, a part of at most so many bytes at a time. Whoever reads the last checks the digest.

        Raises:
            NotFound, InvalidArgument, Unavailable: see `get`.
        """
        with self._reading(digest):
            found: Any = await self._call(self._open, digest)
            chunks = iter(found.stream(min_chunk_size=part_bytes))
            while chunk := await self._call(next, chunks, b""):
                for start in range(0, len(chunk), part_bytes):
                    yield bytes(chunk[start : start + part_bytes])

    async def get(self, digest: str) -> bytes:
        """Read one file and check its digest.

        Raises:
            NotFound: no such digest.
            InvalidArgument: the stored bytes have another digest (the object was altered), or are too many.
            Unavailable: the store failed.
        """
        with self._reading(digest):
            return await self._call(self._read, digest)

    @contextmanager
    def _reading(self, digest: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotFound("adapter file", digest, "push it again with `smoa adapter push`") from error
        except (BaseError, OSError) as error:
            raise Unavailable(f"store: cannot read from {self.location} ({error}); check that it is mounted") from error

    def _found(self, digest: str) -> GetResult:
        """Where it is; looked for once more where it was first, for it may come back meanwhile."""
        for key in (self.key(digest), self.archive_key(digest)):
            with suppress(FileNotFoundError):
                return obstore.get(self._store, key)
        return obstore.get(self._store, self.key(digest))

    def _open(self, digest: str) -> GetResult:
        result = self._found(digest)
        size = result.meta["size"]
        if self._max_bytes is not None and size > self._max_bytes:
            remedy = f"push a smaller adapter{f', or raise {self._limit_name}' if self._limit_name else ''}"
            raise InvalidArgument("file", f"{size:,} bytes is over the {self._max_bytes:,} byte limit", remedy)
        return result

    def _read(self, digest: str) -> bytes:
        data = bytes(self._open(digest).bytes())
        if (found := digest_of(data)) != digest:
            raise InvalidArgument(
                "digest", f"stored content of {digest[:12]} has sha256 {found[:12]}", "the object was altered: push it again"
            )
        return data

    async def absent(self, digests: Sequence[str]) -> set[str]:
        """Those of the digests whose file is not there; nothing is read of the others but that they are.

        Raises:
            Unavailable: the store failed.
        """
        parts = [digests[start::_THREADS] for start in range(min(_THREADS, len(digests)))]
        try:
            found = await asyncio.gather(*(self._call(lambda part: [one for one in part if not self._has(one)], part) for part in parts))
        except (BaseError, OSError) as error:
            raise Unavailable(f"store: cannot read from {self.location} ({error}); check that it is mounted") from error
        return {digest for part in found for digest in part}

    def _has(self, digest: str) -> bool:
        return any(self._is_at(key) for key in (self.key(digest), self.archive_key(digest), self.key(digest)))  # as in `_found`

    def _is_at(self, key: str) -> bool:
        if self._folder is not None:  # a small part of what obstore takes to say it, and imports ask for a million
            return os.path.exists(f"{self._folder}/{key}")
        try:
            obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        return True

    async def archive(self, digest: str) -> None:
        """Move a file to the archive, from where it is read, too; again is fine.

        Raises:
            Unavailable: the store failed.
        """
        if await self._copied(self.key(digest), self.archive_key(digest)):
            await self.delete_object(self.key(digest))

    async def bring_back(self, digest: str) -> None:
        """Put a file of the archive where it was; again is fine. The archive keeps its own: whoever moves it there meanwhile deletes the
        other, and one of the two is to be left.

        Raises:
            Unavailable: the store failed.
        """
        await self._copied(self.archive_key(digest), self.key(digest))

    async def _copied(self, source: str, target: str) -> bool:
        try:
            await self._call(obstore.copy, self._store, source, target)
        except FileNotFoundError:
            return False
        except (BaseError, OSError) as error:
            raise Unavailable(f"store: cannot copy a file of {self.location} ({error}); check that it is mounted and writable") from error
        return True

    async def delete(self, digest: str) -> None:
        """Remove a file, wherever it is, and its sketch; absent is fine."""
        for key in (self.archive_key(digest), self.key(digest), self.archive_key(digest)):  # it may be moved there meanwhile
            await self.delete_object(key)
        try:
            await self.delete_object(self.sketch_key(digest))
        except Unavailable as error:  # the file is gone, which is what was asked for; whoever puts it back finds its sketch
            _log.warning("the sketch of %s stays, a few hundred bytes: %s", digest[:12], error)
