"""Composition root of the optimizer: a Faust app, its timers, and the heartbeat file that probes look at."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from functools import cache, partial

import faust
import grpc

from services.optimizer.control.caution import Caution
from services.optimizer.control.gate import Gate
from services.optimizer.control.passes import Optimizer
from services.optimizer.control.reporting import Reporter
from services.optimizer.metrics import OptimizerMetrics
from services.optimizer.policy.library_policy import Rules
from services.optimizer.policy.merging import checked_method, merged
from services.optimizer.policy.modes import checked_mode
from services.optimizer.policy.trial import TrialRules
from services.optimizer.settings import APP_ID, OptimizerSettings
from services.optimizer.stream.changelog import COUNTS, JOINS
from services.optimizer.stream.count_agent import Count
from services.optimizer.stream.join_agent import Join
from services.optimizer.stream.stage import MESSAGES_AT_ONCE
from services.optimizer.stream.transport import credentials_of, mend
from smoa.client import SmoaClient
from smoa.errors import Unavailable
from smoa.metrics import serve_metrics
from smoa.reader import behind_s
from smoa.service import end_now
from smoa.signatures import signing_by
from smoa.store import AdapterStore
from smoa.topics import TOPICS, ensure_topics

_log = logging.getLogger(__name__)
HEARTBEAT_S = 1.0
REBALANCE_S = 20.0
"""So long the group waits for a member that beats and does not join; one that waits with it must not take itself for stuck."""
REJOIN_S = 5.0
"""After so long a worker that lacks partitions of a topic asks the group to share out anew."""
STUCK_S = 10.0
"""So long after that a worker without its partitions, or whose batch is not confirmed, ends."""
STILL_S = 60.0
LAG_S = 60.0
"""How old what is not counted yet may be for the counts to be judged by."""
INCIDENT_SEEN_S = 600.0
"""An incident that was seen within this is taken for one that goes on, until a pass has looked."""
PUT_OFF_S, LOOK_AGAIN_S = 3600.0, 5.0
"""For so long a pass that was asked for waits until they are."""


def build(settings: OptimizerSettings) -> faust.App:
    """Make the app; `ensure` has made its topics before it starts."""
    settings.data_folder.mkdir(parents=True, exist_ok=True)
    rebalance_s = max(REBALANCE_S, settings.session_timeout_s)
    stuck_s = rebalance_s + STUCK_S
    app = faust.App(
        APP_ID,
        broker=[f"kafka://{one.strip()}" for one in settings.kafka_bootstrap.split(",")],
        broker_credentials=credentials_of(settings.kafka),
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
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=min(1.0, settings.session_timeout_s / 4),  # also how soon a worker hears that the group shares anew
        broker_rebalance_timeout=rebalance_s,
        broker_max_poll_interval=300.0,
        consumer_metadata_max_age_ms=10_000,  # topics are made anew, and grow, while it runs
        stream_wait_empty=False,
        stream_buffer_maxsize=2 * MESSAGES_AT_ONCE,
    )
    mend(app)
    join, count = Join(app, settings), Count(app, settings)
    rules = Rules(
        min_uses=settings.min_uses,
        unused_after_s=settings.unused_after_s,
        proven_season_s=settings.proven_season_s,
        tenant_bytes=settings.tenant_bytes,
        min_age_s=settings.min_age_s,
        min_success=settings.min_success,
        min_cosine=settings.min_cosine,
        min_benefit=settings.min_benefit,
        half_life_s=settings.half_life_s,
    )
    trial = TrialRules(
        alpha=settings.trial_alpha,
        margin=settings.trial_margin,
        parent_margin=settings.trial_parent_margin,
        most_spent=settings.trial_most_spent,
        max_age_s=settings.trial_max_age_s,
    )
    caution = Caution(
        mode=checked_mode(settings.mode),
        observe_first_s=settings.observe_first_s,
        canary_share=settings.canary_share,
        trial=trial,
        changes_per_hour=settings.changes_per_hour,
        gate_max_loss=settings.gate_max_loss,
        archive_after_s=settings.archive_after_s,
        purge_after_s=settings.purge_after_s,
    )
    merge = partial(
        merged,
        method=checked_method(settings.merge_method),
        max_error=settings.merge_max_error or None,
        density=settings.merge_density,
    )
    sign = signing_by(settings.signing_key)
    heartbeat = settings.data_folder / "heartbeat"
    heartbeat.unlink(missing_ok=True)  # the last worker's
    pass_lock, wanted = asyncio.Lock(), asyncio.Event()

    def settled() -> bool:
        """True once this worker has its partitions and their state."""
        stages_loaded = all(stage.owned() and stage.owned() == stage.parts.keys() for stage in (join, count))
        return stages_loaded and not app.rebalancing and not app.in_recovery and count.is_member

    @cache  # made on the app's loop, which channels belong to
    def client() -> SmoaClient:
        return SmoaClient(router=settings.router, executor=settings.executor or None, connection=settings)

    @cache
    def optimizer() -> Optimizer:
        gate = Gate(client(), count.examples_of) if settings.executor else None
        return Optimizer(
            client(),
            AdapterStore(settings.store),
            rules,
            count.counted_since,
            settings.max_family,
            merge,
            caution,
            gate,
            sign,
            count.counts,
            count.counted_from,
            count.forget,
        )

    @cache
    def reporter() -> Reporter:
        return Reporter(client(), count, settings.half_life_s, optimizer().library)

    async def lags() -> bool:
        """True while what happened is not in the counts yet, of any worker: nothing is judged by them."""
        try:
            behind = await behind_s(settings.kafka, APP_ID, (*join.topics, *count.topics))
        except Unavailable as error:
            _log.warning("nothing is judged now: %s", error)
            return True
        if behind > LAG_S:
            _log.warning("messages of %.0f s ago are not counted yet; nothing is judged until they are", behind)
        return behind > LAG_S

    async def recall() -> None:
        """What is not over since this worker, or the one whose partitions it has now, looked last."""
        try:
            await optimizer().freezing.recall(INCIDENT_SEEN_S)
            count.aside = optimizer().freezing.incident_tenants
        except grpc.aio.AioRpcError as error:
            _log.warning("incidents are known with the first pass: the registry at %s: %s", settings.router, error.details())

    async def one_pass() -> None:
        deadline_s = time.monotonic() + (settings.interval_s or PUT_OFF_S)
        while await lags():
            if time.monotonic() > deadline_s:
                return
            await asyncio.sleep(LOOK_AGAIN_S)
        if not settled():
            return
        async with pass_lock:
            try:
                await reporter().report()
                await optimizer().run_pass()
                count.aside = optimizer().freezing.incident_tenants
            except grpc.aio.AioRpcError as error:
                _log.warning("the registry at %s did not answer (%s); the pass is put off", settings.router, error.details())

    @app.timer(settings.report_interval_s)
    async def report() -> None:
        if settled() and not pass_lock.locked():
            async with pass_lock:
                try:
                    await reporter().report()
                    if len(optimizer().trials) and not await lags():
                        await optimizer().trials.judge()
                except grpc.aio.AioRpcError as error:
                    _log.warning("the registry at %s did not take counts (%s)", settings.router, error.details())

    if settings.interval_s > 0:

        @app.timer(settings.interval_s)
        async def on_schedule() -> None:
            await one_pass()

    @app.timer(max(1.0, min(10.0, settings.join_grace_s / 4)))
    async def tidy() -> None:
        try:
            await join.tidy()
            await count.tidy()
        except Unavailable as error:
            _log.warning("what is old is forgotten later: %s", error)

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
        told_generation, settled_at, loaded = -1, time.monotonic(), (-1, 0, 0)
        joined_at = settled_at
        while True:
            await load()
            there = (count.generation, len(join.parts), len(count.parts))
            if settled() or (there != loaded and (join.owned() or count.owned())):
                settled_at = joined_at = time.monotonic()
                loaded = there
            elif bool(join.owned()) != bool(count.owned()) and time.monotonic() > joined_at + REJOIN_S:  # not if it has none at all
                joined_at = time.monotonic()
                _log.warning("this worker has no partitions of some topics; the group is asked to share out anew")
                count.rejoin()
            elif time.monotonic() > settled_at + stuck_s:
                raise Unavailable(
                    f"kafka: no partitions or not their state for {stuck_s:.0f} s; whoever supervises this worker starts it again"
                )
            if settled():
                if count.generation != told_generation:
                    count.changed |= set(count.all_counted())
                    told_generation = count.generation
                    await recall()
                    _log.info("ready with partitions of %d topics", len(app.consumer.assignment()))
                heartbeat.write_text(str(os.getpid()))
            await asyncio.sleep(HEARTBEAT_S)

    @app.task()
    async def measure() -> None:
        """Serve metrics."""
        async with serve_metrics(settings.metrics_address, OptimizerMetrics(join, count).registry, settings):
            await asyncio.Event().wait()

    @app.task()
    async def watch() -> None:
        """End this worker when a batch stands still: a client that neither answers nor fails is not to be waited for."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if why := join.outlived(settings.partitions) or count.outlived(settings.partitions):
                _log.error("%s; this worker ends, to begin anew with it", why)
                end_now(70)
            for stage in (join, count):
                if stage.still_s > STILL_S or stage.refused_s > stuck_s:
                    stacks = "\n".join(str(task) for task in asyncio.all_tasks())
                    what = f"stands still for {stage.still_s:.0f} s, is refused for {stage.refused_s:.0f} s"
                    _log.error("%s %s; this worker ends\n%s", type(stage).__name__, what, stacks)
                    end_now(70)

    async def load() -> None:
        try:
            for stage in (join, count):
                if not app.rebalancing:
                    await stage.loaded()
                    if not app.in_recovery:
                        await stage.catch_up()
        except Unavailable as error:
            _log.warning("not ready: %s", error)

    @app.on_before_shutdown.connect(weak=False)
    async def closing(*_: object, **__: object) -> None:
        for stage in (join, count):
            await stage.close()

    return app


async def ensure(settings: OptimizerSettings) -> int:
    """Make every topic; returns their number of partitions."""
    return await ensure_topics(settings.kafka, (*TOPICS, JOINS, COUNTS), settings.partitions)


def default_instance_id() -> str:
    """The pod's name: a restart takes the same place in the group without a rebalance."""
    return socket.gethostname()
