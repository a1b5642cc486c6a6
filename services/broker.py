"""The embedded Kafka-protocol broker of `smoa up`: librdkafka's mock cluster, in a process of its own.

In memory: events and statistics live as long as this process. Point SMOA_KAFKA_BOOTSTRAP at a real Kafka to keep them.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from confluent_kafka import Producer

from smoa.service import end_with_supervisor


def main() -> None:
    """`python -m services.broker FILE`: write the address to FILE and serve until a signal."""
    import signal

    if len(sys.argv) not in (2, 4):
        raise SystemExit("usage: python -m services.broker FILE   (the broker's address is written to FILE)")
    end_with_supervisor()
    stopped = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stopped.set())
    host = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "ignored", "log_level": 3})
    broker = next(iter(host.list_topics(timeout=10).brokers.values()))
    path = Path(sys.argv[1])
    scratch = path.with_suffix(".tmp")
    scratch.write_text(f"{broker.host}:{broker.port}")
    os.replace(scratch, path)
    print(f"broker on {broker.host}:{broker.port}", file=sys.stderr, flush=True)
    while not stopped.wait(1.0):
        host.poll(0)
    host.flush(1)


if __name__ == "__main__":
    main()
