"""Turns of a conversation, as callers have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from smoa.limits import MAX_QUERY_CHARACTERS, MAX_TURNS
from smoa.v1 import executor_pb2

Turn: TypeAlias = executor_pb2.Message | Mapping[str, str]
"""`{"role": "user", "content": "..."}`; the role is `system`, `user` or `assistant`."""


def said(query: str, messages: Sequence[Turn]) -> tuple[str, list[str]]:
    """The query, or without one what the user said last; and what they said before it, oldest first, as much as a router takes."""
    lines = [turn.content for turn in executor_pb2.GenerateRequest(messages=messages).messages if turn.role == "user"]
    if lines and query in ("", lines[-1]):
        query = lines.pop()
    return query, [line[:MAX_QUERY_CHARACTERS] for line in lines if line.strip()][-MAX_TURNS:]
