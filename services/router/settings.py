"""Settings of the router; `python -m services.router --help` prints them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from smoa.access.settings import AccessSettings
from smoa.kafka import KafkaSettings


@dataclass(frozen=True, kw_only=True)
class RouterSettings(AccessSettings, KafkaSettings):
    """Read from SMOA_ROUTER_<FIELD>, or the key in the field's metadata."""

    address: str = "127.0.0.1:50051"
    """host:port to listen on."""
    executors: str = ""
    """Patterns of the executors' addresses that are believed, as `*.smoa.svc:50052`, with commas between; empty: every one."""
    connection_streams: int = field(default=8, metadata={"least": 1})
    """Calls at once on one connection, imports among them; more wait at their client, where they keep nobody else waiting."""
    share_address: bool = False
    """Several routers of one host, each with its own data folder, listen on the same port over one Qdrant server."""
    data_folder: Path = Path("build/data/router")
    """Folder of the library, or of the copy of it that is searched in memory, and of the event spool."""
    store: str = field(default="build/data/store", metadata={"key": "SMOA_STORE"})
    """The adapter store: a folder, or a URL (s3://, gs://, az://)."""
    qdrant_url: str = field(default="", metadata={"key": "SMOA_QDRANT_URL"})
    """A Qdrant server for the library (https:// for TLS); empty: SQLite in the data folder, and one router."""
    qdrant_grpc_port: int = field(default=6334, metadata={"key": "SMOA_QDRANT_GRPC_PORT"})
    """Port of its gRPC API."""
    qdrant_api_key: str = field(default="", repr=False, metadata={"key": "SMOA_QDRANT_API_KEY"})
    """Its API key, if it wants one."""
    qdrant_prefix: str = field(default="smoa", metadata={"key": "SMOA_QDRANT_PREFIX"})
    """What the names of its collections begin with: another one is another library."""
    qdrant_replicas: int = field(default=1, metadata={"key": "SMOA_QDRANT_REPLICAS", "least": 1})
    """Copies of each collection in a cluster, when this router makes them."""
    qdrant_write_consistency: int = field(default=1, metadata={"key": "SMOA_QDRANT_WRITE_CONSISTENCY", "least": 1})
    """How many of the copies must have a write before it is acknowledged."""
    qdrant_shards: int = field(default=1, metadata={"key": "SMOA_QDRANT_SHARDS", "least": 1})
    """Parts of each collection, when this router makes them."""
    qdrant_write_ordering: str = field(default="strong", metadata={"key": "SMOA_QDRANT_WRITE_ORDERING"})
    """strong or medium; with Qdrant's own default, weak, a cluster loses changes that two routers make at once."""
    embedder: str = "wordllama"
    """What makes vectors of texts: wordllama (English), a folder with an ONNX model, or the URL of an OpenAI-style service."""
    embedder_model: str = ""
    """The service's model."""
    embedder_key: str = field(default="", repr=False)
    """The service's API key, if it wants one."""
    embedder_prompt: str = ""
    """Put before every text, as some models want it; empty: what a folder says of itself, or nothing."""
    search: str = "auto"
    """memory: all vectors are in this router's memory; qdrant: the server searches; auto: memory where the library fits into it."""
    search_bytes: int = field(default=2 * 2**30, metadata={"least": 1})
    """Memory that auto may take; an adapter takes about 450 bytes."""
    top_k: int = field(default=3, metadata={"least": 1})
    """Most adapters of a decision, where a query does not say."""
    score_threshold: float = 0.1
    """Least score of an adapter that was imported without examples, so that its scope is not known."""
    in_scope_loss: float = field(default=0.05, metadata={"least": 0.0})
    """Share of queries in scope that may be lost by abstaining from those that seem to be in none; 0: never abstain."""
    temperature: float = field(default=0.01, metadata={"least": 1e-06})
    """Of the softmax that makes weights of scores while a pool is not fitted; higher spreads the weight over more adapters."""
    min_weight: float = 0.5
    """Adapters with a smaller weight, as a share of the largest, are left out of a decision."""
    cache_bytes: int = 64 * 2**20
    """Memory of the decisions that are kept for equal queries."""
    embedding_cache_bytes: int = 16 * 2**20
    """Memory of the embeddings that are kept for equal texts."""
    label_cache_bytes: int = 96 * 2**20
    """Memory of the adapters' labels, and of what finds adapters by them, for queries with hints."""
    session_bytes: int = 16 * 2**20
    """Memory of what conversations are about; 0: sessions are not remembered, and only earlier turns that come with a query count."""
    session_ttl_s: float = 1800.0
    """How long after its last turn a session is remembered."""
    cache_ttl_s: float = 300.0
    """How long a decision is given again for an equal query."""
    spool_bytes: int = 128 * 2**20
    """Events that may wait on disk while Kafka is away; the disk is reserved at the start."""
    when_spool_is_full: str = "drop"
    """Once Kafka was away for so long that the spool is full: `drop` gives decisions all the same, uncounted; `refuse` gives none."""
    drain_s: float = 5.0
    """How long running requests may take to finish when the service is stopped."""
    purge_grace_s: float = 7 * 86400.0
    """How long an adapter must be retired before its weights may be deleted."""
    max_adapter_bytes: int = field(default=2**30, metadata={"least": 1})
    """Largest file of an adapter that a tenant may register. Two are read at a time, each into memory as a whole."""
    upload_bytes_per_day: float = field(default=0.0, metadata={"least": 0.0})
    """Bytes of adapters' files that one caller may send in a day, at any pace; 0: no limit."""
    check_interval_s: float = field(default=1.0, metadata={"least": 0.01})
    """How often it is seen whether the index is there."""
    metrics_address: str = ""
    """host:port of Prometheus metrics; empty: none."""

    @property
    def believed_executors(self) -> tuple[str, ...]:
        """The patterns in `executors`."""
        return tuple(one.strip() for one in self.executors.split(",") if one.strip())
