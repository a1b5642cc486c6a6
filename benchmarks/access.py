"""What it costs to ask who calls: a router in the clear and one with TLS and tokens, on the same made-up library, asked in turn.

python -m benchmarks.access --adapters 10000
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.router import import_all
from benchmarks.router_processes import BASE, RouterProcess
from examples.generated import generate
from smoa.access.channels import ConnectionSettings
from smoa.adapter import new_adapter_id
from smoa.client import SmoaClient
from tests.access_support import AUDIENCE, ISSUER, Authority, Issuer, key_set

ROUNDS = 5
KINDS, NAMES = ("fresh", "cached"), ("in the clear", "secured")


def _secured(folder: Path) -> tuple[dict[str, str], ConnectionSettings]:
    """Settings of a router with TLS and tokens, and what its caller shows."""
    authority, issuer = Authority(folder), Issuer()
    pair = authority.signed("server")
    (folder / "keys.json").write_text(key_set(issuer))
    (folder / "token").write_text(issuer.token(["public"], ["infer", "library", "operate"], exp=time.time() + 86_400))
    settings = {
        "SMOA_TLS_CERTIFICATE": str(pair.certificate),
        "SMOA_TLS_KEY": str(pair.key),
        "SMOA_TOKEN_ISSUER": ISSUER,
        "SMOA_TOKEN_AUDIENCE": AUDIENCE,
        "SMOA_TOKEN_KEYS": str(folder / "keys.json"),
        "SMOA_TLS_CA": str(authority.file),  # by which the benchmark sees that it serves
        "SMOA_TOKEN_FILE": str(folder / "token"),
    }
    return settings, ConnectionSettings(tls_ca=str(authority.file), token_file=str(folder / "token"))


async def _timed_ms(client: SmoaClient, text: str) -> float:
    began = time.perf_counter()
    await client.route(text, base_model=BASE)
    return (time.perf_counter() - began) * 1000


async def measure(adapters: int, calls: int) -> dict[str, float]:
    """Medians over all rounds, and what the secured router takes of the other's."""
    library, _ = generate(adapters)
    ids = [new_adapter_id() for _ in range(adapters)]
    taken = {f"{kind}, {name}": list[float]() for kind in KINDS for name in NAMES}
    async with AsyncExitStack() as stack:
        clients = list[SmoaClient]()
        for secured in (False, True):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=Path("build"))))
            settings, connection = _secured(folder) if secured else ({}, ConnectionSettings())
            router = RouterProcess(folder, settings)
            stack.callback(router.stop)
            await router.start(connection)
            client = await stack.enter_async_context(SmoaClient(router=router.address, connection=connection))
            await import_all(router, client, library, ids)
            clients.append(client)
        rng = np.random.default_rng(7)
        for number in range(ROUNDS):
            texts: Sequence[str] = library.texts(rng.integers(0, adapters, calls), seed=number)
            for text in texts:
                for kind in KINDS:  # the second time it is
                    for client, name in zip(clients, NAMES, strict=True):
                        taken[f"{kind}, {name}"].append(await _timed_ms(client, text))
    found = {name: float(np.median(values)) for name, values in taken.items()}
    return found | {f"{kind}, ratio": found[f"{kind}, secured"] / found[f"{kind}, in the clear"] for kind in KINDS}


@click.command()
@click.option("--adapters", default=10_000, show_default=True)
@click.option("--calls", default=400, show_default=True, help=f"In each of {ROUNDS} rounds.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here, too.")
def main(adapters: int, calls: int, json_path: Path | None) -> None:
    """Measure a secured router beside one in the clear."""
    Path("build").mkdir(exist_ok=True)
    found = asyncio.run(measure(adapters, calls))
    if json_path is not None:
        json_path.write_text(json.dumps({"machine": machine(), "adapters": adapters, **found}, indent=2))
    table = Table("", "ms", title=f"{adapters:,} adapters on {machine()}")
    for name, value in found.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
