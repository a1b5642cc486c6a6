"""What cannot succeed ends `smoa up` at once, in one sentence."""

from __future__ import annotations

import asyncio
import fcntl
import io
import socket
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from services.local import LocalStack, StackSettings, up
from services.machine import check_broker, check_disk, free_port, parse_servers
from smoa.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from smoa.stack import LOCK, Stack


def _settings(data: Path, **changes: object) -> StackSettings:
    ports = {f"{name}_port": free_port() for name in ("router", "executor", "gateway")}
    return StackSettings(**{"data": data, **ports, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--router-port", "99999"], "Invalid value for '--router-port': 99999 is not in the range 1<=x<=65535."),
        (["--executor-port", "0"], "Invalid value for '--executor-port': 0 is not in the range 1<=x<=65535."),
        (["--router-port", "7000", "--executor-port", "7000"], "--router-port and --executor-port are both 7000; give each its own"),
        (["--kafka", "nobody"], "kafka: 'nobody' is not host:port; give one or more of those, with commas between"),
        (["--kafka", "host:99999"], "kafka: 'host:99999' is not host:port; give one or more of those, with commas between"),
    ],
)
def test_a_wrong_argument_is_one_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(up, [*arguments, "--data", str(tmp_path / "x")])
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == f"Error: {sentence}"
    assert not (tmp_path / "x").exists()


def test_servers_are_hosts_and_ports() -> None:
    assert parse_servers("a:1, [::1]:2") == [("a", 1), ("::1", 2)]
    with pytest.raises(InvalidArgument, match=r"^kafka: 'a:1:x' is not host:port"):
        parse_servers("a:1:x")


async def test_a_kafka_that_does_not_answer_is_named_before_anything_is_started(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    stack = LocalStack(_settings(tmp_path, kafka_bootstrap=address))
    with pytest.raises(Unavailable, match=rf"^kafka: nothing answers at {address} \(.*refused.*\); correct --kafka, or leave it out"):
        await stack.start()
    await stack.stop()


def test_one_of_several_servers_is_enough() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_broker(f"127.0.0.1:{free_port()},127.0.0.1:{server.getsockname()[1]}")


def test_a_disk_that_is_too_small_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    environment = {"SMOA_ROUTER_SPOOL_BYTES": str(10**15), "SMOA_EXECUTOR_SPOOL_BYTES": "0", "SMOA_BASE_MODEL": "elsewhere"}
    with pytest.raises(ResourceExhausted, match=rf"^disk: {tmp_path} need 1,907,\d\d\d,\d\d\d MiB, and [\d,]+ are free; free space"):
        check_disk(tmp_path / "new", environment)
    (tmp_path / "new" / "router" / "spool").mkdir(parents=True)
    check_disk(tmp_path / "new", environment)  # what an earlier start has reserved is there


async def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        stack = LocalStack(_settings(tmp_path, router_port=port))
        with pytest.raises(FailedPrecondition, match=rf"^router-port: {port} is taken; stop its owner or give another --router-port$"):
            await stack.start()
        await stack.stop()


async def test_a_second_one_on_the_folder_says_whose_it_is(tmp_path: Path) -> None:
    owner = Stack(
        data=str(tmp_path), router="127.0.0.1:1", executor="127.0.0.1:2", kafka="127.0.0.1:3", store="s", pid=77, started_at_s=0.0
    )
    owner.write()
    with (tmp_path / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FailedPrecondition) as caught:
            await LocalStack(_settings(tmp_path)).start()
    said = str(caught.value)
    assert said.startswith(f"data: another `smoa up` uses {tmp_path} (process 77, since 19")
    assert said.endswith(
        f"router 127.0.0.1:1, executor 127.0.0.1:2, broker 127.0.0.1:3); use that one (--stack {tmp_path}), stop it, or give another --data"
    )


async def test_the_processes_of_one_that_was_killed_are_waited_for(tmp_path: Path) -> None:
    killed = subprocess.Popen(["true"])
    killed.wait()
    Stack(data=str(tmp_path), router="127.0.0.1:1", executor="127.0.0.1:2", store="s", pid=killed.pid, started_at_s=0.0).write()
    log = io.StringIO()
    with (tmp_path / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        draining = subprocess.Popen(["sleep", "1"], pass_fds=[lock.fileno()])
    stack = LocalStack(_settings(tmp_path), log)
    await stack._take_folder()
    await stack.stop()
    assert draining.wait(0) == 0
    assert log.getvalue() == "waiting for the processes of the last `smoa up` here to end; it was killed\n"


async def test_a_command_that_looks_does_not_keep_a_stack_from_its_folder(tmp_path: Path) -> None:
    stack = LocalStack(_settings(tmp_path))
    with (tmp_path / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        taking = asyncio.create_task(stack._take_folder())
        await asyncio.sleep(0)
        assert not taking.done()
    await taking
    await stack.stop()


def test_a_variable_for_commands_is_not_used_and_that_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # so that it ends before it starts anything
        arguments = ["--data", str(tmp_path), "--router-port", str(server.getsockname()[1])]
        environment = {
            "SMOA_KAFKA_BOOTSTRAP": "production:9092",
            "SMOA_QDRANT_URL": "http://production:6333",
            "SMOA_STORE": "s3://production",
        }
        result = CliRunner().invoke(up, arguments, env=environment)
    assert str(result.exception).startswith("router-port: ")
    for variable, option in (("SMOA_KAFKA_BOOTSTRAP", "--kafka"), ("SMOA_QDRANT_URL", "--qdrant"), ("SMOA_STORE", "--store")):
        assert f"note: {variable} is set, and not used here: it is for commands" in result.output
        assert f"({option} or SMOA_UP_" in result.output


def test_processes_are_told_what_the_stack_runs_on_whatever_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SMOA_KAFKA_BOOTSTRAP", "SMOA_QDRANT_URL", "SMOA_STORE", "SMOA_ROUTER", "SMOA_EXECUTOR"):
        monkeypatch.setenv(variable, "production:1")
    settings = _settings(tmp_path)
    stack = LocalStack(settings)
    stack.kafka_bootstrap = "127.0.0.1:3"
    for spec in stack._specs():
        told = spec.environment
        assert (told["SMOA_KAFKA_BOOTSTRAP"], told["SMOA_QDRANT_URL"], told["SMOA_STORE"]) == ("127.0.0.1:3", "", str(tmp_path / "store"))
        assert (told["SMOA_ROUTER"], told["SMOA_EXECUTOR"]) == (settings.router, settings.executor)
