"""Example inputs from the files that people have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smoa.errors import InvalidArgument
from smoa.example_inputs import examples_file, read_examples


@pytest.mark.parametrize(
    "line",
    [
        {"input": "where is it?", "output": "there"},
        {"prompt": " where is it? ", "completion": "there"},
        {"instruction": "", "input": "where is it?", "output": "there"},
        {"instruction": "where is it?", "input": "", "output": "there"},
        {"question": "where is it?", "answer": "there"},
        {"messages": [{"role": "system", "content": "kind"}, {"role": "user", "content": "where is it?"}, {"role": "user"}]},
        {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "where is it?"}]}]},
        {"prompt": [{"role": "user", "content": "where is it?"}], "completion": [{"role": "assistant", "content": "there"}]},
        {"conversations": [{"from": "human", "value": "where is it?"}, {"from": "gpt", "value": "there"}]},
        {"text": "where is it?"},
    ],
)
def test_the_first_user_input_of_a_line(tmp_path: Path, line: dict[str, object]) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(line) + "\n\n")
    assert read_examples(path) == ["where is it?"]


def test_an_instruction_is_joined_to_what_it_is_about(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"instruction": "translate", "input": "dog", "output": "chien"}))
    assert read_examples(path) == ["translate\ndog"]


def test_at_most_fifty_spread_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"line {number}" for number in range(99)) + "\nline 98\n" + "x" * 9000)
    read = read_examples(path)
    assert (len(read), read[0], read[-1]) == (50, "line 0", "line 97")
    assert len(set(read)) == 50


def test_line_separators_within_json_are_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"input": "one\u2028two"}\n', encoding="utf-8")
    assert read_examples(path) == ["one\u2028two"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"input": ', "is not an object with an input (Expecting value"),
        ("[1]", "is not an object with an input ('list' object"),
        ('{"messages": [1]}', "is not an object with an input ('int' object"),
        ('{"messages": [{"role": "system", "content": "x"}]}', "has no input; give lines of "),
        ('{"output": "x"}', "has no input; give lines of "),
    ],
)
def test_a_line_without_an_input_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"input": "a"}\n' + line)
    with pytest.raises(InvalidArgument) as caught:
        read_examples(path)
    assert str(caught.value).startswith(f"examples: {path}:2 {problem}")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_said(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("one line\nanother".encode(encoding))
    with pytest.raises(InvalidArgument, match=r"a\.txt is not UTF-8 text \([a-z ]+\); save it as UTF-8$"):
        read_examples(path)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"input": "one"}\r\n{"input": "two"}\r\n'.encode("utf-8-sig"))
    assert read_examples(path) == ["one", "two"]


def test_which_file_of_a_folder(tmp_path: Path) -> None:
    assert examples_file(tmp_path) is None
    for name in ("a.jsonl", "z-train.jsonl", "examples.txt", "examples.jsonl"):
        (tmp_path / name).touch()
        assert examples_file(tmp_path) == tmp_path / name
