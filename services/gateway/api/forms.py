"""Answers in OpenAI's forms, whole and as they come. Pure."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic_core import to_json
from ulid import ULID

from services.gateway.api.errors import HttpError
from services.gateway.api.requests import PREFIXES, UNDECIDED
from services.gateway.serving.asked import Asked
from services.gateway.serving.decisions import shown
from smoa.v1 import executor_pb2, router_pb2

_ENDS: Final = {
    executor_pb2.FINISH_REASON_END: "stop",
    executor_pb2.FINISH_REASON_STOP_STRING: "stop",
    executor_pb2.FINISH_REASON_LENGTH: "length",
}
DONE: Final = b"data: [DONE]\n\n"


def event(body: dict[str, Any], name: str = "") -> bytes:
    """A server-sent event (WHATWG HTML, 9.2)."""
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + to_json(body) + b"\n\n"


@dataclass
class _Text:
    """One of the answers to a request, as far as it is there."""

    parts: list[str] = field(default_factory=list)
    logprobs: list[executor_pb2.TokenLogprob] = field(default_factory=list)
    end: str | None = None
    begun: bool = False

    @property
    def text(self) -> str:
        """Of it all."""
        return "".join(self.parts)


class Form(ABC):
    """How one kind of answer is written; made for one request."""

    kind: str

    def __init__(self, asked: Asked, decision: router_pb2.Decision, executor: str) -> None:
        self.asked = asked
        self.smoa = shown(decision, executor)
        self.id = PREFIXES[self.kind] + (decision.decision_id or UNDECIDED + str(ULID()))
        self.created_s = int(time.time())
        self.answers = [_Text() for _ in range(asked.generate.n or 1)]
        self._prompt_tokens = self._completion_tokens = 0

    def take(self, piece: executor_pb2.GenerateResponse) -> _Text:
        """What came from the executor; returns which answer it is of."""
        one = self.answers[piece.index]
        one.parts.append(piece.text)
        one.logprobs += piece.logprobs
        if piece.usage.finish_reason:
            one.end = _ENDS.get(piece.usage.finish_reason, "stop")
            self._prompt_tokens = piece.usage.prompt_tokens
            self._completion_tokens += piece.usage.completion_tokens
        return one

    @property
    def ended(self) -> bool:
        """All answers are there."""
        return all(one.end for one in self.answers)

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens."""
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
        }

    def _envelope(self, name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": name, "created": self.created_s, "model": self.asked.model, "choices": choices}

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """The answer as one object."""

    @abstractmethod
    def begin(self) -> Iterator[bytes]:
        """Events before the first piece."""

    @abstractmethod
    def piece(self, piece: executor_pb2.GenerateResponse) -> Iterator[bytes]:
        """Events of a piece; takes it."""

    @abstractmethod
    def end(self) -> Iterator[bytes]:
        """Events after the last one."""

    def failed(self, error: HttpError) -> bytes:
        """The event in place of the rest, when something went wrong."""
        return event(error.body, "error")


class _Completions(Form):
    """What chat completions and completions share."""

    object: str
    chunk: str

    def whole(self) -> dict[str, Any]:
        """See `Form`."""
        choices = [
            {"index": index, **self._choice(one), "logprobs": self._logprobs(one.logprobs, 0), "finish_reason": one.end}
            for index, one in enumerate(self.answers)
        ]
        return {**self._envelope(self.object, choices), "usage": self.usage, "smoa": self.smoa}

    def begin(self) -> Iterator[bytes]:
        """See `Form`."""
        return iter(())

    def piece(self, piece: executor_pb2.GenerateResponse) -> Iterator[bytes]:
        """See `Form`."""
        first = not any(one.begun for one in self.answers)
        before = sum(map(len, self.answers[piece.index].parts)) if piece.logprobs else 0
        one = self.take(piece)
        choice = {
            "index": piece.index,
            **self._delta(piece.text, first=not one.begun),
            "logprobs": self._logprobs(piece.logprobs, before),
            "finish_reason": one.end,
        }
        one.begun = True
        chunk = self._envelope(self.chunk, [choice])
        if first or self.ended:
            chunk["smoa"] = self.smoa
        yield event(chunk)

    def end(self) -> Iterator[bytes]:
        """See `Form`."""
        if self.asked.usage_in_stream:
            yield event({**self._envelope(self.chunk, []), "usage": self.usage})
        yield DONE

    @abstractmethod
    def _choice(self, one: _Text) -> dict[str, Any]: ...

    @abstractmethod
    def _delta(self, text: str, *, first: bool) -> dict[str, Any]: ...

    @abstractmethod
    def _logprobs(self, told: Sequence[executor_pb2.TokenLogprob], offset: int) -> dict[str, Any] | None: ...


class ChatForm(_Completions):
    """`chat.completion`."""

    kind = "chat"
    object, chunk = "chat.completion", "chat.completion.chunk"

    def _choice(self, one: _Text) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": one.text, "refusal": None}}

    def _delta(self, text: str, *, first: bool) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": text} if first else {"content": text}}

    def _logprobs(self, told: Sequence[executor_pb2.TokenLogprob], offset: int) -> dict[str, Any] | None:
        if not self.asked.generate.HasField("logprobs"):
            return None
        content = [{**_told(one), "top_logprobs": [_told(other) for other in one.alternatives]} for one in told]
        return {"content": content, "refusal": None}


class CompletionForm(_Completions):
    """`text_completion`."""

    kind = "completion"
    object = chunk = "text_completion"

    def _choice(self, one: _Text) -> dict[str, Any]:
        return {"text": one.text}

    def _delta(self, text: str, *, first: bool) -> dict[str, Any]:
        return {"text": text}

    def _logprobs(self, told: Sequence[executor_pb2.TokenLogprob], offset: int) -> dict[str, Any] | None:
        if not self.asked.generate.HasField("logprobs"):
            return None
        offsets = []
        for one in told:
            offsets.append(offset)
            offset += len(one.text)
        return {
            "tokens": [one.text for one in told],
            "token_logprobs": [one.logprob for one in told],
            "top_logprobs": [{other.text: other.logprob for other in one.alternatives} for one in told],
            "text_offset": offsets,
        }


def _told(one: executor_pb2.TokenLogprob) -> dict[str, Any]:
    return {"token": one.text, "logprob": one.logprob, "bytes": list(one.text.encode())}


class ResponseForm(Form):
    """`response`, and its typed events."""

    kind = "response"

    def __init__(self, asked: Asked, decision: router_pb2.Decision, executor: str) -> None:
        super().__init__(asked, decision, executor)
        self._number = 0
        self._item_id = "msg_" + self.id.removeprefix(PREFIXES[self.kind])

    def whole(self) -> dict[str, Any]:
        """See `Form`."""
        status = "incomplete" if self.answers[0].end == "length" else "completed"
        return self._response(status, [self._item(status)])

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        asked = self.asked.generate
        ended = status != "in_progress"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_s,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": self.asked.instructions or None,
            "metadata": {},
            "model": self.asked.model,
            "output": output,
            "parallel_tool_calls": False,
            "temperature": asked.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": asked.top_p or 1.0,
            "usage": {
                "input_tokens": self._prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": self._completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self._prompt_tokens + self._completion_tokens,
            }
            if ended
            else None,
            "smoa": self.smoa,
        }

    def failed(self, error: HttpError) -> bytes:
        """See `Form`."""
        return self._event("error", code=error.code, message=error.message, param=error.param)

    def _item(self, status: str) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self._part(self.answers[0].text)]
        return {"id": self._item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _event(self, kind: str, **what: Any) -> bytes:
        body = {"type": kind, "sequence_number": self._number, **what}
        self._number += 1
        return event(body, kind)

    def begin(self) -> Iterator[bytes]:
        """See `Form`."""
        started = self._response("in_progress", [])
        yield self._event("response.created", response=started)
        yield self._event("response.in_progress", response=started)
        yield self._event("response.output_item.added", output_index=0, item=self._item("in_progress"))
        yield self._event("response.content_part.added", **self._where(), part=self._part(""))

    def _where(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def piece(self, piece: executor_pb2.GenerateResponse) -> Iterator[bytes]:
        """See `Form`."""
        self.take(piece)
        if piece.text:
            yield self._event("response.output_text.delta", **self._where(), delta=piece.text, logprobs=[])

    def end(self) -> Iterator[bytes]:
        """See `Form`."""
        text, whole = self.answers[0].text, self.whole()
        yield self._event("response.output_text.done", **self._where(), text=text, logprobs=[])
        yield self._event("response.content_part.done", **self._where(), part=self._part(text))
        yield self._event("response.output_item.done", output_index=0, item=self._item(whole["status"]))
        yield self._event(f"response.{whole['status']}", response=whole)
