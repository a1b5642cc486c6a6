"""Real processes under the supervisor: restart, backoff, order of the drain, one that will not drain, one that never gets ready."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path

import pytest

from services.supervisor import Spec, Supervisor
from smoa.errors import Unavailable
from tests.kafka_support import until

PROGRAM = """
import pathlib, signal, sys, time
folder, name, stubborn = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "stubborn"
def end(*_):
    with (folder / "ended").open("a") as ended: ended.write(name + " ")
    if not stubborn: sys.exit(0)
signal.signal(signal.SIGTERM, end)
(folder / name).touch()
print("hello from", name, flush=True)
while True: time.sleep(0.05)
"""


def _spec(folder: Path, name: str, *, stubborn: bool = False, drain_s: float = 10.0) -> Spec:
    async def ready() -> bool:
        return (folder / name).exists()

    command = [sys.executable, "-c", PROGRAM, str(folder), name, "stubborn" if stubborn else ""]
    return Spec(name=name, command=command, ready=ready, quiet_s=20, drain_s=drain_s)


async def test_stages_drain_in_reverse_and_lines_carry_their_process(tmp_path: Path) -> None:
    log = io.StringIO()
    supervisor = Supervisor([[_spec(tmp_path, "first")], [_spec(tmp_path, "second")]], log)
    await supervisor.start()
    await supervisor.stop()
    assert (tmp_path / "ended").read_text() == "second first "
    assert "first  | hello from first\n" in log.getvalue()
    assert "second | hello from second\n" in log.getvalue()


async def test_a_line_of_any_length_does_not_stop_its_process() -> None:
    log = io.StringIO()
    program = "import time; print('x' * 300_000, flush=True); print('and on', flush=True); time.sleep(60)"

    async def ready() -> bool:
        return "talker | and on\n" in log.getvalue()

    supervisor = Supervisor([[Spec(name="talker", command=[sys.executable, "-c", program], ready=ready, quiet_s=20)]], log)
    await supervisor.start()
    await supervisor.stop()
    assert "talker | (a line too long to show)\n" in log.getvalue()


async def test_a_killed_process_comes_back_later_each_time(tmp_path: Path) -> None:
    log = io.StringIO()
    supervisor = Supervisor([[_spec(tmp_path, "worker")]], log)
    await supervisor.start()
    managed = supervisor.processes["worker"]
    try:
        for number in (1, 2):
            (tmp_path / "worker").unlink()
            os.kill(managed.pid, signal.SIGKILL)

            async def restarted(number: int = number) -> bool:
                return managed.restarts == number

            await until("a restart", 10, restarted)
            await managed.wait_ready()
    finally:
        await supervisor.stop()
    assert "worker | ended with -9; restarting in 1.0 s\n" in log.getvalue()
    assert "worker | ended with -9; restarting in 2.0 s\n" in log.getvalue()


async def test_one_that_will_not_drain_is_killed(tmp_path: Path) -> None:
    log = io.StringIO()
    supervisor = Supervisor([[_spec(tmp_path, "mule", stubborn=True, drain_s=0.3)]], log)
    await supervisor.start()
    pid = supervisor.processes["mule"].pid
    await supervisor.stop()
    assert "mule | did not drain within 0 s: killed\n" in log.getvalue()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_one_that_computes_or_speaks_is_waited_for_and_one_that_does_neither_is_given_up(tmp_path: Path) -> None:
    log = io.StringIO()
    busy = "import time\nend = time.monotonic() + 5\nwhile time.monotonic() < end: pass\nopen({!r}, 'w')\ntime.sleep(60)"
    speaks = "import time\nfor number in range(10): print(number, flush=True); time.sleep(0.5)\nopen({!r}, 'w')\ntime.sleep(60)"
    for name, program in (("busy", busy), ("speaks", speaks)):
        command = [sys.executable, "-c", program.format(str(tmp_path / name))]
        ready = _spec(tmp_path, name).ready
        supervisor = Supervisor([[Spec(name=name, command=command, ready=ready, quiet_s=3)]], log)
        await supervisor.start()
        await supervisor.stop()
    silent = Spec(name="silent", command=["sleep", "60"], ready=_spec(tmp_path, "never").ready, quiet_s=1.5)
    with pytest.raises(Unavailable, match=r"^silent: was not ready after \d s, and made no progress for \d s; its log above says why$"):
        await Supervisor([[silent]], log).start()


async def test_one_that_takes_long_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.supervisor.TELL_S", 0.5)
    log = io.StringIO()

    async def ready() -> bool:
        return "slow | starting for 1 s now, 0 s of processor time\n" in log.getvalue()

    supervisor = Supervisor([[Spec(name="slow", command=["sleep", "60"], ready=ready)]], log)
    await supervisor.start()
    await supervisor.stop()
    assert log.getvalue().startswith("slow | starting for 1 s now")


async def test_a_failed_start_drains_what_was_started(tmp_path: Path) -> None:
    crashing = Spec(
        name="crash", command=[sys.executable, "-c", "print('no disk'); raise SystemExit(3)"], ready=_spec(tmp_path, "never").ready
    )
    supervisor = Supervisor([[_spec(tmp_path, "first")], [crashing]], io.StringIO())
    with pytest.raises(Unavailable, match=r"^crash: ended 3 times while starting; its last line: no disk$"):
        await supervisor.start()
    assert (tmp_path / "ended").read_text() == "first "


async def test_what_a_process_inherits_can_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOA_QDRANT_URL", "http://qdrant.example")
    seen = tmp_path / "seen"

    async def ready() -> bool:
        return seen.exists() and bool(seen.read_text())

    program = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(' '.join(os.environ)); time.sleep(60)"
    spec = Spec(
        name="child",
        command=[sys.executable, "-c", program, str(seen)],
        inherited={"KEPT": "1"},
        environment={"ADDED": "1"},
        ready=ready,
    )
    supervisor = Supervisor([[spec]], io.StringIO())
    await supervisor.start()
    await supervisor.stop()
    names = seen.read_text().split()
    assert {"KEPT", "ADDED"} <= set(names)
    assert "SMOA_QDRANT_URL" not in names
