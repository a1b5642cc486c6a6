"""Composition root of the executor."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import torch

from services.executor.adapters.leases import AdapterTiers
from services.executor.adapters.mixture import LoadedAdapter, load_adapter, shape_of
from services.executor.adapters.slots import SlotPool
from services.executor.backends.native.backend import NativeBackend
from services.executor.backends.port import BLOCK_TOKENS, AnyBackend
from services.executor.backends.torch.backend import TorchBackend
from services.executor.backends.torch.model import Llama
from services.executor.engine.engine import CONCURRENT_READINGS, AnyEngine, BatchingEngine
from services.executor.engine.pipeline import Requests
from services.executor.memory import cache_blocks, free_bytes
from services.executor.metrics import ExecutorMetrics
from services.executor.models.base_model import config_of, fingerprint, resolve, weight_files
from services.executor.models.config import ModelConfig
from services.executor.models.json_file import read_json
from services.executor.models.lora_xs_bases import LoraXsBases
from services.executor.models.prompt import PromptTokenizer
from services.executor.models.weights import check_files, load_weights
from services.executor.servicer import ExecutorServicer
from services.executor.settings import ExecutorSettings
from services.executor.status import StatusReporter
from smoa.access.audit import Audit
from smoa.adapter import Adapter
from smoa.errors import FailedPrecondition, InvalidArgument
from smoa.metrics import serve_metrics
from smoa.model_shape import ModelShape, folder_name
from smoa.publisher import EventPublisher
from smoa.rpc import RpcServer
from smoa.signatures import Publishers
from smoa.spool import Spool
from smoa.store import AdapterStore
from smoa.v1 import executor_pb2, executor_pb2_grpc

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
BACKENDS = ("auto", "native", "torch")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_log = logging.getLogger(__name__)


def compute_dtype(settings: ExecutorSettings, folder: Path) -> torch.dtype:
    """The dtype asked for; `auto` is the model's own, but float32 for float16 on a CPU, which computes in bfloat16 or float32 only.

    Raises:
        InvalidArgument: an unknown dtype.
    """
    if settings.dtype == "auto":
        raw = config_of(folder)
        own = DTYPES.get(str(raw.get("dtype") or raw.get("torch_dtype")), torch.float32)
        return torch.float32 if own is torch.float16 and settings.device == "cpu" else own
    if settings.dtype not in DTYPES:
        raise InvalidArgument("SMOA_EXECUTOR_DTYPE", f"{settings.dtype!r} is unknown", f"use auto, or one of {', '.join(DTYPES)}")
    return DTYPES[settings.dtype]


def load_backend(settings: ExecutorSettings, folder: Path) -> AnyBackend:
    """Load the base model and its bases; all memory of model and cache is taken here.

    Raises:
        InvalidArgument: an unknown backend or dtype, or a cache that does not hold one context.
        FailedPrecondition: the model is not served, or `native` was asked for and cannot run here.
    """
    if settings.backend not in BACKENDS:
        raise InvalidArgument("SMOA_EXECUTOR_BACKEND", f"{settings.backend!r} is unknown", f"use one of {', '.join(BACKENDS)}")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    config, dtype = ModelConfig.from_folder(folder), compute_dtype(settings, folder)
    check_files(config)
    model_bytes = sum(path.stat().st_size for path in weight_files(folder)) * max(1, dtype.itemsize // 2)  # kept in 16 bits, mostly
    blocks = cache_blocks(
        settings,
        block_bytes=2 * config.layers * config.kv_heads * config.head_dim * BLOCK_TOKENS * dtype.itemsize,
        block_tokens=BLOCK_TOKENS,
        context=min(settings.context, config.context),
        free=free_bytes(settings.device) - model_bytes - settings.slot_bytes,
    )
    weights, name = load_weights(folder), fingerprint(folder)
    bases = LoraXsBases(folder, name)
    if settings.backend == "native" or (settings.backend == "auto" and settings.device == "cpu"):
        try:
            return NativeBackend(
                config,
                weights,
                name,
                bases,
                dtype=dtype,
                blocks=blocks,
                context=settings.context,
                threads=settings.threads,
                max_step_tokens=settings.step_tokens,
            )
        except FailedPrecondition as error:
            if settings.backend == "native":
                raise
            _log.warning("running on torch, which is slower: %s", error)
    model = Llama.of(config, weights, name, dtype, settings.device)
    return TorchBackend(model, bases, blocks=blocks, context=settings.context, rows=settings.rows, slot_bytes=settings.slot_bytes)


class Executor(NamedTuple):
    """What answers requests, and of which base model."""

    engine: AnyEngine
    requests: Requests
    fingerprint: str
    folder: Path
    shape: ModelShape
    """What an adapter must fit to be served here."""


def load(settings: ExecutorSettings) -> Executor:
    """Load the base model and put an engine around it; not started yet.

    Raises:
        InvalidArgument, FailedPrecondition: see `load_backend`; a step that has not a token for every row.
    """
    if settings.step_tokens < settings.rows:
        raise InvalidArgument(
            "SMOA_EXECUTOR_STEP_TOKENS",
            f"{settings.step_tokens} is under the {settings.rows} rows, which all decode at every step",
            "raise it, or lower SMOA_EXECUTOR_ROWS",
        )
    folder = resolve(settings.base_model)
    _log.info("loading the base model from %s", folder)
    if asked := _sampling_of(folder):
        _log.warning("generation_config.json asks for %s: not taken over, an answer is greedy unless its request says otherwise", asked)
    backend = load_backend(settings, folder)
    most_bytes = min(settings.slot_bytes, settings.host_bytes)
    publishers = Publishers(settings.publishers)

    def convert(adapter: Adapter) -> LoadedAdapter:
        publishers.check(adapter.manifest)
        return load_adapter(adapter, backend.config, backend.fingerprint, settings.max_rank, backend.dtype, most_bytes)

    adapters = AdapterTiers(
        SlotPool(settings.slots, settings.slot_bytes),
        # A file may hold wider numbers than the slots do.
        AdapterStore(settings.store, 4 * most_bytes, "SMOA_EXECUTOR_SLOT_BYTES"),
        convert,
        backend,
        host_bytes=settings.host_bytes,
        load_timeout_s=settings.load_timeout_s,
    )
    tokenizer = PromptTokenizer(folder, settings.chat_template)
    engine = BatchingEngine(
        backend,
        tokenizer,
        adapters,
        rows=settings.rows,
        step_tokens=settings.step_tokens,
        max_waiting=(settings.rows + settings.max_waiting) * CONCURRENT_READINGS,
        # Drain, and end: whoever started the process starts another.
        broken=lambda: signal.raise_signal(signal.SIGTERM),
    )
    requests = Requests(engine, tokenizer, max_in_flight=settings.rows + settings.max_waiting, max_tokens=settings.max_tokens)
    shape = shape_of(backend.config, min(settings.max_rank, backend.max_rank), backend.dtype, most_bytes)
    return Executor(engine, requests, backend.fingerprint, folder, shape)


def _sampling_of(folder: Path) -> str:
    """What a model's own configuration would have its answers drawn with; other servers take it for requests that do not say."""
    given = read_json(folder / "generation_config.json")
    return ", ".join(f"{name}={given[name]}" for name in _SAMPLING if given.get(name) is not None)


async def build(settings: ExecutorSettings, stack: AsyncExitStack) -> RpcServer:
    """Make every part, start it, and leave its end on the stack. The server comes up last and goes down first."""
    publisher = EventPublisher(settings.kafka, Spool(settings.data_folder / "spool", settings.spool_bytes))
    stack.push_async_callback(publisher.stop, settings.drain_s)
    audit = Audit(lambda events, owner: publisher.publish(events, owner=owner))
    # What is over it waits at its client: to refuse it again and again would cost the rows that run a core.
    server = RpcServer.of(settings.address, settings, streams=settings.max_waiting, audit=audit)
    loaded = await asyncio.to_thread(load, settings)
    await publisher.start()
    await loaded.engine.start()
    stack.push_async_callback(loaded.engine.stop)
    metrics, shape = ExecutorMetrics(loaded.engine.state, audit), loaded.shape.to_message()
    name = folder_name(loaded.folder)
    await stack.enter_async_context(serve_metrics(settings.metrics_address, metrics.registry, settings))
    executor_pb2_grpc.add_ExecutorServiceServicer_to_server(
        ExecutorServicer(loaded.requests, publisher, metrics, loaded.fingerprint, name, shape), server.server
    )
    server.serves(*executor_pb2.DESCRIPTOR.services_by_name.values())
    await server.start()
    stack.push_async_callback(server.stop)
    if settings.advertised_address:
        reporter = StatusReporter(
            loaded.engine.state, publisher, settings.advertised_address, loaded.fingerprint, name, shape, settings.status_interval_s
        )
        reporter.start()
        stack.push_async_callback(reporter.stop)  # pushed last, so done first: routers hear that it leaves before it refuses
    return server
