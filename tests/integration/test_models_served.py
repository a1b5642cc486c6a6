"""Every family through the engine: `Score` and greedy `Generate` are those of transformers on the tokens of the model's own template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from services.executor.app import load
from services.executor.engine.pipeline import Generation
from services.executor.models.base_model import DEFAULT_BASE_MODEL, resolve
from services.executor.models.prompt import Message
from services.executor.settings import ExecutorSettings
from tests.model_support import BACKENDS, FAMILIES, isolated_cache, make_model, reference_model

TEMPLATE = (
    "{% if messages[0].role != 'system' %}w190 w191 w192 {% endif %}"
    "{% for message in messages %}w193 {{ message.content }} w194 {% endfor %}{% if add_generation_prompt %}w195 {% endif %}"
)
TURNS = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}, {"role": "user", "content": "w4 w5 w6"}]


async def _same(theirs: Any, folder: Path, store: Path, backend: str, turns: list[dict[str, str]], answer: str, *, templated: bool) -> None:
    model: Any = reference_model(folder)
    if templated:
        ids = theirs.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    else:
        ids = theirs(turns[0]["content"])["input_ids"]
    after = theirs(answer, add_special_tokens=False)["input_ids"]
    settings = ExecutorSettings(base_model=str(folder), store=str(store), backend=backend, dtype="float32", context=128, rows=4)
    executor = load(settings)
    await executor.engine.start()
    try:
        messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)
        with torch.inference_mode():
            logprobs = model(torch.tensor([[*ids, *after]])).logits[0].log_softmax(-1)
        expected = [float(logprobs[len(ids) - 1 + at, token]) for at, token in enumerate(after)]
        (found,) = await executor.requests.score("a", messages, [answer], ())
        assert found == pytest.approx(expected, abs=1e-4)
        eos = sorted(executor.requests.tokenizer.eos_ids) or None
        new = model.generate(torch.tensor([ids]), max_new_tokens=10, do_sample=False, eos_token_id=eos, pad_token_id=0)[0, len(ids) :]
        pieces = executor.requests.generate(Generation(tenant="a", messages=messages, max_tokens=10))
        text = "".join([piece.text async for piece in pieces])
        assert text == theirs.decode(new, skip_special_tokens=True)
    finally:
        await executor.engine.stop()


@pytest.mark.parametrize("templated", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", list(FAMILIES))
async def test_a_tiny_model_of_every_family(
    family: str, backend: str, templated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolated_cache(tmp_path / "cache", monkeypatch)
    folder = make_model(tmp_path / "model", family)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    if templated:
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    turns = TURNS if templated else [{"role": "user", "content": "w1 w2 w7"}]
    theirs: Any = PreTrainedTokenizerFast.from_pretrained(folder)  # not its family's own, which would split the words
    await _same(theirs, folder, tmp_path / "store", backend, turns, "w9 w10 w11", templated=templated)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_the_model_that_ships_with_smoa(backend: str, tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "What is the capital of France?"}]
    folder = resolve(DEFAULT_BASE_MODEL)
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    await _same(theirs, folder, tmp_path / "store", backend, turns, "Paris.", templated=True)
    await _same(theirs, folder, tmp_path / "store", backend, turns[1:], "It is Paris.", templated=True)
