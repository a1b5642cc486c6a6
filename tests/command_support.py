"""The command line: in this process, beside the service that it calls, and as a process of its own."""

from __future__ import annotations

import asyncio
import sys

from click.testing import CliRunner

from smoa.cli.main import cli

SMOA = (sys.executable, "-c", "from smoa.cli import main; main()")


async def said_by(*arguments: str) -> tuple[int, str, str]:
    """(exit code, output, errors) of a command, run on a thread; an error that `main` would make a sentence of is raised."""
    result = await asyncio.to_thread(CliRunner().invoke, cli, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr
