"""Turns of a conversation to token ids and back: the one form of a prompt that training and serving share."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.executor.models.chat_template import SETTING, load_chat_template, special_tokens_of
from services.executor.models.control_tokens import load_tokenizer, without_marks
from services.executor.models.json_file import read_json
from smoa.errors import FailedPrecondition, InvalidArgument

ROLES: Final = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """A turn of a conversation: who says what."""

    role: str
    content: str


def user_turn(text: str) -> tuple[Message, ...]:
    """A conversation of one turn, the user's."""
    return (Message("user", text),)


def checked_messages(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The turns that an answer is wanted to.

    Raises:
        InvalidArgument: none, an unknown role, or the last turn is not a user's or is empty.
    """
    for turn in messages:
        if turn.role not in ROLES:
            raise InvalidArgument("messages", f"have the role {turn.role[:40]!r}", f"use {', '.join(ROLES)}")
    if not messages or messages[-1].role != "user" or not messages[-1].content:
        raise InvalidArgument("messages", "do not end with what a user says", "make the last turn the user's, with a text")
    return tuple(messages)


def check_ids(field: str, ids: Sequence[int], vocabulary: int) -> None:
    """Raise for a token that the base model has no embedding of: its tokenizer knows more tokens than the model.

    Raises:
        InvalidArgument: there is one.
    """
    if ids and (most := max(ids)) >= vocabulary:
        raise InvalidArgument(
            field, f"holds token {most}, and the base model has 0..{vocabulary - 1}", "leave out what its tokenizer added"
        )


class PromptTokenizer:
    """Conversations and texts to ids and back.

    A chat model gets what its own chat template writes, as transformers renders and tokenises it, but a control token's name in a turn's
    content stays text. A model without template gets the user's text and a newline, after what its tokenizer begins a text with (its BOS).
    """

    def __init__(self, folder: Path, chat_template: str = "") -> None:
        """Load the tokenizer and the template of a model folder; `chat_template` is a file to use in place of the folder's own.

        Raises:
            FailedPrecondition: no `tokenizer.json`, or a template that cannot be used.
            InvalidArgument: the file `chat_template` cannot be used.
        """
        self._folder = folder
        special_tokens = special_tokens_of(folder)
        self.eos_ids = _eos_ids(folder)
        """Tokens that end an answer: those that `config.json` and `generation_config.json` name, and the template's end of a turn."""
        self._tokenizer, self._control = load_tokenizer(folder, self.eos_ids)
        self._template = load_chat_template(folder, special_tokens, chat_template)
        own_end = self._control.ids.get(special_tokens.get("eos_token", ""))
        if not self.eos_ids and own_end is not None:
            self.eos_ids = frozenset({own_end})
        self.closing_ids = [own_end] if own_end in self.eos_ids else sorted(self.eos_ids)[:1]
        """What comes after an answer, up to the token that ends it."""
        self._lead = ""
        """White space that the template writes between the opening of an answer and the answer itself."""
        if self._template is not None:
            self._learn_turn()

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation as the model sees it, up to where its answer begins.

        Raises:
            InvalidArgument: the template cannot render these turns, or there is none and they are not one user turn.
        """
        return self._encode(self._prompt(messages), whole=True)

    def answer_ids(self, messages: Sequence[Message], answer: str) -> list[int]:
        """Ids of an answer where it follows the prompt, without what ends it."""
        return self._following(self._prompt(messages), self._lead, answer)

    def ids(self, text: str) -> list[int]:
        """Ids of a text by itself. It cannot hold a control token."""
        return self._encode(text)

    def text(self, ids: list[int]) -> str:
        """Text of ids, without control tokens."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _encode(self, text: str, *, whole: bool = False) -> list[int]:
        """`whole`: a text from its beginning, which a tokenizer may open with a BOS; a template writes its own."""
        # As a batch: unlike `encode` it releases the interpreter's lock, for which a long text's caller may run it on a thread.
        return list(self._tokenizer.encode_batch([text], add_special_tokens=whole and self._template is None)[0].ids)

    def _following(self, before: str, lead: str, text: str) -> list[int]:
        """Ids of a text where it follows another: a tokenizer of whole words begins a text in another way than it goes on with one."""
        before = self._control.from_last(before)
        start, all_ids = self._encode(before, whole=True), self._encode(before + lead + text, whole=True)
        return all_ids[len(start) :] if all_ids[: len(start)] == start else self._encode(text)  # else they are merged over the seam

    def _prompt(self, messages: Sequence[Message]) -> str:
        """A conversation's text with control tokens under their secret names."""
        if self._template is not None:
            return self._rendered(messages, add_generation_prompt=True)
        if len(messages) != 1 or messages[0].role != "user":
            remedy = f"send one user turn, or give the executor a template with {SETTING}"
            raise InvalidArgument("messages", "are a conversation, and the base model has no chat template", remedy)
        return f"{messages[0].content}\n"

    def _rendered(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        assert self._template is not None
        turns = [{"role": turn.role, "content": self._control.guarded(turn.content)} for turn in messages]
        try:
            text = self._template.render(turns, add_generation_prompt=add_generation_prompt)
        except Exception as error:  # a template is a program: whatever it raises is its answer to these turns
            problem = f"the base model's chat template refuses them ({without_marks(str(error)).strip()})"
            raise InvalidArgument("messages", problem, "send turns that it takes") from error
        return self._control.revealed(text)

    def _learn_turn(self) -> None:
        """Find out from a conversation of two turns what the template writes around an answer, and with which token it ends a turn."""
        question, answer = secrets.token_hex(16), secrets.token_hex(16)  # two texts that no template holds
        turns = user_turn(question)
        try:
            prompt = self._rendered(turns, add_generation_prompt=True)
            whole = self._rendered((*turns, Message("assistant", answer)), add_generation_prompt=False)
        except InvalidArgument as error:
            problem = f"its chat template cannot render a question and its answer ({error.__cause__})"
            raise FailedPrecondition(f"base_model: {self._folder}: {problem}; give another one with {SETTING}") from error
        before, _, after = whole.rpartition(answer)
        lead = before.removeprefix(prompt)
        self._lead = lead if lead.isspace() else ""
        if closing := self._control.through_first(after):
            self.closing_ids = self._following(before + answer, "", closing)
            self.eos_ids |= {self.closing_ids[-1]}


def _eos_ids(folder: Path) -> frozenset[int]:
    """`eos_token_id`, a number or several, of both files: a chat model's `config.json` often has only the one of its base model."""
    given = [read_json(folder / name).get("eos_token_id") for name in ("config.json", "generation_config.json")]
    return frozenset(token for ids in given for token in (ids if isinstance(ids, list) else [ids]) if isinstance(token, int))
