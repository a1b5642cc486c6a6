"""Settings of the executor; `python -m services.executor --help` prints them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from smoa.access.settings import AccessSettings
from smoa.kafka import KafkaSettings

MIB = 1024 * 1024
DEFAULT_BASE_MODEL = "smollm2-135m-instruct"


def cache_home() -> Path:
    """Folder for converted models and bases: `SMOA_CACHE` or `~/.cache/smoa`."""
    return Path(os.environ.get("SMOA_CACHE") or Path.home() / ".cache" / "smoa")


@dataclass(frozen=True, kw_only=True)
class ExecutorSettings(AccessSettings, KafkaSettings):
    """Read from SMOA_EXECUTOR_<FIELD>, or the key in the field's metadata."""

    address: str = "127.0.0.1:50052"
    """host:port to listen on."""
    data_folder: Path = Path("build/data/executor")
    """Folder of the event spool."""
    store: str = field(default="build/data/store", metadata={"key": "SMOA_STORE"})
    """The adapter store: a folder, or a URL (s3://, gs://, az://)."""
    base_model: str = field(default=DEFAULT_BASE_MODEL, metadata={"key": "SMOA_BASE_MODEL"})
    """Name of the model that ships with SMoA, or a folder or hub id of a model that `docs/reference/base-models.md` lists."""
    chat_template: str = ""
    """A file with a Jinja template that writes conversations for the model; empty: the base model's own."""
    backend: str = "auto"
    """`native` (CPU), `torch`, or `auto`: native where device is cpu and it can be compiled."""
    dtype: str = "auto"
    """`auto`: the model's own."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    threads: int = 0
    """Threads of the forward pass; 0: one for each core."""
    rows: int = field(default=16, metadata={"least": 1})
    """Requests that are answered at once."""
    context: int = field(default=1024, metadata={"least": 1})
    """Most tokens of a prompt and its answer together."""
    step_tokens: int = field(default=128, metadata={"least": 1})
    """Most tokens of one step of the model, of prompts and of answers."""
    cache_bytes: int = 0
    """Memory of the key/value cache; 0: what all rows need for whole contexts, at most half of what is free."""
    slots: int = 128
    """Adapters that are ready on the device at once."""
    slot_bytes: int = 256 * MIB
    """Memory of the slots."""
    host_bytes: int = 512 * MIB
    """Memory of the adapters that are kept outside the slots, to be loaded again without the store. It bounds one adapter, too."""
    load_timeout_s: float = field(default=30.0, metadata={"least": 0.001})
    """How long the store may take to give an adapter, and a request may wait until all of its adapters are here."""
    max_rank: int = field(default=256, metadata={"least": 1})
    """Highest rank of a `lora` adapter that is served. How large one may be is for the slots to say."""
    max_waiting: int = 128
    """Requests that may wait for a row; one more is refused with RESOURCE_EXHAUSTED."""
    max_tokens: int = field(default=512, metadata={"least": 1})
    """Most tokens of an answer."""
    advertised_address: str = ""
    """host:port at which callers reach this executor, told to the routers; empty: they do not send anybody here by name."""
    status_interval_s: float = field(default=2.0, metadata={"least": 0.01})
    """How often the routers are told which adapters are here and how busy it is."""
    spool_bytes: int = 128 * 2**20
    """Events that may wait on disk while Kafka is away; the disk is reserved at the start."""
    drain_s: float = 5.0
    """How long running requests may take to finish when the service is stopped."""
    metrics_address: str = ""
    """host:port of Prometheus metrics; empty: none."""
