"""Compiles `forward.cpp` for this machine's processor, once, and loads it.

A C++ compiler is the only need; the result is kept by source and compiler flags in `SMOA_CACHE`. An image without a compiler takes what
`python -m services.executor.native.library` made when it was built, for every processor that the kernels support. With neither, or on
a processor without AVX2, the executor runs on torch instead and says so.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from pathlib import Path

from services.executor.base_model import cache_home
from smoa.errors import FailedPrecondition

SOURCES = ("forward.cpp", "linear.h", "vectors.h", "interface.h")
PREBUILT = Path(__file__).parent / "prebuilt"
_AVX2 = ("-mavx2", "-mfma")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
_AVX512_BF16 = (*_AVX512, "-mavx512bf16")
_FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-fopenmp", "-Wno-psabi")
_log = logging.getLogger(__name__)


def processor_flags() -> tuple[str, ...] | None:
    """Compiler flags for the vector units of this processor; None when the kernels do not support it."""
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists():
        return None
    line = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    has = set(line.split())
    if not {"avx2", "fma"} <= has:
        return None
    if not {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= has:
        return _AVX2
    return _AVX512_BF16 if "avx512_bf16" in has else _AVX512


def compiled() -> Path:
    """Path of the shared library for this processor, compiled now if it is nowhere.

    Raises:
        FailedPrecondition: the processor has no AVX2, there is no C++ compiler, or it failed.
    """
    flags = processor_flags()
    if flags is None:
        raise FailedPrecondition("backend: this processor has no AVX2; set SMOA_EXECUTOR_BACKEND=torch")
    folders = [PREBUILT, cache_home() / "native"]
    found = next((path for folder in folders if (path := folder / _file_name(flags)).exists()), None)
    return found or compile_into(folders[-1], flags)


def compile_into(folder: Path, flags: tuple[str, ...]) -> Path:
    """Compile for a processor; returns the library's path.

    Raises:
        FailedPrecondition: there is no C++ compiler, or it failed.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise FailedPrecondition("backend: no C++ compiler was found; install g++, or set SMOA_EXECUTOR_BACKEND=torch")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / _file_name(flags)
    scratch = target.with_suffix(f".{os.getpid()}.tmp")
    _log.info("compiling the forward pass with %s, about 10 s, once", " ".join(flags))
    source = Path(__file__).parent / SOURCES[0]
    done = subprocess.run([compiler, *_FLAGS, *flags, str(source), "-o", str(scratch)], capture_output=True, text=True)
    if done.returncode:
        raise FailedPrecondition(f"backend: {compiler} failed: {done.stderr.strip()[:500]}; set SMOA_EXECUTOR_BACKEND=torch")
    os.replace(scratch, target)  # another process may have done the same: either file will do
    return target


def _file_name(flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256(" ".join((*_FLAGS, *flags)).encode())
    for name in SOURCES:
        digest.update((Path(__file__).parent / name).read_bytes())
    return f"{digest.hexdigest()[:24]}.so"


def loaded() -> ctypes.CDLL:
    """The library, ready to call; calls release the interpreter lock."""
    return ctypes.CDLL(str(compiled()))


if __name__ == "__main__":
    for variant in (_AVX2, _AVX512, _AVX512_BF16):
        print(compile_into(PREBUILT, variant))
