"""Kafka's requests and answers as dictionaries, by aiokafka's own schemas: this broker speaks the versions that aiokafka has classes for.

A handler writes the newest version's fields; of an older version's answer the ones that it has are sent.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from typing import Any, Final, NamedTuple

import aiokafka.protocol.admin
import aiokafka.protocol.commit
import aiokafka.protocol.coordination
import aiokafka.protocol.fetch
import aiokafka.protocol.group
import aiokafka.protocol.metadata
import aiokafka.protocol.offset
import aiokafka.protocol.produce
import aiokafka.protocol.transaction  # noqa: F401  for the requests that it defines
from aiokafka.protocol.api import RequestHeader_v1, RequestStruct
from aiokafka.protocol.types import Array, Schema

Fields = dict[str, Any]
"""A request or an answer: names to numbers, texts, bytes, lists, and lists of `Fields`."""
MAX_REQUEST_BYTES: Final = 100 * 2**20
_SIZE: Final = struct.Struct(">i")


class Frame(NamedTuple):
    """One request of a connection."""

    api_key: int
    version: int
    correlation_id: int
    body: BytesIO


_MISSHAPEN: Final = {(2, 4), (2, 5)}
"""ListOffsets of versions whose leader epoch aiokafka 0.14 takes for 64 bits; its own client asks in older ones."""


def _requests() -> dict[tuple[int, int], type[RequestStruct]]:
    found: dict[tuple[int, int], type[RequestStruct]] = {}
    waiting = list(RequestStruct.__subclasses__())
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if not kind.FLEXIBLE_VERSION and (kind.API_KEY, kind.API_VERSION) not in _MISSHAPEN:
            found[kind.API_KEY, kind.API_VERSION] = kind
    # Versions that only mean something else, which aiokafka left out.
    found |= {(11, 3): found[11, 2], (11, 4): found[11, 2], (14, 2): found[14, 1]}
    return found


REQUESTS: Final = _requests()
"""By api key and version."""


async def read_frame(reader: asyncio.StreamReader) -> Frame:
    """The next request of a connection.

    Raises:
        asyncio.IncompleteReadError: the client has gone.
        ValueError: what came is no Kafka request.
    """
    (size,) = _SIZE.unpack(await reader.readexactly(_SIZE.size))
    if not 8 <= size <= MAX_REQUEST_BYTES:
        raise ValueError(f"a request of {size:,} bytes")
    body = BytesIO(await reader.readexactly(size))
    api_key, version, correlation_id, _ = RequestHeader_v1.SCHEMA.decode(body)
    return Frame(api_key, version, correlation_id, body)


def decoded(frame: Frame) -> Fields:
    """The request's fields.

    Raises:
        ValueError: another version, or bytes that are not of it.
    """
    kind = REQUESTS.get((frame.api_key, frame.version))
    if kind is None:
        raise ValueError(f"version {frame.version} of request {frame.api_key}")
    return _fields(kind.SCHEMA, kind.SCHEMA.decode(frame.body))


def encoded(frame: Frame, answer: Fields, version: int | None = None) -> bytes:
    """The answer to a request, with its size before it; `version` if it is not the request's."""
    schema = REQUESTS[frame.api_key, frame.version if version is None else version].RESPONSE_TYPE.SCHEMA
    body = struct.pack(">i", frame.correlation_id) + schema.encode(_row(schema, answer))
    return bytes(_SIZE.pack(len(body)) + body)


def _fields(schema: Schema, row: Sequence[Any]) -> Fields:
    return {name: _read(kind, value) for name, kind, value in zip(schema.names, schema.fields, row, strict=True)}


def _read(kind: Any, value: Any) -> Any:
    if isinstance(kind, Array) and isinstance(kind.array_of, Schema) and value is not None:
        return [_fields(kind.array_of, one) for one in value]
    return value


def _row(schema: Schema, fields: Fields) -> list[Any]:
    return [_value(kind, fields[name]) for name, kind in zip(schema.names, schema.fields, strict=True)]


def _value(kind: Any, value: Any) -> Any:
    if isinstance(kind, Array) and isinstance(kind.array_of, Schema) and value is not None:
        return [_row(kind.array_of, one) for one in value]
    return value


def by_topic(where: Iterable[tuple[str, int]], answer: Callable[[str, int], Fields]) -> list[Fields]:
    """An answer's topics with their partitions, each as `answer` says."""
    topics: dict[str, list[Fields]] = {}
    for topic, number in where:
        topics.setdefault(topic, []).append(answer(topic, number))
    return [{"topic": topic, "partitions": partitions} for topic, partitions in topics.items()]
