"""Conversations over the wire: what the model's own template writes of them, as in transformers; in pipelines, scores and training too."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.executor.adapters.training_data import Pair, tokenized
from services.executor.models.prompt import Message, PromptTokenizer
from smoa.v1 import executor_pb2
from smoa.v1.common_pb2 import Stage
from tests.command_support import said_by
from tests.integration.executor_support import PROMPT, World, refused, running_executor
from tests.model_support import make_model

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if loop.first and message.role != 'system' %}<|turn|> w150 w151 <|end|> {% endif %}"
    "{% if message.content == 'w13' %}{{ raise_exception('w13 is bad luck') }}{% endif %}"
    "<|turn|> {{ {'system': 'w150', 'user': 'w152', 'assistant': 'w153'}[message.role] }} {{ message.content | trim }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|turn|> w153 {% endif %}"
)
"""With a BOS and a default system turn."""
SYSTEM, QUESTION = {"role": "system", "content": "w7 w8"}, {"role": "user", "content": "w1 w2"}
TURNS = [SYSTEM, {"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4 w5"}, QUESTION]


def make_chat_model(folder: Path) -> Path:
    """A tiny random model with a chat template, whose control tokens are its last three ids."""
    make_model(folder)
    raw = json.loads((folder / "tokenizer.json").read_text())
    for number, name in enumerate(("<|end|>", "<|turn|>", "<s>"), 197):
        raw["model"]["vocab"][name] = raw["model"]["vocab"].pop(f"w{number}")
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in ("<|end|>", "<|turn|>", "<s>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


@pytest.fixture(params=["native", "torch"])
async def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    folder = make_chat_model(tmp_path / "chat")
    async with running_executor(request.param, tmp_path, monkeypatch, base_model=str(folder)) as made:
        yield made


async def answer(world: World, **request: object) -> tuple[str, executor_pb2.Usage]:
    """The whole text and its usage."""
    responses = [r async for r in world.client.stream(max_tokens=8, **request)]  # type: ignore[arg-type]
    return "".join(response.text for response in responses), responses[-1].usage


async def test_a_prompt_is_one_user_turn_and_messages_are_a_conversation(world: World, tmp_path: Path) -> None:
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path / "chat")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "chat", dtype=torch.float32)
    for turns in ([QUESTION], [SYSTEM, QUESTION], TURNS):
        ids = theirs.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        text, usage = await answer(world, messages=turns)
        assert usage.prompt_tokens == len(ids)
        new = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=197, pad_token_id=0)[0, len(ids) :]
        assert text == theirs.decode(new, skip_special_tokens=True)
    assert (await answer(world, prompt="w1 w2"))[0] == (await answer(world, messages=[QUESTION]))[0]


async def test_scores_are_those_of_transformers_on_the_templates_tokens(world: World, tmp_path: Path) -> None:
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path / "chat")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "chat", dtype=torch.float32)
    for turns in ([QUESTION], TURNS):
        prompt = theirs.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        whole = theirs.apply_chat_template([*turns, {"role": "assistant", "content": "w9 w10"}])["input_ids"]
        answered = whole[len(prompt) : len(prompt) + 2]
        with torch.no_grad():
            logprobs = model(torch.tensor([prompt + answered])).logits[0].log_softmax(-1)
        expected = [float(logprobs[len(prompt) - 1 + at, token]) for at, token in enumerate(answered)]
        assert await world.client.score("", "w9 w10", messages=turns) == pytest.approx(expected, abs=1e-4)
    # A control token's name is text in what is scored, too: here two unknown words and not one token that ends the answer.
    assert len(await world.client.score("w1", "w9 <|end|>")) == 2
    assert await world.client.score("w1", "<|end|>") == pytest.approx(await world.client.score("w1", "w0"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"messages": [QUESTION]}, "messages: come with a prompt beside them; send one of the two: a prompt is one user turn"),
        ({"prompt": ""}, "prompt: is empty, and there are no messages; send one of the two"),
        ({"prompt": "", "messages": [SYSTEM]}, "messages: do not end with what a user says; make the last turn the user's, with a text"),
        ({"prompt": "", "messages": [{"role": "tool", "content": "w1"}]}, "messages: have the role 'tool'; use system, user, assistant"),
        ({"prompt": "", "messages": [QUESTION] * 1025}, "messages: holds 1025; send at most 1024"),
        (
            {"prompt": "", "messages": [QUESTION] * 1000 + [{"role": "user", "content": "w" * 30000}]},
            "prompt: has more tokens than the context of 200; shorten it",
        ),
        (
            {"prompt": "w13"},
            "messages: the base model's chat template refuses them (w13 is bad luck); send turns that it takes",
        ),
    ],
)
async def test_what_is_no_conversation_is_refused(changes: dict[str, object], sentence: str, world: World) -> None:
    code, details = await refused(world, **changes)
    assert code == "INVALID_ARGUMENT"
    assert details.startswith(sentence)
    request = executor_pb2.ScoreRequest(**{"prompt": PROMPT, "completion": "w1", **changes})  # type: ignore[arg-type]
    with pytest.raises(grpc.aio.AioRpcError, match=r"INVALID_ARGUMENT") as caught:
        await world.client.executor.Score(request, timeout=20)
    assert str(caught.value.details()).startswith(sentence)


async def test_a_later_stage_keeps_the_system_turn_and_gets_the_text_as_the_users(world: World) -> None:
    adapter = await world.adapter(1)
    stages = [Stage(adapters=[adapter], max_tokens=4), Stage(max_tokens=8)]
    first = "".join([r.text async for r in world.client.stream(adapters=[adapter], max_tokens=4, messages=TURNS)])
    alone, usage = await answer(world, messages=[SYSTEM, {"role": "user", "content": first}])
    text, whole = await answer(world, messages=TURNS, stages=stages)
    assert text == alone
    assert whole.stages[1].prompt_tokens == usage.prompt_tokens


async def test_training_learns_on_the_prompt_that_serving_sends(world: World, tmp_path: Path) -> None:
    messages = tuple(Message(**turn) for turn in TURNS)
    pair = tokenized(PromptTokenizer(tmp_path / "chat"), [Pair(messages, "w9 <|end|> w10")], 256, 10_000)[0]
    assert len(pair.prompt) == (await answer(world, messages=TURNS))[1].prompt_tokens
    assert pair.answer == [9, 0, 10, 197]  # the name is text; what ends the answer comes from the template


async def test_a_system_text_on_the_command_line(world: World) -> None:
    code, text, _ = await said_by(
        "generate", "w1 w2", "--base", "--system", "w7 w8", "--max-tokens", "8", "--executor", world.address, "--router", "127.0.0.1:1"
    )
    assert code == 0
    assert text.strip() == (await answer(world, messages=[SYSTEM, QUESTION]))[0].strip()


@pytest.mark.parametrize("backend", ["native", "torch"])
async def test_an_answer_ends_at_any_end_that_either_file_names(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`config.json` names 1, `generation_config.json` 1 and 4; the model says 4 to everything."""
    folder = make_model(tmp_path / "fours")
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
            weight.zero_()
    weights["model.embed_tokens.weight"][:] = 1.0
    weights["lm_head.weight"][4] = weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name, ends in (("config.json", 1), ("generation_config.json", [1, 4])):
        path = folder / name
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | {"eos_token_id": ends}))
    async with running_executor(backend, tmp_path, monkeypatch, base_model=str(folder)) as world:
        text, usage = await answer(world, prompt="w9")
    assert (text, usage.completion_tokens, usage.finish_reason) == ("", 1, executor_pb2.FINISH_REASON_END)
