"""`Embedder` of a folder with an ONNX model, as sentence-transformers saves one (`SentenceTransformer(..., backend="onnx")`).

Read are the model (`onnx/model.onnx` or `model.onnx`), `tokenizer.json`, and what sentence-transformers keeps beside them: the way tokens
are pooled, the longest text, and the prompt that is put before a text by default.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from smoa.embedding.port import Vector, unit_rows
from smoa.errors import FailedPrecondition

MODELS: Final = ("onnx/model.onnx", "model.onnx")
POOLINGS: Final = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_max_tokens": "largest",
    "pooling_mode_lasttoken": "last",
}
_LONGEST: Final = 512  # tokens, where the folder does not say
_AT_ONCE: Final = 16
_KNOWN_MODULES: Final = ("Transformer", "Pooling", "Normalize")


class OnnxEmbedder:
    """One model on the processor; its work runs on a thread of its own."""

    def __init__(self, folder: Path, prompt: str | None = None, threads: int = 1) -> None:
        """`prompt` is put before every text; None is what the folder says.

        Raises:
            FailedPrecondition: onnxruntime is not installed, or the folder has not what is read, or more than is understood.
        """
        try:
            import onnxruntime  # only where it is asked for: it takes 50 MB
        except ImportError as error:
            raise FailedPrecondition("embedder: an ONNX model needs the package onnxruntime; run `pip install 'smoa[router]'`") from error
        model = next((folder / name for name in MODELS if (folder / name).is_file()), None)
        if model is None or not (folder / "tokenizer.json").is_file():
            raise FailedPrecondition(
                f'embedder: {folder} holds no {MODELS[0]} with a tokenizer.json; save it with `SentenceTransformer(NAME, backend="onnx")'
                ".save_pretrained(FOLDER)`"
            )
        self._pooling = _pooling_of(folder)
        self._prompt = _prompt_of(folder) if prompt is None else prompt
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(_longest_of(folder))
        self._tokenizer.enable_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._inputs = {one.name for one in self._session.get_inputs()}
        self._outputs = [one.name for one in self._session.get_outputs()]
        self._thread = ThreadPoolExecutor(1, "embedding")
        said = f"{self._pooling} {self._prompt}".encode()
        self._name = f"onnx-{_digest([model, folder / 'tokenizer.json'], said)}"
        self._dimension = self._embed(["dimension"]).shape[1]

    @property
    def name(self) -> str:
        """See `Embedder`: a digest of the model, its tokenizer, its pooling and the prompt."""
        return self._name

    @property
    def dimension(self) -> int:
        """See `Embedder`."""
        return int(self._dimension)

    async def embed(self, texts: Sequence[str]) -> Vector:
        """See `Embedder`."""
        loop, order = asyncio.get_running_loop(), _by_length(texts)
        rows: list[Vector] = []
        for start in range(0, len(order), _AT_ONCE):  # each by itself: a query does not wait for an import
            part = [texts[place] for place in order[start : start + _AT_ONCE]]
            rows += list(await loop.run_in_executor(self._thread, self._embed, part))
        return np.stack([rows[place] for place in np.argsort(order)])

    async def close(self) -> None:
        """See `Embedder`."""
        await asyncio.to_thread(self._thread.shutdown)

    def _embed(self, texts: Sequence[str]) -> Vector:
        return unit_rows(self._batch([self._prompt + one for one in texts]))

    def _batch(self, texts: Sequence[str]) -> Vector:
        encoded = self._tokenizer.encode_batch(list(texts))
        mask = np.array([one.attention_mask for one in encoded], np.int64)
        given = {
            "input_ids": np.array([one.ids for one in encoded], np.int64),
            "attention_mask": mask,
            "token_type_ids": np.array([one.type_ids for one in encoded], np.int64),
        }
        wanted = "sentence_embedding" if "sentence_embedding" in self._outputs else self._outputs[0]
        (output,) = self._session.run([wanted], {name: value for name, value in given.items() if name in self._inputs})
        found: NDArray[Any] = np.asarray(output, np.float32)
        return found if found.ndim == 2 else _pooled(found, mask, self._pooling)


def _by_length(texts: Sequence[str]) -> list[int]:
    """Their places, shortest first: texts of a length together, little of a batch is padding."""
    return sorted(range(len(texts)), key=lambda place: len(texts[place]))


def _pooled(tokens: Vector, mask: NDArray[np.int64], how: str) -> Vector:
    """Tokens [n, length, dimension] to texts [n, dimension]."""
    if how == "first":
        first: Vector = tokens[:, 0]
        return first
    if how == "last":
        last: Vector = tokens[np.arange(len(tokens)), mask.shape[1] - 1 - mask[:, ::-1].argmax(1)]
        return last
    there = mask[:, :, None].astype(np.float32)
    if how == "largest":
        largest: Vector = np.where(there > 0, tokens, -np.inf).max(1)
        return largest
    mean: Vector = (tokens * there).sum(1) / np.maximum(there.sum(1), 1e-9)
    return mean


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise FailedPrecondition(f"embedder: {path} is not JSON ({error}); save the model again") from error


def _pooling_of(folder: Path) -> str:
    where = "1_Pooling"
    for module in _read(folder / "modules.json") or ():
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind not in _KNOWN_MODULES:
            raise FailedPrecondition(f"embedder: {folder} has a module {kind!r}, which is not known here; take a model without it")
        where = str(module.get("path", where)) if kind == "Pooling" else where
    said = _read(folder / where / "config.json")
    chosen = [key for key, value in said.items() if key.startswith("pooling_mode_") and value is True]
    if not chosen:
        return "mean"
    if len(chosen) > 1 or chosen[0] not in POOLINGS:
        raise FailedPrecondition(f"embedder: {folder} pools by {', '.join(chosen)}; take a model with one of {', '.join(POOLINGS)}")
    return POOLINGS[chosen[0]]


def _prompt_of(folder: Path) -> str:
    said = _read(folder / "config_sentence_transformers.json")
    return str((said.get("prompts") or {}).get(said.get("default_prompt_name"), ""))


def _longest_of(folder: Path) -> int:
    longest = _read(folder / "sentence_bert_config.json").get("max_seq_length")
    return int(longest or _read(folder / "config.json").get("max_position_embeddings") or _LONGEST)


def _digest(files: Sequence[Path], more: bytes) -> str:
    digest = hashlib.sha256(more)
    for path in files:
        with path.open("rb") as opened:
            while part := opened.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()[:16]
