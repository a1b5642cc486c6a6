"""Tells the registry the counts that changed."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple

import grpc

from services.optimizer.control.library import Library
from services.optimizer.stream.count_agent import Count
from services.optimizer.stream.counting import OTHERS, decay, totals
from smoa.client import SmoaClient
from smoa.tasks import now_and_then
from smoa.v1 import registry_pb2
from smoa.v1.registry_pb2 import ReportedStatistics, ReportResult
from smoa.v1.state_pb2 import AdapterCounts, CountsEpoch

_log = logging.getLogger(__name__)
_NOT_THERE: Final = (grpc.StatusCode.NOT_FOUND.name, grpc.StatusCode.INVALID_ARGUMENT.name)
AWAY: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""The registry does not answer: try later."""
_MAX_OWNERS: Final = 100_000
AT_ONCE: Final = 200
"""Reports of one call: the registry writes them in one piece."""
MANY: Final = 1000
"""Adapters whose owners are rather read in one listing than asked for."""
_NOT_TAKEN: Final = "the registry does not take the counts of %s: %s"


def statistics_of(counts: AdapterCounts, owner: str, half_life_s: float, epoch: CountsEpoch) -> registry_pb2.AdapterStatistics:
    """What the registry shows: everybody's uses, and the owner's verdicts.

    Whoever may use a shared adapter may report any outcome of it, so another tenant's verdicts say nothing that its owner can rely on.
    """
    all_of_it = totals(counts.tenants.values(), half_life_s * 1e6)
    judged = totals([counts.tenants[owner]] if owner in counts.tenants else [], half_life_s * 1e6)
    decay(judged, all_of_it.recent_at_us, half_life_s * 1e6)
    return registry_pb2.AdapterStatistics(
        uses=all_of_it.uses,
        verdicts=judged.verdicts,
        outcomes=judged.outcomes,
        successes=judged.successes,
        generations=all_of_it.generations,
        tokens=all_of_it.tokens,
        first_token_us=all_of_it.first_token_us,
        aside_outcomes=judged.aside_outcomes,
        aside_successes=judged.aside_successes,
        recent_uses=all_of_it.recent_uses,
        recent_outcomes=max(0.0, judged.recent_outcomes),  # what was taken back may have faded by a little more
        recent_successes=max(0.0, min(judged.recent_successes, judged.recent_outcomes)),
        recent_at_us=all_of_it.recent_at_us,
        fresh_outcomes=max(0.0, judged.fresh_outcomes),
        fresh_successes=max(0.0, min(judged.fresh_successes, judged.fresh_outcomes)),
        last_used_at_us=all_of_it.last_used_at_us,
        longest_gap_us=all_of_it.longest_gap_us,
        epoch=epoch.epoch,
        counted_since_us=epoch.began_at_us,
    )


class _Told(NamedTuple):
    """A report, and whether it is of counts that go on elsewhere."""

    report: ReportedStatistics
    is_rest: bool = False


class Reporter:
    """Remembers whose adapters are that the library does not know: counts name the tenants that used one, and a shared one's owner may not
    be among them.
    """

    def __init__(self, client: SmoaClient, count: Count, half_life_s: float, library: Library) -> None:
        self._client, self._count, self._half_life_s, self._library = client, count, half_life_s, library
        self._owners: OrderedDict[str, str] = OrderedDict()

    async def report(self) -> None:
        """Report what changed since the last call, and was not told.

        Raises:
            grpc.aio.AioRpcError: the registry is away; all of it is told again by the next call.
        """
        changed, self._count.changed = self._count.changed, set()
        try:
            if len(changed) > MANY and not len(self._library):  # as after a start: one listing instead of asking for each
                await self._library.refresh()
            reports: list[_Told] = []
            for number, adapter_id in enumerate(sorted(changed)):
                await now_and_then(number)
                reports += [*await self._rests(adapter_id), *await self._own(adapter_id)]
                while len(reports) >= AT_ONCE:
                    await self._tell(reports[:AT_ONCE])
                    del reports[:AT_ONCE]
            await self._tell(reports)
        except grpc.aio.AioRpcError:
            self._count.changed |= changed
            raise

    async def _own(self, adapter_id: str) -> list[_Told]:
        """What there is to tell of an adapter that this worker counts."""
        counts, epoch = self._count.counts(adapter_id), self._count.epoch_of(adapter_id)
        if counts is None or epoch is None or not self._count.owns(adapter_id):
            return []
        if not counts.tenants:  # a child on trial in whose place only its parents were asked so far
            return []
        try:
            report = await self._report_of(adapter_id, counts, epoch)
            if OTHERS in counts.tenants:  # the owner's verdicts may be among those that share one view now: they do not fall
                known = await self._known(report)
                if report.statistics.verdicts < known.verdicts:
                    for name in ("verdicts", "outcomes", "successes", "aside_outcomes", "aside_successes"):
                        setattr(report.statistics, name, getattr(known, name))
        except grpc.aio.AioRpcError as error:
            self._raise_if_away(error)
            self._not_taken(adapter_id, error.code().name, error.details() or "")
            return []
        return [_Told(report)]

    async def _rests(self, adapter_id: str) -> list[_Told]:
        """What was counted where the adapter's key belonged before topics grew, as far as it was not told: its counts go on elsewhere."""
        found = []
        for counts, epoch in self._count.elsewhere(adapter_id):
            if not counts.tenants:
                continue
            try:
                report = await self._report_of(adapter_id, counts, epoch)
                known = await self._known(report)
            except grpc.aio.AioRpcError as error:
                self._raise_if_away(error)
                self._count.changed.add(adapter_id)
                _log.warning(_NOT_TAKEN, adapter_id, error.details())
                continue
            if any(getattr(report.statistics, name) > getattr(known, name) for name in ("uses", "verdicts", "tokens")):
                found.append(_Told(report, is_rest=True))
        return found

    async def _report_of(self, adapter_id: str, counts: AdapterCounts, epoch: CountsEpoch) -> ReportedStatistics:
        owner = await self._owner(adapter_id, counts)
        statistics = statistics_of(counts, owner, self._half_life_s, epoch)
        return ReportedStatistics(tenant=owner, adapter_id=adapter_id, statistics=statistics)

    async def _known(self, report: ReportedStatistics) -> registry_pb2.EpochCounts:
        """What the registry has of the report's epoch."""
        adapter = await self._client.get(report.adapter_id, report.tenant)
        return adapter.statistics.epochs[report.statistics.epoch]

    async def _tell(self, reports: Sequence[_Told]) -> None:
        """Those of one call. What is refused altogether is refused of each."""
        if not reports:
            return
        try:
            results = await self._client.report_statistics([one.report for one in reports])
        except grpc.aio.AioRpcError as error:
            self._raise_if_away(error)
            results = [ReportResult(code=error.code().name, message=error.details() or "")] * len(reports)
        for (report, is_rest), result in zip(reports, results, strict=True):
            if not is_rest:
                if result.code:
                    self._not_taken(report.adapter_id, result.code, result.message)
                else:
                    self._count.refused.discard(report.adapter_id)
            elif result.code:
                self._count.changed.add(report.adapter_id)
                _log.warning(_NOT_TAKEN, report.adapter_id, result.message)

    def _not_taken(self, adapter_id: str, code: str, why: str) -> None:
        if code == grpc.StatusCode.FAILED_PRECONDITION.name:
            # Another worker counts it, or this changelog went back. Told again when it changes, and not judged until it is taken.
            self._count.refused_reports += 1
            if adapter_id in self._count.refused:
                return
            self._count.refused.add(adapter_id)
        elif code not in _NOT_THERE:
            self._count.changed.add(adapter_id)
        _log.warning(_NOT_TAKEN, adapter_id, why)

    @staticmethod
    def _raise_if_away(error: grpc.aio.AioRpcError) -> None:
        if error.code() in AWAY:
            raise error

    async def _owner(self, adapter_id: str, counts: AdapterCounts) -> str:
        if owner := self._library.tenant_of(adapter_id):
            return owner
        if adapter_id not in self._owners:
            user = max(counts.tenants, key=lambda name: (counts.tenants[name].uses, name))
            self._owners[adapter_id] = (await self._client.get(adapter_id, user)).tenant
            if len(self._owners) > _MAX_OWNERS:
                self._owners.popitem(last=False)
        return self._owners[adapter_id]
