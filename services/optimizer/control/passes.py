"""One pass: read the library, propose, log every proposal with its numbers, apply through the registry."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations

import grpc

from services.optimizer.control.gate import Finding, Gate, alone
from services.optimizer.control.likeness import Likeness
from services.optimizer.control.reasons import MERGED, PRUNED, ROLLED_BACK
from services.optimizer.control.reporting import AWAY
from services.optimizer.control.views import lifetime_of, protection_of, stratum_of, view_of
from services.optimizer.policy.incidents import Scope, incidents
from services.optimizer.policy.library_policy import AdapterView, HourlyRoom, Merge, Prune, Rules, merges, prunes
from services.optimizer.policy.merging import Child, child_of, merged
from services.optimizer.policy.trial import NOTHING, Arm, TrialRules, judge
from smoa.adapter import Adapter, encode
from smoa.client import SmoaClient
from smoa.errors import SmoaError
from smoa.store import AdapterStore
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from smoa.v1.state_pb2 import AdapterCounts

_log = logging.getLogger(__name__)


@dataclass
class PassReport:
    """What a pass did."""

    pruned: list[Prune] = field(default_factory=list)
    merged: list[Merge] = field(default_factory=list)
    purged: list[str] = field(default_factory=list)
    """Ids."""
    refused: list[str] = field(default_factory=list)
    put_off: int = 0
    """Changes that the hour had no room for, or merges that nobody could try."""
    executor_away: bool = False
    """It did not try a merge's child: the others wait for the next pass."""


@dataclass(frozen=True, kw_only=True)
class Caution:
    """How a change goes live."""

    canary_share: float = 0.0
    """Of its parents' queries, the share that a merge's child answers while it is on trial; 0 replaces the parents at once."""
    trial: TrialRules = field(default_factory=TrialRules)
    changes_per_hour: int = 100
    """Of each tenant."""
    gate_max_loss: float = 0.1
    """Nats a token that a child may lose on its parents' right answers."""
    purge_after_s: float = 0.0
    """How long the weights of what was pruned or merged away are kept; 0: for ever. What people retired is theirs to purge."""


class Optimizer:
    """Applies the policy. `counted_since` says since when (microseconds) this worker counts all of an adapter's uses and outcomes; None if
    another worker does, which decides about it then: so workers share the library without talking.
    """

    def __init__(
        self,
        client: SmoaClient,
        store: AdapterStore,
        rules: Rules,
        counted_since: Callable[[str], int | None],
        dry_run: bool,
        max_family: int,
        merge: Callable[[Sequence[Adapter], Sequence[float], str], Child] = merged,
        caution: Caution | None = None,
        gate: Gate | None = None,
        sign: Callable[[Adapter], Adapter] = lambda adapter: adapter,
        counts: Callable[[str], AdapterCounts | None] = lambda _: None,
    ) -> None:
        """`counts` are an adapter's, as this worker has them."""
        self._client, self._store, self._rules, self._counted_since = client, store, rules, counted_since
        self._dry_run, self._merge = dry_run, merge
        self._likeness = Likeness(store, rules.min_cosine, max_family)
        self._caution, self._gate, self._sign, self._counts = caution or Caution(), gate, sign, counts
        self._open: dict[str, str] = {}
        """Tenants of the canaries on trial that this worker judges, by the child's id."""
        self._originals: dict[str, Arm] = {}
        """By the parent: they are looked at every second, and those adapters are retired. Until the next pass."""
        self._rejected: set[tuple[str, str]] | None = None
        """Pairs of parents, by id, whose merge was rolled back: not tried again. Until the first pass nobody has looked which those are."""
        self._incidents: dict[Scope, float] = {}
        """When each was seen last."""
        self._incident_now: set[Scope] = set()
        self.incident_tenants: frozenset[str] = frozenset()
        """Tenants of whose answers so much fails now that what is said of them is set aside."""
        self._room = HourlyRoom(self._caution.changes_per_hour)

    async def run_pass(self) -> PassReport:
        """Merge, then prune among the rest: two near-duplicates share their uses, and each alone may look unneeded."""
        report = PassReport()
        if self._rejected is None:
            self._rejected = await self._look_back()
        states = (common.ADAPTER_STATE_ACTIVE, common.ADAPTER_STATE_CANARY)
        listed = [adapter async for adapter in self._client.list_all(states=states, all_tenants=True)]
        canaries = [adapter for adapter in listed if adapter.state == common.ADAPTER_STATE_CANARY]
        self._originals = {}
        self._open = {canary.adapter_id: canary.tenant for canary in canaries if self._owns(canary.adapter_id)}
        on_trial = {parent for canary in canaries for parent in canary.parents}
        active = [adapter for adapter in listed if adapter.state == common.ADAPTER_STATE_ACTIVE]
        composed = await self._composed({adapter.tenant for adapter in active})
        library = self._without_incidents([self._view(adapter, on_trial, composed) for adapter in active])
        try:
            await self._change(library, report)
        finally:
            self._likeness.forget_files()
        if self._caution.purge_after_s > 0:
            await self._purge(report)
        verb = "would have applied" if self._dry_run else "applied"
        _log.info(
            "pass over %d adapters %s %d prunes, %d merges and %d purges, %d refused, %d put off",
            len(library),
            verb,
            len(report.pruned),
            len(report.merged),
            len(report.purged),
            len(report.refused),
            report.put_off,
        )
        return report

    def _view(self, adapter: registry_pb2.Adapter, on_trial: Container[str], composed: Container[str]) -> AdapterView:
        since_us, now_us = self._counted_since(adapter.adapter_id), time.time_ns() // 1000
        if adapter.statistics.epoch:  # as the registry was told last, by this worker or by whose it is
            since_us = max(since_us or 0, adapter.statistics.counted_since_us)
        protected = protection_of(adapter, on_trial, composed, since_us, self._rules.window_s, now_us)
        return view_of(adapter, protected, self._rules.half_life_s, now_us)

    def _without_incidents(self, library: Sequence[AdapterView]) -> list[AdapterView]:
        """The same, with all that an incident is of protected; and for a while after it, as what failed then is still in the counts."""
        now_s, found = time.monotonic(), incidents(library, self._rules)
        for scope, why in found.items():
            if scope not in self._incidents:
                _log.warning("%s", why)
            self._incidents[scope] = now_s
        for scope, seen_s in list(self._incidents.items()):
            if now_s - seen_s > self._rules.half_life_s:
                del self._incidents[scope]
        self._incident_now = set(found)
        self.incident_tenants = frozenset(view.tenant for view in library if any(scope.holds(view) for scope in found))

        def protected(view: AdapterView) -> AdapterView:
            of_it = [scope for scope in self._incidents if scope.holds(view)]
            if view.protected or not of_it:
                return view
            return dataclasses.replace(view, protected=found.get(of_it[0], f"an incident of its {of_it[0].kind} was not long ago"))

        return [protected(view) for view in library] if self._incidents else list(library)

    def _owns(self, adapter_id: str) -> bool:
        return self._counted_since(adapter_id) is not None

    @property
    def has_trials(self) -> bool:
        """Whether merges on trial are known that this worker judges."""
        return bool(self._open)

    async def judge(self) -> list[str]:
        """Look at the canaries on trial, and end the trials that can be; returns what was done, for the log."""
        done = []
        for child_id, tenant in list(self._open.items()):
            try:
                said = await self._judge_one(tenant, child_id)
            except grpc.aio.AioRpcError as error:
                if error.code() in AWAY:
                    raise
                _log.warning("canary %s: %s", child_id, error.details())
                said = "gone" if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION) else ""
            if said:
                del self._open[child_id]
                done.append(said)
        return done

    async def _judge_one(self, tenant: str, child_id: str) -> str:
        """What was done, or nothing."""
        child = await self._client.get(child_id, tenant)
        if child.state != common.ADAPTER_STATE_CANARY:
            return "settled by another"
        parents = [await self._client.get(parent, tenant) for parent in child.parents]
        counts = self._counts(child_id)
        strata = {
            parent.adapter_id: stratum_of(counts, parent, child.canary_baseline[parent.adapter_id], await self._original(parent))
            for parent in parents
        }
        # If counts were lost, the trial is as old as what is known of it.
        began_us = max(child.created_at_us, child.statistics.counted_since_us, *(one.statistics.counted_since_us for one in parents))
        judgement, evidence, reason = judge(strata, time.time() - began_us / 1e6, self._caution.trial)
        scopes = {Scope("tenant", tenant), Scope("base model", child.base_model)}
        if judgement == "wait" or (judgement == "promote" and scopes & self._incident_now):
            return ""
        _log.info("canary %s: %s: %s", child_id, judgement, reason)
        await self._client.settle_merge(tenant, child_id, promote=judgement == "promote", reason=reason, evidence=evidence)
        if judgement == "roll back":
            self._reject(child.parents)
        return f"{judgement} {child_id}: {reason}"

    async def _original(self, parent: registry_pb2.Adapter) -> Arm:
        """All outcomes of what a parent was merged from, over all generations; none of one that was not."""
        if not parent.merge_id:
            return NOTHING
        if parent.adapter_id in self._originals:
            return self._originals[parent.adapter_id]
        known, wanted, outcomes, successes = set[str](), list(parent.parents), 0, 0
        while wanted:
            if (name := wanted.pop()) in known:
                continue
            known.add(name)
            one = await self._client.get(name, parent.tenant)
            if one.merge_id:
                wanted += one.parents
            else:
                arm = lifetime_of(one.statistics)
                outcomes, successes = outcomes + arm.outcomes, successes + arm.successes
        self._originals[parent.adapter_id] = found = Arm(outcomes, successes)
        return found

    async def _composed(self, tenants: Iterable[str]) -> set[str]:
        """Ids of adapters that compositions name."""
        found: set[str] = set()
        for tenant in tenants:
            async for composition in self._client.list_compositions(tenant):
                found.update(composition.adapter_ids)
        return found

    async def _change(self, library: Sequence[AdapterView], report: PassReport) -> None:
        likeness = await self._likeness.cosines(library, self._rejected or (), partial(self._refuse, report))
        proposed = await asyncio.to_thread(merges, library, likeness, self._rules)
        for merge in proposed:
            if not self._owns(merge.adapters[0].adapter_id):
                continue
            if report.executor_away:
                report.put_off += 1
            elif self._has_room(merge.adapters[0].tenant, report) and not await self._apply_merge(merge, report):
                self._room.give_back(merge.adapters[0].tenant)
        merging = {view.adapter_id for merge in proposed for view in merge.adapters}
        for prune in prunes(library, self._rules):
            mine = prune.adapter.adapter_id not in merging and self._owns(prune.adapter.adapter_id)
            if mine and self._has_room(prune.adapter.tenant, report) and not await self._apply_prune(prune, report):
                self._room.give_back(prune.adapter.tenant)

    async def _purge(self, report: PassReport) -> None:
        """Delete the weights of what this optimizer took away long ago."""
        listed = self._client.list_all(states=[common.ADAPTER_STATE_RETIRED], all_tenants=True)
        before_us = int((time.time() - self._caution.purge_after_s) * 1e6)
        gone = [one async for one in listed if one.state_reason.startswith((PRUNED, MERGED, ROLLED_BACK)) and one.updated_at_us < before_us]
        for adapter in gone:
            if self._owns(adapter.adapter_id) and not adapter.pinned and self._has_room(adapter.tenant, report):
                _log.info("%spurge %s %s: %s", "dry run: " if self._dry_run else "", adapter.name, adapter.adapter_id, adapter.state_reason)
                if not self._dry_run:
                    try:
                        await self._client.purge(adapter.tenant, adapter.adapter_id)
                    except grpc.aio.AioRpcError as error:
                        self._refuse(report, f"purge {adapter.adapter_id}: {error.details()}")
                        self._room.give_back(adapter.tenant)
                        continue
                report.purged.append(adapter.adapter_id)

    async def _apply_prune(self, prune: Prune, report: PassReport) -> bool:
        adapter = prune.adapter
        _log.info("%sprune %s %s: %s", "dry run: " if self._dry_run else "", adapter.name, adapter.adapter_id, prune.reason)
        if not self._dry_run:
            try:
                await self._client.retire(adapter.tenant, adapter.adapter_id, f"{PRUNED}{prune.reason}", prune.evidence)
            except grpc.aio.AioRpcError as error:
                self._refuse(report, f"prune {adapter.adapter_id}: {error.details()}")
                return False
        report.pruned.append(prune)
        return True

    async def _apply_merge(self, merge: Merge, report: PassReport) -> bool:
        parents = [adapter.adapter_id for adapter in merge.adapters]
        _log.info("%smerge %s: %s", "dry run: " if self._dry_run else "", " + ".join(parents), merge.reason)
        if not self._dry_run:
            try:
                if await self._was_merged(merge):
                    self._reject(parents)
                    return False
                weights = [1.0] * len(merge.adapters)  # alike for each: by their use, the child would be the one that is asked most
                parts = [
                    one
                    for adapter in merge.adapters
                    if (one := await self._likeness.file(adapter, partial(self._refuse, report))) is not None
                ]
                if len(parts) < len(merge.adapters):
                    return False
                child = await asyncio.to_thread(self._merge, parts, weights, merge.merge_id)
                digest = await self._store.put(await asyncio.to_thread(lambda: encode(self._sign(child.adapter))))
                reason = f"{merge.reason}; {child.error:.2%} of the wanted change lost" if child.error else merge.reason
                evidence = {"cosine": merge.cosine, "benefit": merge.benefit, "error": child.error}
                refs = [alone(one.manifest, view.digest) for one, view in zip(parts, merge.adapters, strict=True)]
                try:
                    finding = await self._tried(merge.adapters[0].tenant, refs, alone(child.adapter.manifest, digest))
                except (SmoaError, grpc.aio.AioRpcError) as error:
                    await self._store.delete(digest)
                    if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                        self._reject(parents)  # the executor cannot take such a child
                    else:
                        report.executor_away = True
                    raise
                if refusal := finding.refusal(self._caution.gate_max_loss):
                    worst = finding.worst[0]
                    for parent in parents:
                        if parent != worst:
                            self._reject((worst, parent))
                    await self._store.delete(digest)
                    self._refuse(report, f"merge {merge.merge_id}: {refusal}", again=False)
                    return False
                evidence |= finding.evidence
                made = await self._client.apply_merge(
                    merge.adapters[0].tenant, merge.merge_id, digest, parents, reason, self._caution.canary_share, evidence
                )
                if made.state == common.ADAPTER_STATE_CANARY:
                    self._open[made.adapter_id] = made.tenant
            except grpc.aio.AioRpcError as error:
                self._refuse(report, f"merge {merge.merge_id}: {error.details()}")
                return False
            except SmoaError as error:
                self._refuse(report, f"merge {merge.merge_id}: {error}")
                return False
        report.merged.append(merge)
        return True

    async def _tried(self, tenant: str, parents: Sequence[common.WeightedAdapter], child: common.WeightedAdapter) -> Finding:
        return Finding({}) if self._gate is None else await self._gate.compare(tenant, parents, child)

    async def _was_merged(self, merge: Merge) -> bool:
        """True when these were merged before, and it was undone, or somebody brought the parents back beside their child."""
        try:
            await self._client.get(child_of(merge.merge_id), merge.adapters[0].tenant)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return False
            raise
        return True

    async def _look_back(self) -> set[tuple[str, str]]:
        """What was done before this process began: pairs that were undone, no two of which are tried again in whatever group; and how many
        places of the hour are taken.
        """
        undone, taken = set[tuple[str, str]](), defaultdict[str, list[float]](list)
        async for one in self._client.list_all(states=[common.ADAPTER_STATE_RETIRED], all_tenants=True):
            if one.merge_id and one.state_reason.startswith(ROLLED_BACK):
                undone.update(combinations(sorted(one.parents), 2))
            elif one.state_reason.startswith((PRUNED, MERGED)):
                taken[one.tenant].append(one.updated_at_us / 1e6)
        for tenant, times_s in taken.items():
            self._room.was_taken(tenant, times_s)
        return undone

    def _reject(self, parents: Iterable[str]) -> None:
        if self._rejected is not None:  # else they are read when they are needed
            self._rejected.update(combinations(sorted(parents), 2))

    def _has_room(self, tenant: str, report: PassReport) -> bool:
        if self._dry_run or self._room.take(tenant, time.time()):
            return True
        report.put_off += 1
        return False

    def _refuse(self, report: PassReport, reason: str, *, again: bool = True) -> None:
        _log.warning("not applied%s: %s", ", will be proposed again" if again else "", reason)
        report.refused.append(reason)
