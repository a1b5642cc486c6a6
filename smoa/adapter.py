"""The adapter file: safetensors with a manifest in the header. Reading one checks everything a server must be able to rely on.

`lora_xs` tensors: one stack a module, `<module>` [layers, rank, rank], the cores R of dW = scaling * U S R V^T, and
`<module>.s` [layers, rank], the singular values S, so that norms and inner products of deltas need no base model.
`lora` tensors: a pair a linear, `<path>.lora_A` [r, in] and `<path>.lora_B` [out, r], dW = scaling * B A. Each has a rank r of its own, up
to the manifest's, and a scaling of its own where the manifest's `scalings` names it. Linears that some models fuse (`FUSED`) may be adapted
as one: its outputs are theirs, one after the other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from mmap import mmap
from typing import Final, Literal

import numpy as np
from ulid import ULID

from smoa.errors import InvalidArgument
from smoa.identifiers import DEFAULT_TENANT, check_ulid, checked_tenant
from smoa.limits import MAX_LAYERS, MAX_MODULES, MAX_NAME_CHARACTERS, MAX_PARENTS, MAX_RANK, MAX_TAGS, MAX_VERSION
from smoa.strict_json import parse_json
from smoa.tensor_file import DTYPES, Array, all_finite, read_metadata, read_tensors, write_tensors

Kind = Literal["lora", "lora_xs"]

KINDS: tuple[Kind, ...] = ("lora", "lora_xs")
SPECIALIZATIONS = ("general", "domain", "task", "language", "style", "format", "reasoning", "tool", "persona", "safety")
GRANULARITIES = (
    ("NANO", 10_000),
    ("MICRO", 50_000),
    ("MINI", 250_000),
    ("SMALL", 1_000_000),
    ("MEDIUM", 10_000_000),
    ("LARGE", sys.maxsize),
)
SINGULAR_VALUES = ".s"
FUSED: Final[Mapping[str, tuple[str, ...]]] = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Linears that hold several others, in the order of their outputs (as Phi-3 has them)."""
_OF_ATTENTION: Final = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"})
_PATH: Final = re.compile(r"model\.layers\.(\d{1,5})\.(self_attn|mlp)\.(\w+)")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an adapter file says of itself. `shared` lets every tenant use it.

    `base_model` is a fingerprint, `base_model_name` what its owner calls it (a hub's id or a folder; empty where nobody said). `rank` is
    the highest of its pairs. `scalings` are those of the paths whose scaling is not `scaling`. `weights_sha256` covers the tensor bytes and
    is filled in by `encode`.
    """

    adapter_id: str
    name: str
    kind: Kind
    base_model: str
    rank: int
    modules: tuple[str, ...]
    layers: tuple[int, ...]
    scaling: float = 1.0
    scalings: Mapping[str, float] = field(default_factory=dict)
    base_model_name: str = ""
    version: int = 1
    tenant: str = "public"
    shared: bool = False
    tags: tuple[str, ...] = ()
    specialization: str = "task"
    parents: tuple[str, ...] = ()
    weights_sha256: str = ""
    signature: str = ""
    """Of whoever made it, base64 (`smoa/signatures.py`); empty: nobody's."""

    def scaling_of(self, path: str) -> float:
        """Factor on B A of a `lora` pair."""
        return self.scalings.get(path, self.scaling)


@dataclass(frozen=True)
class Adapter:
    """A manifest and its tensors, of a dtype of `smoa.tensor_file.DTYPES`."""

    manifest: Manifest
    tensors: Mapping[str, Array] = field(repr=False)

    @property
    def parameter_count(self) -> int:
        """Trained numbers in the adapter."""
        return sum(tensor.size for name, tensor in self.tensors.items() if not name.endswith(SINGULAR_VALUES))

    @property
    def nbytes(self) -> int:
        """Bytes of its weights, in the file's dtype."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def granularity(self) -> str:
        """NANO to LARGE, by parameter count."""
        return granularity_of(self.parameter_count)


def new_adapter_id() -> str:
    """A fresh ULID."""
    return str(ULID())


def digest_of(data: bytes) -> str:
    """sha256 (hex): an adapter file's name in the store."""
    return hashlib.sha256(data).hexdigest()


def granularity_of(parameter_count: int) -> str:
    """The smallest granularity that holds so many parameters."""
    return next(name for name, limit in GRANULARITIES if parameter_count <= limit)


def site_of(path: str) -> tuple[int, str]:
    """(layer, module) of a linear's path; `model.layers.3.self_attn.q_proj` is (3, `q_proj`).

    Raises:
        InvalidArgument: no path of a decoder layer's linear.
    """
    found = _PATH.fullmatch(path)
    if found is None or (found[2] == "self_attn") != (found[3] in _OF_ATTENTION):
        raise InvalidArgument(
            "file", f"{path[:200]!r} is no linear of a decoder layer", "name tensors model.layers.N.self_attn.q_proj.lora_A"
        )
    return int(found[1]), found[3]


def encode(adapter: Adapter) -> bytes:
    """Serialise; equal adapters give equal bytes. Checks what `decode` checks."""
    adapter = with_weights_named(adapter)
    check(adapter)
    said = {name: value for name, value in dataclasses.asdict(adapter.manifest).items() if name != "signature" or value}
    return write_tensors(adapter.tensors, {"smoa": json.dumps(said, sort_keys=True)})


def with_weights_named(adapter: Adapter) -> Adapter:
    """The adapter with its weights' sha256 in its manifest."""
    return Adapter(dataclasses.replace(adapter.manifest, weights_sha256=_weights_sha256(adapter.tensors)), adapter.tensors)


def decode(data: bytes | mmap) -> Adapter:
    """Parse and check an adapter file. The tensors are views of `data`.

    Raises:
        InvalidArgument: not safetensors, truncated, no or wrong manifest, shapes that disagree with it, NaN or infinite weights.
    """
    try:
        tensors, metadata = read_tensors(data)
    except ValueError as error:
        raise InvalidArgument("file", f"is not a whole safetensors file ({error})", "write it again and push the new one") from error
    try:
        raw = parse_json(metadata["smoa"])
        sequences = {key: tuple(raw[key]) for key in ("modules", "layers", "tags", "parents") if key in raw}
        manifest = Manifest(**{**raw, **sequences})
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgument(
            "manifest", f"is missing or malformed ({error})", "write the file with `smoa adapter train` or import it"
        ) from error
    adapter = Adapter(manifest, tensors)
    check(adapter)
    if manifest.weights_sha256 != _weights_sha256(adapter.tensors):
        raise InvalidArgument("file", "weights do not match the manifest's weights_sha256", "the file was altered: push the original")
    return adapter


def tenant_in(beginning: bytes) -> str:
    """Whose an adapter file says that it is, by its first `smoa.tensor_file.MAX_HEADER_BYTES`; empty where they do not say it."""
    try:
        tenant = parse_json(read_metadata(beginning)["smoa"]).get("tenant", DEFAULT_TENANT)
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    return tenant if isinstance(tenant, str) else ""


def _check_types(manifest: Manifest) -> None:
    """A manifest comes from a file: its JSON may hold anything."""
    wanted: dict[str, type | tuple[type, ...]] = {"rank": int, "version": int, "scaling": (int, float), "shared": bool}
    for name, value in vars(manifest).items():
        if isinstance(value, tuple):
            good = all(type(item) is (int if name == "layers" else str) for item in value)
        elif name == "scalings":
            good = isinstance(value, Mapping) and all(type(item) in (int, float) for item in value.values())
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
    check_ulid(manifest.adapter_id, "manifest.adapter_id", "leave it out of `smoa adapter import`, or make one with `new_adapter_id`")
    checked_tenant(manifest.tenant, "manifest.tenant")
    if not all(0 <= layer < MAX_LAYERS for layer in manifest.layers) or len(manifest.layers) > MAX_LAYERS:
        raise InvalidArgument("manifest.layers", f"are not all in 0..{MAX_LAYERS - 1}", "number the decoder's layers from 0")
    check_labels("manifest.", manifest.name, manifest.tags)
    check_texts("manifest.base_model", (manifest.base_model,), 1)
    check_texts("manifest.base_model_name", (manifest.base_model_name,), 1)
    check_texts("manifest.modules", manifest.modules, MAX_MODULES)
    check_texts("manifest.parents", manifest.parents, MAX_PARENTS)
    if not 1 <= manifest.version <= MAX_VERSION:
        raise InvalidArgument("manifest.version", f"{manifest.version} is outside 1..{MAX_VERSION}", "count versions from 1")
    if not all(abs(scaling) <= sys.float_info.max for scaling in (manifest.scaling, *manifest.scalings.values())):
        raise InvalidArgument("manifest.scaling", "is not finite", "write a finite scaling")
    if manifest.scalings and not manifest.scaling:  # the others are kept as multiples of it
        raise InvalidArgument("manifest.scaling", "is 0 beside others", "write the scaling that most pairs have")
    if not manifest.modules or not adapter.tensors:
        raise InvalidArgument("manifest.modules", "is empty", "an adapter changes at least one module")
    if manifest.kind == "lora_xs":
        if manifest.scalings:
            raise InvalidArgument("manifest.scalings", "is not empty", "lora_xs adapters have one scaling")
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
        if tensor.dtype not in DTYPES:
            raise InvalidArgument("file", f"{name} has dtype {tensor.dtype}", "save weights as float16, bfloat16 or float32")
        if not all_finite(tensor):
            raise InvalidArgument("file", f"{name} holds NaN or infinite weights", "retrain with a lower learning rate")


def check_labels(where: str, name: str, tags: Sequence[str]) -> None:
    """Raise unless a name and tags are short enough to be kept, searched and sent; `where` is put before the field.

    Raises:
        InvalidArgument: they are not.
    """
    if not 0 < len(name) <= MAX_NAME_CHARACTERS:
        raise InvalidArgument(f"{where}name", f"has {len(name)} characters", f"give 1 to {MAX_NAME_CHARACTERS}")
    check_texts(f"{where}name", (name,), 1)
    check_texts(f"{where}tags", tags, MAX_TAGS)


def check_texts(field: str, texts: Sequence[str], most: int) -> None:
    """Raise unless they are few and short, and can be printed.

    Raises:
        InvalidArgument: they are not.
    """
    if len(texts) > most:
        raise InvalidArgument(field, f"holds {len(texts)}", f"send at most {most}")
    if any(len(text) > MAX_NAME_CHARACTERS for text in texts):
        raise InvalidArgument(field, f"holds one over {MAX_NAME_CHARACTERS} characters", "shorten it")
    for text in texts:
        if not text.isprintable():
            raise InvalidArgument(field, f"{text[:80]!r} holds a character that cannot be printed", "leave it out")


def _check_lora(adapter: Adapter) -> None:
    manifest = adapter.manifest
    paths = {name.rpartition(".")[0] for name in adapter.tensors}
    ranks = set[int]()
    for path in sorted(paths):
        a, b = adapter.tensors.get(f"{path}.lora_A"), adapter.tensors.get(f"{path}.lora_B")
        if a is None or b is None:
            raise InvalidArgument("file", f"{path} lacks lora_A or lora_B", "write both")
        if a.ndim != 2 or b.ndim != 2 or not 1 <= a.shape[0] == b.shape[1] <= manifest.rank:
            raise InvalidArgument(
                "file", f"{path} has shapes {a.shape} and {b.shape}", f"make them [r, in] and [out, r], r up to {manifest.rank}"
            )
        ranks.add(a.shape[0])
    if max(ranks) != manifest.rank:
        raise InvalidArgument("manifest.rank", f"{manifest.rank} is no pair's: the highest is {max(ranks)}", "write the highest")
    sites = [site_of(path) for path in paths]
    if len(paths) * 2 != len(adapter.tensors) or {module for _, module in sites} != set(manifest.modules):
        raise InvalidArgument("file", "tensors are not the manifest's modules", "write lora_A and lora_B for each module")
    if {layer for layer, _ in sites} - set(manifest.layers):
        raise InvalidArgument("file", "holds tensors outside the manifest's layers", "write only the layers that the manifest names")
    if set(manifest.scalings) - paths:
        raise InvalidArgument("manifest.scalings", "names a path that has no pair", "name those whose scaling differs")


def _weights_sha256(tensors: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}|{tensors[name].dtype}|{tensors[name].shape}|".encode())
        digest.update(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
