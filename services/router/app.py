"""Composition root of the router."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack

from services.router.api.feedback_servicer import FeedbackServicer
from services.router.api.registry_servicer import RegistryServicer, lifecycle_event
from services.router.api.routing_servicer import RouterServicer
from services.router.catalogue.changes import ARRIVALS, Change, now_us
from services.router.catalogue.compositions import Compositions
from services.router.catalogue.index import AdapterIndex
from services.router.catalogue.records import Scope, pool_named
from services.router.catalogue.registry import Registry
from services.router.catalogue.replacing import MAX_CANARIES
from services.router.lifecycle_consumer import LifecycleConsumer
from services.router.metrics import RouterMetrics
from services.router.routing.cache import RoutingCache
from services.router.routing.router import Choice, RouteQuery, Router, RoutingDefaults
from services.router.settings import RouterSettings
from smoa.embedding import StaticEmbedder
from smoa.errors import InvalidArgument, SmoaError
from smoa.metrics import serve_metrics
from smoa.publisher import EventPublisher
from smoa.rpc import RpcServer
from smoa.spool import Spool
from smoa.store import AdapterStore
from smoa.tasks import begin, end
from smoa.v1 import feedback_pb2_grpc, registry_pb2_grpc, router_pb2_grpc

_log = logging.getLogger(__name__)
FOLLOW_S = 1.0


async def open_index(settings: RouterSettings, dimension: int) -> AdapterIndex:
    """The Qdrant server when a URL is set, else the index in this process.

    Raises:
        InvalidArgument: an unknown write ordering.
        FailedPrecondition: another process has the folder, or the server's collections are another program's.
        Unavailable: the server is away.
    """
    if settings.qdrant_url:
        from qdrant_client import AsyncQdrantClient
        from qdrant_client.models import WriteOrdering

        from services.router.catalogue.qdrant_connection import WRITE_TIMEOUT_S
        from services.router.search.index_server import ServerIndex

        orderings = {"strong": WriteOrdering.STRONG, "medium": WriteOrdering.MEDIUM}
        if settings.qdrant_write_ordering not in orderings:
            raise InvalidArgument(
                "SMOA_QDRANT_WRITE_ORDERING", f"{settings.qdrant_write_ordering!r} is unknown", f"use one of {', '.join(orderings)}"
            )
        client = AsyncQdrantClient(
            settings.qdrant_url,
            prefer_grpc=True,
            grpc_port=settings.qdrant_grpc_port,
            api_key=settings.qdrant_api_key or None,
            timeout=int(WRITE_TIMEOUT_S),
            check_compatibility=False,  # by REST, on a thread of its own, and only to warn
        )
        return await ServerIndex.open(
            client,
            dimension,
            settings.qdrant_prefix,
            ordering=orderings[settings.qdrant_write_ordering],
            replication_factor=settings.qdrant_replicas,
            write_consistency_factor=settings.qdrant_write_consistency,
            shard_number=settings.qdrant_shards,
        )
    from services.router.search.index_local import LocalIndex

    return await LocalIndex.open(settings.data_folder / "index", dimension, settings.record_cache_bytes)


async def build(settings: RouterSettings, stack: AsyncExitStack, index: AdapterIndex | None = None) -> RpcServer:
    """Make every part, start it, and leave its end on the stack. The server comes up last and goes down first.

    Raises:
        InvalidArgument: a setting's unknown value.
    """
    if settings.when_spool_is_full not in ("drop", "refuse"):
        raise InvalidArgument("SMOA_ROUTER_WHEN_SPOOL_IS_FULL", f"{settings.when_spool_is_full!r} is unknown", "use drop or refuse")
    embedder = StaticEmbedder()
    found = index or await open_index(settings, embedder.dimension)
    stack.push_async_callback(found.close)
    publisher = EventPublisher(settings.kafka_bootstrap, Spool(settings.data_folder / "spool", settings.spool_bytes))
    await publisher.start()
    stack.push_async_callback(publisher.stop, settings.drain_s)
    cache: RoutingCache[RouteQuery, Choice] = RoutingCache(settings.cache_bytes, settings.cache_ttl_s)

    def changed(changes: Sequence[Change]) -> None:
        for change in changes:
            record = change.record
            pool = pool_named(record.tenant, record.base_model, shared=record.shared)
            router.adapter_changed(record.adapter_id, pool, arrived=change.action in ARRIVALS)
        router.canaries.update(change.record for change in changes)
        publisher.publish([lifecycle_event(change) for change in changes])

    defaults = RoutingDefaults(
        top_k=settings.top_k,
        score_threshold=settings.score_threshold,
        min_confidence=settings.min_confidence,
        temperature=settings.temperature,
        min_weight=settings.min_weight,
        embedding_cache_bytes=settings.embedding_cache_bytes,
    )
    compositions = Compositions(found)
    router = Router(found, embedder, cache, compositions, defaults)
    registry = Registry(
        found,
        AdapterStore(settings.store, settings.max_adapter_bytes, "SMOA_ROUTER_MAX_ADAPTER_BYTES"),
        embedder,
        changed,
        settings.purge_grace_s,
        settings.allow_all_tenants,
        lambda base_model: router.executors.shapes_of(base_model, now_us()),
    )
    stack.push_async_callback(registry.close)
    consumer = LifecycleConsumer(settings.kafka_bootstrap, router, found, publisher.producer_id)
    await consumer.start()
    stack.push_async_callback(consumer.stop)
    metrics = RouterMetrics(router, found, publisher)
    await stack.enter_async_context(serve_metrics(settings.metrics_address, metrics.registry))
    server = RpcServer(settings.address, share_address=settings.share_address)
    routing = RouterServicer(router, publisher, metrics, refuses_when_full=settings.when_spool_is_full == "refuse")
    router_pb2_grpc.add_RouterServiceServicer_to_server(routing, server.server)
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(RegistryServicer(registry, compositions), server.server)
    feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(FeedbackServicer(publisher), server.server)
    await server.start()
    stack.push_async_callback(server.stop)
    watched = begin(follow_canaries(router, found), "canaries")
    stack.push_async_callback(end, watched)
    watching = begin(_watch(found, server, settings.check_interval_s), "index-watch")
    stack.push_async_callback(end, watching)
    return server


async def follow_canaries(router: Router, index: AdapterIndex) -> None:
    """Keep the router's canaries as they are in the index: what they have earned, and whether another router settled them."""
    known = False
    while True:
        try:
            if not known:
                router.canaries.update(await index.scroll(Scope(tenant=None, states=("canary",)), "", MAX_CANARIES))
                known = True
            for child_id in router.canaries:
                there = await index.get(child_id)
                if there is None:
                    router.canaries.forget(child_id)
                elif child_id in router.canaries:  # else it was settled while it was read
                    router.canaries.update([there[0]])
        except SmoaError as error:
            _log.info("canaries cannot be read (%s); they stay as they were", error)
        await asyncio.sleep(FOLLOW_S)


async def _watch(index: AdapterIndex, server: RpcServer, interval_s: float) -> None:
    """Be ready while the index is there. Without it, cached answers are still given, and all else is refused at once."""
    there = True
    while True:
        await asyncio.sleep(interval_s)
        try:
            await index.check()
        except SmoaError as error:
            if there:
                _log.warning("not ready: %s", error)
                await server.unready()
            there = False
            continue
        if not there:
            _log.info("the index is back")
            await server.ready()
        there = True
