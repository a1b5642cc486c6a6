"""The recipe of the example library: train one NANO `lora_xs` adapter a job, measure it, write it beside this file.

    python -m examples.library.build [JOB ...]

About a minute a job on two cores with AMX. Data, seeds and settings are fixed; the weights come out the same up to rounding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys

from ulid import ULID

from examples.library import ADAPTERS
from examples.library.jobs import JOBS, Example, Job
from services.executor.adapters.mixture import load_adapter
from services.executor.adapters.training import Progress, TrainSettings, train
from services.executor.adapters.training_data import Pair
from services.executor.adapters.training_progress import progress_line
from services.executor.app import load_backend
from services.executor.backends.port import AnyBackend, Batch, Chunk
from services.executor.backends.torch.model import Llama, training_dtype
from services.executor.models.base_model import DEFAULT_BASE_MODEL, resolve
from services.executor.models.prompt import PromptTokenizer, user_turn
from services.executor.settings import MIB, ExecutorSettings
from smoa.adapter import encode

FOLDER = ADAPTERS
RESULTS = FOLDER / "results.json"
TRAIN_EXAMPLES, TEST_EXAMPLES, SEED = 400, 40, 0


def settings_of(job: Job) -> TrainSettings:
    """How each adapter of the library is trained."""
    return TrainSettings(
        name=job.name,
        tags=(job.domain, *job.tags),
        specialization=job.specialization,
        steps=200,
        evaluate_every=25,
        patience=2,
        min_gain=0,
        learning_rate=0.03,
        seed=SEED,
    )


def answer(backend: AnyBackend, tokenizer: PromptTokenizer, mixture: object, text: str, max_tokens: int = 12) -> str:
    """The greedy answer to one query."""
    ids = tokenizer.prompt_ids(user_turn(text))
    prompt_tokens, computed = len(ids), 0
    while len(ids) - prompt_tokens < max_tokens and ids[-1] not in tokenizer.eos_ids:
        chunk = Chunk(ids[computed:], computed, range(backend.blocks), mixture, 1)
        computed = len(ids)
        ids += backend.forward(Batch.of([chunk]))[1]
    return tokenizer.text([token for token in ids[prompt_tokens:] if token not in tokenizer.eos_ids]).strip()


def exact_match(backend: AnyBackend, tokenizer: PromptTokenizer, mixture: object, examples: list[Example]) -> float:
    """Share of the examples whose greedy answer equals the output."""
    return sum(answer(backend, tokenizer, mixture, one.input) == one.output for one in examples) / len(examples)


def main(names: list[str]) -> None:
    """Train the named jobs, or all."""
    if unknown := sorted(set(names) - set(JOBS)):
        raise SystemExit(f"unknown job {', '.join(unknown)}; the jobs are {', '.join(JOBS)}")
    folder = resolve(DEFAULT_BASE_MODEL)
    model = Llama.load(folder, training_dtype("cpu"))
    tokenizer = PromptTokenizer(folder)
    backend = load_backend(ExecutorSettings(cache_bytes=32 * MIB, context=512, step_tokens=512), folder)
    FOLDER.mkdir(exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for number, job in enumerate(JOBS[name] for name in (names or JOBS)):
        settings = settings_of(job)

        def report(progress: Progress, number: int = number, settings: TrainSettings = settings) -> None:
            if progress.step % settings.evaluate_every == 0:
                print(f"[{number + 1}/{len(names or JOBS)}] {settings.name} {progress_line(progress, settings)}", flush=True)

        pairs = [Pair.of(example.input, example.output) for example in job.generate("train", TRAIN_EXAMPLES, SEED)]
        adapter = train(model, folder, tokenizer, pairs, settings, report).adapter
        fixed_id = str(ULID.from_bytes(hashlib.sha256(job.name.encode()).digest()[:16]))
        adapter = dataclasses.replace(adapter, manifest=dataclasses.replace(adapter.manifest, adapter_id=fixed_id))
        (FOLDER / f"{job.name}.safetensors").write_bytes(encode(adapter))
        test = job.generate("test", TEST_EXAMPLES, SEED)
        backend.place(job.name, load_adapter(adapter, model.config, model.fingerprint, 8, model.dtype))
        mixture = backend.mix([(job.name, 1.0)])
        results[job.name] = {
            "domain": job.domain,
            "parameters": adapter.parameter_count,
            "exact_match": exact_match(backend, tokenizer, mixture, test),
            "base_exact_match": exact_match(backend, tokenizer, backend.mix([]), test),
        }
        RESULTS.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
        print(f"{job.name}: {results[job.name]}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
