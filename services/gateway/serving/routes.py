"""How a conversation is routed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from smoa.errors import InvalidArgument
from smoa.limits import MAX_QUERY_CHARACTERS
from smoa.rules import check_rules
from smoa.turns import said
from smoa.v1 import common_pb2 as common
from smoa.v1 import executor_pb2, router_pb2

STRATEGIES: Final = sorted(name.removeprefix("ROUTING_STRATEGY_").lower() for name, number in common.RoutingStrategy.items() if number)


def to_route(ours: Mapping[str, Any], turns: Sequence[executor_pb2.Message], user: str = "") -> router_pb2.RouteRequest:
    """The router's request for what the user said last.

    Args:
        ours: What is SMoA's own in a body, checked; what is None is left open.
        turns: The conversation.
        user: Who asks, where `ours` does not say.

    Raises:
        InvalidArgument: an unknown strategy, or a field that breaks a rule of the contract.
    """
    strategy = ours.get("strategy")
    if strategy is not None and strategy not in STRATEGIES:
        raise InvalidArgument("smoa.strategy", f"{strategy[:40]!r} is unknown", f"use one of {', '.join(STRATEGIES)}")
    query, before = said("", turns)
    route = router_pb2.RouteRequest(
        tenant=ours.get("tenant") or "",
        base_model=ours.get("base_model") or "",
        query=query[:MAX_QUERY_CHARACTERS],
        strategy=f"ROUTING_STRATEGY_{(strategy or 'unspecified').upper()}",
        top_k=ours.get("top_k"),
        tags=ours.get("tags") or (),
        task_id=ours.get("task") or "",
        turns=before,
        session=ours.get("session") or "",
        new_topic=ours.get("new_topic") or False,
        user=ours.get("user") or user,
        own_only=ours.get("own_only") or False,
        explain=ours.get("explain") or False,
    )
    check_rules(route)
    return route
