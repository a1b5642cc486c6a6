"""The Faust worker that anybody would write first: a table, one increment an event. What the optimizer's throughput is compared with."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import faust

from smoa.v1.events_pb2 import AdapterOutcome

GROUP, TOPIC = "plain-faust", "plain-adapter-outcomes"


def build(bootstrap: str, folder: str) -> faust.App:
    """One agent over a table in memory, with its changelog."""
    app = faust.App(
        GROUP,
        broker=f"kafka://{bootstrap}",
        store="memory://",
        datadir=folder,
        topic_partitions=4,
        web_enabled=False,
        key_serializer="raw",
        value_serializer="raw",
        consumer_auto_offset_reset="earliest",
        broker_commit_interval=1.0,
    )
    uses: Any = app.Table("uses", default=int, partitions=4)

    @app.agent(app.topic(TOPIC, key_type=bytes, value_type=bytes))
    async def count(stream: Any) -> None:
        async for value in stream:
            uses[AdapterOutcome.FromString(value).adapter_id] += 1

    return app


if __name__ == "__main__":
    os.makedirs(sys.argv[2], exist_ok=True)
    worker = faust.Worker(build(sys.argv[1], sys.argv[2]), loglevel="WARN", loop=asyncio.new_event_loop())
    worker.execute_from_commandline()
