"""The prompts of public models' chat templates: the ids are what transformers gives, and no text of a turn becomes a control token."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from services.executor.models.base_model import DEFAULT_BASE_MODEL, resolve
from services.executor.models.prompt import Message, PromptTokenizer
from tests.chat_models import CHAT_MODELS, make_tokenizer, write_chat_files

NAMES = sorted(CHAT_MODELS)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
ASCII = st.text("aB <>|[]/_\n\t.0", max_size=30)


@cache
def _folder(name: str) -> Path:
    return resolve(DEFAULT_BASE_MODEL) if name == DEFAULT_BASE_MODEL else write_chat_files(Path(mkdtemp()) / name, name)


@cache
def _ours(name: str) -> PromptTokenizer:
    return PromptTokenizer(_folder(name))


@cache
def _theirs(name: str) -> Any:
    return AutoTokenizer.from_pretrained(_folder(name))


def _rendered(name: str, messages: list[Message], *, answered: bool = False) -> list[int]:
    turns = [{"role": turn.role, "content": turn.content} for turn in messages]
    ids: list[int] = _theirs(name).apply_chat_template(turns, add_generation_prompt=not answered)["input_ids"]
    return ids


def _conversation(name: str, texts: list[str], *, system: bool) -> list[Message]:
    """A user's turn, an answer, a user's turn, ..., after a system turn if the template takes one."""
    given_system = system and (name not in CHAT_MODELS or CHAT_MODELS[name].system)
    first = [Message("system", texts[0])] if given_system else []
    return first + [
        Message("assistant" if number % 2 else "user", text) for number, text in enumerate(texts[: len(texts) - 1 + len(texts) % 2])
    ]


@pytest.mark.parametrize("name", [*NAMES, DEFAULT_BASE_MODEL])
@settings(deadline=None, derandomize=True)
@given(texts=st.lists(st.one_of(TEXT, ASCII), min_size=1, max_size=4), system=st.booleans())
def test_prompts_are_those_of_transformers(name: str, texts: list[str], system: bool) -> None:
    messages = _conversation(name, texts, system=system)
    if any(token in turn.content for turn in messages for token in _theirs(name).all_special_tokens):
        return
    assert _ours(name).prompt_ids(messages) == _rendered(name, messages)


@pytest.mark.parametrize("name", [*NAMES, DEFAULT_BASE_MODEL])
@settings(deadline=None, derandomize=True)
@given(data=st.data(), system=st.booleans())
def test_no_text_becomes_a_control_token(name: str, data: st.DataObject, system: bool) -> None:
    """Texts of whole control tokens, of their beginnings and ends, and of others: the control tokens are those of harmless texts."""
    special = list(_theirs(name).all_special_tokens)
    special = sorted({*special, *(CHAT_MODELS[name].special if name in CHAT_MODELS else ())})
    parts = st.one_of(
        st.sampled_from(special), st.sampled_from(special).flatmap(lambda one: st.integers(1, len(one)).map(lambda n: one[:n])), ASCII
    )
    texts = data.draw(st.lists(st.lists(parts, max_size=5).map("".join), min_size=1, max_size=4))
    control = set(_theirs(name).convert_tokens_to_ids(special)) - {_theirs(name).unk_token_id}
    messages = _conversation(name, texts, system=system)
    ids = _ours(name).prompt_ids(messages)
    harmless = _ours(name).prompt_ids([Message(turn.role, "x") for turn in messages])
    assert [token for token in ids if token in control] == [token for token in harmless if token in control]
    if name == "generation":  # it leaves the contents as they are, and its tokenizer gives back every byte
        text = "".join(f"{turn.role}\n{turn.content}\n" for turn in messages) + "assistant\n"
        assert _ours(name).text(ids) == text
    for text in texts:
        assert control.isdisjoint(_ours(name).ids(text))
        assert control.isdisjoint(_ours(name).answer_ids(messages, text))


@pytest.mark.parametrize("name", NAMES)
def test_a_control_tokens_name_is_tokenised_as_the_tokenizer_does_when_told_that_it_is_text(name: str) -> None:
    model = CHAT_MODELS[name]
    plain = make_tokenizer(model)
    plain.encode_special_tokens = True
    for end in (model.end, model.eos, f"a {model.end}b"):
        assert _ours(name).ids(end) == plain.encode(end, add_special_tokens=False).ids


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_is_learned_with_the_token_that_ends_its_turn(name: str) -> None:
    """The ids of a whole conversation are the prompt's, the answer's and the closing's, up to the end of the turn."""
    model, ours = CHAT_MODELS[name], _ours(name)
    end = make_tokenizer(model).token_to_id(model.end)
    messages = [Message("user", "was my card charged twice?")]
    ids = ours.prompt_ids(messages) + ours.answer_ids(messages, "Refund it, please.") + ours.closing_ids
    whole = _rendered(name, [*messages, Message("assistant", "Refund it, please.")], answered=True)
    if name == "qwen3":  # it would write that nothing was thought before the last answer; what is learned is the answer alone
        whole = whole[: len(ours.prompt_ids(messages))] + whole[-len(ids) + len(ours.prompt_ids(messages)) - 1 :]
    assert whole[: len(ids)] == ids
    assert ours.closing_ids == [end]
    assert end in ours.eos_ids


@pytest.mark.parametrize("name", NAMES)
def test_a_template_in_the_tokenizers_configuration(name: str, tmp_path: Path) -> None:
    messages = [Message("user", "refund it")]
    assert PromptTokenizer(write_chat_files(tmp_path, name, jinja=False)).prompt_ids(messages) == _rendered(name, messages)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_template_a_prompt_is_the_text_and_a_newline_after_the_bos(name: str, tmp_path: Path) -> None:
    folder = write_chat_files(tmp_path, name)
    (folder / "chat_template.jinja").unlink()
    assert PromptTokenizer(folder).prompt_ids([Message("user", "refund it")]) == _theirs(name)("refund it\n")["input_ids"]


@pytest.mark.parametrize("legacy", [True, False, None])
@pytest.mark.parametrize("name", ["zephyr", "mistral"])
@settings(deadline=None, derandomize=True, max_examples=25)
@given(texts=st.lists(st.one_of(TEXT, ASCII), min_size=1, max_size=3))
def test_a_llamas_own_tokenizer_class_is_made_as_transformers_makes_it(name: str, legacy: bool | None, texts: list[str]) -> None:
    """It puts its own pre-tokenizer in the place of what `tokenizer.json` says."""
    ours, theirs = _llamas(name, legacy)
    messages = _conversation(name, texts, system=False)
    if any(token in turn.content for turn in messages for token in theirs.all_special_tokens):
        return
    turns = [{"role": turn.role, "content": turn.content} for turn in messages]
    ids = ours.prompt_ids(messages)
    assert ids == theirs.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert ours.text(ids) == theirs.decode(ids, skip_special_tokens=True)


@cache
def _llamas(name: str, legacy: bool | None) -> tuple[PromptTokenizer, Any]:
    folder = write_chat_files(Path(mkdtemp()) / name, name)
    for file, changes in (("config.json", {"model_type": "llama"}), ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizerFast"})):
        extra = {"legacy": legacy} if "tokenizer" in file and legacy is not None else {}
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes | extra))
    return PromptTokenizer(folder), AutoTokenizer.from_pretrained(folder)
