"""Fits of pools beside a router that serves: made when something changes, shared by tenants without adapters, never waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from services.router.catalogue.changes import ARRIVALS, Change
from services.router.catalogue.compositions import Compositions
from services.router.catalogue.importing import Imported
from services.router.catalogue.records import AdapterRecord, Reach, home_of
from services.router.catalogue.registry import Registry
from services.router.learning import pool_fit
from services.router.learning.thresholds import SAMPLED
from services.router.library import Library
from services.router.routing import pool_fits
from services.router.routing.cache import RoutingCache
from services.router.routing.query import Choice, RouteQuery
from services.router.routing.router import Router
from services.router.routing.scoring import Hints
from smoa.adapter import new_adapter_id
from smoa.embedding.port import Vector
from smoa.embedding.static import StaticEmbedder
from smoa.embedding.views import Views
from smoa.errors import Unavailable
from smoa.store import AdapterStore
from tests.library_support import sqlite_library

VIEWS = Views(StaticEmbedder())
DATES = [f"{1950 + 3 * number}-{number % 12 + 1:02}-{number % 28 + 1:02}" for number in range(40)]
SHOUTS = [f"GIVE ME {what} NOW!!" for what in ("MY MONEY", "THE KEYS", "A ROOM", "THE BILL", "YOUR NAME", "MY BAG", "MORE TIME")]
_THINGS = ("der Hund", "mein Hut", "das Rad", "der Brief", "die Tasse", "das Buch", "die Uhr", "der Zug")
GERMAN = [f"Wo ist {what} geblieben?" for what in _THINGS]
BASE = "base-a"


class Served:
    """A router and its registry over one library."""

    def __init__(self, library: Library, store: AdapterStore) -> None:
        self.library, cache = library, RoutingCache[RouteQuery, Choice](2**20)
        self.router = Router(library.near, library.search, VIEWS, cache, Compositions(library.near), seed=1)
        self.registry = Registry(library.catalogue, store, VIEWS, self._changed)

    def _changed(self, changes: Sequence[Change]) -> None:
        for change in changes:
            self.router.adapter_changed(change.record.adapter_id, home_of(change.record), arrived=change.action in ARRIVALS)

    async def add(self, name: str, examples: Sequence[str], tenant: str = "public", *, shared: bool = False) -> str:
        record = AdapterRecord(
            adapter_id=new_adapter_id(),
            version=1,
            digest=sha256(name.encode()).hexdigest(),
            tenant=tenant,
            name=name,
            kind="lora_xs",
            granularity="",
            specialization="task",
            base_model=BASE,
            rank=8,
            modules=("q_proj",),
            parameter_count=3840,
            file_bytes=9000,
            examples=tuple(examples),
            shared=shared,
        )
        await self.registry.import_adapters(tenant, [Imported(record, None)], files_unchecked=True)
        return record.adapter_id

    async def settled(self) -> None:
        await self.router.judge.fits.settled()

    async def ask(self, text: str, tenant: str = "public", **more: Any) -> Choice:
        return (await self.router.route(RouteQuery(text, BASE, tenant, **more))).choice


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    library = await sqlite_library(tmp_path / "index", VIEWS.dimension)
    made = Served(library, AdapterStore(str(tmp_path / "store")))
    yield made
    await made.registry.close()
    await made.router.close()
    await library.close()


async def test_a_library_is_fitted_soon_after_it_changed(served: Served) -> None:
    dates, shouts = await served.add("dates", DATES), await served.add("shouts", SHOUTS)
    first = await served.ask("1911-11-11")
    assert first.chosen[0].ref.adapter_id == dates
    await served.settled()
    sure = await served.ask("1911-11-11")
    assert [one.ref.adapter_id for one in sure.chosen] == [dates]
    assert sure.confidence is not None
    assert sure.confidence > 0.5
    assert [one.ref.adapter_id for one in (await served.ask("BRING ME THE PAPER NOW!!")).chosen] == [shouts]
    strange = await served.ask("my knee hurts when i climb the stairs, what could that be and should i see somebody?")
    assert strange.chosen == ()
    assert (await served.ask("my knee hurts when i climb the stairs", score_threshold=-1.0)).chosen


async def test_one_that_comes_later_is_chosen_before_the_next_fit(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    await served.add("dates", DATES)
    await served.add("shouts", SHOUTS)
    await served.settled()
    monkeypatch.setattr(served.router.judge.fits, "want", lambda *_, **__: None)
    german = await served.add("german", GERMAN)
    choice = await served.ask("Wo ist die Lampe geblieben?")
    assert choice.chosen[0].ref.adapter_id == german
    await served.registry.update("public", german, examples=[text.upper() for text in DATES[:6]])
    assert german not in [one.ref.adapter_id for one in (await served.ask("Wo ist die Lampe geblieben?")).chosen]


async def test_tenants_without_adapters_share_one_fit(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    await served.add("dates", DATES, "owner", shared=True)
    await served.add("shouts", SHOUTS, "owner", shared=True)
    made = Mock(side_effect=pool_fit.fit)
    monkeypatch.setattr(pool_fits, "fit", made)
    served.router._known_tenants |= {f"tenant-{number}" for number in range(20)}
    for number in range(20):
        await served.ask("1911-11-11", f"tenant-{number}")
    await served.settled()
    assert made.call_count == 1
    for number in range(20):
        assert (await served.ask("1911-11-12", f"tenant-{number}")).confidence is not None
    own = await served.add("german", GERMAN, "tenant-3")
    await served.settled()
    assert (await served.ask("Wo ist die Lampe geblieben?", "tenant-3")).chosen[0].ref.adapter_id == own
    assert not (await served.ask("Wo ist die Lampe geblieben?", "tenant-4")).chosen, "it is another tenant's"


async def test_what_was_answered_before_a_fit_is_not_answered_again(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    want = served.router.judge.fits.want
    monkeypatch.setattr(served.router.judge.fits, "want", lambda *_, **__: None)
    for name, examples in (("dates", DATES), ("shouts", SHOUTS), ("german", GERMAN)):
        await served.add(name, examples)
    question = "what would you do if a stranger asked you for the way to the station in the middle of the night?"
    before = (await served.router.route(RouteQuery(question, BASE))).choice
    assert before.chosen
    assert before.confidence is None, "nothing could be told yet"
    assert (await served.router.route(RouteQuery(question, BASE))).cached
    want(Reach(tenant="public", base_model=BASE))
    await served.settled()
    after = await served.router.route(RouteQuery(question, BASE))
    assert (after.cached, after.choice.chosen) == (False, ())


async def test_from_few_examples_nothing_is_told_and_all_is_answered(served: Served) -> None:
    await served.add("dates", DATES[:6])
    await served.settled()
    choice = await served.ask("my knee hurts when i climb the stairs")
    assert choice.chosen
    assert choice.confidence is None


async def test_a_catalogue_that_is_away_is_asked_again(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    await served.add("dates", DATES)
    await served.settled()
    read = served.library.near.scroll

    async def away(*_: object) -> None:
        raise Unavailable("index: is away")

    monkeypatch.setattr(served.library.near, "scroll", away)
    await served.add("shouts", SHOUTS)
    await served.settled()
    monkeypatch.setattr(served.library.near, "scroll", read)
    assert (await served.ask("GIVE ME A BREAK NOW!!")).chosen
    await served.settled()
    assert (await served.ask("GIVE ME A BREAK NOW!!")).confidence is not None


async def test_a_query_never_waits_for_a_fit(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    await served.add("dates", DATES)
    going, go_on = asyncio.Event(), asyncio.Event()

    async def slow(*_: object) -> dict[str, Vector]:
        going.set()
        await go_on.wait()
        return {}

    await served.settled()
    monkeypatch.setattr(pool_fits, "examples_of", slow)
    await served.add("shouts", SHOUTS)
    await going.wait()
    assert (await asyncio.wait_for(served.ask("1911-11-11"), 5)).chosen
    go_on.set()


async def test_strangers_are_told_from_others_by_outcomes(served: Served) -> None:
    """Once they were answered wrongly more often than others rightly; but for one in eight, so that it is known if that changes."""
    await served.add("dates", DATES)
    await served.add("shouts", SHOUTS * 6)
    await served.settled()
    clock_s = 0.0
    served.router.judge.clock = lambda: clock_s
    asked = [f"19{number}-11-{number - 60}" for number in range(65, 85)]
    strange = [f"19{year}/{month}/{year - 60}" for year in range(65, 85) for month in (10, 11, 12, "05", "06")]

    async def answered(texts: Sequence[str]) -> list[Choice]:
        served.router.cache.clear()
        return [choice for choice in [await served.ask(text) for text in texts] if choice.chosen]

    before = await answered(strange)
    assert len(before) > len(strange) / 3, "they look much like dates"
    assert len(await answered(asked)) == len(asked)
    for choice, right in [*((one, False) for one in before), *((one, True) for one in await answered(asked * 10))]:
        assert choice.closeness is not None
        served.router.judge.thresholds.observe("public", BASE, *choice.closeness, right=right)
    after = await answered(strange)
    assert 0 < len(after) < len(before) / 3
    assert len(await answered(asked)) >= 0.95 * len(asked)

    def sampled(choices: Sequence[Choice]) -> set[float]:
        return {one.closeness.value for one in choices if one.closeness is not None and one.closeness.stands_for == SAMPLED}

    assert sampled(after)
    clock_s = 3600.0
    assert sampled(await answered(strange)) - sampled(after), "others have their turn"


async def test_only_queries_that_were_judged_by_how_close_they_are_tell_of_others(served: Served) -> None:
    await served.add("dates", DATES)
    await served.settled()
    assert (await served.ask("1911-11-11")).closeness is not None
    assert (await served.ask("my knee hurts when i climb the stairs")).closeness is None, "it is not answered"
    assert (await served.ask("1911-11-11", score_threshold=-1.0)).closeness is None, "whoever asked has judged"
    assert (await served.ask("1911-11-11", hints=Hints(specialization="task"))).closeness is None
    assert (await served.ask("1911-11-12", turns=("1911-11-11",))).closeness is None
