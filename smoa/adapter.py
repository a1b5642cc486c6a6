"""The adapter file: safetensors with a manifest in the header. Reading one checks everything a server must be able to rely on.

`lora_xs` tensors: one stack a module, `<module>` [layers, rank, rank], the cores R of dW = scaling * U S R V^T, and
`<module>.s` [layers, rank], the singular values S, so that norms and inner products of deltas need no base model.
`lora` tensors: a pair a linear, `<path>.lora_A` [rank, in] and `<path>.lora_B` [out, rank], dW = scaling * B A.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save
from ulid import ULID

from smoa.errors import InvalidArgument
from smoa.limits import MAX_MODULES, MAX_NAME_CHARACTERS, MAX_PARENTS, MAX_TAGS, MAX_VERSION

Kind = Literal["lora", "lora_xs"]
Array = NDArray[np.floating]

KINDS: tuple[Kind, ...] = ("lora", "lora_xs")
SPECIALIZATIONS = ("general", "domain", "task", "language", "style", "format", "reasoning", "tool", "persona", "safety")
GRANULARITIES = (("NANO", 10_000), ("MICRO", 50_000), ("MINI", 250_000), ("SMALL", 1_000_000), ("MEDIUM", 10_000_000))
MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_RANK = 256
SINGULAR_VALUES = ".s"
_DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an adapter file says of itself. `shared` lets every tenant use it.

    `weights_sha256` covers the tensor bytes and is filled in by `encode`.
    """

    adapter_id: str
    name: str
    kind: Kind
    base_model: str
    rank: int
    modules: tuple[str, ...]
    layers: tuple[int, ...]
    scaling: float = 1.0
    version: int = 1
    tenant: str = "public"
    shared: bool = False
    tags: tuple[str, ...] = ()
    specialization: str = "task"
    parents: tuple[str, ...] = ()
    weights_sha256: str = ""


@dataclass(frozen=True)
class Adapter:
    """A manifest and its tensors (float16 or float32; bfloat16 files are widened)."""

    manifest: Manifest
    tensors: Mapping[str, Array] = field(repr=False)

    @property
    def parameter_count(self) -> int:
        """Trained numbers in the adapter."""
        return sum(tensor.size for name, tensor in self.tensors.items() if not name.endswith(SINGULAR_VALUES))

    @property
    def granularity(self) -> str:
        """NANO to MEDIUM, by parameter count."""
        return granularity_of(self.parameter_count)


def new_adapter_id() -> str:
    """A fresh ULID."""
    return str(ULID())


def digest_of(data: bytes) -> str:
    """sha256 (hex): an adapter file's name in the store."""
    return hashlib.sha256(data).hexdigest()


def granularity_of(parameter_count: int) -> str:
    """The smallest granularity that holds so many parameters.

    Raises:
        InvalidArgument: more parameters than MEDIUM allows.
    """
    for name, limit in GRANULARITIES:
        if parameter_count <= limit:
            return name
    raise InvalidArgument("file", f"{parameter_count:,} parameters are over the {GRANULARITIES[-1][1]:,} limit", "use a smaller rank")


def encode(adapter: Adapter) -> bytes:
    """Serialise; equal adapters give equal bytes. Checks what `decode` checks."""
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in sorted(adapter.tensors.items())}
    manifest = dataclasses.replace(adapter.manifest, weights_sha256=_weights_sha256(tensors))
    check(Adapter(manifest, tensors))
    return save(tensors, {"smoa": json.dumps(dataclasses.asdict(manifest), sort_keys=True)})


def decode(data: bytes, digest: str | None = None, max_bytes: int = MAX_FILE_BYTES) -> Adapter:
    """Parse and check an adapter file.

    Raises:
        InvalidArgument: oversized, not safetensors, truncated, no or wrong manifest, shapes that disagree with it, NaN or
            infinite weights, or (with `digest`) other content than the digest names.
    """
    if len(data) > max_bytes:
        raise InvalidArgument("file", f"{len(data):,} bytes is over the {max_bytes:,} byte limit", "use a smaller rank or fewer modules")
    if digest is not None and digest_of(data) != digest:
        raise InvalidArgument("digest", f"content has sha256 {digest_of(data)[:12]}, not {digest[:12]}", "push the file again")
    try:
        entries = deserialize(data)  # type: ignore[no-untyped-call]
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError) as error:
        raise InvalidArgument("file", f"is not a whole safetensors file ({error})", "write it again and push the new one") from error
    try:
        raw = json.loads(header["__metadata__"]["smoa"])
        sequences = {key: tuple(raw[key]) for key in ("modules", "layers", "tags", "parents") if key in raw}
        manifest = Manifest(**{**raw, **sequences})
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgument(
            "manifest", f"is missing or malformed ({error})", "write the file with `smoa adapter train` or import it"
        ) from error
    adapter = Adapter(manifest, {name: to_array(info) for name, info in entries})
    check(adapter)
    if manifest.weights_sha256 != _weights_sha256(adapter.tensors):
        raise InvalidArgument("file", "weights do not match the manifest's weights_sha256", "the file was altered: push the original")
    return adapter


def _check_types(manifest: Manifest) -> None:
    """A manifest comes from a file: its JSON may hold anything."""
    wanted: dict[str, type | tuple[type, ...]] = {"rank": int, "version": int, "scaling": (int, float), "shared": bool}
    for name, value in vars(manifest).items():
        if isinstance(value, tuple):
            good = all(type(item) is (int if name == "layers" else str) for item in value)
        else:
            kind = wanted.get(name, str)
            good = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not good:
            raise InvalidArgument(
                f"manifest.{name}", f"{value!r} has the wrong type", "write the file with `smoa adapter train` or import it"
            )


def check(adapter: Adapter) -> None:
    """Raise InvalidArgument unless manifest and tensors agree and every weight is finite."""
    manifest = adapter.manifest
    _check_types(manifest)
    if manifest.kind not in KINDS:
        raise InvalidArgument("manifest.kind", f"{manifest.kind!r} is unknown", f"use one of {', '.join(KINDS)}")
    if manifest.specialization not in SPECIALIZATIONS:
        raise InvalidArgument(
            "manifest.specialization", f"{manifest.specialization!r} is unknown", f"use one of {', '.join(SPECIALIZATIONS)}"
        )
    if not 1 <= manifest.rank <= MAX_RANK:
        raise InvalidArgument("manifest.rank", f"{manifest.rank} is outside 1..{MAX_RANK}", "retrain with a rank inside it")
    check_labels("manifest.", manifest.name, manifest.tags)
    check_texts("manifest.base_model", (manifest.base_model,), 1)
    check_texts("manifest.modules", manifest.modules, MAX_MODULES)
    check_texts("manifest.parents", manifest.parents, MAX_PARENTS)
    if not 1 <= manifest.version <= MAX_VERSION:
        raise InvalidArgument("manifest.version", f"{manifest.version} is outside 1..{MAX_VERSION}", "count versions from 1")
    if not np.isfinite(manifest.scaling):
        raise InvalidArgument("manifest.scaling", "is not finite", "write a finite scaling")
    if not manifest.modules or not adapter.tensors:
        raise InvalidArgument("manifest.modules", "is empty", "an adapter changes at least one module")
    if manifest.kind == "lora_xs":
        shape = (len(manifest.layers), manifest.rank, manifest.rank)
        wanted = dict.fromkeys(manifest.modules, shape) | {name + SINGULAR_VALUES: shape[:2] for name in manifest.modules}
        if set(adapter.tensors) != set(wanted):
            raise InvalidArgument(
                "file", f"tensors {sorted(adapter.tensors)} are not {sorted(wanted)}", "write cores and singular values of each module"
            )
        for name, tensor in adapter.tensors.items():
            if tensor.shape != wanted[name]:
                raise InvalidArgument(
                    "file", f"{name} has shape {tensor.shape}, not {wanted[name]}", "make cores [layers, rank, rank], values [layers, rank]"
                )
    else:
        _check_lora(adapter)
    for name, tensor in adapter.tensors.items():
        if tensor.dtype not in (np.float16, np.float32, np.float64):
            raise InvalidArgument("file", f"{name} has dtype {tensor.dtype}", "save weights as float16, bfloat16 or float32")
        if not np.isfinite(tensor).all():
            raise InvalidArgument("file", f"{name} holds NaN or infinite weights", "retrain with a lower learning rate")
    granularity_of(adapter.parameter_count)


def check_labels(where: str, name: str, tags: Sequence[str]) -> None:
    """Raise unless a name and tags are short enough to be kept, searched and sent; `where` is put before the field.

    Raises:
        InvalidArgument: they are not.
    """
    if not 0 < len(name) <= MAX_NAME_CHARACTERS:
        raise InvalidArgument(f"{where}name", f"has {len(name)} characters", f"give 1 to {MAX_NAME_CHARACTERS}")
    check_texts(f"{where}tags", tags, MAX_TAGS)


def check_texts(field: str, texts: Sequence[str], most: int) -> None:
    """Raise unless they are few and short.

    Raises:
        InvalidArgument: they are not.
    """
    if len(texts) > most:
        raise InvalidArgument(field, f"holds {len(texts)}", f"send at most {most}")
    if any(len(text) > MAX_NAME_CHARACTERS for text in texts):
        raise InvalidArgument(field, f"holds one over {MAX_NAME_CHARACTERS} characters", "shorten it")


def _check_lora(adapter: Adapter) -> None:
    rank = adapter.manifest.rank
    paths = {name.rpartition(".")[0] for name in adapter.tensors}
    for path in sorted(paths):
        a, b = adapter.tensors.get(f"{path}.lora_A"), adapter.tensors.get(f"{path}.lora_B")
        if a is None or b is None:
            raise InvalidArgument("file", f"{path} lacks lora_A or lora_B", "write both")
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise InvalidArgument("file", f"{path} has shapes {a.shape} and {b.shape}", f"make them [{rank}, in] and [out, {rank}]")
    if len(paths) * 2 != len(adapter.tensors) or {path.rpartition(".")[2] for path in paths} != set(adapter.manifest.modules):
        raise InvalidArgument("file", "tensors are not the manifest's modules", "write lora_A and lora_B for each module")


def _weights_sha256(tensors: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}|{tensors[name].dtype}|{tensors[name].shape}|".encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


def to_array(info: Mapping[str, object]) -> Array:
    """An entry of `safetensors.deserialize` as an array; bfloat16, which numpy lacks, is widened to float32.

    Raises:
        InvalidArgument: an integer or 8-bit dtype.
    """
    dtype, shape, data = cast(str, info["dtype"]), cast(list[int], info["shape"]), cast(bytes, info["data"])
    if dtype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if dtype not in _DTYPES:
        raise InvalidArgument("file", f"dtype {dtype} is not supported", "save weights as float16, bfloat16 or float32")
    return np.frombuffer(data, _DTYPES[dtype]).reshape(shape)
