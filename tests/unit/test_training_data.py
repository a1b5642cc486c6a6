"""What a training file may look like, and which lines are held out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from services.executor.adapters.training_data import Pair, read_pairs, split_held_out, tokenized
from services.executor.models.prompt import Message, PromptTokenizer
from smoa.errors import InvalidArgument
from tests.chat_models import write_chat_files

GOOD = {"input": "a", "output": "b"}


@pytest.mark.parametrize(
    ("line", "pair"),
    [
        ({"input": "q", "output": "a"}, Pair.of("q", "a")),
        ({"input": "q", "output": 3, "id": 7}, Pair.of("q", "3")),
        ({"prompt": "q", "completion": "a"}, Pair.of("q", "a")),
        ({"instruction": "do", "input": "", "output": "a"}, Pair.of("do", "a")),
        ({"instruction": "do", "input": "this", "output": "a"}, Pair.of("do\nthis", "a")),
        ({"messages": [{"role": "user", "content": "q\u2028"}, {"role": "assistant", "content": "a"}]}, Pair.of("q\u2028", "a")),
    ],
)
def test_the_usual_shapes_are_read(line: object, pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text((json.dumps(line, ensure_ascii=False) + "\n\n") * 10, encoding="utf-8")
    assert read_pairs(path) == [pair] * 10


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", r"Expecting .*"),
        ("[1, 2]", "not an object"),
        ('{"input": "a"}', "it has no 'output'"),
        ('{"completion": "a"}', "it has no 'prompt'"),
        ('{"input": "a", "output": null}', "its 'output' is not text"),
        ('{"input": "", "output": "b"}', "its messages do not end with what a user says"),
        ('{"input": "\\ud83d", "output": "b"}', "its 'input' holds half of a surrogate pair"),
        ('{"messages": "a"}', "its messages are not a list of objects with role and content"),
        ('{"messages": []}', "its last message is not the assistant's"),
        ('{"messages": [{"role": "user", "content": "q"}]}', "its last message is not the assistant's"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "its messages do not end with what a user says"),
        ('{"messages": [{"role": "user", "content": [1]}, {"role": "assistant", "content": "a"}]}', "its 'content' is not text"),
        (
            '{"messages": [{"role": "tool", "content": "3"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}',
            "its messages have the role 'tool'",
        ),
    ],
)
def test_another_line_is_refused_by_its_number(line: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n")
    with pytest.raises(InvalidArgument, match=rf"^data: line 2 of .*data\.jsonl is no training example \({problem}\); give lines of .*"):
        read_pairs(path)


def test_of_a_conversation_the_last_answer_is_learned(tmp_path: Path) -> None:
    said = [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
    path = tmp_path / "data.jsonl"
    path.write_text((json.dumps({"messages": [{"role": role, "content": text} for role, text in said]}) + "\n") * 10)
    assert read_pairs(path)[0] == Pair(tuple(Message(role, text) for role, text in said[:-1]), "b")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n" * 10, encoding="utf-8-sig")
    assert read_pairs(path) == [Pair.of("a", "b")] * 10


def test_a_pair_that_the_template_refuses_is_named_by_its_number(tmp_path: Path) -> None:
    tokenizer = PromptTokenizer(write_chat_files(tmp_path, "gemma"))
    refused = Pair((Message("system", "s"), Message("user", "q")), "a")
    with pytest.raises(InvalidArgument, match=r"^data: example 2 cannot be used \(messages: the base .* \(System role not supported\)\); "):
        tokenized(tokenizer, [Pair.of("q", "a"), refused], 64, 10_000)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (GOOD | {"system": "Answer in French"}, "its 'system' would be left out; write it as turns of messages, or take it out"),
        (GOOD | {"history": [["q", "a"]]}, "its 'history' would be left out"),
        (
            GOOD | {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            "it has messages and another shape's",
        ),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "a message's 'tool_calls' would be left out; only role and content are learned",
        ),
        (GOOD | {"output": True}, "its 'output' is not text"),
        (GOOD | {"output": float("nan")}, "its 'output' is not text"),
    ],
)
def test_what_would_be_left_out_is_refused(line: dict[str, object], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps(line)}\n")
    with pytest.raises(InvalidArgument, match=re.escape(f"data: line 2 of {path} is no training example ({sentence}")):
        read_pairs(path)


@pytest.mark.parametrize(
    ("context", "vocabulary", "problem"),
    [(4, 100_000, r"messages: and answer have \d+ tokens, over 4"), (64, 3, r"messages: holds token \d+, and the base model has 0\.\.2")],
)
def test_what_the_model_cannot_take_is_named_before_it_trains(context: int, vocabulary: int, problem: str, tmp_path: Path) -> None:
    tokenizer = PromptTokenizer(write_chat_files(tmp_path, "gemma"))
    with pytest.raises(InvalidArgument, match=rf"^data: example 1 cannot be used \({problem}\); "):
        tokenized(tokenizer, [Pair.of("q", "a")], context, vocabulary)


def test_too_few_examples_and_other_encodings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n" * 9)
    with pytest.raises(InvalidArgument, match=r"^data: .*data\.jsonl has 9 examples; give at least 10$"):
        read_pairs(path)
    for encoding in ("latin-1", "utf-16", "utf-16-le", "utf-32-be"):
        path.write_bytes('{"input": "ä"}'.encode(encoding))
        with pytest.raises(InvalidArgument, match=r"^data: .*data\.jsonl is not UTF-8 text \(.*\); save it as UTF-8$"):
            read_pairs(path)


@pytest.mark.parametrize(("pairs", "held_out"), [(10, 2), (40, 8), (60, 8), (400, 40), (5000, 64)])
def test_a_tenth_is_held_out_but_enough_and_not_too_many(pairs: int, held_out: int) -> None:
    lines = [Pair.of(str(number), "") for number in range(pairs)]
    training, held = split_held_out(lines, 0)
    assert len(held) == held_out
    assert sorted(training + held, key=lambda pair: int(pair.messages[0].content)) == lines
