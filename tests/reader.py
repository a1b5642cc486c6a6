"""Follows the documents to the letter: their blocks are carried out in order, in one folder, against the stack that they start."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from services.local import free_port
from tests.documents import ROOT, Block, blocks

ROUTER_PORT, EXECUTOR_PORT, GATEWAY_PORT = 50051, 50052, 8080
"""Those that README writes."""
READY_S = 300.0
BLOCK_S = 600.0
_DECISION = "$(grep -ao 'decision [0-9A-HJKMNP-TV-Z]\\{26\\}' TRANSCRIPT | tail -1 | cut -d' ' -f2)"
"""What a reader puts where the documents say DECISION: the id that was printed last."""


@dataclass
class Reader:
    """A folder, a shell whose variables go on from block to block, and the `smoa up` that was started in it."""

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    """What each command took, by its text; the last time it was run."""
    _stack: subprocess.Popen[bytes] | None = None
    _ports: tuple[int, int, int] = (ROUTER_PORT, EXECUTOR_PORT, GATEWAY_PORT)

    def __post_init__(self) -> None:
        """Give the folder what a checkout has where the documents are followed."""
        (self.folder / ".venv").symlink_to(sys.prefix)
        for name in ("examples", "k8s"):
            (self.folder / name).symlink_to(ROOT / name)

    @property
    def data(self) -> Path:
        """The stack's data folder."""
        return self.folder / "smoa-data"

    @property
    def transcript(self) -> str:
        """All that was printed, with the commands."""
        path = self.folder / "transcript"
        return path.read_text(errors="replace") if path.exists() else ""

    def follow(self, document: Path) -> str:
        """Carry out the blocks of a document; returns what they printed."""
        before = len(self.transcript)
        for block in blocks(document):
            if block.not_run:
                continue
            if block.language == "bash":
                self._shell(block)
            elif block.language == "python":
                file = self.folder / f"{document.stem}-{block.line}.py"
                file.write_text(self._with_ports(block.text))
                self._run(f"python {file.name}", block.place)
        return self.transcript[before:]

    def smoa(self, *arguments: str) -> str:
        """Standard output of a command."""
        done = subprocess.run(["smoa", *arguments], cwd=self.folder, env=self._environment(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"smoa {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def start(self, command: str = "smoa up") -> None:
        """Start the stack, unless it runs, and wait until it is ready."""
        if self._stack is not None:
            return
        if not all(map(_is_free, self._ports)):
            self._ports = (free_port(), free_port(), free_port())
        if self._ports != (ROUTER_PORT, EXECUTOR_PORT, GATEWAY_PORT):
            command += " --router-port {} --executor-port {} --gateway-port {}".format(*self._ports)
        log = self.folder / "up.log"
        with log.open("ab") as file:
            at = file.tell()
            self._stack = subprocess.Popen(
                shlex.split(command),
                cwd=self.folder,
                env=self._environment(),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + READY_S
        while not re.search(rb"^ready", log.read_bytes()[at:], re.MULTILINE):
            code = self._stack.poll()
            text = log.read_text(errors="replace")[-4000:]
            assert code is None, f"{command} ended with {code}:\n{text}"
            assert time.monotonic() < deadline, f"{command} was not ready in {READY_S:g} s:\n{text}"
            time.sleep(0.2)

    def stop(self) -> None:
        """Ctrl-C; what does not end by it is killed."""
        if self._stack is None:
            return
        stack, self._stack = self._stack, None
        stack.send_signal(signal.SIGINT)
        try:
            stack.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(stack.pid, signal.SIGKILL)
            stack.wait()
            raise

    def _shell(self, block: Block) -> None:
        script = ""
        for line in block.text.splitlines(keepends=True):
            command = line.partition(" #")[0].strip()
            if command == "smoa up":
                if script.strip():
                    self._run(script, block.place)
                self.start(command)
                script = ""
            else:
                script += line
        if script.strip():
            self._run(script, block.place)

    def _run(self, script: str, place: str) -> None:
        """One block: it ends at the first command that fails, as a reader would."""
        script = self._with_ports(script)
        transcript, trace, state = (self.folder / name for name in ("transcript", "trace", "state"))
        decision = _DECISION.replace("TRANSCRIPT", shlex.quote(str(transcript)))
        script = re.sub(r"\bDECISION\b", lambda _: f'"{decision}"', script)
        whole = (
            f"[ ! -e {state} ] || source {state}\nexec >> {transcript} 2>&1 9>> {trace}\nBASH_XTRACEFD=9 PS4='+ $EPOCHREALTIME '\n"
            f"set -eo pipefail -x\n{script}\n{{ set +x; }} 9>&-\nexport -p > {state}\n"
        )
        with transcript.open("a") as file:
            file.write(f"\n=== {place}\n{script.strip()}\n---\n")
        begun = time.time()
        environment = self._environment()
        done = subprocess.run(["bash", "-c", whole], cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, timeout=BLOCK_S)
        self._note_seconds(trace, begun)
        assert done.returncode == 0, f"{place} ended with {done.returncode}:\n{self.transcript[-6000:]}"

    def _note_seconds(self, trace: Path, begun: float) -> None:
        lines = [line.split(" ", 2) for line in trace.read_text().splitlines() if re.match(r"\+ \d+\.\d+ ", line)]
        steps = [(float(at), command) for _, at, command in lines if float(at) >= begun - 1]
        for (at, command), (then, _) in zip(steps, [*steps[1:], (time.time(), "")], strict=True):
            self.seconds[command] = then - at

    def _with_ports(self, text: str) -> str:
        for said, is_ in zip((ROUTER_PORT, EXECUTOR_PORT, GATEWAY_PORT), self._ports, strict=True):
            text = text.replace(f":{said}", f":{is_}")
        return text

    def _environment(self) -> dict[str, str]:
        """A reader's: none of the variables that point commands somewhere, and the checkout that is tested."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith("SMOA_") or name.endswith(("_SPOOL_BYTES", "_CACHE"))
        }
        binaries = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {**kept, "PATH": binaries, "PYTHONPATH": str(ROOT), "TERM": "dumb"}


def adapter_of(reader: Reader, name: str) -> dict[str, object]:
    """The adapter of a name, as `smoa adapter list --json` has it."""
    found = [json.loads(line) for line in reader.smoa("adapter", "list", "--all", "--json").splitlines()]
    (adapter,) = (one for one in found if one["name"] == name)
    return dict(adapter)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
