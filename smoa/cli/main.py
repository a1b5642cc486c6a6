"""Groups, shared options, and the one place where an error becomes a sentence and an exit code."""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import entry_points

import click
import grpc

from smoa import __version__
from smoa.cli.access import access_group
from smoa.cli.adapter import adapter_group
from smoa.cli.composition import composition_group
from smoa.cli.login import login_command, logout_command, take_profile
from smoa.cli.options import stack_option, why_unanswered
from smoa.cli.query import generate_command, report_command, route_command, status_command
from smoa.cli.tables import say
from smoa.cli.top import top_command
from smoa.errors import SmoaError, Unavailable
from smoa.identifiers import is_utf8, shown


class _Explaining(click.Group):
    """Says of an address where nothing answers what named it, and what to do."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (Unavailable, grpc.aio.AioRpcError) as error:
            if not (sentence := why_unanswered(ctx, error)):
                raise
            raise Unavailable(sentence) from error


@click.group(cls=_Explaining, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
@stack_option
def cli() -> None:
    """SMoA picks the few right adapters for each query, applies them together, and learns from outcomes.

    \b
    See it work:            smoa demo
    Run it here:            smoa up
    Check this machine:     smoa doctor
    Data to try it with:    smoa example write support_intent -o tickets.jsonl
    Add an adapter:         smoa adapter train ..., then smoa adapter push ...
    Ask it:                 smoa route "..."   smoa generate "..."
    Say how it went:        smoa report DECISION --success
    Call from elsewhere:    smoa login --router HOST:PORT --ca FILE
    Say who may:            smoa access add NAME --tenant TENANT --role ROLE

    Commands take the addresses of router, executor, broker and store from an option (--router ...), else from its variable
    (SMOA_ROUTER ...), else from the data folder of the local stack (--stack, SMOA_STACK, or ./smoa-data), else a default.
    """  # noqa: D301  the escape tells click to keep the lines


cli.add_command(access_group)
cli.add_command(adapter_group)
cli.add_command(composition_group)
cli.add_command(route_command)
cli.add_command(generate_command)
cli.add_command(report_command)
cli.add_command(status_command)
cli.add_command(top_command)
cli.add_command(login_command)
cli.add_command(logout_command)


def _load_plugins() -> None:
    for point in entry_points(group="smoa.commands"):
        group, _, name = point.name.rpartition(".")
        (adapter_group if group == "adapter" else cli).add_command(_Lazy(name, point.value))


class _Lazy(click.Command):
    """A command of a service, imported when it is used: `smoa --help` must not wait for torch."""

    def __init__(self, name: str, target: str) -> None:
        self._target = target
        super().__init__(name, help=_HELP.get(name, ""), add_help_option=False)

    def _real(self) -> click.Command:
        module, _, attribute = self._target.partition(":")
        __import__(module)
        command = getattr(sys.modules[module], attribute)
        assert isinstance(command, click.Command)
        return command

    def make_context(self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object) -> click.Context:
        """Hand over to the real command."""
        return self._real().make_context(info_name, args, parent)

    def invoke(self, ctx: click.Context) -> object:
        """Hand over to the real command."""
        return ctx.command.invoke(ctx)


_HELP = {
    "train": "Train an adapter from a JSONL of {input, output}.",
    "router": "Teach the learned routing strategy from decisions and their outcomes.",
    "optimizer": "What the optimizer did to the library, why, and how to take it back.",
    "dlq": "Look at events that could not be used, and try them again.",
    "up": "Run the whole stack on this machine, as processes.",
    "demo": "Run the whole loop on the example library and show what it did.",
    "example": "Write the example library's training data, to train an adapter of your own with.",
    "doctor": "Check this machine and say what to do about what is missing.",
}


def main() -> None:
    """Entry point: every expected error is one sentence and exit code 1; a wrong argument is 2; Ctrl-C is 130."""
    for place, argument in enumerate(sys.argv[1:], 1):
        if not is_utf8(argument):
            remedy = "rename the file, or give the folder that it is in"
            click.echo(f"error: argument {place}: '{shown(argument)}' is not UTF-8 text; {remedy}", err=True)
            raise SystemExit(2)
    _load_plugins()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what it tells of a broker that is away, the error says once
    try:
        take_profile(sys.argv[1:], os.environ)
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from error
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        raise SystemExit(130) from None
    except SmoaError as error:
        say(f"error: {error}", err=True)
        raise SystemExit(1) from error
    except grpc.aio.AioRpcError as error:
        say(f"error: {error.code().name}: {error.details() or ''}", err=True)
        raise SystemExit(1) from error
