"""What is told of counts, and of whom nothing can be told yet."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from services.optimizer.control.reporting import Reporter
from services.optimizer.stream.counting import count_outcome
from smoa.v1.events_pb2 import AdapterOutcome, TrialEffect
from smoa.v1.state_pb2 import AdapterCounts, CountsEpoch


async def test_of_a_child_in_whose_place_only_its_parents_were_asked_nothing_is_told_and_the_worker_goes_on() -> None:
    counts = AdapterCounts()
    trial = TrialEffect(parents=["p"], control=True, share=0.1)
    effect = AdapterOutcome(adapter_id="child", tenant="t", source_position=1, used=True, success=True, occurred_at_us=5, trial=trial)
    assert count_outcome(counts, effect, 1e6, 10)
    assert not counts.tenants  # nobody's decision held it
    count: Any = SimpleNamespace(
        changed={"child"},
        elsewhere=lambda _: iter([(counts, CountsEpoch(epoch="before"))]),
        counts=lambda _: counts,
        epoch_of=lambda _: CountsEpoch(epoch="e"),
        owns=lambda _: True,
    )
    client: Any = None  # nobody is asked
    await Reporter(client, count, 1.0).report()
    assert count.changed == set()
