"""The life of a merge: a child in its parents' place at once, or on trial beside them, and the way back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Final

import numpy as np

from services.router.catalogue.changes import Change, as_it_is, came_back, now_us, retired, same_content
from services.router.catalogue.port import Entry, Vector
from services.router.catalogue.records import AdapterRecord
from services.router.catalogue.registry import Registry
from services.router.catalogue.replacing import check_not_on_trial
from smoa.access.noting import note_before
from smoa.embedding.views import centroids
from smoa.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from smoa.identifiers import checked_tenant
from smoa.limits import MAX_EXAMPLES

MAX_CANARY_SHARE: Final = 0.5


class Merges:
    """Writes through the registry, under its lock."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def apply(
        self,
        tenant: str,
        merge_id: str,
        child_digest: str,
        parent_ids: Sequence[str],
        reason: str,
        canary_share: float = 0.0,
        evidence: Mapping[str, float] | None = None,
    ) -> AdapterRecord:
        """Register the child and, unless it is a canary, retire the parents in one write; the same merge id again returns the child.

        Raises:
            InvalidArgument: no merge id, fewer than two parents, a share out of bounds, or a child whose manifest names
                others.
            FailedPrecondition: a parent that is not active, is pinned, differs in base model or has a canary already.
            AlreadyExists: the child's id is taken by other content.
        """
        tenant = checked_tenant(tenant)
        if not merge_id:
            raise InvalidArgument("merge_id", "is empty", "name the merge, so that a retry is told from a new one")
        if len(set(parent_ids)) < 2:
            raise InvalidArgument("parent_ids", "holds fewer than two adapters", "name the adapters that the child replaces")
        if not 0 <= canary_share <= MAX_CANARY_SHARE:
            raise InvalidArgument(
                "canary_share", f"{canary_share} is outside 0..{MAX_CANARY_SHARE}", "send 0 to replace the parents at once"
            )
        child = await self._registry.files.read(child_digest)
        if set(child.parents) != set(parent_ids) or child.tenant != tenant:
            raise InvalidArgument(
                "child_digest", "names a file with other parents or tenant in its manifest", "write the child's manifest first"
            )
        wanted = tuple(dict.fromkeys(parent_ids))
        return await self._registry.whole(lambda: self._apply(merge_id, child, wanted, reason, canary_share, evidence or {}))

    async def _apply(
        self,
        merge_id: str,
        child: AdapterRecord,
        parent_ids: Sequence[str],
        reason: str,
        canary_share: float,
        evidence: Mapping[str, float],
    ) -> AdapterRecord:
        registry, tenant = self._registry, child.tenant
        async with registry.writing:
            if found := await registry.catalogue.get(child.adapter_id):
                if found[0].merge_id != merge_id:
                    raise AlreadyExists(f"adapter_id: {child.adapter_id} is not the child of merge {merge_id}; use a new id")
                child = same_content(found[0], child.digest, tenant)
                again = [await registry.owned(tenant, parent_id) for parent_id in parent_ids]
                registry.changed([as_it_is(record) for record in (child, *(parent for parent, _ in again))])
                return child
            parents = [await registry.owned(tenant, parent_id) for parent_id in parent_ids]
            await self._check_parents([parent for parent, _ in parents], child)
            examples = tuple(example for group in zip_longest(*(parent.examples for parent, _ in parents)) for example in group if example)
            examples = tuple(dict.fromkeys(examples))[:MAX_EXAMPLES]
            child = dataclasses.replace(child, examples=examples, merge_id=merge_id, state_reason=reason)
            gone: list[Entry] = []
            if canary_share:
                baseline = {parent.adapter_id: parent.statistics for parent, _ in parents}
                child = dataclasses.replace(
                    child, state="canary", canary_share=canary_share, canary_baseline=baseline, canary_since_us=now_us()
                )
            else:
                gone = _retired(parents, child.adapter_id, reason)
            vector = centroids(np.stack([vector for _, vector in parents]))
            example_vectors = (await registry.embedded(child.examples))[1] if child.examples else None
            # On trial, the parents are written as they are: so that nobody retires one, or begins another trial, on what was read before.
            beside = gone or [Entry(parent, where) for parent, where in parents]
            await registry.write([Entry(child, vector, example_vectors), *beside])
        registry.changed([as_it_is(child, evidence), *(as_it_is(entry.record) for entry in gone)])
        return child

    async def _check_parents(self, parents: Sequence[AdapterRecord], child: AdapterRecord) -> None:
        for parent in parents:
            if parent.shared != child.shared:
                raise FailedPrecondition(
                    f"parent: {parent.adapter_id} is {'' if parent.shared else 'not '}shared, and its child would "
                    f"{'not ' if parent.shared else ''}be; merge adapters that the same tenants may use"
                )
            if parent.state != "active" or parent.base_model != child.base_model:
                raise FailedPrecondition(
                    f"parent: {parent.adapter_id} is {parent.state} on {parent.base_model[:12]}; merge active ones of one base"
                )
            if parent.pinned:
                raise FailedPrecondition(f"parent: {parent.adapter_id} is pinned; unpin it with `smoa adapter pin --off` first")
        await check_not_on_trial(self._registry.catalogue, child.tenant, {parent.adapter_id for parent in parents})

    async def settle(
        self, tenant: str, child_id: str, *, promote: bool, reason: str, evidence: Mapping[str, float] | None = None
    ) -> AdapterRecord:
        """Promote a canary, or roll a merge back, on trial or long done; the same again returns the child as it is.

        Raises:
            NotFound: no such adapter of the tenant's.
            FailedPrecondition: it is no merge's child, or a parent is not in a state from which this can be done.
        """
        return await self._registry.whole(lambda: self._settle(checked_tenant(tenant), child_id, promote, reason, evidence or {}))

    async def _settle(self, tenant: str, child_id: str, promote: bool, reason: str, evidence: Mapping[str, float]) -> AdapterRecord:
        registry = self._registry
        async with registry.writing:
            child, vector = await registry.owned(tenant, child_id)
            note_before(child.state)
            if not child.merge_id:
                raise FailedPrecondition(f"child: {child_id} is not the child of a merge; retire or restore it instead")
            parents = [await registry.owned(tenant, parent_id) for parent_id in child.parents]
            if child.state == ("active" if promote else "retired"):
                registry.changed([as_it_is(record) for record in (child, *(parent for parent, _ in parents))])
                return child
            if child.state not in (("canary",) if promote else ("canary", "active")):
                raise FailedPrecondition(f"child: {child_id} is {child.state}, so it cannot be {'promoted' if promote else 'rolled back'}")
            # A parent that somebody retired during the trial stays as it is.
            if promote:
                others = _retired([pair for pair in parents if pair[0].state == "active"], child_id, reason)
                child = dataclasses.replace(child, state="active", state_reason=reason, updated_at_us=now_us())
            else:
                restored = [pair for pair in parents if pair[0].state != "active"] if child.state == "active" else []
                for parent, _ in restored:
                    if parent.state == "purged":
                        raise FailedPrecondition(f"parent: {parent.adapter_id} is purged, its weights are gone; the merge cannot be undone")
                for parent, _ in restored:
                    await registry.files.bring_back(parent.digest)
                others = [
                    Entry(dataclasses.replace(came_back(parent), state="active", state_reason="", updated_at_us=now_us()), place)
                    for parent, place in restored
                ]
                child = dataclasses.replace(child, state="retired", state_reason=f"rolled back: {reason}", updated_at_us=now_us())
            await registry.write([Entry(child, vector), *others])
        first = Change("promoted" if promote else "rolled_back", child, reason, evidence)
        registry.changed([first, *(Change("retired" if promote else "restored", one.record, one.record.state_reason) for one in others)])
        return child


def _retired(parents: Sequence[tuple[AdapterRecord, Vector]], child_id: str, reason: str) -> list[Entry]:
    return [retired(one, vector, f"merged into {child_id}: {reason}") for one, vector in parents]
