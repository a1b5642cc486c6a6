"""Logging: one line a record, UTC time, to standard error, with chatty libraries kept quiet."""

from __future__ import annotations

import logging
import os
import sys
import time


class _AtMostEvery(logging.Filter):
    """Lets an identical message of a logger through once in `interval_s`: Faust repeats errors ten times a second while Kafka is away."""

    def __init__(self, interval_s: float) -> None:
        super().__init__()
        self._interval_s = interval_s
        self._last: dict[tuple[str, int, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        if record.levelno < logging.WARNING:
            return True
        key, now = (record.name, record.levelno, str(record.msg)), time.monotonic()
        if now - self._last.get(key, -self._interval_s) < self._interval_s:
            return False
        if len(self._last) > 1000:
            self._last.clear()
        self._last[key] = now
        return True


def configure_logging(level: str | None = None) -> None:
    """Set up the process's logging; `SMOA_LOG_LEVEL` (default INFO) or `level` decides what shows."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    handler.addFilter(_AtMostEvery(5.0))
    logging.basicConfig(level=level or os.environ.get("SMOA_LOG_LEVEL", "INFO"), handlers=[handler], force=True)
    for name in ("aiokafka", "faiss", "faust", "httpx", "mode", "rdkafka"):
        logging.getLogger(name).setLevel(logging.WARNING)
