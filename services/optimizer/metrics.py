"""The optimizer's metrics, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.optimizer.stream.count_agent import Count
from services.optimizer.stream.join_agent import Join


class OptimizerMetrics(Collector):
    """Counts are kept where they happen and read here."""

    def __init__(self, join: Join, count: Count) -> None:
        self._join, self._count = join, count
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client`."""
        lag = GaugeMetricFamily(
            "smoa_optimizer_lag_messages", "Messages of this worker's partitions that are not done, as of the last fetch.", labels=["topic"]
        )
        done = CounterMetricFamily("smoa_optimizer_events", "Events done.", labels=["stage"])
        letters = CounterMetricFamily("smoa_optimizer_dead_letters", "Events put aside.", labels=["stage"])
        again = CounterMetricFamily(
            "smoa_optimizer_batches_begun_again", "Batches that Kafka or a change of owners broke.", labels=["stage"]
        )
        for name, stage in (("join", self._join), ("count", self._count)):
            for topic, messages in stage.lag().items():
                lag.add_metric([topic], messages)
            done.add_metric([name], stage.done_events)
            letters.add_metric([name], stage.dead_letters)
            again.add_metric([name], stage.begun_again)
        refused = CounterMetricFamily(
            "smoa_optimizer_refused_reports", "Counts that the registry did not take, for it had more of the same epoch."
        )
        refused.add_metric([], self._count.refused_reports)
        yield from (lag, done, letters, again, refused)
        joins, counts = list(self._join.parts.values()), list(self._count.parts.values())
        gauges: list[tuple[str, str, float]] = [
            ("open_decisions", "Decisions that an outcome may still come for.", sum(map(len, joins))),
            ("open_decision_bytes", "Memory of them.", sum(part.held_bytes for part in joins)),
            ("adapters", "Adapters whose counts this worker keeps.", sum(map(len, counts))),
            ("example_bytes", "Memory of examples.", sum(part.examples.held_bytes for part in counts)),
        ]
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"smoa_optimizer_{name}", text, value)
