"""The command line as processes: how it ends."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.command_support import SMOA
from tests.integration.router_support import KNEES, adapter_file
from tests.peft_support import write_folder, write_training

RUNS = 10


def ends(*arguments: str) -> set[tuple[int, str]]:
    """(exit code, what it says) of the same command as several processes at once."""
    running = [subprocess.Popen([*SMOA, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(RUNS)]
    return {(process.returncode, err) for process in running for _, err in [process.communicate(timeout=120)]}


def test_what_is_no_utf_8_is_said_in_a_sentence(tmp_path: Path) -> None:
    for arguments in ([b"adapter", b"show", b"caf\xe9"], [b"adapter", b"import", bytes(tmp_path) + b"/\xff"]):
        ended = subprocess.run([*SMOA, *arguments], capture_output=True, check=False, timeout=120)
        shown = arguments[-1].decode(errors="backslashreplace").replace("\\x", "\\udc")
        said = f"error: argument 3: '{shown}' is not UTF-8 text; rename the file, or give the folder that it is in\n"
        assert (ended.returncode, ended.stderr.decode(), ended.stdout) == (2, said, b"")


def test_a_folder_whose_name_is_no_utf_8_is_said_in_a_sentence(tmp_path: Path) -> None:
    strange = write_folder(tmp_path / "runs" / os.fsdecode(b"caf\xe9"))
    write_training(strange, "a question")
    arguments = ["--base-model", "base-a", "--router", "127.0.0.1:1"]
    ended = subprocess.run([*SMOA, "adapter", "import", str(tmp_path / "runs"), *arguments], capture_output=True, check=False, timeout=120)
    assert ended.returncode == 1
    assert b"failed: " + bytes(tmp_path) + b"/runs/caf\\udce9: folder: has a name that is not UTF-8; rename it, " in ended.stdout
    assert b"Traceback" not in ended.stderr


def test_an_error_ends_a_push_with_its_sentence(tmp_path: Path) -> None:
    file, examples = tmp_path / "a.safetensors", tmp_path / "examples.jsonl"
    file.write_bytes(adapter_file())
    examples.write_text("\n".join(f'{{"input": "{text}"}}' for text in KNEES) + '\n{"input": \n')
    push = ["adapter", "push", str(file), "--examples", str(examples)]
    (code, said), *others = ends(*push)
    assert (code, others) == (1, [])
    assert said.startswith(f"error: examples: {examples}:6 is not an object with an input (")
