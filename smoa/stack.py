"""Where a local stack listens and keeps its data: `smoa up` writes it into its data folder, and commands find it there."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from smoa.errors import FailedPrecondition
from smoa.plain_files import write_plain

FILE: Final = "stack.json"
LOCK: Final = "lock"
VARIABLE: Final = "SMOA_STACK"
DEFAULT_FOLDER: Final = Path("smoa-data")


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A local stack's addresses and folders. The file stays when the stack stops: its folders are still there."""

    data: str
    """Its data folder, an absolute path."""
    router: str
    executor: str
    gateway: str = ""
    """The HTTP address; empty where none was started."""
    kafka: str = ""
    """The broker's address; empty until it is known."""
    store: str
    """Folder (an absolute path) or URL of the adapter store."""
    qdrant: str = ""
    """URL of the catalogue; empty: it is in `router_data`."""
    pid: int
    """Process id of its `smoa up`."""
    started_at_s: float
    """When that was started, in seconds since 1970."""

    @property
    def router_data(self) -> Path:
        """The router's data folder."""
        return Path(self.data) / "router"

    @property
    def running(self) -> bool:
        """True while its `smoa up` or one of its processes runs: they hold the folder's lock until they end, in whatever way."""
        try:
            with (Path(self.data) / LOCK).open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def write(self) -> None:
        """Write the file: readers see the one before or this one, never a part."""
        path = Path(self.data) / FILE
        write_plain(path, (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode())

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started_at_s))
        broker = f", broker {self.kafka}" if self.kafka else ""
        return f"process {self.pid}, since {since}, router {self.router}, executor {self.executor}{broker}"


@dataclass(frozen=True)
class FoundStack:
    """The folder that was looked in, what named it (`--stack`, `SMOA_STACK` or nothing), and the stack whose file it holds, if any."""

    folder: Path
    named_by: str
    stack: Stack | None


def read_stack(folder: Path) -> Stack | None:
    """The stack of a data folder, or None where no file is.

    Raises:
        FailedPrecondition: the file is not one of ours.
    """
    path = folder / FILE
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return Stack(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise FailedPrecondition(f"stack: {path} is not what `smoa up` writes ({error}); start `smoa up` on that folder again") from error


def find_stack(option: str | None, environment: Mapping[str, str]) -> FoundStack:
    """The stack that commands talk to: of the folder given, else of the one that SMOA_STACK names, else of ./smoa-data.

    Raises:
        FailedPrecondition: a folder that was named holds none.
    """
    named_by = "--stack" if option else VARIABLE if environment.get(VARIABLE) else ""
    folder = Path(option or environment.get(VARIABLE) or DEFAULT_FOLDER).absolute()
    stack = read_stack(folder)
    if stack is None and named_by:
        problem = f"holds no {FILE}" if folder.is_dir() else "does not exist"
        raise FailedPrecondition(f"{named_by}: {folder} {problem}; name a folder that was given to `smoa up --data`")
    return FoundStack(folder, named_by, stack)
