"""The library's life: register, list, update, retire, restore, purge, merge."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import zip_longest
from typing import Any, Concatenate, Final, Literal, ParamSpec, TypeVar

import numpy as np

from services.router.confidence import prototypes_of
from services.router.embedding import StaticEmbedder, normalised
from services.router.importing import Imported, check_imported
from services.router.index import AdapterIndex, Vector
from services.router.journal import Entry, Journal
from services.router.library import AdapterRecord, Scope, State, Statistics
from services.router.listing import page_after, page_size_of, page_token_of
from smoa.adapter import Adapter, check_labels, decode
from smoa.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from smoa.identifiers import checked_tenant
from smoa.store import AdapterStore
from smoa.tasks import Outliving

P = ParamSpec("P")
T = TypeVar("T")
MIN_EXAMPLES, MAX_EXAMPLES, MAX_EXAMPLE_CHARACTERS = 5, 50, 8192
MAX_REASON_CHARACTERS: Final = 2000
MAX_WRITES: Final = 256
Action = Literal["registered", "updated", "retired", "restored", "purged", "merged"]
ARRIVALS: Final = frozenset[Action]({"registered", "updated", "restored", "merged"})
"""After these, an adapter may be the better answer to a query that was answered before."""


@dataclass(frozen=True)
class Change:
    """Something that happened to an adapter."""

    action: Action
    record: AdapterRecord
    reason: str = ""


def _whole(
    method: Callable[Concatenate[Registry, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Registry, P], Coroutine[Any, Any, T]]:
    """The method as a task of its own, which goes on when its caller goes away: a write must not end between the index and its event."""

    @wraps(method)
    async def run(self: Registry, /, *arguments: P.args, **named: P.kwargs) -> T:
        if len(self._writes) >= MAX_WRITES:
            raise ResourceExhausted(f"registry: {MAX_WRITES} writes wait for the index", "retry later")
        return await self._writes.run(method(self, *arguments, **named))

    return run


class Registry:
    """Owner of the library. Writes are serialised: one process owns an embedded index, and a merge must be one step.

    What is asked for again is told again, as it is now: the first time may have ended between the write and its event. Not so imports, of
    which there are many: other routers' cached answers live on for their time at most.
    """

    def __init__(
        self,
        index: AdapterIndex,
        store: AdapterStore,
        embedder: StaticEmbedder,
        changed: Callable[[Sequence[Change]], None],
        purge_grace_s: float = 7 * 86400.0,
        allow_all_tenants: bool = False,
    ) -> None:
        self._index, self._store, self._embedder, self._changed = index, store, embedder, changed
        self._purge_grace_s, self._allow_all_tenants = purge_grace_s, allow_all_tenants
        self._writing, self._journal = asyncio.Lock(), Journal(store)
        self._writes = Outliving()

    async def close(self) -> None:
        """Wait for writes whose callers have gone."""
        await self._writes.close()

    @_whole
    async def register(self, tenant: str, digest: str, examples: Sequence[str]) -> AdapterRecord:
        """Add an adapter whose file is in the store; the same again returns what is there.

        Raises:
            InvalidArgument: bad examples, a bad file, or a tenant other than the manifest's.
            NotFound: no such file in the store.
            AlreadyExists: the id is taken by other content.
        """
        tenant, examples = checked_tenant(tenant), _checked_examples(examples)
        adapter = await self._read(digest)
        manifest = adapter.manifest
        if manifest.tenant != tenant:
            raise InvalidArgument(
                "tenant", f"{tenant!r} is not the manifest's {manifest.tenant!r}", "register it for the tenant it was trained for"
            )
        async with self._writing:
            if found := await self._index.get(manifest.adapter_id):
                record = _same_content(found[0], digest, tenant)
            else:
                record = await self._record(adapter, digest, tuple(examples))
                vector, prototypes = self._understood(examples)
                await self._write([Entry(record, vector, prototypes)])
        self._changed([_as_it_is(record)])
        return record

    @_whole
    async def import_adapters(self, tenant: str, imported: Sequence[Imported]) -> int:
        """Add many as one step; returns how many were not there before.

        Raises:
            InvalidArgument: naming the adapter and the field.
            AlreadyExists: an id is taken by other content.
        """
        tenant = checked_tenant(tenant)
        checked = await asyncio.to_thread(self._checked_import, tenant, imported)
        async with self._writing:
            there = await self._index.owners([entry.record.adapter_id for entry in checked])
            for record, *_ in checked:
                if there.get(record.adapter_id, (tenant, record.digest)) != (tenant, record.digest):
                    raise _taken(record.adapter_id)
            added = [entry for entry in checked if entry.record.adapter_id not in there]
            if added:
                await self._write(added)
        self._changed([Change("registered", entry.record) for entry in added])
        return len(added)

    def _checked_import(self, tenant: str, imported: Sequence[Imported]) -> list[Entry]:
        now = _now_us()
        made: dict[str, Entry] = {}
        for one in check_imported(imported, self._embedder.dimension):
            examples = tuple(_checked_examples(one.record.examples)) if one.record.examples or one.vector is None else ()
            record = dataclasses.replace(one.record, tenant=tenant, examples=examples, created_at_us=now, updated_at_us=now)
            if (twin := made.get(record.adapter_id)) is not None and twin[0].digest != record.digest:
                raise _taken(record.adapter_id)
            centroid, prototypes = self._understood(examples) if examples else (None, None)
            vector = centroid if one.vector is None else one.vector
            assert vector is not None, "checked: without a vector there are examples"
            made[record.adapter_id] = Entry(record, vector, prototypes)
        return list(made.values())

    async def _write(self, entries: Sequence[Entry]) -> None:
        await self._journal.write(entries)
        prototypes = {entry.record.adapter_id: entry.prototypes for entry in entries if entry.prototypes is not None}
        await self._index.upsert([(entry.record, entry.vector) for entry in entries], prototypes)

    def _understood(self, examples: Sequence[str]) -> tuple[Vector, Vector]:
        """Centroid [dimension] and prototypes [n, dimension] of examples."""
        vectors = np.stack([self._embedder.embed(example) for example in examples])
        return normalised(vectors.mean(0)), prototypes_of(vectors)

    async def get(self, tenant: str, adapter_id: str) -> AdapterRecord:
        """One adapter the tenant may see.

        Raises:
            NotFound: none, or another tenant's: which of the two is not told.
        """
        return (await self._visible(checked_tenant(tenant), adapter_id))[0]

    async def list_adapters(self, scope: Scope, page_size: int, page_token: str) -> tuple[list[AdapterRecord], str]:
        """A page by id, and the token of the next (empty on the last).

        Raises:
            InvalidArgument: a page size out of bounds, or a token of another listing.
            FailedPrecondition: every tenant's adapters where the server does not allow it.
        """
        if scope.tenant is None and not self._allow_all_tenants:
            raise FailedPrecondition("all_tenants: is not allowed here; list one tenant, or set SMOA_ROUTER_ALLOW_ALL_TENANTS=true")
        size, after = page_size_of(page_size), page_after(page_token, scope)
        records = await self._index.scroll(scope, after, size + 1)
        more = len(records) > size
        return records[:size], page_token_of(records[size - 1].adapter_id, scope) if more else ""

    @_whole
    async def update(
        self,
        tenant: str,
        adapter_id: str,
        *,
        name: str | None = None,
        tags: Sequence[str] | None = None,
        examples: Sequence[str] = (),
        statistics: Statistics | None = None,
    ) -> AdapterRecord:
        """Change what may change. Statistics alone make no lifecycle event: they come every few seconds.

        Raises:
            InvalidArgument: a name, tags or examples that are too long, or too few examples.
            NotFound: no adapter of the tenant's.
        """
        check_labels("", "n" if name is None else name, tags or ())
        async with self._writing:
            record, vector = await self._owned(checked_tenant(tenant), adapter_id)
            prototypes: Vector | None = None
            if examples:
                checked = _checked_examples(examples)
                record = dataclasses.replace(record, examples=tuple(checked))
                vector, prototypes = self._understood(checked)
            record = dataclasses.replace(
                record,
                name=record.name if name is None else name,
                tags=record.tags if tags is None else tuple(tags),
                statistics=record.statistics if statistics is None else statistics,
            )
            silent = name is None and tags is None and not examples
            if silent:
                await self._index.put_statistics(adapter_id, record.statistics)
                return record
            record = dataclasses.replace(record, updated_at_us=_now_us())
            await self._write([Entry(record, vector, prototypes)])
        self._changed([Change("updated", record)])
        return record

    async def retire(self, tenant: str, adapter_id: str, reason: str) -> AdapterRecord:
        """Stop routing to it; again is fine.

        Raises:
            InvalidArgument: a reason that is too long for an event.
        """
        _check_reason(reason)
        return await self._move(tenant, adapter_id, {"active": "retired", "retired": "retired"}, "retired", reason)

    async def restore(self, tenant: str, adapter_id: str) -> AdapterRecord:
        """Route to it again; again is fine.

        Raises:
            FailedPrecondition: its weights were purged.
        """
        return await self._move(tenant, adapter_id, {"retired": "active", "active": "active"}, "restored", "")

    @_whole
    async def purge(self, tenant: str, adapter_id: str) -> AdapterRecord:
        """Delete a retired adapter's weights.

        Raises:
            FailedPrecondition: it is active, or was retired less than the grace period ago.
        """
        async with self._writing:
            record, vector = await self._owned(checked_tenant(tenant), adapter_id)
            _check_move(record, ("retired", "purged"), "purged")
            waited_s = (_now_us() - record.updated_at_us) / 1e6
            if record.state == "retired" and waited_s < self._purge_grace_s:
                raise FailedPrecondition(
                    f"adapter: {adapter_id} was retired {waited_s:.0f} s ago, the grace period is {self._purge_grace_s:.0f} s; "
                    "wait or restore"
                )
            if record.state == "retired":
                record = dataclasses.replace(record, state="purged", updated_at_us=_now_us())
                await self._index.upsert([(record, vector)])
            same_file = Scope(tenant=None, states=("active", "retired"), digest=record.digest)
            if not await self._index.scroll(same_file, "", 1):  # content-addressed: another record may name the same file
                await self._store.delete(record.digest)
            # Last, for a full store takes nothing until something in it was deleted.
            await self._journal.write([Entry(record, vector)])
        self._changed([Change("purged", record, record.state_reason)])
        return record

    @_whole
    async def apply_merge(self, tenant: str, merge_id: str, child_digest: str, parent_ids: Sequence[str], reason: str) -> AdapterRecord:
        """Register the child and retire the parents in one write; the same merge id again returns the child.

        Raises:
            InvalidArgument: no merge id, too long a reason, fewer than two parents, or a child whose manifest names others.
            FailedPrecondition: a parent that is not active, or differs in base model.
            AlreadyExists: the child's id is taken by other content.
        """
        tenant = checked_tenant(tenant)
        if not merge_id:
            raise InvalidArgument("merge_id", "is empty", "name the merge, so that a retry is told from a new one")
        if len(set(parent_ids)) < 2:
            raise InvalidArgument("parent_ids", "holds fewer than two adapters", "name the adapters that the child replaces")
        _check_reason(reason)
        adapter = await self._read(child_digest)
        if set(adapter.manifest.parents) != set(parent_ids) or adapter.manifest.tenant != tenant:
            raise InvalidArgument(
                "child_digest", "names a file with other parents or tenant in its manifest", "write the child's manifest first"
            )
        async with self._writing:
            if found := await self._index.get(adapter.manifest.adapter_id):
                if found[0].merge_id != merge_id:
                    raise AlreadyExists(f"adapter_id: {adapter.manifest.adapter_id} is not the child of merge {merge_id}; use a new id")
                child = _same_content(found[0], child_digest, tenant)
                again = [await self._owned(tenant, parent_id) for parent_id in dict.fromkeys(parent_ids)]
                self._changed([_as_it_is(record) for record in (child, *(parent for parent, _ in again))])
                return child
            parents = [await self._owned(tenant, parent_id) for parent_id in dict.fromkeys(parent_ids)]
            for parent, _ in parents:
                if parent.state != "active" or parent.base_model != adapter.manifest.base_model:
                    raise FailedPrecondition(
                        f"parent: {parent.adapter_id} is {parent.state} on {parent.base_model[:12]}; merge active ones of one base"
                    )
            examples = tuple(example for group in zip_longest(*(parent.examples for parent, _ in parents)) for example in group if example)
            child = dataclasses.replace(
                await self._record(adapter, child_digest, tuple(dict.fromkeys(examples))[:MAX_EXAMPLES]),
                merge_id=merge_id,
                state_reason=reason,
            )
            now, why = _now_us(), f"merged into {child.adapter_id}: {reason}"
            retired = [Entry(dataclasses.replace(p, state="retired", state_reason=why, updated_at_us=now), v) for p, v in parents]
            vector = normalised(np.mean([vector for _, vector in parents], 0))
            prototypes = self._understood(child.examples)[1] if child.examples else None
            await self._write([Entry(child, vector, prototypes), *retired])
        self._changed([_as_it_is(record) for record in (child, *(entry.record for entry in retired))])
        return child

    async def _read(self, digest: str) -> Adapter:
        data = await self._store.get(digest)
        return await asyncio.to_thread(decode, data, digest, self._store.max_bytes)

    async def _record(self, adapter: Adapter, digest: str, examples: tuple[str, ...]) -> AdapterRecord:
        manifest, now = adapter.manifest, _now_us()
        return AdapterRecord(
            adapter_id=manifest.adapter_id,
            version=manifest.version,
            digest=digest,
            tenant=manifest.tenant,
            name=manifest.name,
            kind=manifest.kind,
            granularity=adapter.granularity,
            specialization=manifest.specialization,
            base_model=manifest.base_model,
            rank=manifest.rank,
            modules=manifest.modules,
            parameter_count=adapter.parameter_count,
            file_bytes=len(await self._store.get(digest)),
            tags=manifest.tags,
            shared=manifest.shared,
            examples=examples,
            parents=manifest.parents,
            created_at_us=now,
            updated_at_us=now,
        )

    async def _visible(self, tenant: str, adapter_id: str) -> tuple[AdapterRecord, Vector]:
        found = await self._index.get(adapter_id)
        if found is None or not found[0].visible_to(tenant):
            raise NotFound("adapter", adapter_id)
        return found

    async def _owned(self, tenant: str, adapter_id: str) -> tuple[AdapterRecord, Vector]:
        found = await self._index.get(adapter_id)
        if found is None or found[0].tenant != tenant:
            raise NotFound("adapter", adapter_id)
        return found

    @_whole
    async def _move(self, tenant: str, adapter_id: str, moves: dict[State, State], action: Action, reason: str) -> AdapterRecord:
        async with self._writing:
            record, vector = await self._owned(checked_tenant(tenant), adapter_id)
            _check_move(record, tuple(moves), action)
            if moves[record.state] != record.state:
                record = dataclasses.replace(record, state=moves[record.state], state_reason=reason, updated_at_us=_now_us())
                await self._write([Entry(record, vector)])
        self._changed([Change(action, record, record.state_reason)])
        return record


def _check_move(record: AdapterRecord, states: Sequence[State], action: Action) -> None:
    if record.state not in states:
        raise FailedPrecondition(
            f"adapter: {record.adapter_id} is {record.state}, so it cannot be {action}; see its state with `smoa adapter show`"
        )


def _as_it_is(record: AdapterRecord) -> Change:
    """What there is to tell of an adapter, by its state."""
    arrived: Action = "merged" if record.merge_id else "registered"
    actions: dict[State, Action] = {"active": arrived, "retired": "retired", "purged": "purged"}
    return Change(actions[record.state], record, record.state_reason)


def _same_content(record: AdapterRecord, digest: str, tenant: str) -> AdapterRecord:
    if record.tenant != tenant or record.digest != digest:
        raise _taken(record.adapter_id)
    return record


def _taken(adapter_id: str) -> AlreadyExists:
    return AlreadyExists(f"adapter_id: {adapter_id} is taken by other content; train or import again to get a new id")


def _check_reason(reason: str) -> None:
    if len(reason) > MAX_REASON_CHARACTERS:
        raise InvalidArgument("reason", f"has {len(reason):,} characters", f"say it in {MAX_REASON_CHARACTERS:,}")


def _checked_examples(examples: Sequence[str]) -> list[str]:
    unique = list(dict.fromkeys(examples))
    if not MIN_EXAMPLES <= len(unique) <= MAX_EXAMPLES:
        raise InvalidArgument("examples", f"holds {len(unique)} distinct inputs", f"give {MIN_EXAMPLES} to {MAX_EXAMPLES}")
    if any(not example.strip() or len(example) > MAX_EXAMPLE_CHARACTERS for example in unique):
        raise InvalidArgument("examples", f"holds an empty input or one over {MAX_EXAMPLE_CHARACTERS:,} characters", "give typical inputs")
    return unique


def _now_us() -> int:
    return time.time_ns() // 1000
