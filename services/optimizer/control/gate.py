"""Trying a merge's child before anybody is asked: it should be as sure of its parents' right answers as they are.

For each example that a parent answered rightly, the log-probability of that answer under the parent and under the child (teacher-forced,
`Score`), by token: a paired comparison, in which how hard an example is does not matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import grpc

from services.optimizer.stream.effects import key_of
from smoa.adapter import Manifest
from smoa.client import SmoaClient
from smoa.errors import Unavailable
from smoa.v1.common_pb2 import WeightedAdapter
from smoa.v1.events_pb2 import Example

MIN_EXAMPLES: Final = 4
"""Fewer say nothing."""
MOST_OF_A_PARENT: Final = 8
AT_ONCE: Final = 4
"""Requests that the executor is given together: people wait for it, too."""
WITHIN_S: Final = 120.0


@dataclass(frozen=True)
class Finding:
    """What a child lost on the examples of each of its parents, by the parent's id, in nats a token; more is worse."""

    losses: Mapping[str, Sequence[float]]

    @property
    def worst(self) -> tuple[str, float, int]:
        """The parent whose answers lost most, how much on average, and on how many; no parent if none has enough examples."""
        means = [(sum(ones) / len(ones), parent) for parent, ones in self.losses.items() if len(ones) >= MIN_EXAMPLES]
        loss, parent = max(means, default=(0.0, ""))
        return parent, loss, len(self.losses.get(parent, ()))

    def refusal(self, max_loss: float) -> str:
        """Why the child is not put on trial, or nothing."""
        parent, loss, examples = self.worst
        if loss <= max_loss:
            return ""
        return f"on {examples} right answers of {parent} the child is {loss:.3f} nats a token less sure, over {max_loss:g}"

    @property
    def evidence(self) -> dict[str, float]:
        """The numbers, for the lifecycle event."""
        return {"gate_examples": float(sum(map(len, self.losses.values()))), "gate_loss": self.worst[1]}


def alone(manifest: Manifest, digest: str) -> WeightedAdapter:
    """One adapter by itself, in full."""
    return WeightedAdapter(adapter_id=manifest.adapter_id, version=manifest.version, digest=digest, weight=1.0)


class Gate:
    """Owns nothing; `examples` gives those that are kept by a key."""

    def __init__(self, client: SmoaClient, examples: Callable[[str], Awaitable[Sequence[Example]]]) -> None:
        self._client, self._examples = client, examples

    async def compare(self, tenant: str, parents: Sequence[WeightedAdapter], child: WeightedAdapter) -> Finding:
        """Score the owner's newest examples of each parent under it and under the child.

        Raises:
            grpc.aio.AioRpcError: the executor cannot.
            Unavailable: it does not within two minutes, or examples that another worker has cannot be read.
        """
        found = {}
        try:
            async with asyncio.timeout(WITHIN_S):
                for parent in parents:
                    examples = await self._examples(key_of(parent.adapter_id, tenant))
                    found[parent.adapter_id] = await losses(self._client, tenant, examples[-MOST_OF_A_PARENT:], parent, child)
        except TimeoutError as error:
            raise Unavailable(f"executor: has not scored a merge's child within {WITHIN_S:.0f} s") from error
        return Finding(found)


async def losses(
    client: SmoaClient, tenant: str, examples: Sequence[Example], rival: WeightedAdapter | None, child: WeightedAdapter
) -> list[float]:
    """How much less sure of each example's answer the child is than its rival, an adapter or, for None, the base model.

    An example that the executor cannot score under the rival, as one that is longer than its context, says nothing.

    Raises:
        grpc.aio.AioRpcError: the executor does not answer, or cannot take the child.
    """
    room, found = asyncio.Semaphore(AT_ONCE), dict[int, float]()

    async def sureness(example: Example, adapter: WeightedAdapter | None) -> float:
        logprobs = await client.score(example.input, example.output, [adapter] if adapter else [], tenant)
        return sum(logprobs) / max(len(logprobs), 1)

    async def compare(place: int, example: Example) -> None:
        async with room:
            try:
                before = await sureness(example, rival)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                    raise
                return
            found[place] = before - await sureness(example, child)  # the text fits: what is refused now is the child

    tasks = [asyncio.create_task(compare(place, example)) for place, example in enumerate(examples)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [found[place] for place in sorted(found)]
