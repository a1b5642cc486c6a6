"""The embedder that a setting names."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from smoa.embedding.onnx import OnnxEmbedder
from smoa.embedding.port import Embedder
from smoa.embedding.remote import RemoteEmbedder
from smoa.embedding.static import StaticEmbedder
from smoa.errors import InvalidArgument

WORDLLAMA: Final = "wordllama"


async def open_embedder(where: str, model: str = "", key: str = "", prompt: str = "") -> Embedder:
    """The embedder at `where`: `wordllama`, a folder with an ONNX model, or the address of a service.

    Args:
        where: As the setting has it.
        model: Of a service.
        key: Of a service, if it wants one.
        prompt: What is put before every text; empty is what a folder says of itself, or nothing.

    Raises:
        InvalidArgument: it is none of these.
        FailedPrecondition: the folder cannot be used.
        Unavailable: the service does not answer.
    """
    if where == WORDLLAMA:
        return StaticEmbedder()
    if where.startswith(("http://", "https://")):
        return await RemoteEmbedder.open(where, model, key, prompt)
    if not Path(where).is_dir():
        raise InvalidArgument("embedder", f"{where[:200]!r} is no folder", f"name {WORDLLAMA}, a folder with an ONNX model, or a URL")
    return await asyncio.to_thread(OnnxEmbedder, Path(where), prompt or None)
