"""The adapters that demonstrations register: sixteen trained ones, near-duplicates of them, and random weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from examples.library import ADAPTERS
from examples.library.jobs import DECOY_JOBS, JOBS, Job
from smoa.adapter import SINGULAR_VALUES, Adapter, decode, new_adapter_id

SEED = 7
MAX_EXAMPLES = 50
COPIES = 37
"""Near-duplicates in the library of 57: two of each trained adapter, and a third one of five."""


@dataclass(frozen=True)
class Described:
    """An adapter, its job, and the example inputs that it is found by."""

    adapter: Adapter
    job: Job
    examples: list[str]


def trained(name: str) -> Adapter:
    """A job's adapter as it was trained (examples/library/build.py)."""
    return decode((ADAPTERS / f"{name}.safetensors").read_bytes())


def random_copy(adapter: Adapter, name: str, rng: np.random.Generator, tags: tuple[str, ...]) -> Adapter:
    """Random weights of the same shapes and spread as a trained adapter's."""
    tensors = {
        k: v if k.endswith(SINGULAR_VALUES) else (rng.standard_normal(v.shape) * v.std()).astype(v.dtype)
        for k, v in adapter.tensors.items()
    }
    return Adapter(dataclasses.replace(adapter.manifest, adapter_id=new_adapter_id(), name=name, tags=tags), tensors)


def near_duplicate(adapter: Adapter, rng: np.random.Generator, suffix: str = "-copy") -> Adapter:
    """The same weights with a tenth of noise, under another id: what a second team would have trained."""
    tensors = {
        k: v if k.endswith(SINGULAR_VALUES) else (v + 0.1 * v.std() * rng.standard_normal(v.shape)).astype(v.dtype)
        for k, v in adapter.tensors.items()
    }
    return Adapter(dataclasses.replace(adapter.manifest, adapter_id=new_adapter_id(), name=f"{adapter.manifest.name}{suffix}"), tensors)


def job_of(name: str) -> str:
    """The job an adapter's name stands for; a near-duplicate does its original's job."""
    return name.partition("-copy")[0]


def described(adapter: Adapter, job: Job, seed: int = 0) -> Described:
    """With example inputs of the job; those of another seed are other inputs."""
    return Described(adapter, job, [example.input for example in job.generate("train", 50, seed)[:MAX_EXAMPLES]])


def small_library(
    duplicated: tuple[str, ...], decoys: tuple[str, ...] = tuple(DECOY_JOBS), jobs: tuple[str, ...] = tuple(JOBS)
) -> list[Described]:
    """The trained adapters, near-duplicates of some, and decoys: random weights that are found by another job's inputs."""
    rng = np.random.default_rng(SEED)
    library = [described(trained(name), JOBS[name]) for name in jobs]
    library += [described(near_duplicate(trained(name), rng), JOBS[name], seed=1) for name in duplicated]
    model = trained("med_department")
    return library + [described(random_copy(model, name, rng, (DECOY_JOBS[name].domain,)), DECOY_JOBS[name]) for name in decoys]


def library_of_57() -> list[Described]:
    """16 trained adapters, 37 near-duplicates of them and 4 decoys: what several teams leave that train for the same jobs."""
    rng = np.random.default_rng(SEED)
    library = small_library(())
    for number, name in enumerate([*JOBS, *JOBS, *JOBS][:COPIES]):
        copy = 1 + number // len(JOBS)
        library.append(described(near_duplicate(trained(name), rng, f"-copy{copy}"), JOBS[name], seed=copy))
    return library
