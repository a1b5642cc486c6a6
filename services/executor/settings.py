"""Settings of the executor; `python -m services.executor --help` prints them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ExecutorSettings:
    """Read from SMOA_EXECUTOR_<FIELD>, or the key in the field's metadata."""

    address: str = "127.0.0.1:50052"
    data_folder: Path = Path("build/data/executor")
    store: str = field(default="build/data/store", metadata={"key": "SMOA_STORE"})
    kafka_bootstrap: str = field(default="127.0.0.1:9092", metadata={"key": "SMOA_KAFKA_BOOTSTRAP"})
    base_model: str = field(default="smollm2-135m-instruct", metadata={"key": "SMOA_BASE_MODEL"})
    dtype: str = "bfloat16"
    device: str = "cpu"
    threads: int = 0
    slots: int = 32
    max_rank: int = 64
    rows: int = 16
    context: int = 1024
    max_waiting: int = 128
    max_tokens: int = 512
    spool_events: int = 1_000_000
    drain_s: float = 5.0
