"""The router's metrics, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.router.library import Library
from services.router.routing.router import Router
from smoa.access.audit import Audit, refusals_of
from smoa.publisher import EventPublisher

_SECONDS = tuple(round(0.00002 * 1.2**step, 7) for step in range(50))  # 20 microseconds to 150 milliseconds, each a fifth more


class RouterMetrics(Collector):
    """Counts are kept where they happen and read here; only the times of routing are kept here."""

    def __init__(self, router: Router, library: Library, publisher: EventPublisher, audit: Audit) -> None:
        self._router, self._library, self._publisher, self._audit = router, library, publisher, audit
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self.route_seconds = Histogram(
            "smoa_router_route_seconds", "A query in the handler, its decision spooled.", buckets=_SECONDS, registry=self.registry
        )

        self.dropped = Counter(
            "smoa_router_dropped_decisions", "Decisions that were given and not counted, as the spool was full.", registry=self.registry
        )

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client`."""
        copy = self._library.copy
        cache, embeddings = self._router.cache, self._router.embeddings
        gauges: list[tuple[str, str, float]] = [
            ("cache_bytes", "Bytes of cached decisions.", cache.bytes),
            ("embedding_cache_bytes", "Bytes of cached embeddings.", embeddings.bytes),
            ("sessions", "Conversations that are remembered.", len(self._router.sessions)),
            ("spooled_events", "Events that Kafka has not acknowledged.", self._publisher.waiting),
            ("pools_in_training", "Pools of the index whose successor is being trained.", self._library.search.in_training),
            ("copy_age_seconds", "How long ago the copy of the library was as the Qdrant server has it.", copy.age_s if copy else 0.0),
        ]
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"smoa_router_{name}", text, value)
        counters: list[tuple[str, str, float]] = [
            ("cache_hits", "Queries answered from the cache.", cache.hits),
            ("cache_misses", "Queries that were not.", cache.misses),
            ("joined", "Queries that waited for the same one under way.", self._router.joined),
            ("embedding_cache_hits", "Texts whose embedding was cached.", embeddings.hits),
            *refusals_of(self._audit),
        ]
        for name, text, value in counters:
            yield CounterMetricFamily(f"smoa_router_{name}", text, value)
