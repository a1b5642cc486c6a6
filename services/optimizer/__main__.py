"""`python -m services.optimizer [--dry-run]`: run one optimizer worker until a signal."""

import asyncio
import dataclasses
import logging
import os
import sys

from services.optimizer.settings import OptimizerSettings
from smoa.errors import SmoaError
from smoa.service import settings_or_exit
from smoa.telemetry import configure_logging


def main() -> None:
    """Entry point."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--dry-run"]
    settings = settings_or_exit("optimizer", OptimizerSettings, "SMOA_OPTIMIZER_", arguments)
    if "--dry-run" in sys.argv[1:]:
        settings = dataclasses.replace(settings, dry_run=True)
    configure_logging()
    from services.optimizer.app import build, ensure

    try:
        settings = dataclasses.replace(settings, partitions=asyncio.run(ensure(settings)))
    except SmoaError as error:
        raise SystemExit(f"optimizer: {error}") from error
    import faust

    os.environ.setdefault("F_ALLOW_BUFFERING", "1")
    worker = faust.Worker(build(settings), loglevel=logging.WARNING, logging_config=None, redirect_stdouts=False, quiet=True)
    configure_logging()
    worker.execute_from_commandline()


if __name__ == "__main__":
    main()
