"""An orchestrator that hands steps of different kinds to `smoa-auto`, checks each answer, and reports what the check said.

Each step is answered by whichever adapter is right for it; none is named. A verdict that a program can find (a label that exists, JSON
that parses) is what the library learns from, so the next run is routed better. `pip install openai`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from openai import AsyncOpenAI

TICKET = "please refund the money for order 7, and my knee hurts when I climb stairs"


@dataclass(frozen=True)
class Step:
    """Something to be done, and how to tell whether it was."""

    kind: str
    prompt: str
    right: Callable[[str], bool]


def plan(ticket: str) -> list[Step]:
    """A ticket's parts, each a step of its own."""
    parts = [part.strip() for part in ticket.split(", and ")]
    return [Step(f"part {number + 1}", part, lambda text: bool(text.strip())) for number, part in enumerate(parts)]


async def carry_out(client: AsyncOpenAI, step: Step, session: str) -> str:
    """Ask, check, and report."""
    answer = await client.chat.completions.create(
        model="smoa-auto",
        messages=[{"role": "user", "content": step.prompt}],
        max_tokens=12,
        extra_body={"smoa": {"session": session, "new_topic": True, "task": step.kind}},
    )
    text = answer.choices[0].message.content or ""
    decision = (answer.model_extra or {})["smoa"]
    right = step.right(text)
    if decision["adapters"]:
        verdict = {"id": answer.id, "success": right, "input": step.prompt, "output": text}
        await client.post("/feedback", cast_to=object, body=verdict)
    by = ", ".join(one["name"] for one in decision["adapters"]) or "the base model"
    return f"{step.kind}: by {by}, {'right' if right else 'wrong'}: {text.strip()!r}"


async def main(ticket: str) -> None:
    """Carry out all steps at once."""
    url, key = os.environ.get("SMOA_GATEWAY_URL", "http://127.0.0.1:8080/v1"), os.environ.get("SMOA_KEY", "none")
    async with AsyncOpenAI(base_url=url, api_key=key) as client:
        for line in await asyncio.gather(*(carry_out(client, step, f"ticket/{step.kind}") for step in plan(ticket))):
            print(line)


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or TICKET))
