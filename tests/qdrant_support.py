"""A Qdrant server: the one that SMOA_TEST_QDRANT_URL names, or one that SMOA_TEST_QDRANT_HOME says can be started on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from qdrant_client import AsyncQdrantClient

from services.local import free_port

URL = os.environ.get("SMOA_TEST_QDRANT_URL", "")
"""Of its REST API; gRPC on the next port, as Qdrant has them."""
HOME = os.environ.get("SMOA_TEST_QDRANT_HOME", "")
SKIP_REASON = "neither SMOA_TEST_QDRANT_URL, a running server, nor SMOA_TEST_QDRANT_HOME, the folder whose `serve` starts one, is set"


class QdrantServer:
    """One on loopback; `kill` is kill -9, and `start` starts it again on the same folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.port, self.grpc_port = folder, free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As SMOA_QDRANT_URL takes it, beside SMOA_QDRANT_GRPC_PORT."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, and wait until it answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        ports = ["--port", str(self.grpc_port), "--http-port", str(self.port)]
        with (self._folder / "log").open("ab") as log:
            command = [sys.executable, str(Path(HOME) / "serve"), str(self._folder / "data"), *ports]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=1):
                    return
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.1)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop it in order."""
        self._end(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        """A signal: SIGSTOP, SIGCONT."""
        assert self._process is not None
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def settings_of(url: str, grpc_port: int, prefix: str) -> dict[str, Any]:
    """A router's settings for a library of a server's."""
    return {"qdrant_url": url, "qdrant_grpc_port": grpc_port or (urlsplit(url).port or 6333) + 1, "qdrant_prefix": prefix}


def client_of(url: str, grpc_port: int = 0) -> AsyncQdrantClient:
    """A client of a server."""
    return AsyncQdrantClient(
        url, prefer_grpc=True, grpc_port=grpc_port or (urlsplit(url).port or 6333) + 1, timeout=30, check_compatibility=False
    )


def fresh_prefix() -> str:
    """A prefix of collections that nobody has."""
    return f"test_{uuid4().hex[:12]}"


async def drop(client: AsyncQdrantClient, prefix: str) -> None:
    """Delete a test's collections."""
    for collection in (await client.get_collections()).collections:
        if collection.name.startswith(prefix):
            await client.delete_collection(collection.name)
