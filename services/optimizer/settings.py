"""Settings of the optimizer; `python -m services.optimizer --help` prints them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Read from SMOA_OPTIMIZER_<FIELD>, or the key in the field's metadata."""

    data_folder: Path = Path("build/data/optimizer")
    store: str = field(default="build/data/store", metadata={"key": "SMOA_STORE"})
    kafka_bootstrap: str = field(default="127.0.0.1:9092", metadata={"key": "SMOA_KAFKA_BOOTSTRAP"})
    router: str = field(default="127.0.0.1:50051", metadata={"key": "SMOA_ROUTER"})
    instance_id: str = ""
    partitions: int = 4
    interval_s: float = 60.0
    report_interval_s: float = 1.0
    dry_run: bool = False
    min_uses: int = 10
    min_age_s: float = 86400.0
    min_success: float = 0.30
    min_cosine: float = 0.90
    min_benefit: float = 0.30
    merge_method: str = "average"
    """average, ties or dare."""
    merge_density: float = 0.2
    """Share of each delta that ties and dare keep."""
    merge_max_error: float = 0.0
    """Share of the average that a `lora` child may lose: its rank is the least that keeps within it. 0: the rank of its parents."""
    session_timeout_s: float = 8.0
    """A worker that is silent for so long loses its partitions to the others."""
    join_ttl_s: float = 86400.0
    """Outcomes that come later than this after their decision are not counted."""
    join_grace_s: float = 600.0
    """How long an outcome may wait for its decision before it is put aside."""
    join_max_bytes: int = 512 * 2**20
    """Memory of open decisions; past it the oldest are forgotten early."""
    half_life_s: float = 7 * 86400.0
    """After this long an event weighs half as much in the recent counts."""
    max_family: int = 20_000
    """Adapters of one tenant, base, kind, rank and modules that are compared with each other."""
