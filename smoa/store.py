"""Content-addressed adapter store over `obstore`: a directory by default; S3, GCS or Azure by URL. The key is the digest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from smoa.adapter import MAX_FILE_BYTES, digest_of
from smoa.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable


class AdapterStore:
    """Immutable blobs by sha256. Any process may hold one over the same location."""

    def __init__(self, location: str, max_bytes: int = MAX_FILE_BYTES) -> None:
        self.location, self.max_bytes = location, max_bytes
        self._store: ObjectStore
        if "://" in location:
            self._store = from_url(location)
        else:
            self._store = LocalStore(Path(location).absolute(), mkdir=True)

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

    async def put(self, data: bytes) -> str:
        """Write once and return the digest; the same content twice is one object.

        Raises:
            ResourceExhausted: the disk or bucket refused for lack of space.
            Unavailable: any other failure of the store.
        """
        digest = digest_of(data)
        await self.put_object(self.key(digest), data)
        return digest

    async def put_object(self, key: str, data: bytes) -> None:
        """Write an object under a key of the caller's.

        Raises:
            ResourceExhausted: the disk or bucket refused for lack of space.
            Unavailable: any other failure of the store.
        """
        try:
            await obstore.put_async(self._store, key, data)
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
            return bytes(await (await obstore.get_async(self._store, key)).bytes_async())
        except FileNotFoundError as error:
            raise NotFound("object", key, "look at what is in the store") from error
        except (BaseError, OSError) as error:
            raise Unavailable(f"store: cannot read from {self.location} ({error}); check that it is mounted") from error

    async def list_objects(self, prefix: str) -> AsyncIterator[str]:
        """Keys of the objects under a prefix, in no order.

        Raises:
            Unavailable: the store failed.
        """
        try:
            async for batch in obstore.list(self._store, prefix):
                for item in batch:
                    yield item["path"]
        except (BaseError, OSError) as error:
            raise Unavailable(f"store: cannot list {self.location} ({error}); check that it is mounted") from error

    async def get(self, digest: str) -> bytes:
        """Read one file and check its digest.

        Raises:
            NotFound: no such digest.
            InvalidArgument: the stored bytes have another digest (the object was altered), or are too many.
            Unavailable: the store failed.
        """
        try:
            result = await obstore.get_async(self._store, self.key(digest))
            if result.meta["size"] > self.max_bytes:
                raise InvalidArgument(
                    "file", f"{result.meta['size']:,} bytes is over the {self.max_bytes:,} byte limit", "push a smaller adapter"
                )
            data = bytes(await result.bytes_async())
        except FileNotFoundError as error:
            raise NotFound("adapter file", digest, "push it again with `smoa adapter push`") from error
        except (BaseError, OSError) as error:
            raise Unavailable(f"store: cannot read from {self.location} ({error}); check that it is mounted") from error
        if digest_of(data) != digest:
            raise InvalidArgument(
                "digest", f"stored content of {digest[:12]} has sha256 {digest_of(data)[:12]}", "the object was altered: push it again"
            )
        return data

    async def delete(self, digest: str) -> None:
        """Remove a file; absent is fine."""
        try:
            await obstore.delete_async(self._store, self.key(digest))
        except FileNotFoundError:
            return
        except (BaseError, OSError) as error:
            raise Unavailable(f"store: cannot delete from {self.location} ({error}); check that it is mounted") from error
