"""Where commands find a stack: its file, the folder looked in, and what comes before it."""

from __future__ import annotations

import dataclasses
import fcntl
from pathlib import Path

import click
import grpc
import pytest
from click.testing import CliRunner

from smoa.cli.main import cli
from smoa.cli.options import kafka_option, router_option, store_option, why_unanswered
from smoa.errors import FailedPrecondition, Unavailable
from smoa.stack import FILE, LOCK, Stack, find_stack, read_stack


def _stack(folder: Path, **changes: object) -> Stack:
    folder.mkdir(parents=True, exist_ok=True)
    stack = Stack(
        data=str(folder),
        router="127.0.0.1:1001",
        executor="127.0.0.1:1002",
        kafka="127.0.0.1:1003",
        store=str(folder / "store"),
        pid=7,
        started_at_s=0.0,
    )
    stack = dataclasses.replace(stack, **changes)  # type: ignore[arg-type]
    stack.write()
    return stack


def _given(arguments: list[str], environment: dict[str, str] | None = None) -> dict[str, str]:
    """What a command of the command line gets."""
    given: dict[str, str] = {}

    @click.command("look")
    @router_option
    @kafka_option
    @store_option
    def look(**addresses: str) -> None:
        given.update(addresses)

    cli.add_command(look)
    try:
        result = CliRunner().invoke(cli, arguments, env=environment, catch_exceptions=False)
    finally:
        del cli.commands["look"]
    assert result.exit_code == 0, result.output
    return given


def test_a_stack_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_stack(tmp_path) is None
    stack = _stack(tmp_path, qdrant="http://q:6333")
    assert read_stack(tmp_path) == stack
    (tmp_path / FILE).write_text("{")
    with pytest.raises(FailedPrecondition, match=r"^stack: .*stack\.json is not what `smoa up` writes"):
        read_stack(tmp_path)


def test_a_stack_runs_while_its_folder_is_locked(tmp_path: Path) -> None:
    stack = _stack(tmp_path)
    assert not stack.running
    with (tmp_path / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert stack.running
    assert not stack.running


def test_a_folder_that_is_named_holds_a_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_stack(None, {}).stack is None
    default, one, other = (_stack(tmp_path / name) for name in ("smoa-data", "one", "other"))
    assert find_stack(None, {}).stack == default
    assert find_stack(None, {"SMOA_STACK": "one"}).stack == one
    assert find_stack("other", {"SMOA_STACK": "one"}).stack == other
    with pytest.raises(FailedPrecondition, match=rf"^--stack: {tmp_path}/no does not exist; name a folder that was given to `smoa up"):
        find_stack("no", {})
    with pytest.raises(FailedPrecondition, match=rf"^SMOA_STACK: {tmp_path} holds no stack\.json"):
        find_stack(None, {"SMOA_STACK": "."})


def test_an_option_comes_before_a_variable_and_that_before_the_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _given(["look"]) == {"router": "127.0.0.1:50051", "kafka": "127.0.0.1:9092", "store": "smoa-data/store"}
    stack, other = _stack(tmp_path / "smoa-data"), _stack(tmp_path / "other", router="127.0.0.1:2001")
    assert _given(["look"]) == {"router": stack.router, "kafka": stack.kafka, "store": stack.store}
    assert _given(["look"], {"SMOA_ROUTER": "r:1"}) == {"router": "r:1", "kafka": stack.kafka, "store": stack.store}
    assert _given(["look", "--router", "o:1"], {"SMOA_ROUTER": "r:1"})["router"] == "o:1"
    for named in (["--stack", "other", "look"], ["look", "--stack", "other"]):
        assert _given(named)["router"] == other.router
    assert _given(["look"], {"SMOA_STACK": "other"})["router"] == other.router


def test_a_broker_that_does_not_listen_yet_is_waited_for(tmp_path: Path) -> None:
    _stack(tmp_path, kafka="")
    with pytest.raises(Unavailable, match=r"^broker: .* does not listen yet; wait until its `smoa up` prints `ready`"):
        _given(["look", "--stack", str(tmp_path)])


def _explained(arguments: list[str], error: Unavailable | grpc.aio.AioRpcError, environment: dict[str, str] | None = None) -> str:
    sentence = ""

    @click.command()
    @router_option
    @kafka_option
    @click.pass_context
    def look(context: click.Context, /, **_: str) -> None:
        nonlocal sentence
        sentence = why_unanswered(context, error)

    CliRunner().invoke(look, arguments, env=environment, catch_exceptions=False)
    return sentence


def _refused(address: str) -> grpc.aio.AioRpcError:
    details = f"failed to connect to all addresses; last error: UNKNOWN: ipv4:{address}: Failed to connect to remote host"
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


def test_where_nothing_answers_it_is_said_what_named_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _explained([], _refused("127.0.0.1:50051")) == (
        f"nothing answers for the router at 127.0.0.1:50051 (the built-in default: no stack.json is in {tmp_path}/smoa-data); start "
        "one with `smoa up`, name the folder of one that runs with --stack or SMOA_STACK, or give --router"
    )
    gone = Unavailable("kafka: b:1 does not answer", address="b:1")
    assert _explained([], gone, {"SMOA_KAFKA_BOOTSTRAP": "b:1"}) == (
        "nothing answers for the broker at b:1 (from SMOA_KAFKA_BOOTSTRAP); correct SMOA_KAFKA_BOOTSTRAP, or leave it out to take the "
        "address from a local stack's folder (--stack, SMOA_STACK)"
    )
    stack = _stack(tmp_path / "x")
    assert _explained(["--stack", "x"], _refused(stack.router)) == (
        f"nothing answers for the router at {stack.router} (of the stack in {tmp_path}/x); that stack is not running: start it with "
        f"`smoa up --data {tmp_path}/x`"
    )
    with (tmp_path / "x" / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "that stack runs (process 7), so it may still be starting" in _explained(["--stack", "x"], _refused(stack.router))
    other = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "index: the Qdrant server is away")
    assert _explained([], other) == ""


def test_training_from_another_folder_makes_up_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["optimizer", "propose", "--train"])
    assert str(result.exception) == (
        f"store: neither {tmp_path}/smoa-data/store nor a stack's stack.json in {tmp_path}/smoa-data exists; run this where "
        "`smoa up` runs, name its data folder with --stack or SMOA_STACK, or give --store"
    )
    assert not list(tmp_path.iterdir())
