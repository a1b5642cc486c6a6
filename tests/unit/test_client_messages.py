"""What the client routes on when it is given a conversation."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from smoa.client import SmoaClient
from smoa.turns import Turn
from smoa.v1 import executor_pb2, router_pb2

SYSTEM, FIRST, ANSWER, LAST = (
    {"role": role, "content": text} for role, text in (("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"))
)


class FakeRouter:
    """Keeps what it was asked."""

    async def Route(self, request: router_pb2.RouteRequest, timeout: float) -> router_pb2.Decision:  # noqa: N802
        self.query, self.turns = request.query, list(request.turns)
        return router_pb2.Decision()


@pytest.mark.parametrize(
    ("query", "messages", "routed", "turns"),
    [
        ("", [SYSTEM, FIRST, ANSWER, LAST], "r", ["q"]),
        ("r", [SYSTEM, FIRST, ANSWER, LAST], "r", ["q"]),
        ("", [executor_pb2.Message(role="user", content="q")], "q", []),
        ("other", [FIRST], "other", ["q"]),
        ("other", [FIRST, ANSWER, LAST], "other", ["q", "r"]),
        ("", [SYSTEM], "", []),
        ("", [{"role": "user", "content": f"{number}"} for number in range(12)], "11", [str(number) for number in range(3, 11)]),
        ("", [{"role": "user", "content": "x" * 9000}, {"role": "user", "content": " "}, LAST], "r", ["x" * 8192]),
    ],
)
async def test_it_is_what_the_user_said_last(query: str, messages: Sequence[Turn], routed: str, turns: list[str]) -> None:
    async with SmoaClient(router="127.0.0.1:1") as client:
        fake = FakeRouter()
        client.router = fake  # type: ignore[assignment]
        await client.route(query, base_model="b", messages=messages)
        assert (fake.query, fake.turns) == (routed, turns)
