"""SMoA's own client, over gRPC: one call to route and generate, one to report; with an event loop, and without."""

from __future__ import annotations

import asyncio
import os
import sys

from smoa.client import SmoaClient
from smoa.sync_client import SyncSmoaClient

QUESTION = "please refund the money for order 7"
ROUTER = os.environ.get("SMOA_ROUTER", "127.0.0.1:50051")


async def ask(question: str) -> None:
    """With an event loop."""
    async with SmoaClient(router=ROUTER) as smoa:
        answer = await smoa.chat(question, max_tokens=12)
        print("answer:", answer.text)
        await answer.report(success=True)


def ask_and_wait(question: str) -> None:
    """Without."""
    with SyncSmoaClient(router=ROUTER) as smoa:
        answer = smoa.chat(question, max_tokens=12)
        print("again:", answer.text)
        answer.report(success=True)


if __name__ == "__main__":
    asked = " ".join(sys.argv[1:]) or QUESTION
    asyncio.run(ask(asked))
    ask_and_wait(asked)
