"""Channels on which a caller says who it is: a key or a token with each call, TLS, and a certificate of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc

from smoa.access.addresses import SYSTEM, is_loopback
from smoa.access.watched import Watched
from smoa.errors import FailedPrecondition, InvalidArgument
from smoa.settings import from_environment

_LOOK_EVERY_S: Final = 1.0
_OLD_CALLS_S: Final = 60.0
Options = Sequence[tuple[str, Any]]


@dataclass(frozen=True, kw_only=True)
class ConnectionSettings:
    """Read from the keys in the fields' metadata."""

    token_file: str = field(default="", metadata={"key": "SMOA_TOKEN_FILE"})
    """File of the key or token that goes with every call; read again when it changes."""
    tls_ca: str = field(default="", metadata={"key": "SMOA_TLS_CA"})
    """File of the authorities that sign the services' certificates, or `system` for the machine's; empty: no TLS."""
    tls_client_certificate: str = field(default="", metadata={"key": "SMOA_TLS_CLIENT_CERTIFICATE"})
    """File of the caller's own certificate, if the services ask for one."""
    tls_client_key: str = field(default="", metadata={"key": "SMOA_TLS_CLIENT_KEY"})
    """File of its private key."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> ConnectionSettings:
        """As the environment says."""
        return from_environment(cls, environment, "SMOA_")


@dataclass(frozen=True)
class _Files:
    """What was in the files when they were looked at last."""

    token: str = ""
    tls: tuple[bytes, ...] | None = None
    """Authorities, key and certificate."""


class Channels:
    """Makes channels; what their files hold is looked at again while they are used."""

    def __init__(self, settings: ConnectionSettings | None = None) -> None:
        """Read the files; left out, those that the environment names.

        Raises:
            InvalidArgument: a certificate without a key, or without TLS.
            FailedPrecondition: a file that cannot be read.
        """
        settings = ConnectionSettings.of(os.environ) if settings is None else settings
        if bool(settings.tls_client_certificate) != bool(settings.tls_client_key):
            raise InvalidArgument("SMOA_TLS_CLIENT_KEY", "and SMOA_TLS_CLIENT_CERTIFICATE are not both given", "name both files")
        if settings.tls_client_key and not settings.tls_ca:
            raise InvalidArgument(
                "SMOA_TLS_CA", "is empty", f"a certificate is shown in TLS only; name who signs the services', or {SYSTEM}"
            )
        self._settings = settings
        self._said = Watched([Path(path) for path in self._paths() if path], self._read, _LOOK_EVERY_S)

    def to(self, target: str, options: Options = ()) -> grpc.aio.Channel:
        """A channel to a service.

        Raises:
            InvalidArgument: a key or a token would cross a network in the clear.
        """
        if not (self._settings.token_file or self._settings.tls_ca):
            return grpc.aio.insecure_channel(target, options=list(options))
        if self._settings.token_file and not self._settings.tls_ca and not is_loopback(target):
            raise InvalidArgument(
                "SMOA_TLS_CA", f"is empty, and {target} is on another machine", "a token goes through TLS only; name who signs"
            )
        return _Channel(self, target, options)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with a call."""
        token = self.now().token
        return (("authorization", f"Bearer {token}"),) if token else ()

    def now(self) -> _Files:
        """What the files hold; what they held, while one of them cannot be read."""
        return self._said.now()

    def _paths(self) -> list[str]:
        settings = self._settings
        return [
            settings.token_file,
            "" if settings.tls_ca == SYSTEM else settings.tls_ca,
            settings.tls_client_key,
            settings.tls_client_certificate,
        ]

    def _read(self) -> _Files:
        token, *tls = (_contents(path) if path else b"" for path in self._paths())
        said = token.decode(errors="replace").strip()
        if not said.isascii() or not said.isprintable():
            raise FailedPrecondition(
                f"SMOA_TOKEN_FILE: {self._settings.token_file} holds no key and no token; write one line of text into it"
            )
        return _Files(said, tuple(tls) if self._settings.tls_ca else None)

    def open(self, target: str, options: Options, files: _Files) -> grpc.aio.Channel:
        """A channel by what the files held."""
        if files.tls is None:
            return grpc.aio.insecure_channel(target, options=list(options))
        authorities, key, certificate = (part or None for part in files.tls)
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(authorities, key, certificate), options=list(options))


class _Channel(grpc.aio.Channel):
    """A channel that is made anew when the files of its TLS change. Calls that run go on, on the one before."""

    def __init__(self, channels: Channels, target: str, options: Options) -> None:
        self._channels, self._target, self._options = channels, target, options
        self._files = channels.now()
        self._inner = channels.open(target, options, self._files)
        self._closing = set[asyncio.Task[None]]()

    def inner(self) -> grpc.aio.Channel:
        """The channel for a call that begins now."""
        files = self._channels.now()
        if files.tls != self._files.tls:
            task = asyncio.ensure_future(self._inner.close(_OLD_CALLS_S))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
            self._inner = self._channels.open(self._target, self._options, files)
        self._files = files
        return self._inner

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with a call."""
        return self._channels.metadata()

    def unary_unary(self, *arguments: Any, **named: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return _Method(self, "unary_unary", arguments, named)

    def unary_stream(self, *arguments: Any, **named: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return _Method(self, "unary_stream", arguments, named)

    def stream_unary(self, *arguments: Any, **named: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return _Method(self, "stream_unary", arguments, named)

    def stream_stream(self, *arguments: Any, **named: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return _Method(self, "stream_stream", arguments, named)

    async def close(self, grace: float | None = None) -> None:
        """See `grpc.aio.Channel`."""
        for task in self._closing:
            task.cancel()
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See `grpc.aio.Channel`."""
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See `grpc.aio.Channel`."""
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See `grpc.aio.Channel`."""
        await self._inner.channel_ready()

    async def __aenter__(self) -> _Channel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Method:
    """A method of a channel, called on the channel of the moment."""

    def __init__(self, channel: _Channel, kind: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._channel, self._kind, self._arguments, self._named = channel, kind, arguments, named
        self._made: tuple[grpc.aio.Channel, Any] | None = None

    def __call__(self, *arguments: Any, metadata: Sequence[tuple[str, str]] = (), **named: Any) -> Any:
        inner = self._channel.inner()
        if self._made is None or self._made[0] is not inner:
            self._made = inner, getattr(inner, self._kind)(*self._arguments, **self._named)
        return self._made[1](*arguments, metadata=(*metadata, *self._channel.metadata()), **named)


def _contents(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FailedPrecondition(f"{path}: cannot be read ({error}); correct the setting that names it") from error
