"""What must be so before anything is imported."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is first imported, by whoever that is

for service in ("ROUTER", "EXECUTOR"):  # a spool reserves its room on the disk, and the tests start some two hundred
    os.environ.setdefault(f"SMOA_{service}_SPOOL_BYTES", str(8 * 2**20))


@pytest.fixture(scope="session")
def qdrant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """URL and gRPC port of a Qdrant server that all tests share; each takes a prefix of its own."""
    from tests.qdrant_support import HOME, SKIP_REASON, URL, QdrantServer

    if URL or not HOME:
        if not URL:
            pytest.skip(SKIP_REASON)
        yield URL, 0
        return
    server = QdrantServer(tmp_path_factory.mktemp("qdrant"))
    server.start()
    yield server.url, server.grpc_port
    server.stop()
