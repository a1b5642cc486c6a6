"""The executor's metrics: what `GetStatus` shows, as Prometheus reads it, and how long requests waited."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.executor.engine.port import EngineState, GenerationUsage
from smoa.access.audit import Audit, refusals_of

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class ExecutorMetrics(Collector):
    """Counts are kept where they happen and read here; only the times of requests are kept here."""

    def __init__(self, state: Callable[[], EngineState], audit: Audit) -> None:
        self._state, self._audit = state, audit
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self._queue = Histogram(
            "smoa_executor_queue_seconds", "From a request's arrival to its row.", buckets=_SECONDS, registry=self.registry
        )
        self._first_token = Histogram(
            "smoa_executor_first_token_seconds", "From a request's arrival to its first token.", buckets=_SECONDS, registry=self.registry
        )

        self._lost_events = Counter(
            "smoa_executor_lost_events", "Usage events of finished requests that could not be written to disk.", registry=self.registry
        )

    def lost(self, events: int) -> None:
        """Take in that events could not be written."""
        self._lost_events.inc(events)

    def finished(self, usage: GenerationUsage) -> None:
        """Take in a finished request."""
        self._queue.observe(usage.queue_us / 1e6)
        self._first_token.observe(usage.first_token_us / 1e6)

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client`."""
        state = self._state()
        gauges: list[tuple[str, str, float]] = [
            ("running", "Requests in a row of the batch.", state.running),
            ("queued", "Requests that wait for a row.", state.waiting),
            ("residents", "Adapters in device slots.", state.slots_used),
            ("slots", "Device slots.", state.slots),
            ("slot_bytes", "Bytes of adapters in device slots.", state.slot_bytes),
            ("host_bytes", "Bytes of adapters in host memory.", state.host_bytes),
            ("cache_blocks", "Blocks of the key/value cache.", state.cache_blocks),
            ("cache_blocks_free", "Blocks that nobody holds.", state.cache_blocks_free),
        ]
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"smoa_executor_{name}", text, value)
        counters: list[tuple[str, str, float]] = [
            ("steps", "Steps of the model.", state.steps),
            ("step_tokens", "Tokens in those steps, of prompts and of answers.", state.step_tokens),
            ("prefix_lookups", "Prompt blocks looked up in the cache.", state.prefix_lookups),
            ("prefix_hits", "Prompt blocks found there.", state.prefix_hits),
            ("preemptions", "Requests that gave up their blocks of the cache for others, to compute them again.", state.preemptions),
            ("adapter_loads", "Adapters read from the store.", state.store_loads),
            ("adapter_load_seconds", "What reading them took.", state.store_load_us / 1e6),
            *refusals_of(self._audit),
        ]
        for name, text, value in counters:
            yield CounterMetricFamily(f"smoa_executor_{name}", text, value)
        hits = CounterMetricFamily("smoa_executor_adapter_hits", "Adapters of requests, by the tier that had them.", labels=["tier"])
        for tier, value in (("slot", state.adapter_hits), ("host", state.host_hits), ("store", state.store_loads)):
            hits.add_metric([tier], value)
        yield hits
        evictions = CounterMetricFamily("smoa_executor_adapter_evictions", "Adapters that made room for others.", labels=["tier"])
        for tier, value in (("slot", state.slot_evictions), ("host", state.host_evictions)):
            evictions.add_metric([tier], value)
        yield evictions
