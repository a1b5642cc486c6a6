"""Settings of the router; `python -m services.router --help` prints them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RouterSettings:
    """Read from SMOA_ROUTER_<FIELD>, or the key in the field's metadata."""

    address: str = "127.0.0.1:50051"
    share_address: bool = False
    """Several routers of one host, each with its own data folder, listen on the same port over one Qdrant server."""
    data_folder: Path = Path("build/data/router")
    store: str = field(default="build/data/store", metadata={"key": "SMOA_STORE"})
    kafka_bootstrap: str = field(default="127.0.0.1:9092", metadata={"key": "SMOA_KAFKA_BOOTSTRAP"})
    qdrant_url: str = field(default="", metadata={"key": "SMOA_QDRANT_URL"})
    top_k: int = 3
    score_threshold: float = 0.15
    min_confidence: float = 0.45
    """Least probability that a query is in an adapter's scope; 0: never abstain for lack of it."""
    temperature: float = 0.01
    min_weight: float = 0.1
    cache_bytes: int = 64 * 2**20
    embedding_cache_bytes: int = 16 * 2**20
    record_cache_bytes: int = 32 * 2**20
    cache_ttl_s: float = 300.0
    spool_bytes: int = 128 * 2**20
    """Events that may wait on disk while Kafka is away; the disk is reserved at the start."""
    drain_s: float = 5.0
    purge_grace_s: float = 7 * 86400.0
    allow_all_tenants: bool = False
    check_interval_s: float = 1.0
    """How often it is seen whether the index is there."""
    metrics_address: str = ""
    """host:port of Prometheus metrics; empty: none."""
