"""The page of metrics, from the services' collectors."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from docs.generate.markdown import NOTE, SERVICES, table


class _Nothing:
    """Stands where a running service would be: each of its attributes, calls and items is nothing again, and counts as 0.

    So that a collector can be asked what it would show without a service behind it.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: object, **__: object) -> Any:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __float__(self) -> float:
        return 0.0

    def __truediv__(self, _: object) -> float:
        return 0.0

    def __getitem__(self, _: object) -> Any:
        return self


def metrics_page() -> str:
    """What each service shows Prometheus."""
    parts = [
        NOTE,
        "# Metrics",
        "Each service answers `GET /metrics` at its `SMOA_<SERVICE>_METRICS_ADDRESS` (`host:port`; empty, the default, means not at all). "
        "[Runbooks](../operations/runbooks.md) say which of them to watch and what to do.\n",
    ]
    for service in SERVICES:
        rows = [
            (f"`{name}`", metric.type, ", ".join(f"`{label}`" for label in labels), metric.documentation)
            for metric in metrics_of(service)
            for name, labels in [_exposed(metric)]
        ]
        parts += [f"## {service.capitalize()}", table(("metric", "type", "labels", "meaning"), rows)]
    return "\n".join(parts)


def metrics_of(service: str) -> list[Metric]:
    """The metrics of a service's collector, by name."""
    module = importlib.import_module(f"services.{service}.metrics")
    mine = [one for one in vars(module).values() if inspect.isclass(one) and one.__module__ == module.__name__]
    classes = [one for one in mine if Collector in one.__mro__]
    found: dict[str, Metric] = {}
    for cls in classes:
        collector: Any = cls(*(_Nothing() for _ in inspect.signature(cls).parameters))
        found |= {metric.name: metric for metric in collector.registry.collect()}
    return [found[name] for name in sorted(found)]


def exposed_names(service: str) -> set[str]:
    """The names under which Prometheus knows a service's metrics, those of a histogram's parts too."""
    found = set()
    for metric in metrics_of(service):
        name, _ = _exposed(metric)
        found |= {name, *(f"{name}_{part}" for part in ("bucket", "count", "sum") if metric.type == "histogram")}
    return found


def _exposed(metric: Metric) -> tuple[str, tuple[str, ...]]:
    name = metric.name + ("_total" if metric.type == "counter" else "")
    return name, tuple(getattr(metric, "_labelnames", ()))
