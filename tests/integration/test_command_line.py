"""The command line as processes: how it ends."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.command_support import SMOA
from tests.integration.router_support import KNEES, adapter_file

RUNS = 10


def ends(*arguments: str) -> set[tuple[int, str]]:
    """(exit code, what it says) of the same command as several processes at once."""
    running = [subprocess.Popen([*SMOA, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(RUNS)]
    return {(process.returncode, err) for process in running for _, err in [process.communicate(timeout=120)]}


def test_an_error_ends_a_push_with_its_sentence(tmp_path: Path) -> None:
    file, examples = tmp_path / "a.safetensors", tmp_path / "examples.jsonl"
    file.write_bytes(adapter_file())
    examples.write_text("\n".join(f'{{"input": "{text}"}}' for text in KNEES) + '\n{"input": \n')
    push = ["adapter", "push", str(file), "--examples", str(examples), "--store", str(tmp_path / "store")]
    (code, said), *others = ends(*push)
    assert (code, others) == (1, [])
    assert said.startswith(f"error: examples: {examples}:6 is not an object with an input (")
