"""What is kept of an adapter's counts once it was purged: it may be restored with its file, and its counts only rise."""

from __future__ import annotations

from services.optimizer.stream.counting import add_sums
from smoa.v1.state_pb2 import AdapterCounts


def sums_alone(counts: AdapterCounts) -> AdapterCounts:
    """What was counted in all, by tenant. Which events it was is not kept: none of them can come any more."""
    kept = AdapterCounts()
    for name, tally in counts.tenants.items():
        add_sums(kept.tenants[name], tally)
    return kept
