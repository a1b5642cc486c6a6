"""What picking tokens costs: steps of 16 sampled rows beside the same steps of 16 greedy ones, on the base model that ships with SMoA.

Every step is made twice in a row, sampled and greedy, in turns the one and the other first: so what else the machine does falls on both.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from services.executor.app import load_backend
from services.executor.backends.port import BLOCK_TOKENS, AnyBackend, Chunk
from services.executor.engine.runner import Work, run_step
from services.executor.engine.sampling import Sampler, Sampling, TokenPicker
from services.executor.models.base_model import DEFAULT_BASE_MODEL, resolve
from services.executor.models.prompt import PromptTokenizer, user_turn
from services.executor.settings import ExecutorSettings

ROWS = 16
SAMPLINGS = {
    "temperature": Sampling(temperature=0.8),
    "top_p": Sampling(temperature=0.8, top_p=0.9),
    "top_k": Sampling(temperature=0.8, top_k=50),
    "min_p": Sampling(temperature=0.8, min_p=0.05),
    "penalties, greedy": Sampling(repetition_penalty=1.1, frequency_penalty=0.1),
    "logprobs, greedy": Sampling(logprobs=5),
    "all of them": Sampling(temperature=0.8, top_k=50, top_p=0.9, min_p=0.02, repetition_penalty=1.1, frequency_penalty=0.1, logprobs=5),
}


def measure_sampling(backend: AnyBackend, prompt: Sequence[int], sampling: Sampling, steps: int) -> dict[str, float]:
    """Medians of `{greedy_ms, sampled_ms, more}`: a step of 16 rows, and how much longer a sampled one is, as a share."""
    picker, mixture, blocks = TokenPicker(ROWS), backend.mix([]), backend.context // BLOCK_TOKENS
    tables = [range(row * blocks, (row + 1) * blocks) for row in range(ROWS)]
    ways = {
        "greedy": [Sampler(Sampling()) for _ in range(ROWS)],
        "sampled": [Sampler(replace(sampling, seed=row), prompt) for row in range(ROWS)],
    }
    texts = [list(prompt) for _ in range(ROWS)]
    for table in tables:
        run_step(backend, picker, [Work(Chunk(prompt[:-1], 0, table, mixture, 0))])
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for step in range(steps + 2):
        tokens: dict[str, list[int]] = {}
        for way in sorted(ways, reverse=bool(step % 2)):
            works = [
                Work(Chunk(text[-1:], len(text) - 1, table, mixture, 1), sampler)
                for text, table, sampler in zip(texts, tables, ways[way], strict=True)
            ]
            began = time.perf_counter()
            results = run_step(backend, picker, works)
            if step >= 2:  # the first two warm up
                seconds[way].append(time.perf_counter() - began)
            tokens[way] = [result.token or 0 for result in results]
        for text, token in zip(texts, tokens["sampled"], strict=True):
            text.append(token)
    more = [sampled / greedy - 1 for greedy, sampled in zip(seconds["greedy"], seconds["sampled"], strict=True)]
    medians = {f"{way}_ms": 1000 * statistics.median(values) for way, values in seconds.items()}
    return medians | {"more": statistics.median(more)}


@click.command()
@click.option("--json", "json_path", type=Path, help="Write every figure here.")
@click.option("--steps", default=60, show_default=True, help="Steps of each way; the median counts.")
@click.option("--threads", default=os.cpu_count() or 1, show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(json_path: Path | None, steps: int, threads: int, device: str) -> None:
    """Measure every way of picking tokens beside greedy ones."""
    torch.set_num_threads(threads)
    folder = resolve(DEFAULT_BASE_MODEL)
    backend = load_backend(ExecutorSettings(rows=ROWS, context=256, threads=threads, device=device), folder)
    prompt = PromptTokenizer(folder).prompt_ids(user_turn("Tell me of the sea, and of the houses there."))
    results = {name: measure_sampling(backend, prompt, sampling, steps) for name, sampling in SAMPLINGS.items()}
    table = Table("16 rows", "greedy ms", "sampled ms", "longer by")
    for name, row in results.items():
        table.add_row(name, f"{row['greedy_ms']:.1f}", f"{row['sampled_ms']:.1f}", f"{row['more']:+.1%}")
    Console().print(table)
    if json_path:
        json_path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
