"""`python -m services.executor`: run the executor until a signal."""

import os
import sys

from services.executor.settings import ExecutorSettings
from smoa.service import run


def main() -> None:
    """Entry point."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of transformers: a log is no terminal
    from services.executor.app import build

    run("executor", ExecutorSettings, "SMOA_EXECUTOR_", build, sys.argv[1:])


if __name__ == "__main__":
    main()
