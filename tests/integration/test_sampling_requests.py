"""How answers are picked and told, over a real socket: every option of a request, several answers, usage as it goes."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result

from services.executor.models.prompt import Message
from smoa.cli.main import cli
from smoa.v1 import executor_pb2
from tests.integration.executor_support import PROMPT, World, refused, running_executor
from tests.model_support import BACKENDS


@pytest.fixture(params=BACKENDS)
async def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with running_executor(request.param, tmp_path, monkeypatch) as made:
        yield made


async def _responses(world: World, *adapters: Any, prompt: str = PROMPT, **options: Any) -> list[executor_pb2.GenerateResponse]:
    return [response async for response in world.client.stream(prompt, adapters, **{"max_tokens": 12, **options})]


async def _answers(world: World, *adapters: Any, **options: Any) -> dict[int, str]:
    texts: dict[int, str] = {}
    for response in await _responses(world, *adapters, **options):
        texts[response.index] = texts.get(response.index, "") + response.text
    return texts


async def test_a_prompt_of_megabytes_is_refused_unread(world: World) -> None:
    """Tokenising it would take seconds, in which nobody would get a token."""
    began = time.perf_counter()
    code, details = await refused(world, prompt="w1 " * 1_300_000)
    assert (code, details) == ("INVALID_ARGUMENT", "prompt: has more tokens than the context of 200; shorten it")
    request = executor_pb2.ScoreRequest(prompt=PROMPT, completion="w1 " * 1_300_000)
    with pytest.raises(grpc.aio.AioRpcError, match="completion: has more tokens than the context of 200; shorten it"):
        await world.client.executor.Score(request, timeout=20)
    assert time.perf_counter() - began < 2


async def test_a_long_text_is_tokenised_beside_the_loop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    on_the_loop: list[bool] = []

    def ids(messages: Sequence[Message]) -> list[int]:
        on_the_loop.append(threading.current_thread() is threading.main_thread())
        return encode(messages)

    encode = world.executor.requests.tokenizer.prompt_ids
    monkeypatch.setattr(world.executor.requests.tokenizer, "prompt_ids", ids)
    _, details = await refused(world, prompt="w1 " * 6000)
    assert details == "prompt: has 6000 tokens, with max_tokens over the context of 200; shorten it or lower max_tokens"
    await refused(world, prompt="w1 " * 600)
    assert on_the_loop == [False, True]


async def test_a_bias_brings_a_token_and_penalties_drive_it_away(world: World) -> None:
    assert await world.text(logit_bias={7: 100.0}, max_tokens=4) == "w7 w7 w7 w7"
    assert set((await world.text(logit_bias={7: 90.0, 8: 75.0}, max_tokens=40)).split()) == {"w7"}
    assert set((await world.text(logit_bias={7: 90.0, 8: 75.0}, max_tokens=40, frequency_penalty=2.0)).split()) == {"w7", "w8"}
    prompted = await world.text(repetition_penalty=10.0, logit_bias={1: 50.0, 9: 40.0}, max_tokens=1)
    assert prompted == "w9", "the prompt has w1"


async def test_a_token_drawn_from_one_is_greedy(world: World) -> None:
    whole = await world.text()
    assert await world.text(temperature=2.0, top_k=1) == whole
    assert await world.text(temperature=2.0, min_p=1.0) == whole
    assert await world.text(temperature=2.0, top_p=1e-6) == whole


async def test_log_probabilities_equal_those_of_score(world: World) -> None:
    adapter = await world.adapter(1)
    responses = await _responses(world, adapter, temperature=1.0, seed=3, repetition_penalty=1.5, logprobs=4)
    told = [one for response in responses for one in response.logprobs]
    assert [len(response.logprobs) for response in responses] == [response.tokens for response in responses]
    text = "".join(response.text for response in responses)
    assert " ".join(one.text for one in told) == text
    assert [one.logprob for one in told] == pytest.approx(await world.client.score(PROMPT, text, [adapter]), abs=1e-4)
    for one in told:
        alternatives = [other.logprob for other in one.alternatives]
        assert len(alternatives) == 4
        assert alternatives == sorted(alternatives, reverse=True)
        assert max(alternatives) >= one.logprob - 1e-5
        assert [other.text for other in one.alternatives] == [f"w{other.token}" for other in one.alternatives]
    greedy = await _responses(world, adapter, logprobs=1)
    assert all(one.token == one.alternatives[0].token for response in greedy for one in response.logprobs)
    bare = await _responses(world, adapter, logprobs=0)
    assert [len(response.logprobs) for response in bare] == [1] * 12
    assert not any(one.alternatives for response in bare for one in response.logprobs)
    assert not any(response.logprobs for response in await _responses(world, adapter))


async def test_a_seed_is_drawn_and_told(world: World) -> None:
    first, second = [await _responses(world, temperature=2.0) for _ in range(2)]
    text = "".join(response.text for response in first)
    assert text != "".join(response.text for response in second)
    assert first[-1].usage.seed != second[-1].usage.seed
    assert await world.text(temperature=2.0, seed=first[-1].usage.seed) == text
    assert (await _responses(world, temperature=2.0, seed=0))[-1].usage.seed == 0


async def test_the_same_seed_in_a_full_batch(world: World) -> None:
    options = [
        {"temperature": 1.0, "seed": 1},
        {"temperature": 1.5, "seed": 2, "top_p": 0.8},
        {},
        {"temperature": 0.8, "seed": 4, "top_k": 9},
    ]
    alone = [await world.text(max_tokens=60, **each) for each in options]
    assert list(await asyncio.gather(*(world.text(max_tokens=60, **each) for each in options))) == alone


async def test_several_answers_are_those_of_their_seeds(world: World) -> None:
    adapters = [await world.adapter(1, 0.5), await world.adapter(2, 0.5)]
    responses = await _responses(world, *adapters, temperature=1.0, seed=2**64 - 2, n=3, logprobs=0)
    last = {response.index: response.usage for response in responses if response.HasField("usage")}
    assert [last[index].seed for index in range(3)] == [2**64 - 2, 2**64 - 1, 0]
    assert [last[index].completion_tokens for index in range(3)] == [12] * 3
    assert all(len(response.logprobs) == response.tokens for response in responses)
    assert (await world.client.status()).spooled_events == 2, "a request counts once for each adapter, however many answers it has"
    together = await _answers(world, *adapters, temperature=1.0, seed=2**64 - 2, n=3)
    assert together == {index: await world.text(*adapters, temperature=1.0, seed=last[index].seed) for index in range(3)}
    assert len(set(together.values())) == 3


async def test_several_answers_of_a_pipeline(world: World) -> None:
    stages = [executor_pb2.GenerateRequest(stages=[{"max_tokens": tokens}]).stages[0] for tokens in (5, 9)]
    alone = [await _answers(world, temperature=1.0, seed=seed, stages=stages) for seed in (6, 7)]
    assert await _answers(world, temperature=1.0, seed=6, stages=stages, n=2) == {0: alone[0][0], 1: alone[1][0]}


async def test_several_answers_compute_their_prompt_once(world: World) -> None:
    prompt = " ".join(f"w{i}" for i in range(100))
    before = await world.client.status()
    await _answers(world, prompt=prompt, temperature=1.0, n=4)
    after = await world.client.status()
    assert after.prefix_hits - before.prefix_hits == 3 * 6, "six whole blocks of the prompt, for all but the first answer"


async def test_several_answers_end_with_their_request(world: World) -> None:
    adapter = await world.adapter(1)
    request = executor_pb2.GenerateRequest(prompt=PROMPT, adapters=[adapter], max_tokens=150, n=8)
    call = world.client.executor.Generate(request, timeout=20)
    for _ in range(5):
        await call.read()
    call.cancel()
    await world.idle()
    other = world.client.executor.Generate(executor_pb2.GenerateRequest(prompt=PROMPT, max_tokens=150), timeout=20)
    await other.read()
    code, details = await refused(world, n=8, max_tokens=150)
    assert (code, details) == ("RESOURCE_EXHAUSTED", "queue: 1 of 8 requests are in flight; retry with backoff or add executors")
    bad = await world.adapter(5, size=1e30, modules=("q_proj", "k_proj"))
    assert await refused(world, n=2, adapters=[bad]) == (
        "FAILED_PRECONDITION",
        "adapters: make the model's output infinite or NaN; lower their weights, or retrain them",
    )
    other.cancel()


async def test_usage_as_it_goes(world: World) -> None:
    adapter = await world.adapter(1)
    responses = await _responses(world, adapter, stream_usage=True, max_tokens=5)
    assert [response.usage.completion_tokens for response in responses] == [1, 2, 3, 4, 5]
    assert {response.usage.prompt_tokens for response in responses} == {4}
    assert [response.usage.finish_reason for response in responses] == [0, 0, 0, 0, executor_pb2.FINISH_REASON_LENGTH]
    totals = [response.usage.total_us for response in responses]
    assert totals == sorted(totals)
    assert [response.HasField("usage") for response in await _responses(world, max_tokens=3)] == [False, False, True]
    stages = [executor_pb2.GenerateRequest(stages=[{"max_tokens": 4}]).stages[0]] * 2
    piped = await _responses(world, stages=stages, stream_usage=True)
    assert [response.usage.completion_tokens for response in piped] == [5, 6, 7, 8]


async def test_the_end_of_an_answer_is_passed_over(world: World) -> None:
    whole = await world.text(max_tokens=8)
    world.executor.requests.tokenizer.eos_ids = frozenset({int(whole.split()[2][1:])})
    ended = (await _responses(world, max_tokens=8))[-1].usage
    assert (ended.completion_tokens, ended.finish_reason) == (3, executor_pb2.FINISH_REASON_END)
    responses = await _responses(world, max_tokens=8, ignore_eos=True)
    assert "".join(response.text for response in responses) == whole
    assert responses[-1].usage.finish_reason == executor_pb2.FINISH_REASON_LENGTH


async def test_the_command_line_tells_several_answers_and_their_log_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_executor("torch", tmp_path, monkeypatch) as world:

        async def generate(*options: str) -> Result:
            arguments = ["generate", PROMPT, "--base", "--max-tokens", "3", "--executor", world.address, *options]
            return await asyncio.to_thread(CliRunner().invoke, cli, arguments)

        expected = await _answers(world, max_tokens=3, temperature=1.0, top_k=9, seed=5, n=2)
        pick = ("--temperature", "1", "--top-k-tokens", "9", "--seed", "5", "--n", "2")
        shown = await generate(*pick)
        assert [line for line in shown.stdout.splitlines() if line] == [f"[1] {expected[0]}", f"[2] {expected[1]}"]
        assert shown.stderr.count("seed 5]") == shown.stderr.count("seed 6]") == 1
        told = json.loads((await generate(*pick, "--logprobs", "2", "--json")).stdout)
        assert [answer["text"] for answer in told["answers"]] == [expected[0], expected[1]]
        assert [answer["usage"]["seed"] for answer in told["answers"]] == ["5", "6"]
        assert [[len(one["alternatives"]) for one in answer["logprobs"]] for answer in told["answers"]] == [[2] * 3] * 2
        alone = json.loads((await generate("--json", "--logit-bias", "7=100", "--logit-bias", "8=-100")).stdout)
        assert alone["text"] == "w7 w7 w7"
        assert (await generate()).stdout.strip() == await world.text(max_tokens=3)
        wrong = await generate("--logit-bias", "seven")
        assert "'seven' is not a token's number and what is added to its logit, such as 42=-100" in " ".join(wrong.output.split())
        assert "--logprobs goes with --json" in (await generate("--logprobs", "1")).output
