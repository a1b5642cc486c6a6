"""Options that several commands share, where their values come from, and the client that commands act through.

The address of a service is the option's, else its environment variable's, else what the local stack wrote into its data folder
(`smoa.stack`), else a built-in default.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import grpc
from click.core import ParameterSource

from smoa.client import SmoaClient
from smoa.errors import FailedPrecondition, Unavailable
from smoa.stack import DEFAULT_FOLDER, FILE, VARIABLE, FoundStack, Stack, find_stack

T = TypeVar("T")
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
PROFILE_OF: Final[dict[str, str]] = {}
"""Variables that a profile of `smoa login` gave, and its name."""
_STACK: Final = "smoa.stack"
_FOUND: Final = "smoa.found_stack"
_ADDRESSES: Final = "smoa.addresses"


@dataclass(frozen=True)
class Address:
    """Where a service or a store is, and what said so."""

    what: str
    value: str
    option: str
    variable: str
    source: ParameterSource
    """COMMANDLINE, ENVIRONMENT, DEFAULT_MAP (the stack's file) or DEFAULT (built in)."""
    found: FoundStack | None = None
    """Where a stack was looked for, if the option and the variable were not given."""

    def came_from(self) -> str:
        """What said so, in words."""
        if self.source is ParameterSource.COMMANDLINE:
            return f"from {self.option}"
        if self.source is ParameterSource.ENVIRONMENT:
            profile = PROFILE_OF.get(self.variable)
            return f"of the profile {profile}" if profile else f"from {self.variable}"
        assert self.found is not None
        if self.found.stack is None:
            return f"the built-in default: no {FILE} is in {self.found.folder}"
        return f"of the stack in {self.found.folder}"

    def remedy(self) -> str:
        """What to do when nothing is there."""
        if self.source is ParameterSource.ENVIRONMENT and self.variable in PROFILE_OF:
            return f"log in with another address, forget the profile with `smoa logout`, or give {self.option}"
        if self.source in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT):
            named = self.option if self.source is ParameterSource.COMMANDLINE else self.variable
            return f"correct {named}, or leave it out to take the address from a local stack's folder (--stack, {VARIABLE})"
        assert self.found is not None
        if self.found.stack is None:
            return f"start one with `smoa up`, name the folder of one that runs with --stack or {VARIABLE}, or give {self.option}"
        if self.found.stack.running:
            return f"that stack runs (process {self.found.stack.pid}), so it may still be starting: see what its `smoa up` prints"
        return f"that stack is not running: start it with `smoa up --data {self.found.folder}`"


def find_stack_of_command() -> FoundStack:
    """The stack of the running command (see `smoa.stack.find_stack`)."""
    return _found_stack(click.get_current_context())


def _found_stack(context: click.Context) -> FoundStack:
    if _FOUND not in context.meta:
        context.meta[_FOUND] = find_stack(context.meta.get(_STACK), os.environ)
    found = context.meta[_FOUND]
    assert isinstance(found, FoundStack)
    return found


def _take_stack(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value:
        context.meta[_STACK] = value


stack_option = click.option(
    "--stack",
    metavar="FOLDER",
    is_eager=True,
    expose_value=False,
    callback=_take_stack,
    help=f"Data folder of the local stack to talk to [{VARIABLE}; default: ./{DEFAULT_FOLDER}].",
)


def address_option(name: str, variable: str, what: str, of_stack: Callable[[Stack], str], default: str, help_text: str) -> Decorator:
    """An option for the address of something that a stack has; commands with one of them have `--stack`, too."""

    def resolve(context: click.Context, parameter: click.Parameter, value: str | None) -> str:
        if context.resilient_parsing:  # a shell completes a line
            return ""
        source, found = context.get_parameter_source(parameter.name or ""), None
        if not value:
            found = _found_stack(context)
            value = of_stack(found.stack) if found.stack else default
            source = ParameterSource.DEFAULT_MAP if found.stack else ParameterSource.DEFAULT
        assert source is not None
        context.meta.setdefault(_ADDRESSES, {})[what] = Address(what, value, name, variable, source, found)
        return value

    shown = f"the stack's{f', else {default}' if default else ''}"
    option = click.option(name, envvar=variable, callback=resolve, show_default=shown, help=f"{help_text} [{variable}].")

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if not any(parameter.name == "stack" for parameter in getattr(function, "__click_params__", ())):
            function = stack_option(function)
        return option(function)

    return decorate


def _broker_of(stack: Stack) -> str:
    if not stack.kafka:
        raise Unavailable(f"broker: that of the stack in {stack.data} does not listen yet; wait until its `smoa up` prints `ready`")
    return stack.kafka


router_option = address_option("--router", "SMOA_ROUTER", "router", lambda stack: stack.router, "127.0.0.1:50051", "Address of the router")
executor_option = address_option(
    "--executor", "SMOA_EXECUTOR", "executor", lambda stack: stack.executor, "127.0.0.1:50052", "Address of the executor"
)
kafka_option = address_option("--kafka", "SMOA_KAFKA_BOOTSTRAP", "broker", _broker_of, "127.0.0.1:9092", "Address of the broker")
store_option = address_option(
    "--store", "SMOA_STORE", "store", lambda stack: stack.store, f"{DEFAULT_FOLDER}/store", "Folder or URL of the adapter store"
)
sources_option = click.option(
    "--sources",
    default="",
    envvar="SMOA_OUTCOME_SOURCES",
    help="Weights of verdicts by who gave them, as reviewer=2,judge-model=0.5; of others, 1 [SMOA_OUTCOME_SOURCES].",
)
tenant_option = click.option("--tenant", default="public", show_default=True, envvar="SMOA_TENANT", help="Whose [SMOA_TENANT].")
signing_option = click.option(
    "--sign-with",
    "signing_key",
    default="",
    envvar="SMOA_SIGNING_KEY",
    help="File of the key to sign adapters with, where services ask for it [SMOA_SIGNING_KEY].",
)
json_lines_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


def address_of(what: str) -> Address:
    """Where the running command's router, executor, kafka, store, ... is, and what said so."""
    address = click.get_current_context().meta[_ADDRESSES][what]
    assert isinstance(address, Address)
    return address


def check_store() -> None:
    """Refuse to make up a store: one that only the built-in default names must be there already.

    Raises:
        FailedPrecondition: it is not.
    """
    store = address_of("store")
    if store.source is ParameterSource.DEFAULT and not Path(store.value).is_dir():
        assert store.found is not None
        raise FailedPrecondition(
            f"store: neither {Path(store.value).absolute()} nor a stack's {FILE} in {store.found.folder} exists; run this where `smoa up` "
            f"runs, name its data folder with --stack or {VARIABLE}, or give --store"
        )


def why_unanswered(context: click.Context, error: Unavailable | grpc.aio.AioRpcError) -> str:
    """A sentence for an address where nothing answers: which, what said so, and what to do; empty where the error is of another kind."""
    addresses: dict[str, Address] = context.meta.get(_ADDRESSES, {})
    if isinstance(error, Unavailable):
        tried = [one for one in addresses.values() if one.value and one.value == error.address]
    else:
        details = (error.details() or "").lower()
        if error.code() is not grpc.StatusCode.UNAVAILABLE or not ("failed to connect" in details or "dns resolution" in details):
            return ""
        services = [addresses[what] for what in ("router", "executor") if what in addresses]
        tried = [one for one in services if f":{one.value}" in details or one.value in details] or services
    if not tried:
        return ""
    asked = " and ".join(f"the {one.what} at {one.value} ({one.came_from()})" for one in tried)
    return f"nothing answers for {asked}; {tried[0].remedy()}"


def with_client(router: str, work: Callable[[SmoaClient], Awaitable[T]]) -> T:
    """Run `work` with a client of the router."""

    async def run() -> T:
        async with SmoaClient(router=router) as client:
            return await work(client)

    return asyncio.run(run())
