"""One world for every test of a run: what one of them breaks, the others see."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.kafka_support import HOME, SKIP_REASON
from tests.security.world import World, running_world


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    if not HOME:
        pytest.skip(SKIP_REASON)
    async with running_world(tmp_path_factory.mktemp("world")) as running:
        yield running
        await running.check_alive()
