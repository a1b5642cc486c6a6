"""A Qdrant server as the catalogue and the index use it: calls with a deadline, and errors that say what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import httpx
from grpc import StatusCode
from grpc.aio import AioRpcError
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from smoa.errors import FailedPrecondition, SmoaError, Unavailable

T = TypeVar("T")
READ_TIMEOUT_S: Final = 5.0
SLOW_TIMEOUT_S: Final = 30.0
"""Of writes, which wait until the server has them in its log, however busy it is with its index; and of reading much."""
NO_VECTORS: Final = models.VectorParams(size=1, distance=models.Distance.DOT)
"""Of collections whose payloads are all that matters: a point must have a vector."""
NO_VECTOR: Final = (1.0,)
_NO_ANSWER = (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED)


class Limits(NamedTuple):
    """What a collection's strict mode lets a request do."""

    read: int = 1000
    """Points."""
    write: int = 500
    """Points; also conditional ones, three conditions each."""
    hnsw_ef: int = 128
    oversampling: float = 2.0


LEAST_READ: Final = 65
"""Points that one search or listing may ask for."""


def limits_of(name: str, strict: models.StrictModeConfigOutput | None, indexes: int) -> Limits:
    """The limits of a collection whose payload has so many indexes.

    Raises:
        FailedPrecondition: a router cannot work within them.
    """
    if strict is None or not strict.enabled:
        return Limits()
    for field, value, least in (
        ("max_query_limit", strict.max_query_limit, LEAST_READ),
        ("max_payload_index_count", strict.max_payload_index_count, indexes),
        ("filter_max_conditions", strict.filter_max_conditions, 8),
    ):
        if value is not None and value < least:
            raise FailedPrecondition(
                f"index: strict mode of the Qdrant collection {name!r} has {field} {value}, this router needs {least}; raise it there"
            )
    plain = Limits()
    return Limits(
        read=min(plain.read, strict.max_query_limit or plain.read),
        write=max(1, min(plain.write, strict.upsert_max_batchsize or plain.write, (strict.filter_max_conditions or 3 * plain.write) // 3)),
        hnsw_ef=min(plain.hnsw_ef, strict.search_max_hnsw_ef or plain.hnsw_ef),
        oversampling=min(plain.oversampling, strict.search_max_oversampling or plain.oversampling),
    )


class QdrantConnection:
    """One client. While the server does not answer, calls are refused at once, until `answer` hears from it again."""

    def __init__(self, client: AsyncQdrantClient, timeout_s: float = READ_TIMEOUT_S) -> None:
        self.client, self._timeout_s, self._away = client, timeout_s, False
        self._refusal: SmoaError | None = None

    def refuse(self, error: SmoaError | None) -> None:
        """Have all calls refused with this error, but for `answer`; or no more."""
        self._refusal = error

    async def call(self, call: Coroutine[Any, Any, T], *, slow: bool = False) -> T:
        """The answer of one of the client's calls.

        Raises:
            Unavailable: the server is away, or did not do it.
            SmoaError: what calls are refused with.
        """
        if self._away or self._refusal is not None:  # nobody should wait for a server that does not answer: `check` finds it again
            call.close()
            raise self._refusal or unavailable("is away")
        return await self.answer(call, slow=slow)

    async def answer(self, call: Awaitable[T], *, slow: bool = False) -> T:
        """`call`, also of a server that did not answer before."""
        try:
            async with asyncio.timeout(SLOW_TIMEOUT_S if slow else self._timeout_s):
                answer = await call
        except UnexpectedResponse as error:
            raise unavailable(f"answered {error.status_code}") from error
        except (ResponseHandlingException, AioRpcError, httpx.HTTPError, OSError, TimeoutError) as error:
            if isinstance(error, AioRpcError) and error.code() not in _NO_ANSWER:
                raise unavailable(f"answered {error.code().name} ({error.details()})") from error
            if not slow:  # that says nothing of short reads; if the server is gone, the next of those finds out
                self._away = True
            raise unavailable(f"did not answer ({type(error).__name__})") from error
        self._away = False
        return answer

    async def ensure_collection(self, name: str, vectors: models.VectorParams, indexes: Mapping[str, Any], **options: Any) -> Limits:
        """Make a collection and its payload indexes, as far as they are not there: another router may be making them, or have died
        between the two. Returns what requests to it are limited to.

        Args:
            name: Of the collection.
            vectors: What it holds; `NO_VECTORS` for payloads only.
            indexes: Payload field -> its index's parameters.
            options: Of `create_collection`.

        Raises:
            FailedPrecondition: there is one of this name with other vectors, or its strict mode forbids what a router does.
            Unavailable: the server is away.
        """
        if not await self.call(self.client.collection_exists(name)):
            try:
                await self.call(self.client.create_collection(name, vectors_config=vectors, **options), slow=True)
            except Unavailable:
                if not await self.call(self.client.collection_exists(name)):  # else another router was faster
                    raise
        there = await self.call(self.client.get_collection(name))
        found, wanted = _shape(there.config.params.vectors), _shape(vectors)
        if found != wanted:
            raise FailedPrecondition(
                f"index: the Qdrant collection {name!r} holds {found}, this router needs {wanted}; set "
                "SMOA_QDRANT_PREFIX to another prefix, or delete that collection if nobody needs it"
            )
        for field, schema in indexes.items():
            if field not in there.payload_schema:
                await self.call(self.client.create_payload_index(name, field, field_schema=schema), slow=True)
        return limits_of(name, there.config.strict_mode_config, len(indexes))

    async def close(self) -> None:
        """Close the client."""
        await self.client.close()


def unavailable(how: str) -> Unavailable:
    """The error of a server that did not do what it was asked."""
    return Unavailable(f"index: the Qdrant server {how}; check SMOA_QDRANT_URL")


def _shape(vectors: models.VectorParams | Mapping[str, models.VectorParams] | None) -> str:
    if isinstance(vectors, models.VectorParams):
        return f"vectors of {vectors.size} numbers by {vectors.distance.value}"
    return f"named vectors ({', '.join(vectors)})" if vectors else "no vectors"


def equals(field: str, value: str | int) -> models.FieldCondition:
    """The condition that a payload field has a value."""
    return models.FieldCondition(key=field, match=models.MatchValue(value=value))
