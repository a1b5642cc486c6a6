"""Where the routers of a test keep their library."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.gateway_support import GatewayWorld, running_gateway
from tests.integration import router_support
from tests.qdrant_support import client_of, drop, fresh_prefix, settings_of


@pytest.fixture(params=["sqlite", "qdrant"])
async def catalogue(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """The test runs once for each."""
    if request.param == "sqlite":
        yield request.param
        return
    url, grpc_port = request.getfixturevalue("qdrant")
    prefix = fresh_prefix()
    monkeypatch.setattr(router_support, "library", settings_of(url, grpc_port, prefix))
    yield request.param
    client = client_of(url, grpc_port)
    await drop(client, prefix)
    await client.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayWorld]:
    """One for all tests of a run; its processes are there at the end, unless a test killed them itself."""
    async with running_gateway(tmp_path_factory.mktemp("gateway")) as world:
        yield world
