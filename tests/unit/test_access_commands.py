"""`smoa access`, `smoa login` and `smoa logout`: what they write, and who may read it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from click.core import ParameterSource
from click.testing import CliRunner

from smoa.access.callers import CallersFile
from smoa.cli.access import access_group
from smoa.cli.login import login_command, logout_command, take_profile
from smoa.cli.options import Address
from smoa.errors import AlreadyExists, FailedPrecondition, NotFound
from tests.access_support import caller


def _ran(path: Path, *arguments: str) -> str:
    ran = CliRunner().invoke(access_group, arguments, env={"SMOA_CALLERS": str(path), "COLUMNS": "100"})
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return ran.output


def test_somebody_is_let_in_by_a_key_that_is_told_once_and_let_out_again(tmp_path: Path) -> None:
    path = tmp_path / "callers.json"
    key = _ran(path, "add", "bot", "--tenant", "acme", "--role", "infer").strip()
    _ran(path, "add", "optimizer", "--tenant", "*", "--role", "optimizer", "--certificate", "spiffe://smoa/optimizer")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key not in path.read_text()
    known = CallersFile(path)
    found = known.by_key(key)
    assert found == caller("bot", "acme", "infer")
    assert known.by_certificate(["spiffe://smoa/optimizer"]) is not None
    assert "spiffe://smoa/optimizer" in _ran(path, "list")
    assert [json.loads(line)["name"] for line in _ran(path, "list", "--json").splitlines()] == ["bot", "optimizer"]
    with pytest.raises(AlreadyExists, match=r"^name: 'bot' is in"):
        _ran(path, "add", "bot", "--tenant", "beta", "--role", "infer")
    assert _ran(path, "remove", "bot") == "bot is out\n"
    assert CallersFile(path).by_key(key) is None
    with pytest.raises(NotFound, match="smoa access list"):
        _ran(path, "remove", "bot")
    assert list(tmp_path.iterdir()) == [path], "nothing is left beside it"


def test_what_is_wrong_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "callers.json"
    assert "Invalid value for '--role'" in _ran(path, "add", "bot", "--tenant", "acme", "--role", "root")
    path.write_text("{}")
    with pytest.raises(FailedPrecondition, match="is not what `smoa access` writes"):
        _ran(path, "add", "bot", "--tenant", "acme", "--role", "infer")
    assert path.read_text() == "{}"
    with pytest.raises(FailedPrecondition, match="cannot be written"):
        _ran(tmp_path / "nowhere" / "callers.json", "add", "bot", "--tenant", "acme", "--role", "infer")


def test_a_profile_is_its_owners_alone_and_goes_behind_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("smoa.cli.options.PROFILE_OF", known := dict[str, str]())
    monkeypatch.setattr("smoa.cli.login.PROFILE_OF", known)
    here = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert take_profile(["route"], here) == ""
    ran = CliRunner().invoke(login_command, ["--router", "router:1", "--ca", "system", "--tenant", "acme"], input="secret\n", env=here)
    assert ran.exit_code == 0, ran.output
    assert "secret" not in ran.output
    folder = tmp_path / "smoa"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    environment = dict(here)
    assert take_profile(["route"], environment) == "default"
    address = Address("router", "router:1", "--router", "SMOA_ROUTER", ParameterSource.ENVIRONMENT)
    assert address.came_from() == "of the profile default"
    assert address.remedy() == "log in with another address, forget the profile with `smoa logout`, or give --router"
    assert [environment[f"SMOA_{name}"] for name in ("ROUTER", "TLS_CA", "TENANT")] == ["router:1", "system", "acme"]
    assert Path(environment["SMOA_TOKEN_FILE"]).read_text() == "secret\n"
    said = {**here, "SMOA_ROUTER": "other:1"}
    take_profile(["route"], said)
    assert said["SMOA_ROUTER"] == "other:1"
    for local in ({**here, "SMOA_STACK": "x"}, dict(here)):
        assert take_profile([] if "SMOA_STACK" in local else ["route", "--stack", "x"], local) == ""
        assert "SMOA_ROUTER" not in local
    with pytest.raises(FailedPrecondition, match=r"^SMOA_PROFILE: there is no profile 'work'; make it with `smoa login --profile work`"):
        take_profile([], {**here, "SMOA_PROFILE": "work"})
    assert CliRunner().invoke(logout_command, [], env=here).output == "default is forgotten\n"
    assert list(folder.iterdir()) == []
    assert CliRunner().invoke(logout_command, [], env=here).output == "there is no profile default\n"


def test_a_profile_by_certificate_keeps_no_token_and_a_broken_one_is_said(tmp_path: Path) -> None:
    here = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    for name in ("me.pem", "me.key", "ca.pem"):
        (tmp_path / name).write_text("x")
    files = ["--certificate", str(tmp_path / "me.pem"), "--certificate-key", str(tmp_path / "me.key"), "--ca", str(tmp_path / "ca.pem")]
    ran = CliRunner().invoke(login_command, ["--router", "r:1", "--profile", "work", *files], env=here)
    assert ran.exit_code == 0, ran.output
    environment = {**here, "SMOA_PROFILE": "work"}
    assert take_profile([], environment) == "work"
    assert environment["SMOA_TLS_CLIENT_KEY"] == str(tmp_path / "me.key")
    assert "SMOA_TOKEN_FILE" not in environment
    (tmp_path / "config" / "smoa" / "work.json").write_text("[]")
    with pytest.raises(FailedPrecondition, match="is not what `smoa login` writes"):
        take_profile([], {**here, "SMOA_PROFILE": "work"})
    assert CliRunner().invoke(login_command, ["--router", "r:1", "--profile", "../x"], env=here).exit_code == 2
