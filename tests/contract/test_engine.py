"""One suite for every `Engine`: what a stage gives, what a hold refuses, what scores are, and that nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.executor.adapters.leases import AdapterRef
from services.executor.app import load
from services.executor.engine.port import Engine, StageRequest
from services.executor.models.config import ModelConfig
from services.executor.settings import ExecutorSettings
from smoa.adapter import encode
from smoa.errors import FailedPrecondition, NotFound, Unavailable
from smoa.store import AdapterStore
from tests.kafka_support import until
from tests.model_support import BACKENDS, isolated_cache, make_model, random_adapter

PROMPT = list(range(1, 40))


@dataclass
class World:
    engine: Engine
    refs: list[AdapterRef]
    """Two that are shared, one that is the tenant `b`'s own."""

    async def text(self, *adapters: AdapterRef, prompt: list[int] | None = None, max_tokens: int = 8) -> str:
        stage = StageRequest(tenant="a", adapters=adapters, prompt=prompt or PROMPT, max_tokens=max_tokens)
        return "".join([piece.text async for piece in self.engine.run_stage(stage)])

    async def idle(self) -> None:
        async def free() -> bool:
            state = self.engine.state()
            return not state.running and not state.waiting and not any(one.leases for one in state.residents)

        await until("every row and lease being free", 10, free)
        state = self.engine.state()
        assert state.cache_blocks_free == state.cache_blocks


@pytest.fixture(params=BACKENDS)
async def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    isolated_cache(tmp_path / "cache", monkeypatch)
    folder = make_model(tmp_path / "model")
    executor = load(
        ExecutorSettings(base_model=str(folder), store=str(tmp_path / "store"), backend=request.param, dtype="float32", context=200, rows=4)
    )
    store, refs = AdapterStore(str(tmp_path / "store")), []
    for seed, changes in enumerate([{"shared": True}, {"shared": True}, {"tenant": "b"}]):
        adapter = random_adapter(ModelConfig.from_folder(folder), executor.fingerprint, seed=seed, size=1.0, **changes)  # type: ignore[arg-type]
        refs.append(AdapterRef(adapter.manifest.adapter_id, 1, await store.put(encode(adapter)), 0.8))
    await executor.engine.start()
    yield World(executor.engine, refs)
    await executor.engine.stop()


async def test_a_stage_streams_its_text_and_says_what_it_cost(world: World) -> None:
    stage = StageRequest(tenant="a", adapters=tuple(world.refs[:2]), prompt=PROMPT, max_tokens=5)
    pieces = [piece async for piece in world.engine.run_stage(stage)]
    assert [piece.tokens for piece in pieces] == [1] * 5
    assert [piece.usage.completion_tokens for piece in pieces] == [1, 2, 3, 4, 5]
    assert [piece.usage.finish for piece in pieces] == [None, None, None, None, "length"]
    usage = pieces[-1].usage
    assert (usage.prompt_tokens, usage.adapter_hits, usage.adapter_misses) == (len(PROMPT), 0, 2)
    assert 0 <= usage.queue_us <= usage.first_token_us <= usage.total_us
    assert "".join(piece.text for piece in pieces) == await world.text(*world.refs[1::-1], max_tokens=5), "whatever their order"
    await world.idle()


async def test_each_of_many_stages_answers_as_it_does_alone(world: World) -> None:
    mixtures = [(), (world.refs[0],), (world.refs[1],), tuple(world.refs[:2])] * 4
    prompts = [[number + 1, *PROMPT[: 3 * number]] for number in range(16)]
    alone = [await world.text(*mixture, prompt=prompt) for mixture, prompt in zip(mixtures, prompts, strict=True)]
    crowd = [world.text(*mixture, prompt=prompt) for mixture, prompt in zip(mixtures, prompts, strict=True)]
    assert list(await asyncio.gather(*crowd)) == alone
    assert len(set(alone)) > 4
    await world.idle()


async def test_who_closes_the_stream_frees_all_at_once(world: World) -> None:
    stage = StageRequest(tenant="a", adapters=tuple(world.refs[:2]), prompt=PROMPT, max_tokens=150)
    async with aclosing(world.engine.run_stage(stage)) as pieces:
        await anext(pieces)
        assert world.engine.state().running == 1
    await world.idle()


async def test_a_hold_refuses_what_cannot_run_and_keeps_the_rest_at_hand(world: World) -> None:
    gone = AdapterRef(world.refs[0].adapter_id, 1, "a" * 64, 1.0)
    for bad, error in ((world.refs[2], NotFound), (gone, FailedPrecondition)):
        with pytest.raises(error):
            async with world.engine.hold("a", [[world.refs[0]], [bad]]):
                pass
    async with world.engine.hold("a", [[world.refs[0]], [world.refs[1]]]):
        loads = world.engine.state().store_loads
        await world.text(world.refs[0])
        await world.text(world.refs[1])
        assert world.engine.state().store_loads == loads
    await world.idle()


async def test_scores_are_of_each_completion_and_the_prompt_is_computed_once(world: World) -> None:
    completions = [[5, 6, 7], [5], list(range(60, 80))]
    together = await world.engine.score("a", PROMPT, completions, world.refs[:1])
    assert [len(one) for one in together] == [3, 1, 20]
    assert together[0][0] == pytest.approx(together[1][0], abs=1e-4)
    for completion, scores in zip(completions, together, strict=True):
        assert (await world.engine.score("a", PROMPT, [completion], world.refs[:1]))[0] == pytest.approx(scores, abs=1e-4)
    assert (await world.engine.score("a", PROMPT, [completions[0]], ()))[0] != pytest.approx(together[0], abs=1e-3)
    assert world.engine.state().prefix_hits >= 2 * 2, "two full blocks of the prompt, for each of the two others"
    await world.idle()


async def test_a_stopped_engine_answers_nobody(world: World) -> None:
    stage = StageRequest(tenant="a", adapters=(), prompt=PROMPT, max_tokens=150)
    pieces = world.engine.run_stage(stage)
    await anext(pieces)
    await world.engine.stop()
    with pytest.raises(Unavailable):
        async for _ in pieces:
            pass
    with pytest.raises(Unavailable):
        await world.text()
