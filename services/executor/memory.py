"""How much memory the key/value cache gets."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psutil
import torch

from services.executor.settings import ExecutorSettings
from smoa.errors import InvalidArgument

CGROUP: Final = Path("/sys/fs/cgroup")
SHARE: Final = 0.5
"""Of the free memory, at most, when nobody says how much."""


def free_bytes(device: str, cgroup: Path = CGROUP) -> int:
    """What may still be taken: of the device, or of the machine and the container (cgroup v2) that this process runs in."""
    if device != "cpu":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    try:
        limit, used = (cgroup / "memory.max").read_text().strip(), (cgroup / "memory.current").read_text()
    except OSError:
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - int(used)))


def cache_blocks(settings: ExecutorSettings, *, block_bytes: int, block_tokens: int, context: int, free: int) -> int:
    """Blocks of the key/value cache: as the setting says, or as many as all rows need for whole contexts, within a share of what is free.

    Args:
        settings: `cache_bytes` of 0 asks for the second.
        block_bytes: Of one block in all layers.
        block_tokens: Tokens in it.
        context: Most tokens of a sequence.
        free: Bytes that are free once the model and the slots have theirs.

    Raises:
        InvalidArgument: one context does not fit.
    """
    needed = -(-context // block_tokens)
    allowed = settings.cache_bytes or int(free * SHARE)
    blocks = allowed // block_bytes if settings.cache_bytes else min(settings.rows * needed, allowed // block_bytes)
    if blocks < needed:
        of = f"{allowed:,}" if settings.cache_bytes else f"{allowed:,} of {free:,} free bytes"
        raise InvalidArgument(
            "SMOA_EXECUTOR_CACHE_BYTES",
            f"{of} holds {blocks * block_tokens} tokens, under the context of {context}",
            f"give at least {needed * block_bytes:,}, or lower SMOA_EXECUTOR_CONTEXT",
        )
    return blocks
