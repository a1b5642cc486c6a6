"""The library's life: register, list, update, retire, restore, purge, merge."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from services.router.catalogue.adapter_files import AdapterFiles
from services.router.catalogue.changes import (
    Action,
    Change,
    as_it_is,
    came_back,
    check_move,
    check_owner,
    check_publishable,
    gone,
    in_state,
    now_us,
    same_content,
    taken,
)
from services.router.catalogue.description import described_by
from services.router.catalogue.importing import ImportCounts, Imported, check_imported, checked_examples
from services.router.catalogue.pagination import page_after, page_size_of, page_token_of
from services.router.catalogue.port import Catalogue, Conflict, Entry, Vector
from services.router.catalogue.records import AdapterRecord, Scope, State
from services.router.catalogue.registration_log import RegistrationLog
from services.router.catalogue.replacing import MAX_NAMESAKES, check_name, replaced_by
from services.router.catalogue.retrying import until_taken
from smoa.access.noting import note_before
from smoa.adapter import Adapter, check_labels
from smoa.embedding.views import Views
from smoa.errors import FailedPrecondition, NotFound, ResourceExhausted
from smoa.identifiers import checked_tenant
from smoa.store import AdapterStore
from smoa.tasks import Uncancelled, now_and_then

P = ParamSpec("P")
T = TypeVar("T")
MAX_WRITES: Final = 256


def _whole(
    method: Callable[Concatenate[Registry, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Registry, P], Coroutine[Any, Any, T]]:
    @wraps(method)
    async def run(self: Registry, /, *arguments: P.args, **named: P.kwargs) -> T:
        return await self.whole(lambda: method(self, *arguments, **named))

    return run


class Registry:
    """Owner of the library. What it writes is based on what it has read: if another router has written that meanwhile, it begins again.

    What is asked for again is told again, as it is now: the first time may have ended between the write and its event. Not so imports, of
    which there are many: other routers' cached answers live on for their time at most.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        store: AdapterStore,
        embedder: Views,
        changed: Callable[[Sequence[Change]], None],
        purge_grace_s: float = 7 * 86400.0,
        check: Callable[[Adapter], None] = lambda _: None,
        library_id: Callable[[], str] = str,
        check_room: Callable[[], None] = lambda: None,
    ) -> None:
        """`check` raises InvalidArgument for an adapter that may not come in: one that fits no model, say. `library_id` is for the log.
        `check_room` raises where what is changed could not be told.
        """
        self._check_room = check_room
        self.catalogue, self.files, self._embedder, self.changed = catalogue, AdapterFiles(store, check), embedder, changed
        self._purge_grace_s = purge_grace_s
        self.writing, self._log = asyncio.Lock(), RegistrationLog(store, library_id, embedder.name)
        self._writes = Uncancelled()

    async def whole(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The work as a task of its own, which goes on when its caller goes away: a write must not end between the catalogue and its event.

        Raises:
            ResourceExhausted: too many wait, or nobody could be told of it.
            Unavailable: other routers always wrote first.
        """
        self._check_room()  # before anything is done, not after
        if len(self._writes) >= MAX_WRITES:
            raise ResourceExhausted(f"registry: {MAX_WRITES} writes wait for the catalogue", "retry later")
        return await self._writes.run(until_taken(work))

    async def close(self) -> None:
        """Wait for writes whose callers have gone."""
        await self._writes.close()

    @_whole
    async def register(self, tenant: str, digest: str, examples: Sequence[str], *, replace: bool = False) -> AdapterRecord:
        """Add an adapter whose file is in the store; the same again returns what is there. One that was missing is active now.

        With `replace`, the live adapter of its name and base model is retired in the same write: the new one's statistics begin at zero,
        and requests that run on the old one end on it.

        Raises:
            InvalidArgument: bad examples, a bad file, one that does not fit its base model, or a tenant other than the manifest's.
            PermissionDenied: it is shared, and the caller may not publish.
            NotFound: no such file in the store.
            AlreadyExists: the id is taken by other content, or the name by an adapter with the same examples.
            FailedPrecondition: it was retired or purged, or what it would replace cannot be told or retired.
        """
        tenant, examples = checked_tenant(tenant), checked_examples(examples)
        record = dataclasses.replace(await self.files.read(digest), examples=tuple(examples))
        check_owner(record, tenant)
        async with self.writing:
            found = await self.catalogue.get(record.adapter_id)
            kept = None if found is None else same_content(found[0], digest, tenant)
            if kept is not None and kept.state in ("retired", "purged"):
                self.changed([as_it_is(kept)])
                raise gone(kept)
            replaced = await replaced_by(self.catalogue, record) if replace else []
            if kept is None and not replace:
                await check_name(self.catalogue, record)
            written = list(replaced)
            if kept is not None and kept.state != "missing":
                record = kept
            else:
                record = dataclasses.replace(record, pinned=any(old.record.pinned for old in replaced))
                if kept is not None:
                    stays = {name: getattr(kept, name) for name in ("created_at_us", "statistics", "pinned", "revision", "last_writes")}
                    record = dataclasses.replace(record, **stays)
                    record = came_back(record)  # nobody could use it until now
                written.insert(0, Entry(record, *await self.embedded(examples)))
            if written:
                await self.write(written)
                record = await until_taken(lambda: self._with_file(tenant, record.adapter_id))
        self.changed([as_it_is(record), *(as_it_is(old.record) for old in replaced)])
        return record

    async def import_adapters(self, tenant: str, imported: Sequence[Imported], *, files_unchecked: bool = False) -> ImportCounts:
        """Add many as one step. Those whose file is not in the store are kept and not routed to, until they are sent with it there.

        Raises:
            InvalidArgument: naming the adapter and the field.
            AlreadyExists: an id is taken by other content.
        """
        added: set[str] = set()  # by all tries, if another router cuts across
        return await self.whole(lambda: self._import(tenant, imported, files_unchecked, added))

    async def _import(self, tenant: str, imported: Sequence[Imported], files_unchecked: bool, added: set[str]) -> ImportCounts:
        tenant = checked_tenant(tenant)
        checked = await self._checked_import(tenant, imported)
        absent: set[str] = set() if files_unchecked else await self.files.absent([entry.record.digest for entry in checked])
        async with self.writing:
            there = await self.catalogue.summaries([entry.record.adapter_id for entry in checked])
            written, missing = [], 0
            for number, entry in enumerate(checked):
                await now_and_then(number)
                record, kept = entry.record, there.get(entry.record.adapter_id)
                if kept is not None and (kept.tenant, kept.digest) != (tenant, record.digest):
                    raise taken(record.adapter_id)
                state: State = "missing" if record.digest in absent else "active"
                if kept is None:
                    written.append(in_state(entry, state))
                elif kept.state != state and kept.state in ("active", "missing"):  # its file came, or went
                    record, vector = await self.owned(tenant, record.adapter_id)
                    if record.state == kept.state:  # else somebody has changed it since: it stays as that one wanted it
                        written.append(in_state(Entry(came_back(record) if state == "active" else record, vector), state))
                missing += state == "missing"
            lost: frozenset[str] = frozenset()
            try:
                if written:
                    await self.write(written, together=False)
            except Conflict as conflict:
                lost = conflict.lost
        told = [entry.record for entry in written if entry.record.state == "active" or entry.record.adapter_id in there]
        self.changed([as_it_is(record) for record in told if record.adapter_id not in lost])
        added |= {entry.record.adapter_id for entry in checked} - there.keys() - lost
        if lost:
            raise Conflict(lost)  # again, for the rest
        return ImportCounts(len(added), missing)

    async def _checked_import(self, tenant: str, imported: Sequence[Imported]) -> list[Entry]:
        now = now_us()
        made: dict[str, tuple[AdapterRecord, Vector | None]] = {}
        for number, one in enumerate(await asyncio.to_thread(check_imported, imported, self._embedder)):
            await now_and_then(number)
            examples = tuple(checked_examples(one.record.examples)) if one.record.examples or one.vector is None else ()
            record = dataclasses.replace(one.record, tenant=tenant, examples=examples, created_at_us=now, updated_at_us=now)
            check_publishable(record)
            if (twin := made.get(record.adapter_id)) is not None and twin[0].digest != record.digest:
                raise taken(record.adapter_id)
            made[record.adapter_id] = record, one.vector
        described = [record for record, _ in made.values() if record.examples]
        found = await described_by(self._embedder, [record.examples for record in described]) if described else []
        embedded = {record.adapter_id: pair for record, pair in zip(described, found, strict=True)}
        entries = []
        for number, (record, vector) in enumerate(made.values()):
            await now_and_then(number)
            centroid, example_vectors = embedded.get(record.adapter_id, (vector, None))
            where = centroid if vector is None else vector
            assert where is not None, "checked: without a vector there are examples"
            entries.append(Entry(record, where, example_vectors))
        return entries

    async def write(self, entries: Sequence[Entry], *, together: bool = True) -> None:
        """Make records so, in the log and the catalogue, unless somebody has written them since. The caller holds `writing`, and tells.

        Raises:
            Conflict: somebody has.
        """
        logged, entries = await self._log.write(entries)
        try:
            await self.catalogue.write(entries, together=together)
        except Conflict as conflict:
            done = [] if together else [entry for entry in entries if entry.record.adapter_id not in conflict.lost]
            await self._log.keep(logged, done)
            raise

    async def embedded(self, examples: Sequence[str]) -> tuple[Vector, Vector]:
        """Centroid [dimension] and Example vectors [n, dimension] of examples."""
        (found,) = await described_by(self._embedder, [examples])
        return found

    async def get(self, tenant: str, adapter_id: str) -> AdapterRecord:
        """One adapter the tenant may see.

        Raises:
            NotFound: none, or another tenant's: which of the two is not told.
        """
        return (await self._visible(checked_tenant(tenant), adapter_id))[0]

    async def list_adapters(
        self, scope: Scope, page_size: int, page_token: str, written_since_us: int = 0
    ) -> tuple[list[AdapterRecord], str]:
        """A page by id, and the token of the next (empty on the last); only those that were written since a time.

        Raises:
            InvalidArgument: a page size out of bounds, or a token of another listing.
        """
        size, after = page_size_of(page_size), page_after(page_token, scope)
        records = await self.catalogue.scroll(scope, after, size + 1, written_since_us)
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
        pinned: bool | None = None,
    ) -> AdapterRecord:
        """Change what may change; of nothing, nothing is told.

        Raises:
            InvalidArgument: a name, tags or examples that are too long, or too few examples.
            NotFound: no adapter of the tenant's.
        """
        check_labels("", "n" if name is None else name, tags or ())
        async with self.writing:
            record, vector = await self.owned(checked_tenant(tenant), adapter_id)
            note_before(record.state)
            if name is None and tags is None and not examples and pinned is None:
                return record
            if examples or tags is not None or name is not None:
                check_publishable(record)
            example_vectors: Vector | None = None
            if examples:
                checked = checked_examples(examples)
                record = dataclasses.replace(record, examples=tuple(checked))
                vector, example_vectors = await self.embedded(checked)
            record = dataclasses.replace(
                record,
                name=record.name if name is None else name,
                tags=record.tags if tags is None else tuple(tags),
                pinned=record.pinned if pinned is None else pinned,
                updated_at_us=now_us(),
            )
            await self.write([Entry(record, vector, example_vectors)])
        self.changed([Change("updated", record)])
        return record

    async def retire(self, tenant: str, adapter_id: str, reason: str, evidence: Mapping[str, float] | None = None) -> AdapterRecord:
        """Stop routing to it; again is fine."""
        moves: dict[State, State] = {"active": "retired", "canary": "retired", "missing": "retired", "retired": "retired"}
        return await self._move(tenant, adapter_id, moves, "retired", reason, evidence or {})

    async def restore(self, tenant: str, adapter_id: str) -> AdapterRecord:
        """Route to it again; again is fine. A purged one comes back where its file was put into the store again.

        Raises:
            FailedPrecondition: its weights are not in the store, or it is a merge's child whose parents answer in its place.
        """
        moves: dict[State, State] = {"retired": "active", "purged": "active", "missing": "active", "active": "active"}
        return await self._move(tenant, adapter_id, moves, "restored", "", {})

    async def _check_restorable(self, record: AdapterRecord) -> None:
        if await self.files.absent([record.digest]):
            remedy = "put it there with `smoa adapter push` first"
            raise FailedPrecondition(f"adapter: the file of {record.adapter_id} is not in the store; {remedy}")
        for parent_id in record.parents if record.merge_id else ():
            if (parent := await self.catalogue.get(parent_id)) is not None and parent[0].state == "active":
                raise FailedPrecondition(f"adapter: {record.adapter_id} is the child of a merge that was undone: {parent_id} is active")

    @_whole
    async def purge(self, tenant: str, adapter_id: str) -> AdapterRecord:
        """Delete a retired adapter's weights, and forget its examples, here and in the log. Its vectors stay: it can come back by them.

        Raises:
            FailedPrecondition: it is active, or was retired less than the grace period ago.
        """
        async with self.writing:
            record, vector = await self.owned(checked_tenant(tenant), adapter_id)
            check_move(record, ("retired", "purged"), "purged")
            note_before(record.state)
            waited_s = (now_us() - record.updated_at_us) / 1e6
            if record.state == "retired" and waited_s < self._purge_grace_s:
                waited = f"{waited_s:.0f} s ago, the grace period is {self._purge_grace_s:.0f} s"
                raise FailedPrecondition(f"adapter: {adapter_id} was retired {waited}; wait or restore")
            if record.state == "retired":
                record = dataclasses.replace(record, state="purged", examples=(), archived_at_us=0, updated_at_us=now_us())
                await self.catalogue.write([Entry(record, vector)])
            if (users := await self.users_of(record, "active", "canary", "retired", "missing")) is not None:
                await self.delete_unused(record.digest, users)
            # Last, for a full store takes nothing until something in it was deleted.
            await self._log.forget_texts(record)
            await self._log.write([Entry(record, vector)])
            record, _ = await self.owned(record.tenant, adapter_id)
        self.changed([as_it_is(record)])
        return record

    async def users_of(self, record: AdapterRecord, *states: State) -> Scope | None:
        """Who uses a record's file, in these states; None where it is another tenant's, for a record may name any."""
        whose = await self.files.tenant_of(record.digest)
        if whose not in ("", record.tenant):
            return None
        return Scope(tenant=whose or None, include_shared=not whose, states=states, digest=record.digest)

    async def delete_unused(self, digest: str, users: Scope) -> None:
        """Delete a file, unless one of these records names it; one that does meanwhile is out of use. The caller holds `writing`."""
        if not await self.catalogue.scroll(users, "", 1):
            await self.files.delete(digest)
            for user in await self.catalogue.scroll(users, "", MAX_NAMESAKES):
                await until_taken(lambda user=user: self._with_file(user.tenant, user.adapter_id))  # type: ignore[misc]

    async def _with_file(self, tenant: str, adapter_id: str) -> AdapterRecord:
        """The record, out of use if its file is gone. Whoever begins to use a file while it is being deleted looks for it after the write,
        and who deletes it looks for such records after the deletion: so one of the two sees what the other did.
        """
        record, vector = await self.owned(tenant, adapter_id)
        if record.state in ("active", "canary") and await self.files.absent([record.digest]):
            entry = in_state(Entry(record, vector), "missing")
            await self.write([entry])
            self.changed([as_it_is(entry.record)])
            return entry.record
        return record

    async def _visible(self, tenant: str, adapter_id: str) -> tuple[AdapterRecord, Vector]:
        found = await self.catalogue.get(adapter_id)
        if found is None or not found[0].visible_to(tenant):
            raise NotFound("adapter", adapter_id)
        return found

    async def owned(self, tenant: str, adapter_id: str) -> tuple[AdapterRecord, Vector]:
        """One of the tenant's own; raises NotFound."""
        found = await self.catalogue.get(adapter_id)
        if found is None or found[0].tenant != tenant:
            raise NotFound("adapter", adapter_id)
        return found

    @_whole
    async def _move(
        self, tenant: str, adapter_id: str, moves: dict[State, State], action: Action, reason: str, evidence: Mapping[str, float]
    ) -> AdapterRecord:
        async with self.writing:
            record, vector = await self.owned(checked_tenant(tenant), adapter_id)
            check_move(record, tuple(moves), action)
            note_before(record.state)
            if moves[record.state] != record.state:
                if action == "restored":
                    check_publishable(record, "operate")
                    await self._check_restorable(record)
                    await self.files.bring_back(record.digest)
                    record = came_back(record)
                record = dataclasses.replace(record, state=moves[record.state], state_reason=reason, updated_at_us=now_us())
                await self.write([Entry(record, vector)])
                if action == "restored":
                    record = await until_taken(lambda: self._with_file(record.tenant, adapter_id))
                    if record.state == "missing":  # it was purged meanwhile: say so
                        await self._check_restorable(record)
        self.changed([Change(action, record, record.state_reason, evidence)])
        return record
