"""Conversations over a real socket: routed by what they are about, in sessions and by their turns; and users with habits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from unittest.mock import patch

import pytest

from examples.library.jobs import JOBS
from services.router.catalogue.port import Vector
from services.router.learning.habits import hash_of_user
from services.router.learning.pool_fit import PoolFit, fit
from services.router.routing import pool_fits
from smoa.limits import MAX_QUERY_CHARACTERS, MAX_TURNS
from smoa.v1 import registry_pb2, router_pb2
from tests.command_support import said_by
from tests.integration.router_support import RouterWorld, refused, running_router
from tests.kafka_support import until

NAMES = ("support_intent", "home_command", "travel_request", "code_error", "med_department")
WHAT = "where is the|who has the|how old is my|please repair our|what does a new|is anybody using the|I lost the|send me the".split("|")
WHEN = "now|today|by now|this week|cost|at the moment|last night|tomorrow".split("|")
# ruff: noqa: SIM905  a list of forty words
NOUNS = (
    "harpsichord telescope lawnmower violin tractor umbrella microscope bicycle kettle sofa ladder compass drill piano carpet mirror "
    "parachute wheelbarrow anchor saddle lantern typewriter freezer chimney hammock trumpet aquarium canoe thermometer projector wardrobe "
    "accordion snowboard teapot scarecrow windmill printer helmet chandelier fountain"
).split()
FOLLOW_UP = "and the next one as well, please"


def _asked(job: str, number: int = 0) -> str:
    return str(list(JOBS[job].generate("test", 20, 1))[number].input)


class Conversations:
    """A router with some jobs of the example library."""

    def __init__(self, world: RouterWorld) -> None:
        self.world = world
        self.names: dict[str, str] = {}

    async def register(self) -> None:
        sizes = list[int]()

        def fitting(examples: Mapping[str, Vector], loss: float, *, ranks: bool) -> PoolFit | None:
            made = fit(examples, loss, ranks=ranks)
            sizes.append(len(examples))
            return made

        async def fitted() -> bool:  # the first fits are of the first adapters
            return len(NAMES) in sizes and not (await self.ask(FOLLOW_UP, look=True)).adapters

        with patch.object(pool_fits, "fit", fitting):
            for name in NAMES:
                examples = [str(one.input) for one in JOBS[name].generate("train", 40, 0)]
                self.names[(await self.world.register(examples[:40], name=name)).adapter_id] = name
            await until("a fit of the whole pool", 60, fitted)

    async def ask(self, line: str, **options: object) -> router_pb2.Decision:
        return await self.world.client.route(line, base_model="base-a", **options)  # type: ignore[arg-type]

    async def first(self, line: str, **options: object) -> str:
        adapters = (await self.ask(line, **options)).adapters
        return self.names[adapters[0].adapter_id] if adapters else ""


@pytest.fixture
async def asked(tmp_path: Path) -> AsyncIterator[Conversations]:
    async with running_router(tmp_path) as world:
        made = Conversations(world)
        await made.register()
        yield made


async def test_a_line_that_says_nothing_of_its_topic_is_routed_by_the_conversation(asked: Conversations) -> None:
    assert await asked.first(FOLLOW_UP) == ""
    for job in ("support_intent", "code_error"):  # another session, another topic
        assert await asked.first(_asked(job), session=job) == job
    for job in ("support_intent", "code_error"):
        decision = await asked.ask(FOLLOW_UP, session=job)
        assert asked.names[decision.adapters[0].adapter_id] == job
        assert decision.by_conversation
        assert not decision.cached
        assert decision.confidence > 0.5
        assert await asked.first(FOLLOW_UP, turns=[_asked(job)]) == job
    assert await asked.first(_asked("travel_request"), session="support_intent") == "travel_request"
    assert await asked.first(FOLLOW_UP, session="support_intent") == "travel_request"
    assert await asked.first(FOLLOW_UP, session="support_intent", new_topic=True) == ""
    assert await asked.first(FOLLOW_UP, session="support_intent") == ""
    assert await asked.first(FOLLOW_UP) == ""


async def test_what_was_said_before_is_what_messages_say(asked: Conversations) -> None:
    messages = [
        {"role": "system", "content": "you answer briefly"},
        {"role": "user", "content": _asked("med_department")},
        {"role": "assistant", "content": "cardiology"},
        {"role": "user", "content": FOLLOW_UP},
    ]
    decision = await asked.world.client.route(base_model="base-a", messages=messages)
    assert asked.names[decision.adapters[0].adapter_id] == "med_department"


async def test_equal_conversations_have_one_cached_answer_and_others_another(asked: Conversations) -> None:
    async def cached() -> bool:  # until the pool is fitted to the last adapter, too, answers are forgotten
        return (await asked.ask(FOLLOW_UP, turns=[_asked("code_error")], user="ann")).cached

    await until("an answer in the cache", 10, cached)
    again = await asked.ask(FOLLOW_UP, turns=[_asked("code_error")], user="ben")
    assert (again.cached, asked.names[again.adapters[0].adapter_id]) == (True, "code_error")
    other = await asked.ask(FOLLOW_UP, turns=[_asked("travel_request")])
    assert (other.cached, asked.names[other.adapters[0].adapter_id]) == (False, "travel_request")
    nothing = await asked.ask(FOLLOW_UP, turns=["what is the capital of france", "are you sure?"])
    assert not nothing.adapters, "what was about no adapter goes on so"
    assert not (await asked.ask(FOLLOW_UP)).adapters


async def test_a_look_leaves_a_session_as_it_is_and_explains_it(asked: Conversations) -> None:
    await asked.ask(_asked("support_intent"), session="s")
    await asked.ask(_asked("code_error"), session="s", look=True)
    decision = await asked.ask(FOLLOW_UP, session="s", explain=True)
    best = decision.explanations[0]
    assert asked.names[best.adapter_id] == "support_intent"
    assert best.before > 0.5 > decision.explanations[1].before
    assert (best.reason, best.weight) == ("chosen", decision.adapters[0].weight)


async def test_a_turn_that_is_sent_again_counts_once(asked: Conversations) -> None:
    await asked.ask(_asked("support_intent"), session="s")
    decisions = [await asked.ask(FOLLOW_UP, session="s") for _ in range(12)]
    assert {one.confidence for one in decisions} == {decisions[0].confidence}


async def test_an_adapter_that_is_gone_is_not_remembered(asked: Conversations) -> None:
    await asked.ask(_asked("support_intent"), session="s")
    (gone,) = [adapter_id for adapter_id, name in asked.names.items() if name == "support_intent"]
    await asked.world.client.registry.RetireAdapter(registry_pb2.RetireAdapterRequest(adapter_id=gone), timeout=10)
    assert await asked.first(FOLLOW_UP, session="s") != "support_intent"
    assert await asked.first(FOLLOW_UP, turns=[_asked("support_intent")]) != "support_intent"


async def test_the_last_turns_count_and_what_cannot_be_one_is_refused(asked: Conversations) -> None:
    turns = [_asked("code_error"), *[_asked("travel_request", number) for number in range(MAX_TURNS)], "  "]
    assert await asked.first(FOLLOW_UP, turns=turns) == "travel_request"
    code, message, _ = await refused(asked.ask(FOLLOW_UP, turns=["ok", "x" * (MAX_QUERY_CHARACTERS + 1)]))
    assert (code, message) == ("INVALID_ARGUMENT", "turns[1]: has 8,193 characters, over 8,192; send its first part")
    code, message, _ = await refused(asked.ask(FOLLOW_UP, session="s" * 257))
    assert (code, message) == ("INVALID_ARGUMENT", "session: has 257 characters, over 256; name it by a shorter id")


async def test_a_threshold_and_hints_of_a_query_are_not_its_turns(asked: Conversations) -> None:
    turns = [_asked("code_error"), "and the one below it"]
    for options in ({"score_threshold": -1.0}, {"strategy": "ROUTING_STRATEGY_MIXTURE"}, {"strategy": "ROUTING_STRATEGY_HIERARCHICAL"}):
        assert await asked.first(FOLLOW_UP, turns=turns, **options) == "code_error"
    assert not (await asked.ask(FOLLOW_UP, turns=turns, score_threshold=0.9)).adapters, "the caller's word"
    await asked.ask(_asked("code_error"), session="s")
    assert not (await asked.ask(FOLLOW_UP, session="s", score_threshold=0.9)).adapters
    assert await asked.first(FOLLOW_UP, session="s") == "code_error", "what no adapter may answer ends no topic"


async def test_among_more_adapters_than_are_looked_at_the_topic_stays_and_moves(tmp_path: Path) -> None:
    async with running_router(tmp_path) as world:
        asked = Conversations(world)
        for noun in NOUNS:
            lines = [f"{what} {noun} {when}" for what, when in zip(WHAT, WHEN, strict=True)]
            asked.names[(await world.register(lines, name=noun)).adapter_id] = noun

        async def fitted() -> bool:
            return (await asked.ask("where is my harpsichord now", look=True)).HasField("confidence")

        await until("a fit of the pool", 30, fitted)
        for top_k in (1, 3):
            session = f"of {top_k}"
            assert await asked.first("when was the harpsichord tuned", session=session, top_k=top_k) == "harpsichord"
            decision = await asked.ask("and then once more, please", session=session, top_k=top_k)
            assert asked.names[decision.adapters[0].adapter_id] == "harpsichord"
            assert decision.HasField("confidence")
            assert await asked.first("who has the telescope today", session=session, top_k=top_k) == "telescope"
            assert await asked.first("and then once more, please", session=session, top_k=top_k) == "telescope"


async def test_sessions_can_be_turned_off(tmp_path: Path) -> None:
    async with running_router(tmp_path, session_bytes=0) as world:
        asked = Conversations(world)
        await asked.register()
        assert await asked.first(_asked("code_error"), session="s") == "code_error"
        assert await asked.first(FOLLOW_UP, session="s") == ""
        assert (await asked.ask(FOLLOW_UP, session="t")).cached
        assert await asked.first(FOLLOW_UP, session="s", turns=[_asked("code_error")]) == "code_error"


async def test_another_tenants_session_of_the_same_name_is_another(asked: Conversations) -> None:
    await asked.ask(_asked("support_intent"), session="s")
    await asked.world.register([f"{line} please" for line in ("one", "two", "three", "four", "five")], tenant="other", name="others")
    decision = await asked.ask(FOLLOW_UP, session="s", tenant="other")
    assert not decision.by_conversation


async def test_a_decision_of_the_learned_strategy_says_who_asked(asked: Conversations) -> None:
    decision = await asked.ask(_asked("code_error"), strategy="ROUTING_STRATEGY_LEARNED", user="ann")
    assert decision.user == hash_of_user("public", "ann")
    assert len(decision.context) == 64
    await asked.ask(_asked("code_error"), strategy="ROUTING_STRATEGY_LEARNED", session="s")
    swayed = await asked.ask(FOLLOW_UP, strategy="ROUTING_STRATEGY_LEARNED", session="s")
    assert (swayed.by_conversation, swayed.context, swayed.user) == (True, b"", b"")
    assert not (await asked.ask(_asked("code_error"), user="ann")).user


async def test_the_command_takes_turns(asked: Conversations, monkeypatch: pytest.MonkeyPatch) -> None:
    async def base_model(_: object) -> registry_pb2.Adapter:
        return registry_pb2.Adapter(base_model="base-a")

    monkeypatch.setattr("smoa.client.SmoaClient.status", base_model)  # there is no executor here
    where = ("--router", asked.world.address)
    _, said, _ = await said_by("route", FOLLOW_UP, "--turn", _asked("code_error"), *where)
    assert "by what the conversation is about" in said
    assert "code_error" in said
    await said_by("route", _asked("travel_request"), "--session", "s", "--count", *where)
    _, said, _ = await said_by("route", FOLLOW_UP, "--session", "s", *where)
    assert "travel_request" in said
    _, said, _ = await said_by("route", FOLLOW_UP, "--session", "s", "--new-topic", *where)
    assert "no adapter fits" in said
