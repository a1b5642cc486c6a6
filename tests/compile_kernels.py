"""Compiles every Triton kernel, as decode steps of some models launch it, for a GPU that need not be there. Prints their names.

A process of its own: under `TRITON_INTERPRET`, which the tests run with, there is no compiler.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from services.executor.backends.port import Batch, Chunk
from services.executor.models.base_model import MODULES
from tests.model_support import load, make_backend, make_model, random_adapter

FAMILIES = ("llama", "gemma2", "qwen3", "smollm3")
"""All that differs between kernels: soft caps, norms of queries and keys, windows, layers without rotary positions."""
H100 = GPUTarget("cuda", 90, 32)
_POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32"}


def main(folder: Path) -> None:
    """Make models in a folder, record what a step of each would launch, and compile that."""
    launched: dict[tuple[str, str], tuple[Any, dict[str, str], dict[str, object]]] = {}

    def record(self: Any, *args: object, grid: object, warmup: object, **kwargs: object) -> None:
        values = dict(zip((one.name for one in self.params), args, strict=False)) | kwargs
        constants = {one.name: values[one.name] for one in self.params if one.is_constexpr}
        signature = {name: "constexpr" if name in constants else _type_of(value) for name, value in values.items()}
        launched[self.fn.__name__, str((signature, constants))] = (self, signature, constants)

    JITFunction.run = record
    for family in FAMILIES:
        backend = make_backend("fused", make_model(folder / family, family), torch.bfloat16)
        adapters = [random_adapter(backend.config, backend.fingerprint, seed=1, kind=kind, modules=MODULES) for kind in ("lora", "lora_xs")]
        mixtures = [backend.mix([(load(one, backend, torch.bfloat16), 0.5)]) for one in adapters]
        backend.forward(Batch.of([Chunk([1], 3, [row], one, 1) for row, one in enumerate(mixtures)]))
    for (name, _), (kernel, signature, constants) in launched.items():
        assert triton.compile(ASTSource(kernel, signature, constants), target=H100).asm["cubin"]
        print(name)


def _type_of(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return _POINTERS[value.dtype]
    return "i32" if isinstance(value, int) else "fp32"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
