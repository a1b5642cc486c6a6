"""Options that several commands share, and the client they act through."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import click

from smoa.client import SmoaClient

T = TypeVar("T")
ROUTER: Final = "127.0.0.1:50051"
EXECUTOR: Final = "127.0.0.1:50052"

router_option = click.option(
    "--router", envvar="SMOA_ROUTER", default=ROUTER, show_default=True, help="Address of the router [SMOA_ROUTER]."
)
executor_option = click.option(
    "--executor", envvar="SMOA_EXECUTOR", default=EXECUTOR, show_default=True, help="Address of the executor [SMOA_EXECUTOR]."
)
kafka_option = click.option(
    "--kafka", envvar="SMOA_KAFKA_BOOTSTRAP", default="127.0.0.1:9092", show_default=True, help="Kafka's address [SMOA_KAFKA_BOOTSTRAP]."
)
store_option = click.option(
    "--store", envvar="SMOA_STORE", default="smoa-data/store", show_default=True, help="Folder or URL of the adapter store [SMOA_STORE]."
)
tenant_option = click.option("--tenant", default="public", show_default=True)
json_lines_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


def with_client(router: str, work: Callable[[SmoaClient], Awaitable[T]]) -> T:
    """Run `work` with a client of the router."""

    async def run() -> T:
        async with SmoaClient(router=router) as client:
            return await work(client)

    return asyncio.run(run())
