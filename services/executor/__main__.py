"""`python -m services.executor`: run the executor until a signal."""

import sys

from services.executor.settings import ExecutorSettings
from smoa.service import run


def main() -> None:
    """Entry point."""
    from services.executor.app import build

    run("executor", ExecutorSettings, "SMOA_EXECUTOR_", build, sys.argv[1:])


if __name__ == "__main__":
    main()
