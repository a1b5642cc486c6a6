"""The client for programs without an event loop: the same calls, each waited for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar, Unpack

from smoa import client
from smoa.access.channels import ConnectionSettings
from smoa.sampling_options import SamplingOptions
from smoa.turns import Turn
from smoa.v1 import executor_pb2, router_pb2

T = TypeVar("T")


class ChatOptions(SamplingOptions, total=False):
    """Of `SmoaClient.chat`."""

    tenant: str
    max_tokens: int
    model: str
    base_model: str
    session: str
    user: str
    tags: Sequence[str]
    task_id: str
    most_adapters: int | None


class ReportOptions(TypedDict, total=False):
    """Of `Answer.report`."""

    score: float | None
    corrected_output: str
    right_adapter_id: str
    source: str
    revision: int


@dataclass(frozen=True)
class Answer:
    """What was answered, by which decision and on which executor."""

    text: str
    decision: router_pb2.Decision
    usage: executor_pb2.Usage
    executor: str
    _answer: client.Answer
    _client: SyncSmoaClient

    def report(self, *, success: bool, **more: Unpack[ReportOptions]) -> None:
        """Say how it turned out; durable when this returns.

        Raises:
            grpc.aio.AioRpcError: the router's status.
        """
        self._client.waited_for(self._answer.report(success=success, **more))

    def withdraw(self, *, revision: int = 1, source: str = "") -> None:
        """Take back what was said of it.

        Raises:
            grpc.aio.AioRpcError: the router's status.
        """
        self._client.waited_for(self._answer.withdraw(revision=revision, source=source))


class SyncSmoaClient:
    """One call to route and generate, one to report; from any thread.

    with SyncSmoaClient(router="127.0.0.1:50051") as smoa:
        answer = smoa.chat("my card was charged twice")
        answer.report(success=answer.text == "billing")
    """

    def __init__(self, *, router: str, timeout_s: float = 30.0, connection: ConnectionSettings | None = None) -> None:
        """As `SmoaClient`.

        Raises:
            InvalidArgument, FailedPrecondition: see `SmoaClient`.
        """
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="smoa-client", daemon=True)
        self._thread.start()

        async def made() -> client.SmoaClient:
            return client.SmoaClient(router=router, timeout_s=timeout_s, connection=connection)

        try:
            self._client = self.waited_for(made())
        except BaseException:
            self._end()
            raise

    def chat(self, messages: str | Sequence[Turn], **options: Unpack[ChatOptions]) -> Answer:
        """See `SmoaClient.chat`."""
        answer = self.waited_for(self._client.chat(messages, **options))
        return Answer(answer.text, answer.decision, answer.usage, answer.executor, answer, self)

    def waited_for(self, work: Coroutine[Any, Any, T]) -> T:
        """What the client's own thread makes of it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """Close the connections, and end the thread."""
        self.waited_for(self._client.close())
        self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> SyncSmoaClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
