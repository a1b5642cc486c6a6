"""Two routers over one catalogue, their calls to it in any order, killed between any two of them, told of each other late, twice, or not at
all: afterwards both know the same, what was acknowledged is there, and what they answer is what they would decide anew.

Every call to the server waits at a gate until the machine lets it pass, so hypothesis decides how the two interleave.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from qdrant_client import AsyncQdrantClient

from services.router.catalogue import qdrant_changes, retrying
from services.router.catalogue.adapter_files import AdapterFiles
from services.router.catalogue.catalogue_copy import CatalogueCopy
from services.router.catalogue.changes import ARRIVALS, Change
from services.router.catalogue.compositions import Compositions
from services.router.catalogue.merges import Merges
from services.router.catalogue.qdrant_catalogue import QdrantCatalogue
from services.router.catalogue.qdrant_connection import QdrantConnection
from services.router.catalogue.records import EVERY_STATE, AdapterRecord, Reach, Scope, home_of
from services.router.catalogue.registry import Registry
from services.router.catalogue.sqlite_catalogue import SqliteCatalogue
from services.router.catalogue.stamp import stamped
from services.router.routing.cache import RoutingCache
from services.router.routing.query import RouteQuery, RoutingDefaults
from services.router.routing.router import Router
from services.router.search.memory_search import MemorySearch
from smoa.adapter import Adapter, Manifest, encode, new_adapter_id
from smoa.embedding.static import StaticEmbedder
from smoa.embedding.views import Views
from smoa.errors import SmoaError, Unavailable
from smoa.store import AdapterStore
from tests.qdrant_support import client_of, drop, fresh_prefix

TOPICS: Final = ("knees and stairs", "refunds of money", "verbs in the past", "dates of letters")
CALLS: Final = ("upsert", "set_payload", "retrieve", "delete", "scroll")
EMBEDDER: Final = Views(StaticEmbedder())
ROUTERS, ADAPTERS = st.sampled_from((0, 1)), st.sampled_from(range(len(TOPICS)))


class Died(Exception):
    """What every call of a killed router ends with."""


@dataclass
class Operation:
    """Something that a caller asked for: what it makes of fields (adapter, field), as sets of the values that they may have then."""

    effects: dict[tuple[str, str], set[Any]]
    began: int
    ended: int = 2**60
    outcome: str = "unknown"


class Gate:
    """Calls that wait to be let pass, of one router's life."""

    def __init__(self, client: AsyncQdrantClient) -> None:
        self._client, self.dead = client, False
        self.waiting: list[asyncio.Future[None]] = []
        self.open = True

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)
        if name not in CALLS:
            return call

        async def gated(*arguments: Any, **named: Any) -> Any:
            if self.dead:
                raise Died
            if not self.open:
                passing = asyncio.get_running_loop().create_future()
                self.waiting.append(passing)
                await passing
            return await call(*arguments, **named)

        return gated


@dataclass
class Life:
    """A router, from its start to its end."""

    gate: Gate
    catalogue: QdrantCatalogue
    near: SqliteCatalogue
    copy: CatalogueCopy
    search: MemorySearch
    router: Router
    registry: Registry
    merges: Merges
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class TwoRouters(RuleBasedStateMachine):
    """`client` and `prefix` are set by the test."""

    server: tuple[str, int] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp())
        self.store = AdapterStore(str(self.folder / "store"))
        self.clock_s, self.tick = 1000.0, 0
        self.operations: list[Operation] = []
        self.messages: list[tuple[int, str]] = []
        self.patched = pytest.MonkeyPatch()
        self.patched.setattr("services.router.catalogue.qdrant_changes.time", SimpleNamespace(monotonic=lambda: self.clock_s))
        self.patched.setattr(retrying, "_LONGEST_PAUSE_S", 0.0)
        self.patched.setattr(retrying, "ATTEMPTS", 10)
        self.loop.run_until_complete(self.begin())

    async def begin(self) -> None:
        self.client = client_of(*self.server) if self.server else AsyncQdrantClient(":memory:")
        self.prefix = fresh_prefix()
        self.files = [await self.store.put(_file(name)) for name in TOPICS]
        self.ids = [(await AdapterFiles(self.store).read(digest)).adapter_id for digest in self.files]
        self.children: dict[str, tuple[str, ...]] = {}
        self.lives = [await self.started(number) for number in range(2)]
        self.lives[0].gate.open = True
        for which in range(2):  # the others are for the machine to register
            await self.lives[0].registry.register("public", self.files[which], _examples(which))
        self.lives[0].gate.open = False

    async def started(self, number: int) -> Life:
        gate = Gate(self.client)
        client: Any = gate
        catalogue = QdrantCatalogue(QdrantConnection(client), EMBEDDER.dimension, self.prefix)

        async def ready() -> None:
            await catalogue.prepare()

        near = SqliteCatalogue(self.folder / str(number), EMBEDDER.dimension)
        copy = CatalogueCopy(catalogue, near, ready)
        await copy.recall()
        await ready()
        await copy.begin_with((await stamped(catalogue, EMBEDDER.name, EMBEDDER.dimension)).library_id)
        search = MemorySearch(near)
        await search.load()
        cache: RoutingCache[Any, Any] = RoutingCache(2**20)
        router = Router(near, search, EMBEDDER, cache, Compositions(near), RoutingDefaults(in_scope_loss=0.0), seed=1)
        router.judge.fits.want = lambda *_, **__: None  # type: ignore[method-assign]  # a thread is in no script

        def copied(records: Any) -> None:
            for record in records:
                router.adapter_changed(record.adapter_id, home_of(record), arrived=record.state == "active")
            router.canaries.update(records)

        def changed(changes: Any) -> None:
            made: list[Change] = list(changes)
            for change in made:
                router.adapter_changed(change.record.adapter_id, home_of(change.record), arrived=change.action in ARRIVALS)
            router.canaries.update(change.record for change in made)
            self.messages += [(1 - number, change.record.adapter_id) for change in made]

        router.canaries.update(await near.scroll(Scope(tenant=None, states=("canary",)), "", 100))
        copy.listen(copied)
        registry = Registry(catalogue, self.store, EMBEDDER, changed, purge_grace_s=0)
        life = Life(gate, catalogue, near, copy, search, router, registry, Merges(registry))
        await copy._follow()
        gate.open = False
        return life

    def do(self, number: int, work: Coroutine[Any, Any, Any], effects: dict[tuple[str, str], set[Any]]) -> None:
        """Begin what a caller asks for; it comes as far as its first call to the server."""
        operation = Operation(effects, self.tick)
        self.operations.append(operation)

        async def run() -> None:
            try:
                await work
                operation.outcome = "done"
            except Unavailable:
                operation.outcome = "unknown"
            except SmoaError:
                operation.outcome = "refused"
            except Died:
                operation.outcome = "unknown"
            operation.ended = self.tick

        life = self.lives[number]
        self.begin_task(life, run())

    def begin_task(self, life: Life, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        life.tasks.add(task)
        self.settle()

    def settle(self) -> None:
        """Let everybody go on until each waits at a gate, or is done."""
        self.tick += 1

        async def quiet() -> None:
            calm = 0
            while calm < 3:
                before = [(len(life.gate.waiting), sum(task.done() for task in life.tasks)) for life in self.lives]
                await asyncio.sleep(0.001)
                busy = any(sum(not task.done() for task in life.tasks) > 0 and not life.gate.waiting for life in self.lives)
                after = [(len(life.gate.waiting), sum(task.done() for task in life.tasks)) for life in self.lives]
                calm = 0 if busy or before != after else calm + 1

        self.loop.run_until_complete(asyncio.wait_for(quiet(), 20))

    @rule(number=ROUTERS, which=ADAPTERS)
    def register(self, number: int, which: int) -> None:
        effects = {(self.ids[which], "state"): {"active"}}
        self.do(number, self.lives[number].registry.register("public", self.files[which], _examples(which)), effects)

    @rule(number=ROUTERS, which=ADAPTERS, kind=st.sampled_from(("name", "tags", "pinned")), value=st.integers(0, 3))
    def update(self, number: int, which: int, kind: str, value: int) -> None:
        named: dict[str, Any] = {"name": f"name {value}", "tags": (f"tag {value}",), "pinned": bool(value % 2)}
        work = self.lives[number].registry.update("public", self.ids[which], **{kind: named[kind]})
        self.do(number, work, {(self.ids[which], kind): {named[kind]}})

    @rule(number=ROUTERS, which=ADAPTERS, move=st.sampled_from(("retire", "restore", "purge")))
    def move(self, number: int, which: int, move: str) -> None:
        registry, adapter_id = self.lives[number].registry, self.ids[which]
        work: Coroutine[Any, Any, Any] = {
            "retire": lambda: registry.retire("public", adapter_id, "by the test"),
            "restore": lambda: registry.restore("public", adapter_id),
            "purge": lambda: registry.purge("public", adapter_id),
        }[move]()
        states = {"retire": {"retired"}, "restore": {"active"}, "purge": {"purged"}}
        self.do(number, work, {(adapter_id, "state"): states[move]})

    @rule(number=ROUTERS, which=ADAPTERS, share=st.sampled_from((0.0, 0.5)))
    def merge(self, number: int, which: int, share: float) -> None:
        parents = tuple(sorted((self.ids[which], self.ids[(which + 1) % len(TOPICS)])))
        data = _file(f"child of {which}", parents)
        digest = self.loop.run_until_complete(self.store.put(data))
        child = self.loop.run_until_complete(AdapterFiles(self.store).read(digest)).adapter_id
        self.children[child] = parents
        effects: dict[tuple[str, str], set[Any]] = {(child, "state"): {"canary"} if share else {"active"}}
        if not share:
            effects |= {(parent, "state"): {"retired"} for parent in parents}
        self.do(number, self.lives[number].merges.apply("public", child, digest, parents, "alike", share), effects)

    @rule(number=ROUTERS, place=st.integers(0, 5), promote=st.booleans())
    def end_trial(self, number: int, place: int, promote: bool) -> None:
        if self.children:
            child = sorted(self.children)[place % len(self.children)]
            effects: dict[tuple[str, str], set[Any]] = {(child, "state"): {"active"} if promote else {"retired"}}
            parents = {"retired", "purged"} if promote else {"active", "retired", "purged"}
            effects |= {(parent, "state"): parents for parent in self.children[child]}
            self.do(number, self.lives[number].merges.settle("public", child, promote=promote, reason="why"), effects)

    @rule(number=ROUTERS, count=st.integers(1, 12))
    def let_pass(self, number: int, count: int) -> None:
        for _ in range(count):
            waiting = self.lives[number].gate.waiting
            if not waiting:
                return
            passing = waiting.pop(0)
            if not passing.done():
                passing.set_result(None)
            self.settle()

    @rule(which=ADAPTERS, first=st.integers(0, 5), second=st.integers(0, 5), order=st.lists(ROUTERS, max_size=14))
    def cross(self, which: int, first: int, second: int, order: list[int]) -> None:
        """Both routers change one adapter, and their calls pass in this order."""
        for number, kind in enumerate((first, second)):
            if kind < 3:
                self.update(number, which, ("name", "tags", "pinned")[kind], kind + number)
            elif kind < 5:
                self.move(number, which, ("retire", "restore")[kind - 3])
            else:
                self.merge(number, which, 0.0)
        for number in order:
            self.let_pass(number, 1)

    @rule(number=ROUTERS)
    def finish_all(self, number: int) -> None:
        while self.lives[number].gate.waiting:
            self.let_pass(number, 50)

    @rule(number=ROUTERS)
    def kill(self, number: int) -> None:
        self.loop.run_until_complete(self.end_life(number))
        self.loop.run_until_complete(self.reborn(number))

    async def end_life(self, number: int) -> None:
        life = self.lives[number]
        life.gate.dead = True
        for passing in life.gate.waiting:
            if not passing.done():
                passing.set_exception(Died())
        life.gate.waiting.clear()
        await asyncio.gather(*life.tasks, return_exceptions=True)
        await life.router.close()
        await life.registry.close()
        await life.search.close()
        await life.near.close()

    async def reborn(self, number: int) -> None:
        self.lives[number] = await self.started(number)

    @rule(place=st.integers(0, 20), fate=st.sampled_from(("delivered", "doubled", "lost")))
    def message(self, place: int, fate: str) -> None:
        """Any of the messages, whatever order they were sent in."""
        if self.messages:
            number, adapter_id = self.messages[place % len(self.messages)]
            if fate != "doubled":
                self.messages.remove((number, adapter_id))
            if fate != "lost":
                self.lives[number].copy.want(adapter_id)

    @rule(number=ROUTERS)
    def follow(self, number: int) -> None:
        async def work() -> None:
            with suppress(SmoaError, Died):
                await self.lives[number].copy._follow()

        self.begin_task(self.lives[number], work())

    @rule(number=ROUTERS, which=ADAPTERS)
    def route(self, number: int, which: int) -> None:
        """Routing waits for no server."""
        self.loop.run_until_complete(asyncio.wait_for(self.lives[number].router.route(_query(which)), 5))

    @rule()
    def wait(self) -> None:
        """Long enough for a change that nobody goes on with to be called off."""
        self.clock_s += qdrant_changes.CALLED_OFF_AFTER_S + 1

    def teardown(self) -> None:
        try:
            for number in (0, 1):
                self.finish_all(number)
            self.finish_all(0)
            for life in self.lives:
                life.gate.open = True
            self.settle()
            self.loop.run_until_complete(self.check_all())
            for number in (0, 1):
                self.loop.run_until_complete(self.end_life(number))
            self.loop.run_until_complete(drop(self.client, self.prefix))
            self.loop.run_until_complete(self.client.close())
        finally:
            self.patched.undo()
            self.loop.close()
            shutil.rmtree(self.folder)

    async def check_all(self) -> None:
        for _ in range(3):  # the first sees what was claimed, the others end it
            for life in self.lives:
                await life.catalogue.check()
            self.wait()
        everything = Scope(tenant=None, states=EVERY_STATE)
        for life in self.lives:
            await life.copy._follow()
            await life.copy.compare()
        records = {one.adapter_id: one for one in await self.lives[0].catalogue.scroll(everything, "", 1000)}
        assert (await self.client.count(f"{self.prefix}_changes")).count == 0
        self.check_acknowledged(records)
        for record in records.values():
            if record.state == "active":
                assert not await self.store.absent([record.digest]), "it is routed to, and its file is gone"
        for life in self.lives:
            copied = {one.adapter_id: one for one in await life.near.scroll(everything, "", 1000)}
            assert {name: _plain(one) for name, one in copied.items()} == {name: _plain(one) for name, one in records.items()}
            reach = Reach(tenant="public", base_model="base-a")
            found = {one.ref.adapter_id for one in await life.search.search(np.ones(EMBEDDER.dimension, np.float32), reach, 100)}
            assert found == {name for name, one in records.items() if one.state == "active"}
            canaries = {name for name, one in records.items() if one.state == "canary"}
            assert set(life.router.canaries) == canaries
            for which in range(len(TOPICS)):
                query = life.router._complete(_query(which))
                answer, anew = (await life.router._chosen(query, False))[0], (await life.router._decide(query))[0]
                assert [one.ref for one in answer.chosen] == [one.ref for one in anew.chosen], "a cached answer is of before"

    def check_acknowledged(self, records: dict[str, AdapterRecord]) -> None:
        """Each field is as some operation left it that no later acknowledged one has changed."""
        fields = {effect for operation in self.operations for effect in operation.effects}
        for adapter_id, name in sorted(fields):
            touched = [one for one in self.operations if (adapter_id, name) in one.effects and one.outcome != "refused"]
            done = [one for one in touched if one.outcome == "done"]
            last = [one for one in touched if not any(one.ended < other.began for other in done)]
            if adapter_id not in records:
                assert not done, f"{adapter_id} was acknowledged, and is not there"
                continue
            if not done:
                continue
            allowed = set[Any]().union(*(one.effects[adapter_id, name] for one in last))
            assert getattr(records[adapter_id], name) in allowed, (adapter_id, name, getattr(records[adapter_id], name), allowed)


def _file(name: str, parents: tuple[str, ...] = ()) -> bytes:
    manifest = Manifest(
        adapter_id=new_adapter_id(),
        name=name,
        kind="lora_xs",
        base_model="base-a",
        rank=2,
        modules=("q_proj",),
        layers=(0,),
        parents=parents,
    )
    return encode(Adapter(manifest, {"q_proj": np.full((1, 2, 2), 0.5, np.float32), "q_proj.s": np.ones((1, 2), np.float32)}))


def _examples(which: int) -> list[str]:
    return [f"{TOPICS[which]} {word}" for word in ("one", "two", "three", "four", "five")]


def _query(which: int) -> RouteQuery:
    return RouteQuery(f"{TOPICS[which]} please", "base-a")


def _plain(record: AdapterRecord) -> dict[str, Any]:
    return {**record.to_payload(), "last_writes": None}


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning")
@pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("where", ["client", "server"])
def test_two_routers_agree_and_lose_nothing(where: str, request: pytest.FixtureRequest) -> None:
    class Machine(TwoRouters):
        server = request.getfixturevalue("qdrant") if where == "server" else None

    examples = 60 if where == "client" else 8
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples, stateful_step_count=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
        ),
    )
