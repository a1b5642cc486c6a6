"""What is told of counts, and of whom nothing can be told yet."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from services.optimizer.control.library import Library
from services.optimizer.control.reporting import AT_ONCE, Reporter
from services.optimizer.stream.counting import count_outcome
from smoa.v1 import registry_pb2
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
    await Reporter(client, count, 1.0, Library(client, 1.0)).report()
    assert count.changed == set()


class _Client:
    """Refuses what it is told to."""

    def __init__(self, codes: dict[str, str], *, away: bool = False) -> None:
        self._codes, self._away = codes, away
        self.calls: list[list[str]] = []

    async def get(self, adapter_id: str, tenant: str) -> registry_pb2.Adapter:
        return registry_pb2.Adapter(adapter_id=adapter_id, tenant=tenant)

    async def report_statistics(self, reports: list[registry_pb2.ReportedStatistics]) -> list[registry_pb2.ReportResult]:
        if self._away and self.calls:
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
        self.calls.append([one.adapter_id for one in reports])
        assert {one.tenant for one in reports} == {"t"}
        return [registry_pb2.ReportResult(code=self._codes.get(one.adapter_id, "")) for one in reports]


def _counted(names: list[str]) -> Any:
    counts = AdapterCounts()
    assert count_outcome(counts, AdapterOutcome(tenant="t", source_position=1, used=True, occurred_at_us=5), 1e6, 10)
    return SimpleNamespace(
        changed={*names},
        refused={"gone"},
        refused_reports=0,
        elsewhere=lambda _: iter([]),
        counts=lambda _: counts,
        epoch_of=lambda _: CountsEpoch(epoch="e"),
        owns=lambda _: True,
    )


async def test_many_are_told_together_and_what_is_refused_of_one_is_its_own() -> None:
    names = [f"{number:04d}" for number in range(AT_ONCE + 10)]
    client: Any = _Client({"0001": "FAILED_PRECONDITION", "0002": "NOT_FOUND", "0003": "RESOURCE_EXHAUSTED"})
    count = _counted([*names, "gone"])
    await Reporter(client, count, 1.0, Library(client, 1.0)).report()
    assert client.calls == [names[:AT_ONCE], [*names[AT_ONCE:], "gone"]]
    assert (count.refused, count.refused_reports, count.changed) == ({"0001"}, 1, {"0003"})


async def test_what_was_not_told_for_the_registry_is_away_is_told_again() -> None:
    names = [f"{number:04d}" for number in range(AT_ONCE + 10)]
    client: Any = _Client({}, away=True)
    count = _counted(names)
    with pytest.raises(grpc.aio.AioRpcError):
        await Reporter(client, count, 1.0, Library(client, 1.0)).report()
    assert count.changed == {*names}


async def test_what_is_refused_altogether_stops_nothing() -> None:
    class Refusing(_Client):
        async def report_statistics(self, reports: list[registry_pb2.ReportedStatistics]) -> list[registry_pb2.ReportResult]:
            if not self.calls:
                self.calls.append([])
                raise grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), grpc.aio.Metadata())
            return await super().report_statistics(reports)

    names = [f"{number:04d}" for number in range(AT_ONCE + 10)]
    client: Any = Refusing({})
    count = _counted(names)
    await Reporter(client, count, 1.0, Library(client, 1.0)).report()
    assert client.calls == [[], names[AT_ONCE:]]
    assert count.changed == {*names[:AT_ONCE]}


async def test_what_stands_elsewhere_says_nothing_of_the_adapters_own_counts() -> None:
    client: Any = _Client({})
    count = _counted(["moved"])
    count.refused = {"moved"}
    count.elsewhere = lambda _: iter([(count.counts("moved"), CountsEpoch(epoch="before"))])
    count.owns = lambda _: False
    await Reporter(client, count, 1.0, Library(client, 1.0)).report()
    assert (client.calls, count.refused, count.changed) == ([["moved"]], {"moved"}, set())
