"""A request's answer does not depend on who else is there: hundreds of random interleavings on one engine, checked to the last token."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.executor.adapters.leases import AdapterRef
from services.executor.app import Executor, load
from services.executor.engine.pipeline import Generation
from services.executor.engine.sampling import Sampling
from services.executor.models.base_model import MODULES, fingerprint
from services.executor.models.config import ModelConfig
from services.executor.models.prompt import user_turn
from services.executor.settings import MIB, ExecutorSettings
from services.optimizer.policy.merging import merged
from smoa.adapter import Kind, decode, encode
from smoa.store import AdapterStore
from tests.model_support import CAN_RUN_NATIVE, isolated_cache, make_model, random_adapter

SEEDS, REQUESTS, PATIENCE_S = range(200), 16, 60
pytestmark = pytest.mark.skipif(not CAN_RUN_NATIVE, reason="this processor has no AVX2")


@dataclass(frozen=True)
class World:
    executor: Executor
    store: AdapterStore
    refs: list[AdapterRef]
    """Twelve adapters for four slots."""
    files: list[bytes]

    async def text(self, generation: Generation) -> str:
        async with asyncio.timeout(PATIENCE_S):
            return "".join([piece.text async for piece in self.executor.requests.generate(generation)])

    async def merge(self, first: int, second: int, seed: int) -> int:
        """What a merge does to an executor: a child comes to the store and answers, and the parents' files go, whoever runs them.

        Requests that name the parents have been taken on before: nobody is routed to them after. Returns how many were being decoded.
        """
        parents = [decode(self.files[i]) for i in (first, second)]
        if parents[0].manifest.kind == parents[1].manifest.kind and parents[0].manifest.modules == parents[1].manifest.modules:
            child = merged(parents[:2], (0.5, 0.5), f"merge-{seed}").adapter
        else:
            child = random_adapter(self.executor.engine._backend.config, self.executor.fingerprint, seed=100 + seed, shared=True)
        ref = AdapterRef(child.manifest.adapter_id, child.manifest.version, await self.store.put(encode(child)), 1.0)

        async with asyncio.timeout(PATIENCE_S):
            while len(self.executor.engine._scheduler.jobs) < self.executor.requests._in_flight:  # noqa: ASYNC110  some still fetch; there is no event for it
                await asyncio.sleep(0)
        decoding = self.executor.engine.state().running
        for i in (first, second):
            await self.store.delete(self.refs[i].digest)
        try:
            await self.text(Generation(tenant="a", messages=user_turn("w1 w2"), adapters=(ref,), max_tokens=5))
        finally:
            for i in (first, second):  # the next crowd asks for them again
                await self.store.put(self.files[i])
        return decoding


@asynccontextmanager
async def _world(tmp_path: Path, dtype: str = "bfloat16") -> AsyncIterator[World]:
    folder = make_model(tmp_path / "model")
    config, name = ModelConfig.from_folder(folder), fingerprint(folder)
    store = AdapterStore(str(tmp_path / "store"))
    refs: list[AdapterRef] = []
    files: list[bytes] = []
    for seed in range(12):
        kind: Kind = "lora" if seed % 3 == 0 else "lora_xs"
        adapter = random_adapter(
            config, name, seed=seed, kind=kind, rank=1 + seed, modules=random.Random(seed).sample(MODULES, 3), shared=True
        )
        files.append(encode(adapter))
        refs.append(AdapterRef(adapter.manifest.adapter_id, 1, await store.put(files[-1]), 1.0))
    settings = ExecutorSettings(
        base_model=str(folder),
        store=str(tmp_path / "store"),
        backend="native",
        dtype=dtype,
        rows=6,
        context=160,
        step_tokens=16,
        cache_bytes=MIB // 2,
        slots=4,
        host_bytes=60_000,
        max_waiting=64,
        max_tokens=100,
    )
    executor = load(settings)
    await executor.engine.start()
    try:
        yield World(executor, store, refs, files)
    finally:
        await executor.engine.stop()


def _sampling(rng: random.Random) -> Sampling:
    return Sampling(
        temperature=rng.choice([0.0, 0.8, 1.5]),
        top_p=rng.choice([1.0, 0.9, 0.3]),
        top_k=rng.choice([0, 0, 20]),
        min_p=rng.choice([0.0, 0.0, 0.1]),
        repetition_penalty=rng.choice([1.0, 1.3]),
        frequency_penalty=rng.choice([0.0, 0.5]),
        logit_bias=rng.choice([{}, {7: 3.0}]),
        logprobs=rng.choice([None, 2]),
        seed=rng.randrange(100),
    )


def _request(rng: random.Random, refs: list[AdapterRef]) -> Generation:
    chosen = rng.sample(refs, rng.randint(0, 3))
    return Generation(
        tenant=rng.choice(["a", "b", "c"]),
        messages=user_turn(
            " ".join(f"w{rng.randrange(3) if i < 40 else rng.randrange(200)}" for i in range(rng.choice([1, 5, 17, 33, 60])))
        ),
        adapters=tuple(AdapterRef(ref.adapter_id, 1, ref.digest, rng.choice([-0.5, 0.4, 1.0])) for ref in chosen),
        max_tokens=rng.randint(1, 24),
        sampling=rng.choice([Sampling(), Sampling(), _sampling(rng)]),
    )


async def test_answers_are_the_same_alone_and_in_any_crowd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """3,200 requests in 200 crowds: neighbours evicted, reloaded, cancelled and merged away, shared prefixes, prompts in chunks."""
    isolated_cache(tmp_path / "cache", monkeypatch)
    async with _world(tmp_path) as world:
        engine = world.executor.engine
        rng = random.Random(0)
        known = [_request(rng, world.refs) for _ in range(REQUESTS * 6)]
        answers = [await world.text(request) for request in known]
        cancelled = 0
        merges: list[asyncio.Task[int]] = []
        for seed in SEEDS:
            rng = random.Random(seed)
            picked = rng.sample(range(len(known)), REQUESTS)
            crowd, alone = [known[i] for i in picked], [answers[i] for i in picked]

            async def leaves_early(request: Generation, after: int) -> None:
                async with aclosing(world.executor.requests.generate(request)) as pieces:
                    async for _ in pieces:
                        if (after := after - 1) < 0:
                            return

            tasks: list[asyncio.Task[str]] = []
            async with asyncio.TaskGroup() as group:
                for request in crowd:
                    tasks.append(group.create_task(world.text(request)))
                    if rng.random() < 0.5:
                        group.create_task(leaves_early(_request(rng, world.refs), rng.randint(0, 8)))
                        cancelled += 1
                    for _ in range(rng.randint(0, 6)):
                        await asyncio.sleep(0)
                if rng.random() < 0.5:
                    first, second = rng.sample(range(len(world.refs)), 2)
                    merges.append(group.create_task(world.merge(first, second, seed)))
            assert [task.result() for task in tasks] == alone, f"seed {seed}"
            assert engine._scheduler.jobs == []
            engine.check_integrity()
        assert cancelled > 100
        state = engine.state()
        assert state.slot_evictions > 100, "the slots were never short: the test would show nothing"
        assert sum(merge.result() > 0 for merge in merges) > 50, "too few merges came while others were decoded"
        assert state.host_evictions > 20, "host memory was never short"
        assert state.prefix_hits > 50, "no prefix was shared"


async def test_adapters_deleted_under_a_running_request_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolated_cache(tmp_path / "cache", monkeypatch)
    async with _world(tmp_path) as world:
        request = Generation(tenant="a", messages=user_turn("w1 w2"), adapters=tuple(world.refs[:2]), max_tokens=90)
        expected = await world.text(request)
        pieces: list[str] = []
        async for piece in world.executor.requests.generate(request):
            if not pieces:
                for ref in world.refs:
                    await world.store.delete(ref.digest)
                others = [Generation(tenant="b", messages=user_turn("w3"), adapters=(ref,), max_tokens=4) for ref in world.refs[2:]]
                failures = await asyncio.gather(*(world.text(other) for other in others), return_exceptions=True)
                assert any(isinstance(failure, Exception) and "are gone" in str(failure) for failure in failures)
            pieces.append(piece.text)
        assert "".join(pieces) == expected
        world.executor.engine.check_integrity()
