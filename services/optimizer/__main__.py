"""`python -m services.optimizer`: run one optimizer worker until a signal."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import sys
from typing import TYPE_CHECKING

from services.optimizer.settings import OptimizerSettings
from smoa.errors import SmoaError
from smoa.rpc import keep_what_is_there, stop_event
from smoa.service import end_now, settings_or_exit
from smoa.telemetry import configure_logging

if TYPE_CHECKING:
    import faust

LOOK_S = 1.0
COLLECTED_AFTER = 50_000
"""New objects after which the garbage collector looks for circles. After Python's 700 it looked many times a batch, and found that all of
its events were in use: a fifth of the throughput.
"""
STOP_S = 20.0


async def run(settings: OptimizerSettings) -> int:
    """Run until a signal (0) or until Faust gives up (1): whoever started the worker starts it again."""
    from services.optimizer.app import build, ensure

    app = build(dataclasses.replace(settings, partitions=await ensure(settings)))
    keep_what_is_there()
    gc.set_threshold(COLLECTED_AFTER)
    watching = asyncio.create_task(end_with_its_client(app))  # the start itself waits for the client, for ever if that has given up
    starting = asyncio.create_task(app.start())
    for first in (await asyncio.wait({starting, watching}, return_when=asyncio.FIRST_COMPLETED))[0]:
        first.result()
    stopped = asyncio.create_task(stop_event().wait())
    ended = asyncio.create_task(app.wait_until_stopped())
    await asyncio.wait({stopped, ended, watching}, return_when=asyncio.FIRST_COMPLETED)
    if watching.done():
        watching.result()
    for task in (stopped, ended, watching):
        task.cancel()
    crashed = app.crashed
    try:
        async with asyncio.timeout(STOP_S):
            await app.stop()
    except TimeoutError:
        logging.getLogger(__name__).warning("not stopped within %.0f s; ended", STOP_S)
        end_now(1)
    return 1 if crashed else 0


async def end_with_its_client(app: faust.App) -> None:
    """Look after the Kafka client, and end this process when it has left the group for good."""
    from services.optimizer.stream.transport import consumer_of

    while True:
        await asyncio.sleep(LOOK_S)
        if (consumer := consumer_of(app)) is not None and not consumer.look():
            logging.getLogger(__name__).error("the Kafka client takes no part in its group any more; this worker ends, to be started again")
            end_now(70)


def main() -> None:
    """Entry point."""
    settings = settings_or_exit("optimizer", OptimizerSettings, "SMOA_OPTIMIZER_", sys.argv[1:])
    configure_logging()
    try:
        settings.source_weights  # noqa: B018  refused here, not at the first partition
        code = asyncio.run(run(settings))
    except SmoaError as error:
        print(f"optimizer: {error}", file=sys.stderr)
        end_now(1)  # Python would wait for the Kafka client's thread, which may go on
    except KeyboardInterrupt:
        end_now(130)
    except Exception:  # of any kind, told and not survived: left to Python, the end would wait for the Kafka client's thread
        logging.getLogger(__name__).exception("this worker ends")
        end_now(70)
    logging.shutdown()
    raise SystemExit(code)


if __name__ == "__main__":
    main()
