"""An HTTP server's life: uvicorn on a socket of ours, with our TLS, whose certificates' names an application is told."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from smoa.access.tls import ServerTls
from smoa.errors import FailedPrecondition, InvalidArgument
from smoa.tasks import begin

MAX_HEAD_BYTES: Final = 256 * 1024
"""Of a request's line and headers; a decision on its way through Envoy is in one."""
HEAD_S: Final = 30.0
"""For so long a caller may send them."""
KEEP_ALIVE_S: Final = 75.0
_POLL_S: Final = 0.01
_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class _Protocol(HttpToolsProtocol):
    """Bounds a request's head in bytes and in time, which uvicorn does not, and tells the names in a caller's certificate.

    It overrides what uvicorn's protocol does with bytes, a request's beginning and the end of its head; `tests/integration/
    test_gateway_http.py` fails where a version of uvicorn calls these otherwise.
    """

    _head_bytes = 0
    _in_body = False
    _late: asyncio.TimerHandle | None = None
    _names: tuple[bytes, ...] = ()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        certificate: Any = transport.get_extra_info("peercert") or {}
        self._names = tuple(value.encode() for _, value in certificate.get("subjectAltName", ()))
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if not self._in_body:
            self._head_bytes += len(data)
            if self._late is None:
                self._wait_for_head()
            if self._head_bytes > MAX_HEAD_BYTES + 65_536 and not self.transport.is_closing():  # what came with it may be of a body
                self.transport.write(_TOO_LARGE)
                self.transport.close()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """See uvicorn."""
        super().on_message_begin()
        self.scope["extensions"] = {"tls": {"client_cert_names": self._names}}

    def on_header(self, name: bytes, value: bytes) -> None:
        """See uvicorn. What comes after a body in parts (trailers) is kept by nobody."""
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """See uvicorn."""
        self._head_is_there()
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """See uvicorn."""
        self._in_body = False
        super().on_message_complete()

    def _wait_for_head(self) -> None:
        self._late = self.loop.call_later(HEAD_S, self._close_if_idle)

    def _close_if_idle(self) -> None:
        """Stray bytes after a request are no reason to cut off its answer."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _head_is_there(self) -> None:
        self._head_bytes = 0
        if self._late is not None:
            self._late.cancel()
            self._late = None


class _Uvicorn(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the service's (`smoa.rpc.serve`)."""
        yield


class HttpServer:
    """Serves an ASGI application; `stop` takes no new request and lets those that run end."""

    def __init__(self, application: ASGIApp, address: str, tls: ServerTls | None, drain_s: float) -> None:
        """Nothing is bound yet.

        Raises:
            InvalidArgument: an address that is not host:port.
        """
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise InvalidArgument("SMOA_GATEWAY_ADDRESS", f"{address!r} is not host:port", "write 0.0.0.0:8080")
        self._host, self._port, self._address = host.strip("[]"), int(port), address
        config = uvicorn.Config(
            application,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(KEEP_ALIVE_S),
            timeout_graceful_shutdown=max(1, int(drain_s)),
            backlog=1024,
        )
        config.load()
        if tls is not None:
            config.ssl = tls.context()
        self._server = _Uvicorn(config)
        self._task: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        """Bind and listen.

        Raises:
            FailedPrecondition: the address is taken.
        """
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((self._host, self._port))
        except OSError as error:
            listening.close()
            raise FailedPrecondition(
                f"SMOA_GATEWAY_ADDRESS: cannot listen on {self._address} ({error}); choose another or stop its owner"
            ) from error
        listening.setblocking(False)
        self.port = listening.getsockname()[1]
        self._task = begin(self._server.serve(sockets=[listening]), "http")
        while not self._server.started and not self._task.done():  # noqa: ASYNC110  uvicorn sets a flag, and has no event
            await asyncio.sleep(_POLL_S)

    async def stop(self) -> None:
        """Drain."""
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.wait({self._task})
