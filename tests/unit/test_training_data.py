"""What a training file may look like, and which lines are held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.executor.adapters.training_data import Pair, read_pairs, split_held_out
from smoa.errors import InvalidArgument

GOOD = {"input": "a", "output": "b"}


@pytest.mark.parametrize(
    ("line", "pair"),
    [
        ({"input": "q", "output": "a"}, Pair("q", "a")),
        ({"input": "q", "output": 3, "id": 7}, Pair("q", "3")),
        ({"prompt": "q", "completion": "a"}, Pair("q", "a")),
        ({"instruction": "do", "input": "", "output": "a"}, Pair("do", "a")),
        ({"instruction": "do", "input": "this", "output": "a"}, Pair("do\nthis", "a")),
        ({"messages": [{"role": "user", "content": "q\u2028"}, {"role": "assistant", "content": "a"}]}, Pair("q\u2028", "a")),
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
        ('{"messages": "a"}', "its messages must be one user turn and one assistant turn, and are none"),
        (
            '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}',
            "its messages must be one user turn and one assistant turn, and are system, user, assistant",
        ),
    ],
)
def test_another_line_is_refused_by_its_number(line: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n")
    with pytest.raises(InvalidArgument, match=rf"^data: line 2 of .*data\.jsonl is no training example \({problem}\); give lines of .*"):
        read_pairs(path)


def test_too_few_examples_and_other_encodings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n" * 9)
    with pytest.raises(InvalidArgument, match=r"^data: .*data\.jsonl has 9 examples; give at least 10$"):
        read_pairs(path)
    path.write_bytes('{"input": "ä"}'.encode("latin-1"))
    with pytest.raises(InvalidArgument, match=r"^data: .*data\.jsonl is not UTF-8 text \(.*\); save it as UTF-8$"):
        read_pairs(path)


@pytest.mark.parametrize(("pairs", "held_out"), [(10, 2), (40, 8), (60, 8), (400, 40), (5000, 64)])
def test_a_tenth_is_held_out_but_enough_and_not_too_many(pairs: int, held_out: int) -> None:
    lines = [Pair(str(number), "") for number in range(pairs)]
    training, held = split_held_out(lines, 0)
    assert len(held) == held_out
    assert sorted(training + held, key=lambda pair: int(pair.input)) == lines
