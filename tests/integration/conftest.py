"""Where the routers of a test keep their library."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

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
