"""Changes of the library that are planned: which they are, how each goes on, and what was decided of it.

A change is a document, so whoever carries it out may stop anywhere, and another goes on from what is written. Its id is made of what it
changes: the same change is the same record, and one that was refused or undone is found again when it is proposed again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from services.router.catalogue.changes import now_us
from services.router.catalogue.freezes import Freezes
from services.router.catalogue.pagination import page_of_documents
from services.router.catalogue.port import Catalogue, Document
from services.router.catalogue.records import AdapterRecord, Scope
from services.router.catalogue.retrying import until_taken
from smoa.access.noting import note_before
from smoa.access.principal import known_caller
from smoa.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from smoa.identifiers import check_ulid, checked_tenant, ulid_of

ChangeKind = Literal["prune", "merge", "purge", "supersede"]
ChangeState = Literal["proposed", "gated", "trial", "done", "undone", "refused", "withdrawn"]
MOVES: Final[Mapping[ChangeState, frozenset[ChangeState]]] = {
    "proposed": frozenset({"gated", "trial", "done", "refused", "withdrawn"}),
    "gated": frozenset({"trial", "done", "refused", "withdrawn"}),
    "trial": frozenset({"done", "undone"}),
    "done": frozenset({"undone"}),
    "undone": frozenset(),
    "refused": frozenset({"proposed"}),
    "withdrawn": frozenset({"proposed"}),
}
"""What a change may become."""
ADAPTERS_OF: Final[Mapping[ChangeKind, tuple[int, int]]] = {"prune": (1, 1), "merge": (2, 64), "purge": (1, 1), "supersede": (2, 2)}
"""Least and most adapters that a change is of."""
MAX_STEPS: Final = 32
HOUR_US: Final = 3600 * 10**6
_KIND: Final = "planned_change"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing that was decided of a change, and the numbers behind it."""

    state: ChangeState
    reason: str
    evidence: Mapping[str, float]
    at_us: int
    by: str = ""
    """Who did it, where callers are known."""


@dataclass(frozen=True, kw_only=True)
class PlannedChange:
    """A change and its steps, the last of which is how it stands."""

    change_id: str
    tenant: str
    kind: ChangeKind
    adapter_ids: tuple[str, ...]
    merge_id: str = ""
    child_digest: str = ""
    approved: bool = False
    begun_at_us: int = 0
    steps: tuple[Step, ...]
    revision: int = 0
    last_writes: tuple[str, ...] = ()
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """What a newer program has added, which stays as it is."""

    @property
    def state(self) -> ChangeState:
        """As of the last step."""
        return self.steps[-1].state

    def moved(self, state: ChangeState, reason: str, evidence: Mapping[str, float] | None = None, **changed: Any) -> PlannedChange:
        """The change with one more step; of very many the first and the last are kept.

        Raises:
            FailedPrecondition: it cannot become that from what it is.
        """
        if state not in MOVES[self.state]:
            raise FailedPrecondition(f"change: {self.change_id} is {self.state}, so it cannot be {state}; see `smoa optimizer changes`")
        step = Step(state=state, reason=reason, evidence=dict(evidence or {}), at_us=now_us(), by=known_caller())
        steps = (*self.steps[:1], *self.steps[1:][-(MAX_STEPS - 2) :], step)
        return dataclasses.replace(self, steps=steps, **changed)


class PlannedChanges:
    """Owner of the changes."""

    def __init__(
        self, catalogue: Catalogue, freezes: Freezes, changed: Callable[[PlannedChange], None], check_room: Callable[[], None]
    ) -> None:
        """`changed` is told of every step; `check_room` raises before a write that could not be told."""
        self._catalogue, self._freezes, self._changed, self._check_room = catalogue, freezes, changed, check_room

    async def propose(
        self,
        tenant: str,
        kind: ChangeKind,
        adapter_ids: Sequence[str],
        merge_id: str,
        reason: str,
        evidence: Mapping[str, float],
    ) -> PlannedChange:
        """Plan a change; one that is there is returned as it is, unless it was withdrawn.

        Raises:
            InvalidArgument: no adapter, or a merge without an id.
            NotFound: an adapter that the tenant does not have.
        """
        tenant = checked_tenant(tenant)
        wanted = tuple(dict.fromkeys(adapter_ids))
        least, most = ADAPTERS_OF[kind]
        if not least <= len(wanted) <= most:
            raise InvalidArgument("adapter_ids", f"names {len(wanted)} adapters", f"a {kind} is of {least} to {most}")
        if (kind == "merge") != bool(merge_id):
            raise InvalidArgument("merge_id", f"is {merge_id!r} of a {kind}", "a merge has one, and nothing else")
        for adapter_id in wanted:
            check_ulid(adapter_id, "adapter_ids")
        found = await self._catalogue.records(wanted)
        for adapter_id in wanted:
            if adapter_id not in found or found[adapter_id].tenant != tenant:
                raise NotFound("adapter", adapter_id)
        change_id = change_id_of(kind, found[wanted[0]])
        if kind == "merge":
            change_id = merge_change_id(merge_id)
        elif kind == "supersede":
            change_id = version_change_id(*wanted)
        first = Step(state="proposed", reason=reason, evidence=dict(evidence), at_us=now_us(), by=known_caller())
        made = PlannedChange(change_id=change_id, tenant=tenant, kind=kind, adapter_ids=wanted, merge_id=merge_id, steps=(first,))

        async def work() -> PlannedChange:
            there = await self._find(tenant, change_id)
            if there is not None and there.state != "withdrawn":
                return there
            if there is None:
                return await self._write(made)
            return await self._write(dataclasses.replace(made, revision=there.revision, last_writes=there.last_writes))

        return await until_taken(work)

    async def begin(self, tenant: str, change_id: str, most_per_hour: int) -> PlannedChange:
        """Take a place of the tenant's hour for a change; one that has begun keeps its own.

        Raises:
            NotFound: no such change of the tenant's.
            FailedPrecondition: it is neither proposed nor gated, or a freeze holds it.
            ResourceExhausted: the hour has no room left.
        """

        async def work() -> PlannedChange:
            change = await self.get(tenant, change_id)
            if change.state not in ("proposed", "gated"):
                raise FailedPrecondition(f"change: {change_id} is {change.state}, so it cannot begin; see `smoa optimizer changes`")
            models = {record.base_model for record in (await self._catalogue.records(change.adapter_ids)).values()}
            if held := await self._freezes.holding(change.tenant, models):
                raise FailedPrecondition(f"change: {change_id} is held: {held.why}; thaw it with `smoa optimizer thaw`, or wait")
            if change.begun_at_us:
                return change
            await self._take_place(change, most_per_hour)
            return await self._write(dataclasses.replace(change, begun_at_us=now_us()))

        return await until_taken(work)

    async def advance(
        self, tenant: str, change_id: str, state: ChangeState, reason: str, evidence: Mapping[str, float], child_digest: str = ""
    ) -> PlannedChange:
        """Say what a step came to; of one that ends here, the place of the hour is free again.

        Raises:
            NotFound: no such change of the tenant's.
            FailedPrecondition: it cannot become that.
        """
        if state not in ("gated", "refused", "withdrawn"):
            raise InvalidArgument("state", f"{state} is not said but done", "say gated, refused or withdrawn")

        async def work() -> PlannedChange:
            change = await self.get(tenant, change_id)
            if change.state == state:
                return change
            if state == "gated":
                return await self._write(change.moved(state, reason, evidence, child_digest=child_digest))
            await self._give_place(change)
            return await self._write(change.moved(state, reason, evidence, begun_at_us=0))

        return await until_taken(work)

    async def decide(self, tenant: str, change_id: str, *, approve: bool, reason: str) -> PlannedChange:
        """Say yes or no to a change that is proposed; a yes takes back a no.

        Raises:
            NotFound: no such change of the tenant's.
            FailedPrecondition: it is carried out already, or being so.
        """

        async def work() -> PlannedChange:
            change = await self.get(tenant, change_id)
            if change.state not in ("proposed", "refused"):
                raise FailedPrecondition(
                    f"change: {change_id} is {change.state}, so there is nothing to decide; take it back with `smoa optimizer undo`"
                )
            if approve:
                if change.state == "refused":
                    change = change.moved("proposed", reason)
                elif not change.approved:
                    said = dataclasses.replace(change.steps[-1], reason=reason, at_us=now_us(), by=known_caller(), evidence={})
                    change = dataclasses.replace(change, steps=(*change.steps, said))
                else:
                    return change
                return await self._write(dataclasses.replace(change, approved=True))
            if change.state == "refused":
                return change
            await self._give_place(change)
            return await self._write(change.moved("refused", reason, approved=False, begun_at_us=0))

        return await until_taken(work)

    async def happened(self, tenant: str, change_id: str, state: ChangeState, reason: str, evidence: Mapping[str, float]) -> None:
        """The registry has done what a change says, or undone it. Of what was not planned nothing is written."""

        async def work() -> None:
            change = await self._find(tenant, change_id)
            if change is not None and state in MOVES[change.state]:
                await self._write(change.moved(state, reason, evidence))

        await until_taken(work)

    async def get(self, tenant: str, change_id: str) -> PlannedChange:
        """One of the tenant's.

        Raises:
            NotFound: none, or another tenant's.
        """
        check_ulid(change_id, "change_id", "use the id that `smoa optimizer changes` shows")
        found = await self._find(checked_tenant(tenant), change_id)
        if found is None:
            raise NotFound("change", change_id)
        note_before(found.state)
        return found

    async def page(
        self, tenant: str | None, states: Sequence[ChangeState], page_size: int, page_token: str
    ) -> tuple[list[PlannedChange], str]:
        """A page by id, and the token of the next; of every tenant's for None."""
        scope = Scope(tenant=tenant, name=f"{_KIND} {' '.join(sorted(states))}")
        found, token = await page_of_documents(self._catalogue, _KIND, scope, page_size, page_token, states)
        return [change_of(one) for one in found], token

    async def _find(self, tenant: str, change_id: str) -> PlannedChange | None:
        found = await self._catalogue.get_document(_KIND, change_id)
        return None if found is None or found.tenant != tenant else change_of(found)

    async def _write(self, change: PlannedChange) -> PlannedChange:
        self._check_room()
        await self._catalogue.write_document(_KIND, document_of(change))
        self._changed(change)
        return change

    async def _take_place(self, change: PlannedChange, most_per_hour: int) -> None:
        budget = await self._budget(change.tenant)
        taken = {one: at_us for one, at_us in budget.body["begun"].items() if at_us > now_us() - HOUR_US}
        if change.change_id in taken:  # the record was not written
            return
        if len(taken) >= most_per_hour:
            raise ResourceExhausted(
                f"change: {len(taken)} changes of {change.tenant} have begun within the hour",
                "wait, or raise SMOA_OPTIMIZER_CHANGES_PER_HOUR",
            )
        await self._catalogue.write_document("change_budget", budget._replace(body={"begun": {**taken, change.change_id: now_us()}}))

    async def _give_place(self, change: PlannedChange) -> None:
        budget = await self._budget(change.tenant)
        if change.change_id in budget.body["begun"]:
            left = {one: at_us for one, at_us in budget.body["begun"].items() if one != change.change_id}
            await self._catalogue.write_document("change_budget", budget._replace(body={"begun": left}))

    async def _budget(self, tenant: str) -> Document:
        at = ulid_of("budget", tenant)
        return await self._catalogue.get_document("change_budget", at) or Document(at, tenant, {"begun": {}})


def merge_change_id(merge_id: str) -> str:
    """The id of the change that a merge is."""
    return ulid_of("merge", merge_id)


def version_change_id(adapter_id: str, older_id: str) -> str:
    """The id of the change by which one supersedes the other."""
    return ulid_of("supersede", adapter_id, older_id)


def trial_change_id(record: AdapterRecord) -> str:
    """The id of the change whose trial an adapter is on, or was last."""
    return merge_change_id(record.merge_id) if record.merge_id else version_change_id(record.adapter_id, *record.tried_against)


def change_id_of(kind: ChangeKind, record: AdapterRecord) -> str:
    """The id of an adapter's prune or purge: another one after it came back, for then it is judged anew."""
    return ulid_of(kind, record.adapter_id, str(record.restored_at_us))


def document_of(change: PlannedChange) -> Document:
    """What the catalogue keeps of it."""
    body = {**change.unknown, **{name: getattr(change, name) for name in _KEPT}, "steps": [dataclasses.asdict(one) for one in change.steps]}
    body |= {"state": change.state, "created_at_us": change.steps[0].at_us}
    return Document(change.change_id, change.tenant, body, change.revision, change.last_writes)


def change_of(document: Document) -> PlannedChange:
    """Inverse of `document_of`."""
    body = document.body
    known = {name: body[name] for name in _KEPT if name in body}
    known |= {"adapter_ids": tuple(body["adapter_ids"]), "steps": tuple(Step(**one) for one in body["steps"])}
    unknown = {name: value for name, value in body.items() if name not in (*known, *_DERIVED)}
    return PlannedChange(**known, revision=document.revision, last_writes=document.last_writes, unknown=unknown)


_DERIVED: Final = ("state", "created_at_us")
_KEPT: Final = tuple(
    item.name for item in dataclasses.fields(PlannedChange) if item.name not in ("revision", "last_writes", "unknown", "steps")
)
KINDS: Final = get_args(ChangeKind)
STATES: Final = get_args(ChangeState)
