"""Settings of the gateway; `python -m services.gateway --help` prints them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from smoa.access.settings import AccessSettings
from smoa.kafka import KafkaSettings


@dataclass(frozen=True, kw_only=True)
class GatewaySettings(AccessSettings, KafkaSettings):
    """Read from SMOA_GATEWAY_<FIELD>, or the key in the field's metadata."""

    address: str = "127.0.0.1:8080"
    """host:port of HTTP."""
    router: str = field(default="127.0.0.1:50051", metadata={"key": "SMOA_ROUTER"})
    """The router's address."""
    base_model: str = ""
    """Name or fingerprint of the base model for requests that do not name one; needed where executors run several."""
    base_model_name: str = ""
    """What engines behind Envoy call the base model, where no executor of SMoA tells its name."""
    max_tokens: int = 0
    """Most tokens of an answer whose request does not say; 0: as many as the executor's limit and the context leave."""
    temperature: float = 0.0
    """Of requests that do not say. 0 is greedy: adapters are mostly trained for one right answer. OpenAI's own is 1."""
    timeout_s: float = field(default=600.0, metadata={"least": 0.1})
    """How long a request may take."""
    route_timeout_s: float = field(default=10.0, metadata={"least": 0.01})
    """How long the router may take."""
    when_router_is_away: str = "refuse"
    """`refuse` answers 503; `pass` lets the base model answer, without adapters, here and behind Envoy."""
    max_body_bytes: int = field(default=4 * 2**20, metadata={"least": 1024})
    """Largest body of a request."""
    held_body_bytes: int = field(default=128 * 2**20, metadata={"least": 1024})
    """Of bodies that are held at once: until they are answered, and behind Envoy until they are routed. No known caller has more than a
    quarter of it, nor have all that come through Envoy."""
    drain_s: float = 10.0
    """How long running requests may take to finish when the service is stopped."""
    envoy_address: str = ""
    """host:port of Envoy's external processor (gRPC); empty: none."""
    data_folder: Path = Path("build/data/gateway")
    """Folder of the spool of usage events, which only the external processor has."""
    spool_bytes: int = 16 * 2**20
    """Usage events that may wait on disk while Kafka is away; the disk is reserved at the start."""
