"""`Embedder` behind an address that answers as OpenAI's `/v1/embeddings` does: vLLM, TEI, Ollama, and many others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import httpx
import numpy as np

from smoa.embedding.port import Vector, unit_rows
from smoa.errors import InvalidArgument, Unavailable

TIMEOUT_S: Final = 10.0
_AT_ONCE: Final = 64
_NOT_TEXTS: Final = (400, 413, 422)
"""Statuses of a text that the service does not take."""


class RemoteEmbedder:
    """One model of one service. `open` it."""

    def __init__(self, url: str, model: str, key: str, prompt: str) -> None:
        self._url = url if url.endswith("/embeddings") else f"{url.rstrip('/')}/embeddings" if url.rstrip("/").endswith("/v1") else ""
        self._url = self._url or f"{url.rstrip('/')}/v1/embeddings"
        self._model, self._prompt, self._dimension = model, prompt, 0
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.AsyncClient(headers=headers, timeout=TIMEOUT_S)

    @classmethod
    async def open(cls, url: str, model: str, key: str = "", prompt: str = "") -> RemoteEmbedder:
        """Ask the service how long its vectors are.

        Raises:
            InvalidArgument: no model is named.
            Unavailable: it does not answer, or not so.
        """
        if not model:
            raise InvalidArgument("embedder_model", "is empty", "name the service's model with SMOA_ROUTER_EMBEDDER_MODEL")
        made = cls(url, model, key, prompt)
        try:
            made._dimension = (await made.embed(["dimension"])).shape[1]
        except InvalidArgument as error:
            await made.close()
            raise Unavailable(
                f"embedder: {made._url} does not take a plain word: {error.problem}; check SMOA_ROUTER_EMBEDDER_MODEL"
            ) from error
        except Unavailable:
            await made.close()
            raise
        return made

    @property
    def name(self) -> str:
        """See `Embedder`: the model's name, wherever it runs, and the prompt."""
        return f"{self._model} {self._prompt}".strip()

    @property
    def dimension(self) -> int:
        """See `Embedder`."""
        return self._dimension

    async def embed(self, texts: Sequence[str]) -> Vector:
        """See `Embedder`."""
        found: list[Vector] = []
        for start in range(0, len(texts), _AT_ONCE):
            part = [self._prompt + one for one in texts[start : start + _AT_ONCE]]
            found.append(await self._asked(part))
        return unit_rows(np.concatenate(found))

    async def close(self) -> None:
        """See `Embedder`."""
        await self._client.aclose()

    async def _asked(self, texts: Sequence[str]) -> Vector:
        try:
            answer = await self._client.post(self._url, json={"model": self._model, "input": texts, "encoding_format": "float"})
        except httpx.HTTPError as error:
            raise Unavailable(f"embedder: {self._url} does not answer ({error!r}); check SMOA_ROUTER_EMBEDDER") from error
        if answer.status_code in _NOT_TEXTS:
            raise InvalidArgument("query", f"is not taken by the embedder ({answer.status_code}: {answer.text[:200]})", "shorten it")
        if answer.status_code != httpx.codes.OK:
            raise Unavailable(
                f"embedder: {self._url} answered {answer.status_code} ({answer.text[:200]}); check SMOA_ROUTER_EMBEDDER_MODEL and _KEY"
            )
        try:
            return _vectors_of(answer.json(), len(texts), self._dimension)
        except (ValueError, KeyError, TypeError) as error:
            raise Unavailable(
                f"embedder: {self._url} does not answer as OpenAI's API does ({error}); check SMOA_ROUTER_EMBEDDER"
            ) from error


def _vectors_of(body: Any, count: int, dimension: int) -> Vector:
    rows = sorted(body["data"], key=lambda one: int(one["index"]))
    vectors = np.array([one["embedding"] for one in rows], np.float32)
    if vectors.ndim != 2 or len(vectors) != count or (dimension and vectors.shape[1] != dimension):
        raise ValueError(f"{vectors.shape} numbers for {count} texts, not {(count, dimension or 'n')}")
    if not math.isfinite(float(np.abs(vectors).sum())):
        raise ValueError("NaN or infinite numbers")
    return vectors
