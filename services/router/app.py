"""Composition root of the router."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress

from services.router.api.change_servicer import ChangeServicer, change_event
from services.router.api.feedback_servicer import FeedbackServicer
from services.router.api.registry_servicer import RegistryServicer, lifecycle_event
from services.router.api.routing_servicer import RouterServicer
from services.router.catalogue.changes import ARRIVALS, Change, now_us
from services.router.catalogue.compositions import Compositions
from services.router.catalogue.freezes import Freezes
from services.router.catalogue.planned_changes import PlannedChanges
from services.router.catalogue.records import AdapterRecord, home_of
from services.router.catalogue.registry import Registry
from services.router.catalogue.uploads import Uploads
from services.router.library import Library, embedder_of, open_library
from services.router.lifecycle_consumer import LifecycleConsumer
from services.router.metrics import RouterMetrics
from services.router.routing.cache import RoutingCache
from services.router.routing.query import Choice, RouteQuery, RoutingDefaults
from services.router.routing.router import Router
from services.router.routing.trials import Trials
from services.router.settings import RouterSettings
from smoa.access.audit import Audit
from smoa.adapter import Adapter
from smoa.errors import InvalidArgument, SmoaError
from smoa.metrics import serve_metrics
from smoa.publisher import EventPublisher
from smoa.rpc import RpcServer
from smoa.signatures import Publishers
from smoa.spool import Spool
from smoa.store import AdapterStore
from smoa.tasks import begin, end
from smoa.v1 import (
    changes_pb2,
    changes_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
)

_log = logging.getLogger(__name__)


async def build(settings: RouterSettings, stack: AsyncExitStack, library: Library | None = None) -> RpcServer:
    """Make every part, start it, and leave its end on the stack. The server comes up last and goes down first; it answers from what is
    loaded while the rest is.

    Raises:
        InvalidArgument: a setting's unknown value.
    """
    if settings.when_spool_is_full not in ("drop", "refuse"):
        raise InvalidArgument("SMOA_ROUTER_WHEN_SPOOL_IS_FULL", f"{settings.when_spool_is_full!r} is unknown", "use drop or refuse")
    embedder = await embedder_of(settings)
    stack.push_async_callback(embedder.close)
    library = library or await open_library(settings, embedder.name, embedder.dimension)
    stack.push_async_callback(library.close)
    publisher = EventPublisher(settings.kafka, Spool(settings.data_folder / "spool", settings.spool_bytes))
    await publisher.start()
    stack.push_async_callback(publisher.stop, settings.drain_s)
    kept_bytes = settings.spool_bytes // 8  # of the spool, for what happens to adapters: decisions and outcomes leave it free
    cache: RoutingCache[RouteQuery, Choice] = RoutingCache(settings.cache_bytes, settings.cache_ttl_s)

    def changed(changes: Sequence[Change]) -> None:
        for change in changes:
            router.adapter_changed(change.record.adapter_id, home_of(change.record), arrived=change.action in ARRIVALS)
        router.canaries.update(change.record for change in changes)
        publisher.publish([lifecycle_event(change) for change in changes])

    def copied(records: Sequence[AdapterRecord]) -> None:
        for record in records:
            router.adapter_changed(record.adapter_id, home_of(record), arrived=record.state == "active")
        router.canaries.update(records)

    defaults = RoutingDefaults(
        top_k=settings.top_k,
        score_threshold=settings.score_threshold,
        in_scope_loss=settings.in_scope_loss,
        temperature=settings.temperature,
        min_weight=settings.min_weight,
        embedding_cache_bytes=settings.embedding_cache_bytes,
        session_bytes=settings.session_bytes,
        session_ttl_s=settings.session_ttl_s,
    )
    compositions = Compositions(library.catalogue)
    router = Router(library.near, library.search, embedder, cache, Compositions(library.near), defaults)
    trials = Trials(router.canaries, library.catalogue, library.near)
    publishers = Publishers(settings.publishers)

    def check(adapter: Adapter) -> None:
        for shape in router.executors.shapes_of(adapter.manifest.base_model, now_us()):
            shape.check(adapter)
        publishers.check(adapter.manifest)

    registry = Registry(
        library.catalogue,
        AdapterStore(settings.store, settings.max_adapter_bytes, "SMOA_ROUTER_MAX_ADAPTER_BYTES"),
        embedder,
        changed,
        settings.purge_grace_s,
        check,
        lambda: library.library_id,
        lambda: publisher.check_room(kept_bytes // 2),
    )
    stack.push_async_callback(registry.close)
    freezes = Freezes(library.catalogue)
    planned = PlannedChanges(
        library.catalogue,
        freezes,
        lambda change: publisher.publish([change_event(change)]),
        lambda: publisher.check_room(kept_bytes // 2),
    )
    uploads = Uploads(registry, settings.data_folder, settings.max_adapter_bytes, settings.upload_bytes_per_day)
    stack.push_async_callback(uploads.close)
    stack.push_async_callback(router.close)
    if library.copy is not None:
        library.copy.start(copied)
    want = None if library.copy is None else library.copy.want
    consumer = LifecycleConsumer(
        settings.kafka, router, library.catalogue, library.near, publisher.producer_id, want, executors=settings.believed_executors
    )
    await consumer.start()
    stack.push_async_callback(consumer.stop)
    audit = Audit(lambda events, owner: publisher.publish(events, kept_bytes // 2, owner))
    metrics = RouterMetrics(router, library, publisher, audit)
    await stack.enter_async_context(serve_metrics(settings.metrics_address, metrics.registry, settings))
    streams = settings.connection_streams
    server = RpcServer.of(settings.address, settings, share_address=settings.share_address, streams=streams, audit=audit)

    routing = RouterServicer(router, publisher, metrics, refuses_when_full=settings.when_spool_is_full == "refuse", leave_bytes=kept_bytes)
    router_pb2_grpc.add_RouterServiceServicer_to_server(routing, server.server)
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(RegistryServicer(registry, compositions, uploads, planned), server.server)
    changes_pb2_grpc.add_ChangeServiceServicer_to_server(ChangeServicer(planned, freezes), server.server)
    feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(FeedbackServicer(publisher, kept_bytes), server.server)
    modules = (router_pb2, registry_pb2, changes_pb2, feedback_pb2)
    server.serves(*(service for module in modules for service in module.DESCRIPTOR.services_by_name.values()))
    if settings.share_address:  # the others answer meanwhile, and know more
        await library.whole()
    await server.start()
    stack.push_async_callback(server.stop)
    trials.start()
    stack.push_async_callback(trials.stop)

    async def load() -> None:
        await library.whole()
        cache.clear()  # of what was decided while only a part was there
        await consumer.take_kept_ranker()

    server.load(load())
    watching = begin(_watch(library, server, settings.check_interval_s), "library-watch")
    stack.push_async_callback(end, watching)
    return server


async def _watch(library: Library, server: RpcServer, interval_s: float) -> None:
    """Be ready while routing has what it needs. Without it, cached answers are still given, and all else is refused at once."""
    there = True
    while True:
        await asyncio.sleep(interval_s)
        if library.near is not library.catalogue:
            with suppress(SmoaError):  # the copy tells; here it is found out whether it is back, and changes of dead routers are ended
                await library.catalogue.check()
        try:
            await library.near.check()
        except SmoaError as error:
            if there:
                _log.warning("not ready: %s", error)
                await server.unready()
            there = False
            continue
        if not there:
            _log.info("the library is back")
            await server.ready()
        there = True
