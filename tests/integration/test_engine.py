"""The engine under faults of its own: steps that fail, a store that hangs, readers that are slow, a cache that is short."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.executor.adapters import leases
from services.executor.adapters.leases import CONCURRENT_LOADS, AdapterRef
from services.executor.app import Executor, load
from services.executor.engine.pipeline import Generation, Stage
from services.executor.models.base_model import fingerprint
from services.executor.models.config import ModelConfig
from services.executor.models.prompt import user_turn
from services.executor.settings import ExecutorSettings
from smoa.adapter import encode
from smoa.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable
from smoa.store import AdapterStore
from tests.kafka_support import until
from tests.model_support import BACKENDS, isolated_cache, make_model, random_adapter


@dataclasses.dataclass
class World:
    executor: Executor
    store: AdapterStore
    broken: asyncio.Event

    async def ref(self, seed: int, weight: float = 1.0, **changes: Any) -> AdapterRef:
        config, name = ModelConfig.from_folder(self.executor.folder), self.executor.fingerprint
        adapter = random_adapter(config, name, **{"seed": seed, "size": 1.0, "shared": True, **changes})
        return AdapterRef(adapter.manifest.adapter_id, 1, await self.store.put(encode(adapter)), weight)

    async def text(self, *adapters: AdapterRef, prompt: str = "w1 w2 w3", **changes: Any) -> str:
        request = Generation(tenant="a", messages=user_turn(prompt), adapters=adapters, **{"max_tokens": 8, **changes})
        async with asyncio.timeout(60):
            return "".join([piece.text async for piece in self.executor.requests.generate(request)])


@asynccontextmanager
async def world_of(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> AsyncIterator[World]:
    if not (tmp_path / "cache").exists():
        isolated_cache(tmp_path / "cache", monkeypatch)
        make_model(tmp_path / "model")
    settings = ExecutorSettings(
        base_model=str(tmp_path / "model"), store=str(tmp_path / "store"), backend=backend, dtype="float32", context=200
    )
    executor = load(dataclasses.replace(settings, **changes))
    broken = asyncio.Event()
    executor.engine._broken = broken.set
    await executor.engine.start()
    try:
        yield World(executor, AdapterStore(settings.store), broken)
        executor.engine.check_integrity()
    finally:
        await executor.engine.stop()


@pytest.fixture(params=BACKENDS)
async def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with world_of(request.param, tmp_path, monkeypatch) as made:
        yield made


async def test_a_step_that_fails_once_fails_its_own_and_one_that_keeps_failing_ends_the_process(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await world.text()
    forward = world.executor.engine._backend.forward
    failing = iter([True, False])

    def once(batch: Any) -> Any:
        if next(failing, False):
            raise RuntimeError("a cosmic ray")
        return forward(batch)

    monkeypatch.setattr(world.executor.engine._backend, "forward", once)
    with pytest.raises(Unavailable, match=r"^executor: the model step failed \(RuntimeError\); retry$"):
        await world.text()
    assert await world.text() == expected

    def always(batch: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(world.executor.engine._backend, "forward", always)
    for _ in range(2):
        with pytest.raises(Unavailable, match="the model step failed"):
            await world.text()
        assert not world.broken.is_set()
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"^executor: its engine does not run; retry on another$"):
            await world.text()
    assert world.broken.is_set()


async def test_a_store_that_hangs_stops_nobody_whose_adapters_are_here(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    here = await world.ref(1)
    expected = await world.text(here)
    away = [await world.ref(seed) for seed in range(2, 22)]
    asked = asyncio.Event()

    async def hangs(digest: str) -> bytes:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    tiers = world.executor.engine._adapters
    monkeypatch.setattr(tiers._store, "get", hangs)
    waiting = [asyncio.create_task(world.text(ref)) for ref in away]
    await asked.wait()
    assert await world.text(here) == expected
    tiers.host._items.clear()  # as if others had needed the room: it is in its slot
    tiers.host.used_bytes = 0
    assert await world.text(here) == expected
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_store_that_does_not_answer_in_time_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world_of("torch", tmp_path, monkeypatch, load_timeout_s=0.05) as world:
        ref = await world.ref(1)
        expected = await world.text(ref)
        other, get = await world.ref(2), world.executor.engine._adapters._store.get

        async def hangs(digest: str) -> bytes:
            await asyncio.Event().wait()
            raise AssertionError

        monkeypatch.setattr(world.executor.engine._adapters._store, "get", hangs)
        with pytest.raises(Unavailable, match=rf"did not give {other.adapter_id} in 0.05 s; retry$"):
            await world.text(other)
        monkeypatch.setattr(world.executor.engine._adapters._store, "get", get)
        assert await world.text(ref) == expected
        assert await world.text(other) != expected


async def test_what_nobody_waits_for_any_more_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world_of("torch", tmp_path, monkeypatch, load_timeout_s=0.5) as world:
        mixtures = [[await world.ref(8 * number + one) for one in range(8)] for number in range(20)]
        tiers = world.executor.engine._adapters
        asked: list[str] = []
        many = asyncio.Event()

        async def hangs(digest: str) -> bytes:
            asked.append(digest)
            if len(asked) == CONCURRENT_LOADS:
                many.set()
            await asyncio.Event().wait()
            raise AssertionError

        get = tiers._store.get
        monkeypatch.setattr(tiers._store, "get", hangs)
        waiting = [asyncio.create_task(world.text(*mixture)) for mixture in mixtures]
        await many.wait()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert len(asked) == len(tiers._loading) == CONCURRENT_LOADS
        # More than fetch at once and than get the place of one whose load was begun before and ends now.
        late = [asyncio.create_task(world.text(*mixture)) for mixture in mixtures + mixtures]
        began = asyncio.get_running_loop().time()
        ended = await asyncio.gather(*late, return_exceptions=True)
        assert asyncio.get_running_loop().time() - began < 5, "one deadline for all that a request waits for"
        assert {type(one) for one in ended} == {Unavailable}
        assert any("other requests' adapters were still being brought after 0.5 s" in str(one) for one in ended)
        monkeypatch.setattr(tiers._store, "get", get)
        while tiers._loading:
            await asyncio.wait(list(tiers._loading.values()))
        assert await world.text(*mixtures[0])


async def test_adapters_over_the_hosts_memory_are_refused_before_all_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world_of("torch", tmp_path, monkeypatch, host_bytes=1200) as world:
        refs = [await world.ref(seed, kind="lora_xs") for seed in range(32)]  # 384 bytes each
        foreign = [await world.ref(seed, kind="lora_xs", shared=False) for seed in range(40, 72)]
        tiers = world.executor.engine._adapters
        with pytest.raises(InvalidArgument, match=r"^adapters: take more than the 1,200 bytes of the executor's host memory; send fewer"):
            await world.text(*refs)
        assert tiers.counts.store_loads <= 3 * CONCURRENT_LOADS
        loads = tiers.counts.store_loads
        with pytest.raises(NotFound):
            await world.text(*foreign)
        assert tiers.counts.store_loads - loads <= 3 * CONCURRENT_LOADS


async def test_an_adapter_is_copied_out_of_its_slot_beside_the_loop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = await world.ref(1)
    expected = await world.text(ref)
    tiers = world.executor.engine._adapters
    tiers.host._items.clear()  # as if others had needed the room
    tiers.host.used_bytes = 0
    read, threads = tiers._device.read, set[int]()

    def reads(key: str) -> Any:
        threads.add(threading.get_ident())
        return read(key)

    monkeypatch.setattr(tiers._device, "read", reads)
    assert await world.text(ref) == expected
    assert threads
    assert threading.get_ident() not in threads
    assert tiers.counts.store_loads == 1


async def test_who_needs_no_bases_does_not_wait_for_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    xs, pairs = await world.ref(1, kind="lora_xs"), await world.ref(2, kind="lora")
    engine = world.executor.engine
    begun, may_go_on, add_bases = threading.Event(), threading.Event(), engine._backend.add_bases

    def finds() -> None:
        begun.set()
        may_go_on.wait(60)
        add_bases()

    monkeypatch.setattr(engine._backend, "add_bases", finds)
    waiting = asyncio.create_task(world.text(xs))
    await asyncio.to_thread(begun.wait, 60)
    assert await world.text(pairs)
    assert engine.state().running == 0, "it has no row before it can use one"
    monkeypatch.setattr(leases, "MOST_WAIT_FOR_BASES_S", 0.01)
    with pytest.raises(Unavailable, match=r"^executor: is finding the LoRA-XS bases of its base model, once for each machine"):
        await world.text(xs)
    may_go_on.set()
    assert await waiting == await world.text(xs)


async def test_a_host_hit_is_an_adapter_that_comes_back_without_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world_of("native", tmp_path, monkeypatch, slots=1) as world:
        first, second = await world.ref(1), await world.ref(2)
        for ref in (first, second, first, second):
            stages = Generation(tenant="a", messages=user_turn("w1"), adapters=(ref,), before=(Stage((ref,), 2),), max_tokens=2)
            assert [piece async for piece in world.executor.requests.generate(stages)]
        state = world.executor.engine.state()
        assert (state.store_loads, state.host_hits, state.adapter_misses, state.adapter_hits) == (2, 2, 4, 4)


async def test_a_slow_reader_of_a_pipeline_holds_no_stages_adapters(world: World) -> None:
    first, last = await world.ref(1), await world.ref(2)
    request = Generation(tenant="a", messages=user_turn("w1 w2"), adapters=(last,), before=(Stage((first,), 3),), max_tokens=100)
    async with aclosing(world.executor.requests.generate(request)) as pieces:
        await anext(pieces)
        assert world.executor.engine._adapters.host.held_bytes == 0
        assert [piece async for piece in pieces]


async def test_many_answers_are_taken_in_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world_of("native", tmp_path, monkeypatch, rows=2, max_waiting=2, max_tokens=190) as world:
        requests, one = world.executor.requests, Generation(tenant="a", messages=user_turn("w1 w2"), max_tokens=190)
        async with aclosing(requests.answers([one] * 3)) as pieces:
            await anext(pieces)
            steps = world.executor.engine.state().step_tokens
            with pytest.raises(ResourceExhausted, match=r"^queue: 3 of 4 requests are in flight; retry"):
                _ = [piece async for piece in requests.answers([one] * 2)]
            assert await world.text()
            assert world.executor.engine.state().step_tokens > steps
        with pytest.raises(InvalidArgument, match=r"^n: 5 is over the 4 requests that may be in flight; ask for fewer answers$"):
            _ = [piece async for piece in requests.answers([one] * 5)]


async def test_a_place_is_given_back_with_the_answer_and_not_by_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world_of("native", tmp_path, monkeypatch, rows=1, max_waiting=0, max_tokens=190) as world:
        requests, slow = world.executor.requests, Generation(tenant="a", messages=user_turn("w1 w2"), max_tokens=20)
        async with aclosing(requests.generate(slow)) as pieces:
            await anext(pieces)
            with pytest.raises(ResourceExhausted, match=r"^queue: 1 of 1 requests"):
                await world.text()

            async def is_done() -> bool:
                return world.executor.engine.state().running == 0

            await until("all its tokens", 10, is_done)
            assert await world.text()
            assert len([piece async for piece in pieces]) == 19


async def test_a_tenant_that_fills_the_queue_fills_it_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world_of("native", tmp_path, monkeypatch, rows=2, max_waiting=3, max_tokens=190) as world:
        requests = world.executor.requests

        async def answer(tenant: str, tokens: int = 185) -> str:
            generation = Generation(tenant=tenant, messages=user_turn("w1 w2"), max_tokens=tokens)
            return "".join([piece.text async for piece in requests.generate(generation)])

        greedy = [asyncio.create_task(answer("greedy")) for _ in range(5)]

        async with asyncio.timeout(10):
            while world.executor.engine.state().waiting < 3:  # noqa: ASYNC110  steps of microseconds
                await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted, match=r"^queue: 5 of 5 requests are in flight"):
            await answer("greedy")
        assert await asyncio.wait_for(answer("other", 3), 10)
        assert [task.done() for task in greedy] == [False] * 4 + [True], "of a row, and of a place: the newest gave its up"
        with pytest.raises(ResourceExhausted, match=r"^queue: is full, and greedy has the most in it; retry with backoff$"):
            await greedy[4]
        assert len({await task for task in greedy[:4]}) == 1, "who gave a row up says what it would have said"


async def test_a_score_has_a_place_before_its_texts_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world_of("native", tmp_path, monkeypatch, rows=1, max_waiting=0, max_tokens=190) as world:
        requests, read = world.executor.requests, list[str]()
        answer_ids = requests.tokenizer.answer_ids

        def reads(messages: Any, completion: str) -> list[int]:
            read.append(completion)
            return answer_ids(messages, completion)

        monkeypatch.setattr(requests.tokenizer, "answer_ids", reads)
        async with aclosing(requests.generate(Generation(tenant="a", messages=user_turn("w1"), max_tokens=190))) as pieces:
            await anext(pieces)
            with pytest.raises(ResourceExhausted):
                await requests.score("a", user_turn("w1"), ["w2 " * 10_000] * 64, [])
        assert read == []
        assert await requests.score("a", user_turn("w1"), ["w2 w3", "w4"], [])
        assert read == ["w2 w3", "w4"]


async def test_a_request_for_all_slots_leaves_the_batch_full_while_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many others as there are rows are started before it, though it came first; then it has its turn."""
    async with world_of("native", tmp_path, monkeypatch, slots=8, rows=4, max_tokens=190) as world:
        few, many = [await world.ref(seed) for seed in range(8)], [await world.ref(seed) for seed in range(8, 16)]
        waits, is_over = asyncio.Event(), asyncio.Event()
        started = dict.fromkeys(("before", "meanwhile"), 0)

        async def stream(number: int) -> None:
            turn = 0
            while not is_over.is_set():
                turn += 1
                adapters = few[number], few[4 + (number + turn) % 4]
                # Each of another length: they never end together, so the slots are never all free by chance.
                request = Generation(tenant="a", messages=user_turn("w1 w2"), adapters=adapters, max_tokens=11 + 6 * number)
                came_first = not waits.is_set()
                async with aclosing(world.executor.requests.generate(request)) as pieces:
                    await anext(pieces)
                    if not is_over.is_set():
                        started["before" if came_first else "meanwhile"] += 1
                    _ = [piece async for piece in pieces]

        streams = [asyncio.create_task(stream(number)) for number in range(4)]
        while started["before"] < 8:  # noqa: ASYNC110  there is no event for it
            await asyncio.sleep(0)
        large = asyncio.create_task(world.text(*many, max_tokens=3))
        while world.executor.engine.state().waiting == 0:  # noqa: ASYNC110  nor for this
            await asyncio.sleep(0)
        waits.set()
        assert await large
        is_over.set()
        await asyncio.gather(*streams)
        assert 3 <= started["meanwhile"] <= 5


async def test_a_slow_reader_keeps_no_row_after_its_stop_string(world: World) -> None:
    words = (await world.text(max_tokens=60)).split()
    stop = next(word for word in words[3:] if words.index(word) >= 3)
    request = Generation(tenant="a", messages=user_turn("w1 w2 w3"), max_tokens=180, stop=(stop,))
    async with aclosing(world.executor.requests.generate(request)) as pieces:
        first = await anext(pieces)
        steps = world.executor.engine.state().steps
        async with asyncio.timeout(60):
            while world.executor.engine.state().running:  # noqa: ASYNC110  nobody reads: there is no event for it
                await asyncio.sleep(0)
        assert world.executor.engine.state().steps - steps <= words.index(stop) + 1
        rest = [piece async for piece in pieces]
    whole = first.text + "".join(piece.text for piece in rest)
    assert whole.split() == words[: words.index(stop)]


async def test_a_short_cache_changes_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers grow until they do not fit together: some give way, are computed again, and are the same to the last token."""
    kinds: dict[str, Any] = {"rows": 6, "max_tokens": 120}
    async with world_of("native", tmp_path, monkeypatch, **kinds) as world:
        refs = [await world.ref(seed) for seed in range(3)]
        alone = [await world.text(*refs[: number % 4], prompt=f"w{number} w7", max_tokens=100) for number in range(6)]
    block_bytes = 2 * 3 * 2 * 16 * 16 * 4
    async with world_of("native", tmp_path, monkeypatch, **kinds, cache_bytes=20 * block_bytes) as world:
        refs = [await world.ref(seed) for seed in range(3)]
        crowd = [world.text(*refs[: number % 4], prompt=f"w{number} w7", max_tokens=100) for number in range(6)]
        assert await asyncio.gather(*crowd) == alone
        assert world.executor.engine.state().preemptions > 0, "the cache was never short"


async def test_the_order_of_a_mixture_does_not_matter(world: World) -> None:
    one, other = await world.ref(1, 0.7), await world.ref(2, -0.4)
    prompt = " ".join(f"w{number}" for number in range(40))
    first = await world.text(one, other, prompt=prompt)
    hits = world.executor.engine.state().prefix_hits
    assert await world.text(other, one, prompt=prompt) == first
    assert world.executor.engine.state().prefix_hits == hits + 2


async def test_many_completions_of_a_prompt_are_scored_as_each_alone_and_the_prompt_is_computed_once(world: World) -> None:
    requests, ref = world.executor.requests, await world.ref(1)
    prompt = " ".join(f"w{number}" for number in range(50))
    completions = [" ".join(f"w{n}" for n in range(k, k + 1 + k % 5)) for k in range(20)]
    steps = world.executor.engine.state().step_tokens
    together = await requests.score("a", user_turn(prompt), completions, [ref])
    computed = world.executor.engine.state().step_tokens - steps
    assert computed < 60 + 20 * (16 + 6)
    fresh = AdapterRef(ref.adapter_id, ref.version, ref.digest, 1.0)
    for completion, scores in zip(completions, together, strict=True):
        alone = (await requests.score("b", user_turn(prompt), [completion], [fresh]))[0]
        assert alone == pytest.approx(scores, abs=1e-4)


def test_a_step_smaller_than_the_rows_is_refused_with_the_remedy() -> None:
    message = (
        "^SMOA_EXECUTOR_STEP_TOKENS: 128 is under the 256 rows, which all decode at every step; raise it, or lower SMOA_EXECUTOR_ROWS$"
    )
    with pytest.raises(InvalidArgument, match=message):
        load(ExecutorSettings(rows=256))


def test_the_fingerprint_is_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolated_cache(tmp_path / "cache", monkeypatch)
    folder = make_model(tmp_path / "model")
    executor = load(ExecutorSettings(base_model=str(folder), store=str(tmp_path / "store"), backend="torch", context=64))
    assert executor.fingerprint == fingerprint(folder)


async def test_a_request_that_gives_way_before_its_adapters_are_placed_still_gets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world_of("native", tmp_path, monkeypatch, rows=2, max_tokens=120) as world:
        engine, ref = world.executor.engine, await world.ref(1)
        expected = await world.text(ref, prompt="w1")
        plan = engine._scheduler.plan

        def gives_way() -> Any:
            """As when a row that was there takes the last block in the step after the admission."""
            for job in engine._scheduler.running:
                del engine._scheduler._running[job]
                engine._scheduler._give_up_blocks(job)
                engine._scheduler._preempted.appendleft(job)
            engine._scheduler.plan = plan  # type: ignore[method-assign]
            engine._work.set()
            return []

        engine._scheduler.plan = gives_way  # type: ignore[method-assign]
        assert await world.text(ref, prompt="w1") == expected
