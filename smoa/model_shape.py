"""What an adapter must fit: a base model's linears, and the room that an executor has for one adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from smoa.adapter import FUSED, Adapter, site_of
from smoa.errors import InvalidArgument
from smoa.limits import MAX_NAME_CHARACTERS
from smoa.v1 import common_pb2 as common

_OTHER_MODEL = "it is of another base model; give it to an executor of the one that it was trained on"


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """As an executor reports it."""

    layers: int
    modules: Mapping[str, tuple[int, int]]
    """(outputs, inputs) of the linears of every layer."""
    max_rank: int
    max_lora_xs_rank: int
    max_adapter_bytes: int
    """Of one adapter, loaded."""
    weight_bytes: int
    """Of one number of a loaded `lora` adapter."""

    def parts_of(self, module: str) -> tuple[str, ...]:
        """The linears that a module is, itself or those that it fuses; none if it is not in the model."""
        parts = (module,) if module in self.modules else FUSED.get(module, ())
        return parts if all(part in self.modules for part in parts) else ()

    def check(self, adapter: Adapter) -> None:
        """Raise unless an executor that reports this can load the adapter.

        Raises:
            InvalidArgument: naming the layer, module, shape, rank or size that does not fit.
        """
        manifest = adapter.manifest
        of_xs = manifest.kind == "lora_xs"
        for module in manifest.modules:
            if not self.parts_of(module):
                raise InvalidArgument("adapter", f"changes {module}, the base model has {', '.join(sorted(self.modules))}", _OTHER_MODEL)
        parts = [part for module in manifest.modules for part in self.parts_of(module)]
        if twice := {part for part in parts if parts.count(part) > 1}:
            raise InvalidArgument("adapter", f"changes {min(twice)} by itself and in a fused linear", "train one of the two")
        for layer in manifest.layers:
            if not 0 <= layer < self.layers:
                raise InvalidArgument("adapter", f"changes layer {layer}, the base model has layers 0 to {self.layers - 1}", _OTHER_MODEL)
        nbytes = sum(tensor.nbytes for tensor in adapter.tensors.values()) if of_xs else self._check_pairs(adapter)
        limit = self.max_lora_xs_rank if of_xs else self.max_rank
        if manifest.rank > limit:
            remedy = f"retrain with a rank up to {limit}" + (
                "" if of_xs else ", or raise SMOA_EXECUTOR_MAX_RANK and SMOA_EXECUTOR_SLOT_BYTES"
            )
            raise InvalidArgument("rank", f"{manifest.rank} is over the executor's {limit} for {manifest.kind}", remedy)
        if nbytes > self.max_adapter_bytes:
            raise InvalidArgument(
                "adapter",
                f"takes {nbytes:,} bytes when it is loaded, the executor has room for {self.max_adapter_bytes:,}",
                "retrain with a smaller rank, or raise SMOA_EXECUTOR_SLOT_BYTES and SMOA_EXECUTOR_HOST_BYTES",
            )

    def _check_pairs(self, adapter: Adapter) -> int:
        """Bytes of the pairs, loaded. A is there once for each linear that a module fuses."""
        numbers = 0
        for name, a in adapter.tensors.items():
            path, _, side = name.rpartition(".")
            if side != "lora_A":
                continue
            parts = self.parts_of(site_of(path)[1])
            outputs, inputs = sum(self.modules[part][0] for part in parts), self.modules[parts[0]][1]
            found = (adapter.tensors[f"{path}.lora_B"].shape[0], a.shape[1])
            if found != (outputs, inputs):
                raise InvalidArgument("adapter", f"{path} is {found[0]}x{found[1]}, the base model's is {outputs}x{inputs}", _OTHER_MODEL)
            numbers += len(a) * (outputs + inputs * len(parts))
        return numbers * self.weight_bytes

    def to_message(self) -> common.ModelShape:
        """The contract's form."""
        return common.ModelShape(
            layers=self.layers,
            modules={name: common.LinearShape(outputs=outputs, inputs=inputs) for name, (outputs, inputs) in self.modules.items()},
            max_rank=self.max_rank,
            max_lora_xs_rank=self.max_lora_xs_rank,
            max_adapter_bytes=self.max_adapter_bytes,
            weight_bytes=self.weight_bytes,
        )

    @classmethod
    def from_message(cls, message: common.ModelShape) -> ModelShape:
        """Inverse of `to_message`."""
        return cls(
            layers=message.layers,
            modules={name: (shape.outputs, shape.inputs) for name, shape in message.modules.items()},
            max_rank=message.max_rank,
            max_lora_xs_rank=message.max_lora_xs_rank,
            max_adapter_bytes=message.max_adapter_bytes,
            weight_bytes=message.weight_bytes,
        )


def model_name(text: str) -> str:
    """What to call a base model that somebody named: a hub's id where it is a folder of the hub's cache, else as they did."""
    cached = re.search(r"models--([^/\\]+?)--([^/\\]+)", text)
    name = f"{cached[1]}/{cached[2]}" if cached else text
    return name if len(name) <= MAX_NAME_CHARACTERS else _last_part(name)[:MAX_NAME_CHARACTERS]


def folder_name(folder: Path) -> str:
    """What to call the base model in a folder: its hub's id, or the folder's name."""
    path = str(folder.absolute())
    return folder.absolute().name if model_name(path) == path else model_name(path)


def may_be_same_model(first: str, second: str) -> bool:
    """Whether two names can be those of one model: one of them is not known, or they end alike (`Qwen/Qwen3-8B` and `/models/qwen3-8b`)."""
    return not first or not second or _last_part(first) == _last_part(second)


def _last_part(name: str) -> str:
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1].casefold()
