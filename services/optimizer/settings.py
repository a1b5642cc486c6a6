"""Settings of the optimizer; `python -m services.optimizer --help` prints them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from smoa.access.channels import ConnectionSettings
from smoa.access.settings import CallersSettings
from smoa.kafka import KafkaSettings
from smoa.verdicts import source_weights

APP_ID = "smoa-optimizer"
"""The Kafka group of the workers."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings(ConnectionSettings, CallersSettings, KafkaSettings):
    """Read from SMOA_OPTIMIZER_<FIELD>, or the key in the field's metadata."""

    data_folder: Path = Path("build/data/optimizer")
    """Folder of the worker's heartbeat."""
    store: str = field(default="build/data/store", metadata={"key": "SMOA_STORE"})
    """The adapter store: a folder, or a URL (s3://, gs://, az://)."""
    signing_key: str = field(default="", metadata={"key": "SMOA_SIGNING_KEY"})
    """File of the private key that signs what is merged, where adapters have to be signed (SMOA_PUBLISHERS)."""
    router: str = field(default="127.0.0.1:50051", metadata={"key": "SMOA_ROUTER"})
    """Address of the router, through which adapters are changed."""
    instance_id: str = ""
    """This worker's fixed name in its Kafka group, of each worker its own; empty: none."""
    partitions: int = field(default=4, metadata={"least": 1})
    """Partitions of the topics that are made; at most so many workers share the work."""
    interval_s: float = 60.0
    """How often the library is looked at for what to merge and prune; 0: on SIGUSR1 only."""
    report_interval_s: float = field(default=1.0, metadata={"least": 0.01})
    """How often counts are shown in the registry."""
    mode: str = "auto"
    """auto: what is proposed is done. approve: what a person said yes to (`smoa optimizer approve`). observe: nothing."""
    observe_first_s: float = 14 * 86400.0
    """A library whose oldest adapter is younger is changed only where a person said yes, under auto, too."""
    unused_after_s: float = 14 * 86400.0
    """An adapter that is unused for so long, and for longer than 1.5 times its longest gap before, is pruned."""
    proven_season_s: float = 400 * 86400.0
    """The same of an adapter that was right ten times: what is asked once a year has no gap to show yet in its first."""
    min_uses: int = 10
    """Nobody is pruned as unused of a tenant whose adapters were not used so often recently, on average."""
    tenant_bytes: int = field(default=0, metadata={"least": 0})
    """Room for a tenant's active adapters: over it those of least value for their bytes go, within it only those that fail. 0: no bound."""
    min_age_s: float = 86400.0
    """Younger adapters are not pruned."""
    min_success: float = 0.30
    """An adapter whose success is under this beyond doubt is pruned."""
    min_cosine: float = 0.90
    """Likeness of weights from which adapters are merged."""
    min_benefit: float = 0.30
    """Least benefit of a merge: half for each slot that it saves, up to half for likeness, less the gap between the parents' success."""
    canary_share: float = 0.1
    """Of its parents' queries, the share that a merge's child answers while it is on trial; 0 replaces the parents at once."""
    trial_alpha: float = 0.05
    """Probability of ending a trial wrongly by its evidence."""
    trial_margin: float = 0.10
    """By how much a child may be worse than its parents together and still be promoted."""
    trial_parent_margin: float = 0.25
    """The same, than any one of its parents."""
    trial_most_spent: float = 1.5
    """Factor by which a child's first token may come later, or its answers be longer, than its parents' on average; 0: not looked at."""
    trial_max_age_s: float = 168 * 86400.0
    """After so long a merge whose child was not shown to be as good is undone; its parents are not pruned meanwhile."""
    archive_after_s: float = 7 * 86400.0
    """After how long away the file of what was pruned or merged away moves to `archive/` in the store, where it may cost less; 0: never."""
    purge_after_s: float = 365 * 86400.0
    """How long the weights of what was pruned or merged away are kept; 0: for ever. The router has a grace period of its own."""
    changes_per_hour: int = 100
    """Most prunes, merges and purges of one tenant's adapters."""
    merge_method: str = "average"
    """average, ties or dare."""
    merge_density: float = 0.2
    """Share of each delta that ties and dare keep."""
    merge_max_error: float = 0.0
    """Share of the average that a `lora` child may lose: its rank is the least that keeps within it. 0: the rank of its parents."""
    session_timeout_s: float = field(default=8.0, metadata={"least": 1})
    """A worker that is silent for so long loses its partitions to the others."""
    outcome_sources: str = field(default="", metadata={"key": "SMOA_OUTCOME_SOURCES"})
    """What the verdicts of a source count beside those of others on the same decision, as reviewer=2,judge-model=0.5; of others, 1."""
    join_ttl_s: float = 7 * 86400.0
    """Outcomes that come later than this after their decision are not counted."""
    join_grace_s: float = 600.0
    """How long an outcome may wait for its decision before it is put aside."""
    join_max_bytes: int = 512 * 2**20
    """Memory of open decisions; past it the oldest are forgotten early."""
    no_examples: str = ""
    """Tenants of whose outcomes no texts are kept, with commas between; * means all."""
    examples_retention_s: float = 30 * 86400.0
    """How long an example is kept."""
    examples_max_bytes: int = 256 * 2**20
    """Memory of this worker's examples; past it the sets that changed longest ago are forgotten."""
    executor: str = field(default="", metadata={"key": "SMOA_EXECUTOR"})
    """Where a merge's child is tried on its parents' examples before it is put on trial; empty: nowhere."""
    gate_max_loss: float = 0.1
    """Nats a token by which a child may be less sure of its parents' right answers than they are."""
    metrics_address: str = ""
    """host:port of Prometheus metrics; empty: none."""
    half_life_s: float = field(default=7 * 86400.0, metadata={"least": 1})
    """After this long an event weighs half as much in the recent counts."""
    max_family: int = 200_000
    """Adapters of one tenant, base, kind, rank and modules that are compared with each other."""

    @property
    def source_weights(self) -> dict[str, float]:
        """Those in `outcome_sources`.

        Raises:
            InvalidArgument: it is not of that form.
        """
        return source_weights(self.outcome_sources)

    @property
    def silent_tenants(self) -> frozenset[str]:
        """Those in `no_examples`."""
        return frozenset(one.strip() for one in self.no_examples.split(",") if one.strip())
