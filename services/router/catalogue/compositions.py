"""Compositions by name: kept as documents of the catalogue, carried out as stages of exact adapter versions."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from services.router.catalogue import composition as trees
from services.router.catalogue.composition import Node, PlannedStage
from services.router.catalogue.pagination import page_of_documents
from services.router.catalogue.port import Catalogue, Document
from services.router.catalogue.records import AdapterRecord, Scope
from services.router.catalogue.retrying import until_taken
from smoa.adapter import check_texts
from smoa.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from smoa.identifiers import checked_tenant, ulid_of

MAX_NAME_CHARACTERS = 128


@dataclass(frozen=True, kw_only=True)
class Composition:
    """A named tree over adapters; `root` is plain JSON of the protobuf's shape."""

    composition_id: str
    tenant: str
    name: str
    root: dict[str, Any]
    created_at_us: int
    by_success: bool = False
    adapter_ids: tuple[str, ...] = ()
    children: tuple[str, ...] = ()
    """Names of the compositions it nests, and of those that nest it."""
    parents: tuple[str, ...] = ()
    revision: int = 0
    last_writes: tuple[str, ...] = ()
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """What a newer program has added, which stays as it is."""


@dataclass(frozen=True)
class Stage:
    """One mixture of a pipeline, with the records of its adapters."""

    adapters: tuple[tuple[AdapterRecord, float], ...]
    max_tokens: int


class Compositions:
    """Owner of the compositions. A name belongs to one composition of its tenant; a composition never changes."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._writing = asyncio.Lock()

    async def create(self, tenant: str, name: str, root: dict[str, Any], *, by_success: bool = False) -> Composition:
        """Name a tree over adapters; the same again returns what is there.

        Raises:
            InvalidArgument: no name, or a tree that cannot be carried out (see `composition.plan`).
            NotFound: an adapter or composition in it.
            AlreadyExists: the name is taken by another tree.
        """
        return await until_taken(lambda: self._create(tenant, name, root, by_success))

    async def _create(self, tenant: str, name: str, root: dict[str, Any], by_success: bool) -> Composition:
        tenant = checked_tenant(tenant)
        if not 0 < len(name) <= MAX_NAME_CHARACTERS:
            raise InvalidArgument("name", f"has {len(name)} characters", f"name the composition in 1 to {MAX_NAME_CHARACTERS}")
        check_texts("name", (name,), 1)
        tree = trees.parse(root)
        adapter_ids = tuple(dict.fromkeys(leaf.adapter_id for leaf in trees.leaves(tree) if leaf.adapter_id))
        children = tuple(dict.fromkeys(leaf.composition for leaf in trees.leaves(tree) if leaf.composition))
        async with self._writing:
            nested = await self._nested(tenant, {name: tree}, children)
            stages = trees.plan(tree, name, nested.__getitem__)
            await self._records(tenant, stages)
            made = Composition(
                composition_id=composition_id(tenant, name),
                tenant=tenant,
                name=name,
                root=root,
                created_at_us=time.time_ns() // 1000,
                by_success=by_success,
                adapter_ids=adapter_ids,
                children=children,
            )
            if (found := await self._find(tenant, made.composition_id)) is not None:
                if (found.root, found.by_success) != (root, by_success):
                    raise AlreadyExists(f"name: {name!r} is taken by another composition; choose another, or delete that one first")
                made = found
            else:
                await self._write(made)
            for child in children:  # again, too: a crash may have come between
                await until_taken(lambda child=child: self._set_parents(tenant, child, lambda parents: {*parents, name}))  # type: ignore[misc]
        return made

    async def get(self, tenant: str, *, name: str = "", composition_id_: str = "") -> Composition:
        """One of the tenant's compositions.

        Raises:
            InvalidArgument: neither a name nor an id.
            NotFound: none, or another tenant's.
        """
        tenant = checked_tenant(tenant)
        if not name and not composition_id_:
            raise InvalidArgument("name", "is empty, and so is composition_id", "give one of them")
        found = await self._find(tenant, composition_id_ or composition_id(tenant, name))
        if found is None:
            raise NotFound("composition", composition_id_ or name)
        return found

    async def has(self, tenant: str, name: str) -> bool:
        """Whether the tenant has one of the name."""
        return await self._find(tenant, composition_id(tenant, name)) is not None

    async def page(self, tenant: str | None, page_size: int, page_token: str) -> tuple[list[Composition], str]:
        """A page by id, and the token of the next; of every tenant's for None."""
        scope = Scope(tenant=tenant, name="composition")
        found, token = await page_of_documents(self._catalogue, "composition", scope, page_size, page_token)
        return [composition_of(one) for one in found], token

    async def delete(self, tenant: str, composition_id_: str) -> None:
        """Forget one.

        Raises:
            NotFound: none, or another tenant's.
            FailedPrecondition: another nests it.
        """
        await until_taken(lambda: self._delete(tenant, composition_id_))

    async def _delete(self, tenant: str, composition_id_: str) -> None:
        async with self._writing:
            found = await self.get(tenant, composition_id_=composition_id_)
            if found.parents:
                raise FailedPrecondition(
                    f"composition: {found.name!r} is nested by {', '.join(map(repr, found.parents))}; delete that first"
                )
            await self._catalogue.delete_document("composition", document_of(found))
            for child in found.children:
                await until_taken(lambda child=child: self._set_parents(found.tenant, child, lambda parents: parents - {found.name}))  # type: ignore[misc]

    async def resolve(self, tenant: str, name: str, base_model: str) -> tuple[Stage, ...]:
        """The stages that carry out a composition now, with the adapter versions of now; without a base model, on its adapters' one.

        Retired adapters are kept: the composition names them, and their weights are there until they are purged.

        Raises:
            NotFound: no such composition, or an adapter that is gone.
            FailedPrecondition: an adapter of another base model, a purged one, or one whose file is missing.
        """
        found = await self.get(tenant, name=name)
        tree = trees.parse(found.root)
        nested = await self._nested(found.tenant, {name: tree}, found.children)
        stages: Sequence[PlannedStage] = trees.plan(tree, name, nested.__getitem__)
        records = await self._records(found.tenant, stages)
        base_model = base_model or next(iter(records.values())).base_model
        for record in records.values():
            if record.base_model != base_model:
                raise FailedPrecondition(
                    f"base_model: adapter {record.adapter_id} of {name!r} was trained for {record.base_model[:12]}, not {base_model[:12]}; "
                    "send it to an executor with that base model"
                )
            if record.state == "missing":
                raise FailedPrecondition(
                    f"composition: the file of {record.adapter_id} of {name!r} is not in the store; import it again with it"
                )
            if record.state == "purged":
                raise FailedPrecondition(f"composition: adapter {record.adapter_id} of {name!r} was purged; make the composition anew")
        if found.by_success:
            statistics = {one: record.statistics for one, record in records.items()}
            stages = [trees.by_success(stage, statistics) for stage in stages]
        return tuple(Stage(tuple((records[one], weight) for one, weight in stage.weights.items()), stage.max_tokens) for stage in stages)

    async def _nested(self, tenant: str, known: Mapping[str, Node], names: Sequence[str]) -> dict[str, Node]:
        """The trees of all compositions that `names` nest, themselves included. At most MAX_DEPTH rounds: a cycle would go on."""
        found, wanted = dict(known), [name for name in names if name not in known]
        for _ in range(trees.MAX_DEPTH):
            deeper: list[str] = []
            for name in wanted:
                one = await self.get(tenant, name=name)
                found[name] = trees.parse(one.root)
                deeper += one.children
            wanted = [name for name in dict.fromkeys(deeper) if name not in found]
        return found

    async def _records(self, tenant: str, stages: Sequence[PlannedStage]) -> dict[str, AdapterRecord]:
        records: dict[str, AdapterRecord] = {}
        for adapter_id in dict.fromkeys(one for stage in stages for one in stage.weights):
            found = await self._catalogue.get(adapter_id)
            if found is None or not found[0].visible_to(tenant):
                raise NotFound("adapter", adapter_id)
            records[adapter_id] = found[0]
        return records

    async def _find(self, tenant: str, composition_id_: str) -> Composition | None:
        found = await self._catalogue.get_document("composition", composition_id_)
        return None if found is None or found.tenant != tenant else composition_of(found)

    async def _set_parents(self, tenant: str, name: str, change: Callable[[set[str]], set[str]]) -> None:
        found = await self._find(tenant, composition_id(tenant, name))
        if found is None:
            return  # deleted, after a crash had left out that it was nested
        await self._write(dataclasses.replace(found, parents=tuple(sorted(change(set(found.parents))))))

    async def _write(self, made: Composition) -> None:
        await self._catalogue.write_document("composition", document_of(made))


def composition_id(tenant: str, name: str) -> str:
    """The id that belongs to a name: so one name cannot be two compositions, and finding it is one read."""
    return ulid_of(tenant, name)


def document_of(made: Composition) -> Document:
    """What the catalogue keeps of it."""
    body = {**made.unknown, **{name: getattr(made, name) for name in _KEPT}}
    return Document(made.composition_id, made.tenant, body, made.revision, made.last_writes)


def composition_of(document: Document) -> Composition:
    """Inverse of `document_of`."""
    known = {name: document.body[name] for name in _KEPT if name in document.body}
    known |= {name: tuple(document.body[name]) for name in ("adapter_ids", "children", "parents")}
    unknown = {name: value for name, value in document.body.items() if name not in known}
    return Composition(**known, revision=document.revision, last_writes=document.last_writes, unknown=unknown)


_KEPT: Final = tuple(item.name for item in dataclasses.fields(Composition) if item.name not in ("revision", "last_writes", "unknown"))
