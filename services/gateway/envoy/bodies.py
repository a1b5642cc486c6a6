"""Bodies that pass by: what a request asks, the same with another model in it, and what an answer says that it took. Pure.

Nothing is held to what SMoA serves: the engine behind may take fields, and roles, that are nobody's business here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from services.gateway.api.requests import Smoa, said_of
from services.gateway.serving.asked import AUTO, Asked
from services.gateway.serving.routes import to_route
from smoa.errors import InvalidArgument
from smoa.v1 import executor_pb2

PATHS: Final = ("/chat/completions", "/completions", "/responses")
"""Ends of the paths whose requests are routed."""
_TAIL_BYTES: Final = 64 * 1024
_USAGE: Final = re.compile(rb'"(?:completion_tokens|output_tokens)"\s*:\s*(\d{1,9})')


@dataclass(frozen=True)
class Passing:
    """A request that is to be routed."""

    body: dict[str, Any]
    asked: Asked

    def with_model(self, name: str) -> bytes:
        """The body for the engine behind: its model, and nothing of ours."""
        return to_json({name_: value for name_, value in self.body.items() if name_ != "smoa"} | {"model": name})


def read_request(data: bytes) -> Passing | None:
    """What a body asks of the router; None where it names its model, or is nothing that could be routed.

    Raises:
        InvalidArgument: it is to be routed, and what is ours in it is wrong, or nothing in it is a text.
    """
    try:
        body = from_json(data)
    except ValueError:
        return None  # the engine behind says what is wrong with it
    if not isinstance(body, dict) or body.get("model") != AUTO:
        return None
    try:
        ours = Smoa.model_validate(body.get("smoa") or {})
    except ValidationError as error:
        raise said_of(error, "smoa") from error
    turns = [executor_pb2.Message(role=role, content=text) for role, text in _texts(body)]
    if not any(turn.role == "user" for turn in turns):
        raise InvalidArgument("messages", "hold no text of a user", f"send one, or name a model that is not {AUTO}")
    user = next((value for name in ("safety_identifier", "user") if isinstance(value := body.get(name), str)), "")
    return Passing(body, Asked(model=AUTO, route=to_route(ours.model_dump(), turns, user), generate=executor_pb2.GenerateRequest()))


def _texts(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of the turns of a conversation; what is no text is left out."""
    for name in ("messages", "input", "prompt"):
        given = body.get(name)
        if isinstance(given, str):
            return [("user", given)] if given.strip() else []
        if isinstance(given, list):
            turns = [(one.get("role"), _text(one.get("content"))) for one in given if isinstance(one, dict)]
            return [(role, text) for role, text in turns if isinstance(role, str) and text.strip()]
    return []


def _text(content: Any) -> str:
    if isinstance(content, str):
        text = content
    elif isinstance(content, list):
        text = "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    else:
        text = ""
    return text.encode(errors="replace").decode()


@dataclass
class AnswerTokens:
    """How many tokens an answer has, read as it passes; only its end is kept."""

    _tail: bytearray = field(default_factory=bytearray)
    _events: int = 0

    def take(self, data: bytes) -> None:
        """Its next bytes."""
        self._events += data.count(b"data:")
        self._tail += data
        del self._tail[:-_TAIL_BYTES]

    @property
    def tokens(self) -> int:
        """As its usage says; of a stream without, its events: about one for each token."""
        found = _USAGE.findall(self._tail)
        return int(found[-1]) if found else max(0, self._events - 1)
