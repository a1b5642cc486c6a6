"""What is asked of the gateway, whoever's form it came in. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from smoa.v1 import executor_pb2, router_pb2

AUTO: Final = "smoa-auto"
"""In place of a model's name: the router chooses the adapters."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request for an answer, in the contracts' own messages."""

    model: str
    """`smoa-auto`, a base model, an adapter or a composition."""
    route: router_pb2.RouteRequest
    """How to route it; its adapter or composition is the model's name."""
    generate: executor_pb2.GenerateRequest
    """What to generate; its adapters, or stages, are the decision's."""
    stream: bool = False
    usage_in_stream: bool = False
    instructions: str = ""
    """Of a response: what goes before its input."""
    warnings: tuple[str, ...] = ()
    """Fields that had no effect."""
