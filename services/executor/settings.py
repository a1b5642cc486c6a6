"""Settings of the executor; `python -m services.executor --help` prints them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1024 * 1024
DEFAULT_BASE_MODEL = "smollm2-135m-instruct"


def cache_home() -> Path:
    """Folder for converted models and bases: `SMOA_CACHE` or `~/.cache/smoa`."""
    return Path(os.environ.get("SMOA_CACHE") or Path.home() / ".cache" / "smoa")


@dataclass(frozen=True, kw_only=True)
class ExecutorSettings:
    """Read from SMOA_EXECUTOR_<FIELD>, or the key in the field's metadata."""

    address: str = "127.0.0.1:50052"
    data_folder: Path = Path("build/data/executor")
    store: str = field(default="build/data/store", metadata={"key": "SMOA_STORE"})
    kafka_bootstrap: str = field(default="127.0.0.1:9092", metadata={"key": "SMOA_KAFKA_BOOTSTRAP"})
    base_model: str = field(default=DEFAULT_BASE_MODEL, metadata={"key": "SMOA_BASE_MODEL"})
    backend: str = "auto"
    """`native` (CPU), `torch`, or `auto`: native where device is cpu and it can be compiled."""
    dtype: str = "auto"
    """`auto`: the model's own."""
    device: str = "cpu"
    threads: int = 0
    rows: int = 16
    context: int = 1024
    step_tokens: int = 128
    cache_bytes: int = 384 * MIB
    slots: int = 32
    slot_bytes: int = 256 * MIB
    host_bytes: int = 512 * MIB
    max_rank: int = 64
    max_waiting: int = 128
    max_tokens: int = 512
    advertised_address: str = ""
    """host:port at which callers reach this executor, told to the routers; empty: they do not send anybody here by name."""
    status_interval_s: float = 2.0
    spool_bytes: int = 128 * 2**20
    """Events that may wait on disk while Kafka is away; the disk is reserved at the start."""
    drain_s: float = 5.0
    metrics_address: str = ""
    """host:port of Prometheus metrics; empty: none."""
