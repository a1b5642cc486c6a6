"""What every demonstration is given: a console, a folder, and a stack that is its own whatever the environment names."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from services.local import LocalStack, StackSettings, free_port
from smoa.client import SmoaClient
from smoa.store import AdapterStore

KEPT = ("SMOA_CACHE", "SMOA_LOG_LEVEL")
"""Variables of ours that a demonstration heeds: where converted models are, and how much is logged."""
SPOOL_BYTES = str(16 * 2**20)
"""A demonstration sends few events, and a spool reserves its room on the disk."""
TIMEOUT_S = 120.0
"""Of a call: a demonstration may share a slow machine with others."""


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what would turn a demonstration to another broker, catalogue, store, model or service."""
    return {name: value for name, value in environment.items() if not name.startswith("SMOA_") or name in KEPT}


def unused_variables(environment: Mapping[str, str]) -> list[str]:
    """Names of the variables that are set and that a demonstration does not heed."""
    return sorted(name for name in environment if name.startswith("SMOA_") and name not in KEPT and not name.startswith("SMOA_TEST_"))


@dataclass(frozen=True)
class Running:
    """A stack that runs, and how to talk to it."""

    stack: LocalStack
    client: SmoaClient
    store: AdapterStore


@dataclass(frozen=True, kw_only=True)
class Session:
    """One call of `smoa demo`."""

    folder: Path
    """Temporary; everything that a demonstration keeps is in it."""
    log: Path
    """Where the services write."""
    console: Console = field(default_factory=Console)
    kafka: str = ""
    """A Kafka that was asked for by an option; empty: an embedded broker."""
    plot: Path | None = None
    """Where a demonstration with a curve writes it."""
    adapters: int = 100_000
    """Size of the largest library of vectors."""
    queries_per_job: int = 14

    def say(self, sentence: str) -> None:
        """Print a sentence."""
        self.console.print(sentence, highlight=False)

    def heading(self, text: str) -> None:
        """Print what comes next."""
        self.console.print(f"\n[bold]{text}[/]", highlight=False)

    def stack_settings(self, *services: str, **environment: str) -> StackSettings:
        """Of a stack with these services, in this session's folder; `environment` is for them alone."""
        return StackSettings(
            data=self.folder / "stack",
            router_port=free_port(),
            executor_port=free_port(),
            gateway_port=free_port(),
            kafka_bootstrap=self.kafka,
            services=services,
            inherited=own_environment(os.environ),
            environment={
                "SMOA_STORE": str(self.folder / "store"),
                "SMOA_ROUTER_SPOOL_BYTES": SPOOL_BYTES,
                "SMOA_EXECUTOR_SPOOL_BYTES": SPOOL_BYTES,
                **environment,
            },
        )

    @asynccontextmanager
    async def stack(self, *services: str, **environment: str) -> AsyncIterator[Running]:
        """A broker and these services (router, executor, optimizer), drained at the end."""
        settings = self.stack_settings(*services, **environment)
        with self.log.open("a") as log_file:
            stack = LocalStack(settings, log_file)
            try:
                with self.console.status(f"starting broker, {', '.join(services)} (log: {self.log})"):
                    await stack.start()
                router = settings.router if "router" in services else None
                executor = settings.executor if "executor" in services else None
                async with SmoaClient(router=router, executor=executor, timeout_s=TIMEOUT_S) as client:
                    yield Running(stack, client, AdapterStore(settings.store))
            finally:
                with self.console.status("draining"):
                    await stack.stop()
