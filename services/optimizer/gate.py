"""Trying a merge's child before anybody is asked: it should be as sure of its parents' right answers as they are.

For each example that a parent answered rightly, the log-probability of that answer under the parent and under the child (teacher-forced,
`Score`), by token: a paired comparison, in which how hard an example is does not matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from services.optimizer.joining import key_of
from smoa.client import SmoaClient
from smoa.v1.common_pb2 import WeightedAdapter
from smoa.v1.events_pb2 import Example

MIN_EXAMPLES: Final = 4
"""Fewer say nothing."""
MOST_OF_A_PARENT: Final = 8
AT_ONCE: Final = 4
"""Requests that the executor is given together: people wait for it, too."""


@dataclass(frozen=True)
class Finding:
    """What a child lost on examples, in nats a token; more is worse."""

    losses: tuple[float, ...]

    @property
    def mean(self) -> float:
        """0 without examples."""
        return sum(self.losses) / len(self.losses) if self.losses else 0.0

    def refusal(self, max_loss: float) -> str:
        """Why the child is not put on trial, or nothing."""
        if len(self.losses) < MIN_EXAMPLES or self.mean <= max_loss:
            return ""
        return f"on {len(self.losses)} right answers of its parents the child is {self.mean:.3f} nats a token less sure, over {max_loss:g}"

    @property
    def evidence(self) -> dict[str, float]:
        """The numbers, for the lifecycle event."""
        return {"gate_examples": float(len(self.losses)), "gate_loss": self.mean}


class Gate:
    """Owns nothing; `examples` gives those that are kept by a key."""

    def __init__(self, client: SmoaClient, examples: Callable[[str], Awaitable[Sequence[Example]]]) -> None:
        self._client, self._examples = client, examples

    async def compare(self, tenant: str, parents: Sequence[WeightedAdapter], child: WeightedAdapter) -> Finding:
        """Score the owner's newest examples of each parent under it and under the child.

        Raises:
            grpc.aio.AioRpcError: the executor cannot.
            Unavailable: examples that another worker has cannot be read.
        """
        wanted = [
            (one, parent) for parent in parents for one in (await self._examples(key_of(parent.adapter_id, tenant)))[-MOST_OF_A_PARENT:]
        ]
        return await losses(self._client, tenant, wanted, child)


async def losses(
    client: SmoaClient, tenant: str, tried: Sequence[tuple[Example, WeightedAdapter | None]], child: WeightedAdapter
) -> Finding:
    """How much less sure of each example's answer the child is than its rival, an adapter or, for None, the base model.

    Raises:
        grpc.aio.AioRpcError: the executor cannot.
    """
    room = asyncio.Semaphore(AT_ONCE)

    async def sureness(example: Example, adapter: WeightedAdapter | None) -> float:
        async with room:
            logprobs = await client.score(example.input, example.output, [adapter] if adapter else [], tenant)
        return sum(logprobs) / max(len(logprobs), 1)

    async def loss(example: Example, rival: WeightedAdapter | None) -> float:
        before, after = await asyncio.gather(sureness(example, rival), sureness(example, child))
        return before - after

    return Finding(tuple(await asyncio.gather(*(loss(*pair) for pair in tried))))
