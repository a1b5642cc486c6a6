"""`smoa router snapshot`: a Qdrant server's snapshot of all it holds, and an end to old ones."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from services.router.settings import RouterSettings
from smoa.cli.options import address_option
from smoa.errors import InvalidArgument, Unavailable
from smoa.settings import from_environment

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

TIMEOUT_S = 3600


def too_old(made: Sequence[tuple[str, str]], keep: int) -> list[str]:
    """Names of those of the snapshots, each with the time it was made (ISO 8601), that are not among the last `keep`."""
    return [name for name, _ in sorted(made, key=lambda one: (one[1], one[0]))[: -keep or None]]


def snapshot(client: QdrantClient, keep: int) -> tuple[str, list[str]]:
    """Make one; returns its name, and the names of those that were deleted, as others are newer."""
    made = client.create_full_snapshot(wait=True)
    if made is None:
        raise Unavailable("qdrant: the server made no snapshot; see its log")
    old = too_old([(one.name, one.creation_time or "") for one in client.list_full_snapshots()], keep)
    for name in old:
        client.delete_full_snapshot(name, wait=True)
    return made.name, old


@click.command("snapshot")
@address_option("--qdrant", "SMOA_QDRANT_URL", "catalogue", lambda stack: stack.qdrant, "", "Of this Qdrant server")
@click.option("--keep", default=7, show_default=True, type=click.IntRange(1), help="Delete older ones, but for so many.")
@click.option("--json", "as_json", is_flag=True, help="Print the names as JSON.")
def snapshot_command(qdrant: str, keep: int, as_json: bool) -> None:
    """Have a Qdrant server write a snapshot of all it holds into its snapshot folder, and delete old ones there.

    A lost server is made again from one: `qdrant --storage-snapshot FILE`. SMOA_QDRANT_API_KEY is its key.
    """
    from qdrant_client import QdrantClient
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    if not qdrant:
        raise InvalidArgument("qdrant", "is not given", "name the server with --qdrant or SMOA_QDRANT_URL")
    settings = from_environment(RouterSettings, os.environ, "SMOA_ROUTER_")
    client = QdrantClient(qdrant, api_key=settings.qdrant_api_key or None, timeout=TIMEOUT_S, check_compatibility=False)
    try:
        name, deleted = snapshot(client, keep)
    except (ResponseHandlingException, UnexpectedResponse) as error:
        raise Unavailable(
            f"qdrant: {qdrant} made no snapshot ({str(error).strip()[:300]}); check --qdrant and SMOA_QDRANT_API_KEY"
        ) from error
    finally:
        client.close()
    told = f"{name} is in the server's snapshot folder; {len(deleted)} older ones were deleted"
    click.echo(json.dumps({"snapshot": name, "deleted": deleted}) if as_json else told)
