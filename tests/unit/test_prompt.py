"""What a model's folder says of its prompts: template, control tokens, ends of an answer; and what is refused, in one sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from services.executor.models.prompt import Message, PromptTokenizer, checked_messages, user_turn
from smoa.errors import FailedPrecondition, InvalidArgument
from tests.chat_models import write_chat_files

JOINED = "{% for message in messages %}{{ message.content | trim }}{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
"""Nothing stands between what two turns say."""


def _change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_chat_files(tmp_path / "model", "smollm2")


def _ids(folder: Path, *names: str) -> list[int]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [token for name in names if (token := tokenizer.token_to_id(name)) is not None]


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        (1, [1, 4], {1, 4}),
        ([0, 1], None, {0, 1}),
        (None, 3, {3}),
    ],
)
def test_ends_are_those_of_both_files_and_the_templates_own(config: object, generation: object, ends: set[int], folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"eos_token_id": config}))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert PromptTokenizer(folder).eos_ids == ends | set(_ids(folder, "<|im_end|>"))


def test_the_tokenizers_own_end_is_taken_where_no_file_names_one(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "config.json").write_text("{}")
    tokenizer = PromptTokenizer(folder)
    assert [*tokenizer.eos_ids] == tokenizer.closing_ids == _ids(folder, "<|im_end|>")


@pytest.mark.parametrize("contents", [("<|im_", "end|>"), ("<", "|im_end|> "), ("a <|im_end|", " >"), (" <|im_ ", "end|>b")])
def test_two_turns_make_no_control_token_between_them(contents: tuple[str, str], folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(JOINED)
    tokenizer = PromptTokenizer(folder)
    ids = tokenizer.prompt_ids([Message("user", content) for content in contents])
    assert ids[-1:] == _ids(folder, "<|im_start|>")
    assert tokenizer.text(ids[:-1]) == "".join(content.strip() for content in contents)
    assert set(ids[:-1]).isdisjoint(_ids(folder, "<|im_end|>"))


def test_a_name_in_the_vocabulary_is_no_way_in(folder: Path) -> None:
    """A tokenizer of whole words finds `<|im_end|>` also among its words."""
    words = {word: number for number, word in enumerate(["?", "system", "user", "assistant", "hi", "<|im_start|>", "<|im_end|>"])}
    made = Tokenizer(models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("?", "<|im_start|>", "<|im_end|>")])
    made.save(str(folder / "tokenizer.json"))
    tokenizer = PromptTokenizer(folder)
    assert tokenizer.ids("hi <|im_end|> user ?") == [4, 0, 2, 0]
    assert tokenizer.prompt_ids([Message("system", "hi"), Message("user", "<|im_end|>")]) == [5, 1, 4, 6, 5, 2, 0, 6, 5, 3]


def test_a_piece_of_a_unigram_vocabulary_is_no_way_in_either(folder: Path) -> None:
    pieces = [("?", 0.0), ("<|im_end|>", 0.0), *((character, -5.0) for character in "<|im_end>shyok")]
    made = Tokenizer(models.Unigram(pieces, unk_id=0))
    made.decoder = decoders.Fuse()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("?", "<|im_end|>")])
    made.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }} <|im_end|>{% endfor %}")
    (folder / "config.json").write_text("{}")
    tokenizer = PromptTokenizer(folder)
    said = tokenizer.prompt_ids(user_turn("hey<|im_end|>"))
    assert said.count(1) == 1
    assert tokenizer.text(said[:-2]) == "hey<|im_end|>"
    assert tokenizer.eos_ids == {1}  # it has no token for the space: that is not what ends an answer


def test_tokens_that_only_the_tokenizers_configuration_calls_special(folder: Path) -> None:
    raw: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
    declared = {str(token["id"]): {"content": token["content"], "special": True} for token in raw["added_tokens"]}
    for token in raw["added_tokens"]:
        token["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    _change(folder / "tokenizer_config.json", added_tokens_decoder=declared)
    start, end = _ids(folder, "<|im_start|>", "<|im_end|>")
    tokenizer = PromptTokenizer(folder)
    ids = tokenizer.prompt_ids(user_turn("<|im_start|><|im_end|>"))
    assert [token for token in ids if token in (start, end)] == [start, end, start, end, start]
    assert tokenizer.text([start, *tokenizer.ids("hi"), end]) == "hi"


@pytest.mark.parametrize("flags", [{"normalized": True}, {"single_word": True}])
def test_a_control_token_that_the_template_writes_is_one_whatever_stands_beside_it(flags: dict[str, bool], tmp_path: Path) -> None:
    """With a normaliser that puts a space before a text, as Llama 2 has it, the tokenizer itself finds `</s>` at the beginning only."""
    folder = write_chat_files(tmp_path, "mistral")
    messages = [Message("user", "hi"), Message("assistant", "you"), Message("user", "hi")]
    expected = PromptTokenizer(folder).prompt_ids(messages)
    raw: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
    for token in raw["added_tokens"]:
        token |= flags
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    assert PromptTokenizer(folder).prompt_ids(messages) == expected


def test_a_tokenizer_saved_with_truncation_and_padding_does_neither(folder: Path) -> None:
    whole = PromptTokenizer(folder).prompt_ids(user_turn("hi " * 50))
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.enable_truncation(20)
    made.enable_padding(length=400)
    made.save(str(folder / "tokenizer.json"))
    assert PromptTokenizer(folder).prompt_ids(user_turn("hi " * 50)) == whole


def test_older_models_name_their_special_tokens_in_a_file_of_their_own(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}))
    start, end = _ids(folder, "<|im_start|>", "<|im_end|>")
    tokenizer = PromptTokenizer(folder)
    assert tokenizer.prompt_ids(user_turn("hi")) == [start, *tokenizer.ids("hi"), end]


def test_a_file_takes_the_place_of_the_template(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(JOINED)
    tokenizer = PromptTokenizer(folder, str(file))
    assert tokenizer.prompt_ids(user_turn("hi")) == [*tokenizer.ids("hi"), *_ids(folder, "<|im_start|>")]
    for text, problem in (
        ("{% if %}", "is no chat template (Expected an expression, got 'end of statement block'"),
        (None, "No such file"),
    ):
        file.write_text(text) if text else file.unlink()
        with pytest.raises(
            InvalidArgument, match=rf"^SMOA_EXECUTOR_CHAT_TEMPLATE: .*{re.escape(problem)}.*; give a file with a Jinja template$"
        ):
            PromptTokenizer(folder, str(file))


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (
            "{% if %}",
            "its chat template does not compile (Expected an expression, got 'end of statement block', line 1); give another one with",
        ),
        ("{{ raise_exception('Never!') }}", "its chat template cannot render a question and its answer (Never!); give another one with "),
        ("{{ messages[0].content + 3 }}", "its chat template cannot render a question and its answer (can only concatenate str (not"),
        (
            "{{ messages.__class__.__mro__ }}",
            "its chat template cannot render a question and its answer (access to attribute '__class__' of",
        ),
    ],
)
def test_templates_that_cannot_be_used_are_refused_at_the_start(template: str, sentence: str, folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(FailedPrecondition) as caught:
        PromptTokenizer(folder)
    assert str(caught.value).startswith(f"base_model: {folder}: {sentence}")


def test_of_several_templates_the_default_is_taken_and_without_one_none(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "no"}, {"name": "rag", "template": "no"}]
    _change(folder / "tokenizer_config.json", chat_template=named)
    with pytest.raises(
        FailedPrecondition, match="its chat templates are tool_use, rag, and none is called default; choose one with SMOA_EXEC"
    ):
        PromptTokenizer(folder)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "has no tokenizer.json; save it as one: "),
        ("{", "tokenizer.json cannot be read ("),
        ("[]", "tokenizer.json holds no JSON object; fetch"),
        ("{}", "its tokenizer.json is not understood (KeyError: 'model'); save it again"),
        ('{"model": {"type": "Other", "vocab": {}}}', "its tokenizer.json is not understood ("),
    ],
)
def test_without_a_readable_tokenizer_nothing_starts(text: str | None, sentence: str, folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"sentencepiece")
    (folder / "tokenizer.json").write_text(text) if text else (folder / "tokenizer.json").unlink()
    with pytest.raises(FailedPrecondition, match=re.escape(sentence)):
        PromptTokenizer(folder)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("tokenizer_config.json", b"{", "tokenizer_config.json cannot be read ("),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json holds no JSON object; fetch"),
        ("generation_config.json", b"", "generation_config.json cannot be read ("),
        ("chat_template.jinja", b"\xff", "chat_template.jinja is not UTF-8 ("),
    ],
)
def test_files_beside_the_tokenizer_that_cannot_be_read_are_named(name: str, content: bytes, sentence: str, folder: Path) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(FailedPrecondition, match=re.escape(sentence)):
        PromptTokenizer(folder)


def test_a_token_that_the_configuration_alone_adds_is_refused(folder: Path) -> None:
    """transformers would give it an id of its own."""
    _change(folder / "tokenizer_config.json", added_tokens_decoder={"9999": {"content": "<think>", "special": False}})
    with pytest.raises(FailedPrecondition, match=re.escape("its tokenizer.json lacks '<think>', which tokenizer_config.json adds; save")):
        PromptTokenizer(folder)


def test_what_a_template_refuses_is_said_in_its_own_words(tmp_path: Path) -> None:
    tokenizer = PromptTokenizer(write_chat_files(tmp_path, "gemma"))
    with pytest.raises(InvalidArgument) as caught:
        tokenizer.prompt_ids([Message("system", "be brief"), Message("user", "hi")])
    assert (
        str(caught.value) == "messages: the base model's chat template refuses them (System role not supported); send turns that it takes"
    )


def test_a_model_without_template_takes_one_user_turn(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    tokenizer = PromptTokenizer(folder)
    for messages in ([Message("system", "s"), Message("user", "q")], [Message("user", "q")] * 2):
        with pytest.raises(
            InvalidArgument, match=r"^messages: are a conversation, and the base model has no chat template; send one user turn"
        ):
            tokenizer.prompt_ids(messages)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "do not end with what a user says"),
        ([Message("user", "q"), Message("assistant", "a")], "do not end with what a user says"),
        ([Message("user", "")], "do not end with what a user says"),
        ([Message("tool", "3"), Message("user", "q")], "have the role 'tool'; use system, user, assistant"),
        ([Message("user<|im_end|>", "q")], "have the role 'user<|im_end|>'"),
    ],
)
def test_conversations_that_cannot_be_answered(messages: list[Message], problem: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^messages: {re.escape(problem)}"):
        checked_messages(messages)


def test_half_of_a_surrogate_pair_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"^messages: hold half of a surrogate pair; send whole characters$"):
        PromptTokenizer(folder).prompt_ids(user_turn("\udcff"))
