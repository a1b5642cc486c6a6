"""Examples to train on, read from a JSONL in any of the usual shapes."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from services.executor.models.prompt import Message, PromptTokenizer, check_ids, checked_messages, user_turn
from smoa.errors import InvalidArgument
from smoa.identifiers import is_utf8
from smoa.text_file import read_text

MIN_PAIRS: Final = 10
_MIN_HELD_OUT, _MAX_HELD_OUT = 8, 64
_UNREAD: Final = ("system", "history", "tools", "functions")
"""Fields of usual shapes that are part of the prompt there."""
_UNREAD_OF_TURN: Final = ("tool_calls", "function_call", "weight")
_SHAPES: Final = '{"input", "output"}, {"prompt", "completion"}, {"instruction", "input", "output"} or {"messages"}'
Item = TypeVar("Item")


@dataclass(frozen=True)
class Pair:
    """One training example: a conversation, and the answer to it that is learned."""

    messages: tuple[Message, ...]
    answer: str

    @classmethod
    def of(cls, question: str, answer: str) -> Pair:
        """A conversation of one turn, the user's."""
        return cls(user_turn(question), answer)


@dataclass(frozen=True)
class TokenPair:
    """A pair as the model sees it: the prompt that serving sends, and the answer with what ends it. Only the answer is learned."""

    prompt: list[int]
    answer: list[int]


def read_pairs(path: Path) -> list[Pair]:
    """The training examples of a JSONL file; empty lines are passed over.

    A line is {"input", "output"}, {"prompt", "completion"}, {"instruction", "input", "output"} or {"messages"}: any number of turns, of
    which the last one is the assistant's, and is what is learned.

    Raises:
        InvalidArgument: a line of another shape (named by its number), or fewer than 10 examples.
    """
    pairs: list[Pair] = []
    for number, line in enumerate(read_text("data", path).split("\n"), 1):  # not splitlines: JSON may hold other line separators
        if not line.strip():
            continue
        try:
            pairs.append(_pair_of(json.loads(line)))
        except (ValueError, RecursionError) as error:
            problem = f"line {number} of {path} is no training example ({error})"
            raise InvalidArgument("data", problem, f"give lines of {_SHAPES}") from error
    if len(pairs) < MIN_PAIRS:
        raise InvalidArgument("data", f"{path} has {len(pairs)} examples", f"give at least {MIN_PAIRS}")
    return pairs


def tokenized(tokenizer: PromptTokenizer, pairs: Sequence[Pair], context: int, vocabulary: int) -> list[TokenPair]:
    """The pairs' tokens, in order.

    Raises:
        InvalidArgument: the base model's chat template does not take the turns of one (named by its number), or its tokens are too many or
            not the model's.
    """
    made: list[TokenPair] = []
    for number, pair in enumerate(pairs, 1):
        try:
            answer = tokenizer.answer_ids(pair.messages, pair.answer) + tokenizer.closing_ids
            one = TokenPair(tokenizer.prompt_ids(pair.messages), answer)
            check_ids("messages", one.prompt + one.answer, vocabulary)
            if (count := len(one.prompt) + len(one.answer)) > context:
                raise InvalidArgument("messages", f"and answer have {count} tokens, over {context}", "shorten it")
            made.append(one)
        except InvalidArgument as error:
            raise InvalidArgument("data", f"example {number} cannot be used ({error.field}: {error.problem})", error.remedy) from error
    return made


def _pair_of(fields: object) -> Pair:
    """The pair of a line. Raises ValueError, which says what is wrong with it."""
    if not isinstance(fields, dict):
        raise ValueError("not an object")
    if unread := next((name for name in _UNREAD if fields.get(name)), None):
        raise ValueError(f"its {unread!r} would be left out; write it as turns of messages, or take it out")
    if "messages" in fields and not fields.keys().isdisjoint(("prompt", "completion", "instruction", "input", "output")):
        raise ValueError("it has messages and another shape's fields")
    if "messages" in fields:
        return _pair_of_turns(fields["messages"])
    if "prompt" in fields or "completion" in fields:
        return _checked(user_turn(_text(fields, "prompt")), _text(fields, "completion"))
    if "instruction" in fields:
        asked = (_text(fields, "instruction"), _text(fields, "input") if fields.get("input") else "")
        return _checked(user_turn("\n".join(part for part in asked if part)), _text(fields, "output"))
    return _checked(user_turn(_text(fields, "input")), _text(fields, "output"))


def _pair_of_turns(turns: object) -> Pair:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("its messages are not a list of objects with role and content")
    for turn in turns:
        if unread := next((name for name in _UNREAD_OF_TURN if turn.get(name) is not None), None):
            raise ValueError(f"a message's {unread!r} would be left out; only role and content are learned")
    messages = [Message(_text(turn, "role"), _text(turn, "content")) for turn in turns]
    if not messages or messages[-1].role != "assistant":
        raise ValueError("its last message is not the assistant's")
    return _checked(messages[:-1], messages[-1].content)


def _checked(messages: Sequence[Message], answer: str) -> Pair:
    """A pair whose prompt can be served."""
    try:
        return Pair(checked_messages(messages), answer)
    except InvalidArgument as error:
        raise ValueError(f"its {error.field} {error.problem}") from error


def _text(fields: dict[str, object], key: str) -> str:
    if key not in fields:
        raise ValueError(f"it has no {key!r}")
    value = fields[key]
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf  # a label may be one; NaN is none
    if not isinstance(value, str) and not number:
        raise ValueError(f"its {key!r} is not text")
    text = str(value)
    if not is_utf8(text):
        raise ValueError(f"its {key!r} holds half of a surrogate pair")
    return text


def split_held_out(pairs: Sequence[Item], seed: int) -> tuple[list[Item], list[Item]]:
    """Pairs to train on, and pairs held out to tell when to stop: a tenth, but 8 to 64 of them, and never over a fifth."""
    shuffled = list(pairs)
    random.Random(seed).shuffle(shuffled)
    tenth = min(max(round(len(shuffled) / 10), _MIN_HELD_OUT), _MAX_HELD_OUT)
    count = max(1, min(tenth, len(shuffled) // 5))
    return shuffled[count:], shuffled[:count]
