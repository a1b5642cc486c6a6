"""Adapters on trial, a merge's child or a younger version: what is said of them is looked at as it comes in, until each can be judged."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import grpc

from services.optimizer.control.freezing import Freezing
from services.optimizer.control.reasons import ROLLED_BACK
from services.optimizer.control.reporting import AWAY
from services.optimizer.control.views import lifetime_of, spent_of, stratum_of
from services.optimizer.policy.guards import Spent, guarded, together
from services.optimizer.policy.guards import evidence as evidence_of
from services.optimizer.policy.trial import NOTHING, Arm, Draws, TrialRules, judge
from smoa.client import SmoaClient
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from smoa.v1.state_pb2 import AdapterCounts

_log = logging.getLogger(__name__)
AGAIN_S: Final = 15.0
"""A trial of which nothing new was counted is looked at as often, for what else there is to see: its age, what answers take."""
ANSWERED_IN_S: Final = 300.0
"""An answer, and the word of it, has come by then."""


class Trials:
    """The canaries that this worker judges, as of the last pass."""

    def __init__(self, client: SmoaClient, rules: TrialRules, freezing: Freezing, counts: Callable[[str], AdapterCounts | None]) -> None:
        self._client, self._rules, self._freezing, self._counts = client, rules, freezing, counts
        self._tenants: dict[str, str] = {}
        """By the child's id."""
        self._originals: dict[str, Arm] = {}
        """By the parent: they are looked at every second, and those adapters are retired. Until the next pass."""

        self._looks: dict[str, deque[tuple[float, float, float]]] = {}
        """By the child: when it was looked at, and both sides' uses then."""
        self._first: dict[str, tuple[Spent, Spent]] = {}
        """By a version on trial: what both sides had taken when it was looked at first."""
        self._skewed: set[str] = set()
        """Of which it was told."""
        self._waits: dict[str, tuple[float, AdapterCounts]] = {}
        """By the child that could not be judged: when it was looked at, and its counts then."""

    def __len__(self) -> int:
        return len(self._tenants)

    def are(self, canaries: Iterable[registry_pb2.Adapter]) -> None:
        """A pass has found these."""
        self._tenants, self._originals = {one.adapter_id: one.tenant for one in canaries}, {}
        self._skewed &= self._tenants.keys()
        for known in (self._looks, self._first, self._waits):
            for name in known.keys() - self._tenants.keys():
                del known[name]

    def began(self, child: registry_pb2.Adapter) -> None:
        """One more."""
        self._tenants[child.adapter_id] = child.tenant

    async def judge(self) -> list[str]:
        """Look at them, and end those that can be; returns what was done, for the log."""
        done = []
        for child_id, tenant in list(self._tenants.items()):
            counts = self._counts(child_id) or AdapterCounts()
            looked_s, before = self._waits.get(child_id, (-AGAIN_S, None))
            if counts == before and time.monotonic() < looked_s + AGAIN_S:
                continue
            try:
                said = await self._judge_one(tenant, child_id, counts)
            except grpc.aio.AioRpcError as error:
                if error.code() in AWAY:
                    raise
                _log.warning("canary %s: %s", child_id, error.details())
                said = "gone" if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION) else ""
            if said:
                del self._tenants[child_id]
                done.append(said)
        return done

    async def _judge_one(self, tenant: str, child_id: str, counts: AdapterCounts) -> str:
        """What was done, or nothing."""
        child = await self._client.get(child_id, tenant)
        if child.state != common.ADAPTER_STATE_CANARY:
            return "settled by another"
        every = [await self._client.get(parent, tenant) for parent in sorted(child.canary_baseline)]
        # Of one that somebody retired meanwhile nothing more can be shown, and there is nothing that the child would take from it.
        parents = [parent for parent in every if parent.state == common.ADAPTER_STATE_ACTIVE]
        if not parents:
            reason = "none of those that it was tried against is in use any more"
            await self._client.settle_trial(tenant, child_id, promote=False, reason=reason)
            return f"not shown {child_id}: {reason}"
        strata = {
            parent.adapter_id: stratum_of(counts, parent, child.canary_baseline[parent.adapter_id], await self._original(parent))
            for parent in parents
        }
        # If counts were lost, the trial is as old as what is known of it.
        age_s = time.time() - max(child.canary_since_us, child.statistics.counted_since_us) / 1e6
        draws = Draws(counts.draws.drawn, counts.draws.child, counts.draws.expected, counts.draws.variance)
        if draws.skewed and child_id not in self._skewed:
            self._skewed.add(child_id)
            _log.warning("canary %s: its sides are not as the routers say that they were drawn: %s; it is not promoted", child_id, draws)
        rules = self._rules if child.merge_id else dataclasses.replace(self._rules, in_front=True)
        spent = self._spent(child, parents)
        found = guarded(*spent, self._asked_before(child_id, *spent), rules.most_spent, rules.alpha)
        judgement, evidence, reason = judge(strata, age_s, rules, draws, found.costs)
        evidence |= evidence_of(*spent)
        if found.fails:
            judgement, reason = "roll back", found.fails
        if judgement == "wait":
            known = AdapterCounts()
            known.CopyFrom(counts)
            self._waits[child_id] = (time.monotonic(), known)
            return ""
        if judgement == "promote" and await self._freezing.holds(tenant, child.base_model):
            return ""
        _log.info("canary %s: %s: %s", child_id, judgement, reason)
        if judgement == "roll back" and not child.merge_id:  # without the trial both would go on
            await self._client.retire(tenant, child_id, f"{ROLLED_BACK}{reason}", evidence)
        else:
            await self._client.settle_trial(tenant, child_id, promote=judgement == "promote", reason=reason, evidence=evidence)
        return f"{judgement} {child_id}: {reason}"

    def _spent(self, child: registry_pb2.Adapter, parents: Sequence[registry_pb2.Adapter]) -> tuple[Spent, Spent]:
        """What both sides took since the trial began; of a version, which was used before, since this worker saw it first."""
        mine = spent_of(child.statistics)
        theirs = together(spent_of(parent.statistics).since(spent_of(child.canary_baseline[parent.adapter_id])) for parent in parents)
        if child.merge_id:
            return mine, theirs
        first = self._first.setdefault(child.adapter_id, (mine, theirs))
        return mine.since(first[0]), theirs.since(first[1])

    def _asked_before(self, child_id: str, child: Spent, parents: Spent) -> tuple[float, float] | None:
        """Uses of both sides as they were a while ago: what was asked since may be on its way, or its usage is."""
        now_s, looks = time.monotonic(), self._looks.setdefault(child_id, deque())
        if not looks or now_s - looks[-1][0] >= ANSWERED_IN_S / 10:
            looks.append((now_s, child.uses, parents.uses))
        while len(looks) > 1 and now_s - looks[1][0] >= ANSWERED_IN_S:
            looks.popleft()
        at_s, *asked = looks[0]
        return (asked[0], asked[1]) if now_s - at_s >= ANSWERED_IN_S else None

    async def _original(self, parent: registry_pb2.Adapter) -> Arm:
        """All outcomes of what a parent was merged from, over all generations; none of one that was not."""
        if not parent.merge_id:
            return NOTHING
        if parent.adapter_id in self._originals:
            return self._originals[parent.adapter_id]
        known, wanted, outcomes, successes = set[str](), list(parent.parents), 0.0, 0.0
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
