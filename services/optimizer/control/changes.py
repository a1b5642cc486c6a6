"""The change controller: what the policy proposes becomes a record, and each record is carried on from wherever it stands.

`proposed -> gated -> trial -> done | undone | refused`. The registry keeps the records (`ChangeService`), so a worker that ends, or loses
its partitions, leaves nothing half done: whoever owns the change's first adapter next goes on. Every act may be repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final, NamedTuple

import grpc

from services.optimizer.control.caution import Caution
from services.optimizer.control.making import ChildMaker
from services.optimizer.control.reasons import PRUNED
from services.optimizer.control.reporting import AWAY
from services.optimizer.policy.library_policy import AdapterView
from services.optimizer.policy.modes import goes_on
from smoa.client import SmoaClient
from smoa.errors import SmoaError, Unavailable
from smoa.v1 import changes_pb2 as changes
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from smoa.v1.changes_pb2 import PlannedChange

_log = logging.getLogger(__name__)
OPEN: Final = (changes.CHANGE_STATE_PROPOSED, changes.CHANGE_STATE_GATED)
REMEMBERED: Final = (changes.CHANGE_STATE_REFUSED, changes.CHANGE_STATE_UNDONE)
LEAST_SHARE: Final = 0.1
"""Of the older version's queries that a younger one gets on trial, where merges go live without any."""
WORST: Final = "worst_parent"
"""In a refusal's evidence: the place, among the change's adapters, of the parent for which the child was too bad."""
_GONE: Final = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)


class Proposal(NamedTuple):
    """A change that the numbers ask for."""

    kind: changes.ChangeKind
    tenant: str
    adapter_ids: tuple[str, ...]
    reason: str
    evidence: Mapping[str, float]
    merge_id: str = ""
    since_us: int = 0
    """What was refused before is proposed again: of an adapter that came back, since when it is judged anew."""

    @property
    def key(self) -> str:
        """The same of its record."""
        return _key(self.kind, self.adapter_ids, self.merge_id)


def _key(kind: changes.ChangeKind, adapter_ids: Sequence[str], merge_id: str) -> str:
    return f"{kind} {merge_id or ' '.join(adapter_ids)}"


@dataclass
class PassReport:
    """What a pass did."""

    proposed: list[PlannedChange] = field(default_factory=list)
    """What is open, and this worker's."""
    pruned: list[AdapterView] = field(default_factory=list)
    merged: list[tuple[AdapterView, ...]] = field(default_factory=list)
    tried: list[tuple[str, str]] = field(default_factory=list)
    """Versions on trial: ids of the younger and the older."""
    purged: list[str] = field(default_factory=list)
    """Ids."""
    archived: int = 0
    """Files."""
    refused: list[str] = field(default_factory=list)
    waiting: int = 0
    """Changes that wait for a person."""
    put_off: int = 0
    """Changes that the hour had no room for, or merges that nobody could try."""
    executor_away: bool = False
    """It did not try a merge's child: the others wait for the next pass."""

    def refuse(self, reason: str, *, again: bool = True) -> None:
        """Something was not applied."""
        _log.warning("not applied%s: %s", ", will be proposed again" if again else "", reason)
        self.refused.append(reason)


@dataclass(frozen=True)
class Known:
    """The records as a pass finds them."""

    open: Mapping[str, PlannedChange]
    """By key."""
    refused_at_us: Mapping[str, int]
    """By key: when what was refused or undone was proposed last."""
    rejected: frozenset[tuple[str, str]]
    """Pairs of ids no two of which are merged in whatever group: a merge of them was undone, or refused."""
    tried: frozenset[tuple[str, str]] = frozenset()
    """Pairs of ids, lower and higher, of which the younger is not tried against the older: it was, or a merge of them was rejected."""


class Changes:
    """Reads the records, and carries them on."""

    def __init__(self, client: SmoaClient, caution: Caution, maker: ChildMaker, began: Callable[[registry_pb2.Adapter], None]) -> None:
        """`began` is told of each child that went on trial."""
        self._client, self._caution, self._maker, self._began = client, caution, maker, began

    async def known(self) -> Known:
        """All that is open or was rejected, of every tenant."""
        found, refused_at_us, rejected, tried = dict[str, PlannedChange](), dict[str, int](), set[tuple[str, str]](), set[tuple[str, str]]()
        async for one in self._client.list_changes(states=(*OPEN, *REMEMBERED), all_tenants=True):
            key = _key(one.kind, one.adapter_ids, one.merge_id)
            if one.state in OPEN:
                found[key] = one
                continue
            refused_at_us[key] = max(one.created_at_us, refused_at_us.get(key, 0))
            if one.kind == changes.CHANGE_KIND_MERGE:
                rejected.update(_rejected(one))
            elif one.kind == changes.CHANGE_KIND_SUPERSEDE:
                tried.update(_rejected(one))
        return Known(found, refused_at_us, frozenset(rejected), frozenset(tried | rejected))

    async def carry_on(
        self,
        proposals: Sequence[Proposal],
        known: Known,
        views: Mapping[str, AdapterView],
        owns: Callable[[str], bool],
        ages_s: Mapping[str, float],
        report: PassReport,
    ) -> None:
        """Write down what is proposed, and carry on what is open; of both, what this worker owns.

        Args:
            proposals: In the order in which they are to be carried out.
            known: The records.
            views: The active adapters, by id.
            owns: Whether an adapter's counts are this worker's.
            ages_s: How long each tenant's library is there.
            report: Is told what was done.
        """
        wanted = set[str]()
        for proposal in proposals:
            if owns(proposal.adapter_ids[0]) and known.refused_at_us.get(proposal.key, -1) < proposal.since_us:
                wanted.add(proposal.key)
                if (change := known.open.get(proposal.key) or await self._proposed(proposal, report)) is not None:
                    await self._carry(change, views, ages_s, report)
        for key, change in known.open.items():
            if key not in wanted and owns(change.adapter_ids[0]):
                await self._left(change, views, ages_s, report)

    async def _proposed(self, proposal: Proposal, report: PassReport) -> PlannedChange | None:
        """Its record; None of one that was refused, or undone, or is on trial."""
        try:
            change = await self._client.propose_change(
                proposal.tenant, proposal.kind, proposal.adapter_ids, proposal.reason, proposal.evidence, proposal.merge_id
            )
        except grpc.aio.AioRpcError as error:
            self._failed(f"propose {proposal.key}", error, report)
            return None
        if len(change.steps) == 1 and change.state == changes.CHANGE_STATE_PROPOSED:
            _log.info("proposed: %s %s: %s", _word(change), " + ".join(change.adapter_ids), proposal.reason)
        return change if change.state in OPEN else None

    async def _left(self, change: PlannedChange, views: Mapping[str, AdapterView], ages_s: Mapping[str, float], report: PassReport) -> None:
        """Of a change that the numbers do not ask for now: a person's yes stands, what has begun is finished, and the rest is withdrawn."""
        there = [views[one] for one in change.adapter_ids if one in views]
        whole = len(there) == len(change.adapter_ids)
        if whole and any(one.frozen for one in there):
            return  # it is as it was when the freeze is over
        free = whole and not any(one.protected for one in there)
        if change.approved or change.begun_at_us:
            if free and change.kind != changes.CHANGE_KIND_PURGE:
                await self._carry(change, views, ages_s, report)
                return
            if change.begun_at_us and await self._was_done(change, report):
                return
            if whole:
                return  # it is protected for now
        await self._withdraw(change, "the numbers do not ask for it any more" if free else "its adapters are not as they were", report)

    async def _carry(
        self, change: PlannedChange, views: Mapping[str, AdapterView], ages_s: Mapping[str, float], report: PassReport
    ) -> None:
        report.proposed.append(change)
        age_s = ages_s.get(change.tenant, 0.0)
        caution = self._caution
        if not goes_on(caution.mode, approved=change.approved, library_age_s=age_s, observe_first_s=caution.observe_first_s):
            report.waiting += 1
            return
        merges = change.kind == changes.CHANGE_KIND_MERGE
        if merges and report.executor_away:
            report.put_off += 1
            return
        try:
            change = await self._client.begin_change(change.tenant, change.change_id, caution.changes_per_hour)
            _log.info("%s %s: %s", _word(change), " + ".join(change.adapter_ids), change.steps[0].reason)
            if merges:
                await self._merge(change, tuple(views[one] for one in change.adapter_ids), report)
            elif change.kind == changes.CHANGE_KIND_PRUNE:
                await self._prune(change)
                report.pruned.append(views[change.adapter_ids[0]])
            elif change.kind == changes.CHANGE_KIND_SUPERSEDE:
                await self._try(change, report)
            else:
                await self._client.purge(change.tenant, change.adapter_ids[0])
                report.purged.append(change.adapter_ids[0])
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                report.put_off += 1
            else:
                self._failed(f"{_word(change)} {' + '.join(change.adapter_ids)}", error, report)
        except SmoaError as error:
            report.refuse(f"{_word(change)} {' + '.join(change.adapter_ids)}: {error}")

    async def _prune(self, change: PlannedChange) -> None:
        why = change.steps[0]
        await self._client.retire(change.tenant, change.adapter_ids[0], f"{PRUNED}{why.reason}", why.evidence)

    async def _try(self, change: PlannedChange, report: PassReport) -> None:
        younger, older = change.adapter_ids
        why = change.steps[0]
        try:
            share = self._caution.canary_share or LEAST_SHARE
            made = await self._client.try_version(change.tenant, younger, older, why.reason, share, why.evidence)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
            await self._refuse(change, error.details() or "", {}, report)
            return
        self._began(made)
        report.tried.append((younger, older))

    async def _merge(self, change: PlannedChange, parents: tuple[AdapterView, ...], report: PassReport) -> None:
        if change.state == changes.CHANGE_STATE_PROPOSED:
            gated = await self._gated(change, parents, report)
            if gated is None:
                return
            change = gated
        try:
            made = await self._applied(change)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND):  # its file is gone, or not good enough
                await self._withdraw(change, f"its child is not taken: {error.details()}", report)
            raise
        if made.state == common.ADAPTER_STATE_CANARY:
            self._began(made)
        report.merged.append(parents)

    async def _applied(self, change: PlannedChange) -> registry_pb2.Adapter:
        gate = change.steps[-1]
        lost = f"; {gate.evidence['error']:.2%} of the wanted change lost" if gate.evidence["error"] else ""
        reason, evidence = f"{change.steps[0].reason}{lost}", {**change.steps[0].evidence, **gate.evidence}
        share = self._caution.canary_share
        parents, digest = change.adapter_ids, change.child_digest
        return await self._client.apply_merge(change.tenant, change.merge_id, digest, parents, reason, share, evidence)

    async def _gated(self, change: PlannedChange, parents: Sequence[AdapterView], report: PassReport) -> PlannedChange | None:
        """The record of a merge whose child passed the gate; None where it did not, or nobody could try it."""
        try:
            made = await self._maker.made(parents, change.merge_id, report.refuse)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                report.executor_away = True
                raise
            await self._refuse(change, f"the executor cannot take such a child: {error.details()}", {}, report)
            return None
        except Unavailable:
            report.executor_away = True
            raise
        if made is None:
            return None
        evidence = {**made.finding.evidence, "error": made.error}
        if refusal := made.finding.refusal(self._caution.gate_max_loss):
            await self._maker.forget(made.digest)
            evidence[WORST] = float(list(change.adapter_ids).index(made.finding.worst[0]))
            await self._refuse(change, refusal, evidence, report)
            return None
        passed = changes.CHANGE_STATE_GATED
        return await self._client.advance_change(change.tenant, change.change_id, passed, "passed the gate", evidence, made.digest)

    async def _refuse(self, change: PlannedChange, reason: str, evidence: Mapping[str, float], report: PassReport) -> None:
        await self._client.advance_change(change.tenant, change.change_id, changes.CHANGE_STATE_REFUSED, reason, evidence)
        report.refuse(f"{_word(change)} {change.merge_id}: {reason}", again=False)

    async def _was_done(self, change: PlannedChange, report: PassReport) -> bool:
        """Whether a change had been carried out when whoever did it ended: the registry writes it down when it is asked again."""
        try:
            if change.kind == changes.CHANGE_KIND_MERGE:
                if change.state != changes.CHANGE_STATE_GATED:
                    return False
                await self._applied(change)
                return True
            adapter = await self._client.get(change.adapter_ids[0], change.tenant)
            if change.kind == changes.CHANGE_KIND_SUPERSEDE:
                if on_trial := adapter.state == common.ADAPTER_STATE_CANARY:
                    await self._try(change, report)
                return on_trial
            if change.kind == changes.CHANGE_KIND_PURGE and adapter.state == common.ADAPTER_STATE_PURGED:
                await self._client.purge(change.tenant, adapter.adapter_id)
                return True
            if adapter.state == common.ADAPTER_STATE_RETIRED and adapter.state_reason.startswith(PRUNED):
                await self._prune(change)
                return True
        except grpc.aio.AioRpcError as error:
            if error.code() not in _GONE:
                self._failed(_word(change), error, report)
                return True  # nobody knows: the next pass asks again
        return False

    async def _withdraw(self, change: PlannedChange, reason: str, report: PassReport) -> None:
        try:
            await self._client.advance_change(change.tenant, change.change_id, changes.CHANGE_STATE_WITHDRAWN, reason)
        except grpc.aio.AioRpcError as error:
            self._failed(f"withdraw {change.change_id}", error, report)
            return
        if change.child_digest:
            await self._maker.forget(change.child_digest)

    def _failed(self, what: str, error: grpc.aio.AioRpcError, report: PassReport) -> None:
        """Of one change: the others go on, unless the registry is away.

        Raises:
            grpc.aio.AioRpcError: it is.
        """
        if error.code() in AWAY and not report.executor_away:
            raise error
        report.refuse(f"{what}: {error.details()}")


def _rejected(change: PlannedChange) -> set[tuple[str, str]]:
    """Pairs that are not tried again: with the parent that the gate found the child too bad for, or any two."""
    evidence = change.steps[-1].evidence
    if change.state == changes.CHANGE_STATE_REFUSED and WORST in evidence:
        worst = change.adapter_ids[int(evidence[WORST])]
        return {(min(worst, one), max(worst, one)) for one in change.adapter_ids if one != worst}
    return set(combinations(sorted(change.adapter_ids), 2))


def _word(change: PlannedChange) -> str:
    return changes.ChangeKind.Name(change.kind).removeprefix("CHANGE_KIND_").lower()
