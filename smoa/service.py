"""What every service's `__main__` does: help, settings, logging, serve, and one clear line on a bad start."""

from __future__ import annotations

import ctypes
import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, NoReturn, TypeVar

import uvloop

from smoa.errors import SmoaError
from smoa.rpc import Serving, serve
from smoa.settings import from_environment
from smoa.telemetry import configure_logging

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Settings = TypeVar("Settings", bound=DataclassInstance)
else:
    Settings = TypeVar("Settings")


SUPERVISOR_PID = "SMOA_SUPERVISOR_PID"
_PR_SET_PDEATHSIG = 1
_SWITCH_S = 0.001
"""For so long a thread that computes in Python may keep the loop from going on, each time that it wakes; Python's own is 5 ms."""


def end_now(code: int) -> NoReturn:
    """End this process without an orderly stop, its log written, so that whoever supervises it starts it again."""
    logging.shutdown()
    os._exit(code)


def end_with_supervisor() -> None:
    """A process of `smoa up` ends when its supervisor is killed (Linux). Asked for here and not between fork and exec, where gRPC's
    threads make running Python unsafe.
    """
    parent = os.environ.get(SUPERVISOR_PID)
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):  # it was killed before we asked
            raise SystemExit(1)


def settings_or_exit(name: str, cls: type[Settings], prefix: str, arguments: Sequence[str]) -> Settings:
    """Read the settings; `--help` prints every key with its default; anything else is refused."""
    end_with_supervisor()
    sys.setswitchinterval(_SWITCH_S)
    os.umask(0o077)  # what a service writes is its own: texts, counts, weights
    if arguments:
        lines = [f"SMoA {name}. Settings come from the environment:", ""]
        lines += [
            f"  {item.metadata.get('key') or prefix + item.name.upper():36} default {item.default}" for item in dataclasses.fields(cls)
        ]
        wanted_help = arguments[0] in ("-h", "--help")
        print("\n".join(lines if wanted_help else [f"{name}: unknown argument {arguments[0]!r}; see --help"]))
        raise SystemExit(0 if wanted_help else 2)
    try:
        return from_environment(cls, os.environ, prefix)
    except SmoaError as error:
        raise SystemExit(f"{name}: {error}") from error


def run(
    name: str,
    cls: type[Settings],
    prefix: str,
    build: Callable[[Settings, AsyncExitStack], Awaitable[Serving]],
    arguments: Sequence[str],
) -> None:
    """Run a service until SIGTERM or SIGINT."""
    settings = settings_or_exit(name, cls, prefix, arguments)
    configure_logging()
    try:
        uvloop.run(serve(lambda stack: build(settings, stack)))  # a call costs about 5 % less on its loop
    except SmoaError as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None
