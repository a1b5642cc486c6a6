"""Compiles `forward.cpp` for this machine's processor, once, and loads it.

A C++ compiler is the only need; the result is kept by source and compiler flags in `SMOA_CACHE`. An image without a compiler takes what
`python -m services.executor.backends.native.library` made when it was built, for every processor that the kernels support. With neither,
or on a processor without AVX2, the executor runs on torch instead and says so.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import logging
import os
import platform
import shutil
import stat
import subprocess
from functools import cache
from pathlib import Path

from services.executor.models.base_model import cache_home
from smoa.errors import FailedPrecondition
from smoa.plain_files import write_plain

SOURCES = ("forward.cpp", "linear.h", "team.h", "vectors.h", "interface.h")
PREBUILT = Path(__file__).parent / "prebuilt"
Flags = tuple[str, ...]
AVX2: Flags = ("-mavx2", "-mfma")
AVX512: Flags = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
AVX512_BF16: Flags = (*AVX512, "-mavx512bf16")
AMX: Flags = (*AVX512_BF16, "-mamx-tile", "-mamx-bf16")
VARIANTS = {"avx2": AVX2, "avx512": AVX512, "avx512_bf16": AVX512_BF16, "amx": AMX}
_FLAGS = ("-std=c++20", "-O3", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread", "-Wno-psabi")
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18  # Documentation/arch/x86/xstate.rst
_log = logging.getLogger(__name__)


def processor_variants() -> list[Flags]:
    """Compiler flags for the vector and matrix units of this processor, best first; empty when the kernels do not support it."""
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists():
        return []
    line = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    has = set(line.split())
    # Each needs what those before it need.
    needs: list[tuple[Flags, bool]] = [
        (AVX2, {"avx2", "fma"} <= has),
        (AVX512, {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= has),
        (AVX512_BF16, "avx512_bf16" in has),
        (AMX, {"amx_tile", "amx_bf16"} <= has and _matrix_registers_allowed()),
    ]
    return [flags for flags, _ in itertools.takewhile(lambda need: need[1], needs)][::-1]


@cache
def _matrix_registers_allowed() -> bool:
    """Linux gives a process AMX's registers when it asks for them, once, for all its threads."""
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0)


def compiled(flags: Flags | None = None) -> Path:
    """Path of the shared library for a variant (default: this processor's best), compiled now if it is nowhere.

    Raises:
        FailedPrecondition: the processor has no AVX2, there is no C++ compiler, or it failed.
    """
    flags = flags or next(iter(processor_variants()), None)
    if flags is None:
        raise FailedPrecondition("backend: this processor has no AVX2; set SMOA_EXECUTOR_BACKEND=torch")
    if (prebuilt := PREBUILT / _file_name(flags)).exists():
        return prebuilt
    kept = cache_home() / "native" / _file_name(flags)
    return kept if is_as_compiled(kept) else compile_into(kept.parent, flags)


def is_as_compiled(library: Path) -> bool:
    """Whether a kept library is the one that was compiled here, and nobody else could have put another in its place."""
    try:
        for path in (library.parent, library):
            found = path.stat()
            if found.st_uid not in (os.getuid(), 0) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                _log.warning("%s could be written by others, so it is compiled anew", path)
                return False
        return _noted(library).read_text() == hashlib.sha256(library.read_bytes()).hexdigest()
    except FileNotFoundError:
        return False


def _noted(library: Path) -> Path:
    """Where it is noted what was compiled."""
    return library.with_suffix(".sha256")


def compile_into(folder: Path, flags: Flags) -> Path:
    """Compile for a processor; returns the library's path.

    Raises:
        FailedPrecondition: there is no C++ compiler, or it failed.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise FailedPrecondition("backend: no C++ compiler was found; install g++, or set SMOA_EXECUTOR_BACKEND=torch")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(folder.stat().st_mode & ~(stat.S_IWGRP | stat.S_IWOTH))
    target = folder / _file_name(flags)
    scratch = target.with_suffix(f".{os.getpid()}.tmp")
    _log.info("compiling the forward pass with %s, about 10 s, once", " ".join(flags))
    source = Path(__file__).parent / SOURCES[0]
    done = subprocess.run([compiler, *_FLAGS, *flags, str(source), "-o", str(scratch)], capture_output=True, text=True)
    if done.returncode:
        raise FailedPrecondition(f"backend: {compiler} failed: {done.stderr.strip()[:500]}; set SMOA_EXECUTOR_BACKEND=torch")
    scratch.chmod(scratch.stat().st_mode & ~(stat.S_IWGRP | stat.S_IWOTH))
    write_plain(_noted(target), hashlib.sha256(scratch.read_bytes()).hexdigest().encode())
    os.replace(scratch, target)  # another process may have done the same: where the two differ, the next one compiles again
    return target


def _file_name(flags: Flags) -> str:
    digest = hashlib.sha256(" ".join((*_FLAGS, *flags)).encode())
    for name in SOURCES:
        digest.update((Path(__file__).parent / name).read_bytes())
    return f"{digest.hexdigest()[:24]}.so"


def loaded(flags: Flags | None = None) -> ctypes.CDLL:
    """The library, ready to call; calls release the interpreter lock."""
    return ctypes.CDLL(str(compiled(flags)))


if __name__ == "__main__":
    for variant in VARIANTS.values():
        print(compile_into(PREBUILT, variant))
