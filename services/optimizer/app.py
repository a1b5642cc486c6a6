"""Composition root of the optimizer: a Faust app, its timers, and the heartbeat file that probes look at."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from functools import partial

import faust
import grpc

from services.optimizer.merging import checked_method, merged
from services.optimizer.optimizer import Optimizer
from services.optimizer.policy import Rules
from services.optimizer.settings import OptimizerSettings
from services.optimizer.stream import Statistics
from services.optimizer.transport import mend
from smoa.client import SmoaClient
from smoa.store import AdapterStore
from smoa.topics import TOPICS, Topic, ensure_topics
from smoa.v1 import registry_pb2

_log = logging.getLogger(__name__)
APP_ID = "smoa-optimizer"
HEARTBEAT_S = 1.0


def build(settings: OptimizerSettings) -> faust.App:
    """Make the app; `ensure` has made its topics before it starts."""
    settings.data_folder.mkdir(parents=True, exist_ok=True)
    app = faust.App(
        APP_ID,
        broker=f"kafka://{settings.kafka_bootstrap}",
        store="memory://",
        key_serializer="raw",
        value_serializer="raw",
        datadir=str(settings.data_folder / "faust"),
        topic_partitions=settings.partitions,
        # Topics are made by `ensure_topics`: some brokers cannot create them on request, and changelogs need our partition count.
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        consumer_group_instance_id=settings.instance_id or None,
        consumer_auto_offset_reset="earliest",
        producer_acks=-1,
        broker_commit_interval=1.0,
        broker_session_timeout=15.0,
        broker_heartbeat_interval=3.0,
        broker_max_poll_interval=300.0,
        stream_wait_empty=False,
    )
    mend(app)
    statistics = Statistics(app, settings.partitions, settings.join_ttl_s)
    rules = Rules(
        min_uses=settings.min_uses,
        min_age_s=settings.min_age_s,
        min_success=settings.min_success,
        min_cosine=settings.min_cosine,
        min_benefit=settings.min_benefit,
    )
    merge = partial(
        merged,
        method=checked_method(settings.merge_method),
        max_error=settings.merge_max_error or None,
        density=settings.merge_density,
    )
    heartbeat = settings.data_folder / "heartbeat"
    pass_lock, wanted = asyncio.Lock(), asyncio.Event()
    parts: dict[str, Optimizer | SmoaClient] = {}

    def settled() -> bool:
        """True once this worker has its partitions and their state."""
        return bool(app.consumer.assignment()) and not app.rebalancing and not app.in_recovery

    @app.on_worker_init.connect(weak=False)
    def starting(*_: object, **__: object) -> None:
        heartbeat.unlink(missing_ok=True)

    def client() -> SmoaClient:
        if "client" not in parts:
            parts["client"] = SmoaClient(router=settings.router)
        found = parts["client"]
        assert isinstance(found, SmoaClient)
        return found

    def optimizer() -> Optimizer:
        if "optimizer" not in parts:
            parts["optimizer"] = Optimizer(
                client(), AdapterStore(settings.store), rules, statistics.owns, settings.dry_run, settings.max_family, merge
            )
        found = parts["optimizer"]
        assert isinstance(found, Optimizer)
        return found

    async def report_counts() -> None:
        """Tell the registry the counts that changed."""
        keys, statistics.changed = statistics.changed, set()
        for key in sorted(keys):
            adapter_id = key.decode()
            counts = statistics.counts(adapter_id)
            if counts is None or not statistics.owns(adapter_id):
                continue
            numbers = registry_pb2.AdapterStatistics(
                uses=counts.uses,
                outcomes=counts.outcomes,
                successes=counts.successes,
                generations=counts.generations,
                tokens=counts.tokens,
            )
            try:
                await client().report_statistics(counts.tenant, adapter_id, numbers)
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                    statistics.changed |= keys  # the registry is away: all of it again next time
                    raise
                _log.warning("no such adapter %s of tenant %s: its counts stay here", adapter_id, counts.tenant)

    async def one_pass() -> None:
        if not settled():
            return
        async with pass_lock:
            try:
                await report_counts()
                await optimizer().run_pass()
            except grpc.aio.AioRpcError as error:
                _log.warning("the registry at %s did not answer (%s); the pass is put off", settings.router, error.details())

    @app.timer(settings.report_interval_s)
    async def report() -> None:
        if settled() and not pass_lock.locked():
            async with pass_lock:
                try:
                    await report_counts()
                except grpc.aio.AioRpcError as error:
                    _log.warning("the registry at %s did not take counts (%s)", settings.router, error.details())

    if settings.interval_s > 0:

        @app.timer(settings.interval_s)
        async def on_schedule() -> None:
            await one_pass()
            await statistics.expire_joins()

    @app.task()
    async def on_request() -> None:
        """SIGUSR1 asks for a pass now."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, wanted.set)
        while True:
            await wanted.wait()
            wanted.clear()
            _log.info("a pass was asked for")
            await one_pass()

    @app.task()
    async def beat() -> None:
        """Touch the heartbeat file while this worker has its partitions; after a (re)start report every count once."""
        was_settled = False
        while True:
            if settled():
                if not was_settled:
                    statistics.changed |= {adapter_id.encode() for adapter_id in statistics.all_counted()}
                    _log.info("ready with partitions of %d topics", len(app.consumer.assignment()))
                heartbeat.write_text(str(os.getpid()))
            was_settled = settled()
            await asyncio.sleep(HEARTBEAT_S)

    return app


async def ensure(settings: OptimizerSettings) -> int:
    """Make every topic; returns their number of partitions."""
    changelogs = [Topic(f"{APP_ID}-{table}-changelog", compacted=True) for table in ("joins", "counts")]
    return await ensure_topics(settings.kafka_bootstrap, (*TOPICS, *changelogs), settings.partitions)


def default_instance_id() -> str:
    """The pod's name: a restart takes the same place in the group without a rebalance."""
    return socket.gethostname()
