"""Files that people name: read where they are plain ones of a bearable size, and written in the place of what is there, not through it."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Final

from smoa.errors import InvalidArgument

MOST_BYTES: Final = 8 * 2**30


def read_plain(path: Path, field: str, most_bytes: int = MOST_BYTES) -> bytes:
    """What a file holds. A link is followed to one, as the caches of model hubs have them; a device, a pipe or a folder has no end.

    Raises:
        InvalidArgument: it is none, or too large.
        OSError: it cannot be read.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise InvalidArgument(field, f"{path} is not a plain file", "name a file, not a device, a pipe or a folder")
        if found.st_size > most_bytes:
            raise InvalidArgument(field, f"{path} has {found.st_size:,} bytes, over {most_bytes:,}", "name a smaller file")
        return file.read(most_bytes + 1)


def write_plain(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Put a file there, whole or not at all; of a link, it takes the place. `mode` goes through the process's mask.

    Raises:
        OSError: it cannot be written.
    """
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")  # a process that was killed has left its own
    try:
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            file.write(data)
        os.replace(scratch, path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
