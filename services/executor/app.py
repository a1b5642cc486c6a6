"""Composition root of the executor."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import torch

from services.executor.base_model import lora_xs_bases, resolve
from services.executor.engine import Engine
from services.executor.mixture import load_adapter
from services.executor.model import Llama
from services.executor.prompt import PromptTokenizer
from services.executor.residency import Residency
from services.executor.runner import Runner
from services.executor.servicer import ExecutorServicer
from services.executor.settings import ExecutorSettings
from services.executor.slots import SlotPool
from smoa.errors import InvalidArgument
from smoa.publisher import EventPublisher
from smoa.rpc import RpcServer
from smoa.spool import Spool
from smoa.store import AdapterStore
from smoa.v1 import executor_pb2_grpc

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def load_engine(settings: ExecutorSettings) -> tuple[Engine, Llama, Path]:
    """Load model, bases and pools; all memory is taken here."""
    if settings.dtype not in DTYPES:
        raise InvalidArgument("SMOA_EXECUTOR_DTYPE", f"{settings.dtype!r} is unknown", f"use one of {', '.join(DTYPES)}")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    folder = resolve(settings.base_model)
    model = Llama.load(folder, DTYPES[settings.dtype], settings.device)
    runner = Runner(model, lora_xs_bases(folder, model.fingerprint), settings.rows, settings.context)
    residency = Residency(
        SlotPool(settings.slots), AdapterStore(settings.store), lambda adapter: load_adapter(adapter, model, settings.max_rank)
    )
    tokenizer = PromptTokenizer(folder, model.config)
    engine = Engine(runner, tokenizer, residency, rows=settings.rows, max_waiting=settings.max_waiting, max_tokens=settings.max_tokens)
    return engine, model, folder


async def build(settings: ExecutorSettings, stack: AsyncExitStack) -> RpcServer:
    """Make every part, start it, and leave its end on the stack. The server comes up last and goes down first."""
    server = RpcServer(settings.address)
    engine, model, folder = await asyncio.to_thread(load_engine, settings)
    publisher = EventPublisher(settings.kafka_bootstrap, Spool(settings.data_folder / "spool.sqlite", settings.spool_events))
    await publisher.start()
    stack.push_async_callback(publisher.stop, settings.drain_s)
    await engine.start()
    stack.push_async_callback(engine.stop)
    executor_pb2_grpc.add_ExecutorServiceServicer_to_server(
        ExecutorServicer(engine, publisher, model.fingerprint, folder.name, settings.rows), server.server
    )
    await server.start()
    stack.push_async_callback(server.stop)
    return server
