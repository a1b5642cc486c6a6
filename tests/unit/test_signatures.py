"""Who made an adapter file."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from smoa.adapter import Manifest, decode, encode
from smoa.cli.access import access_group
from smoa.errors import FailedPrecondition, InvalidArgument
from smoa.signatures import Publishers, Signer, read_publishers, signing_by
from tests.integration.router_support import adapter_file


def _key(folder: Path, name: str, *tenants: str) -> tuple[Signer, dict[str, object]]:
    """A signer, and its entry among the publishers."""
    options = [part for tenant in tenants for part in ("--tenant", tenant)]
    made = CliRunner().invoke(access_group, ["signing-key", str(folder / name), *options])
    assert made.exit_code == 0, made.output
    return Signer(folder / name), json.loads(made.stdout)


def _publishers(folder: Path, *entries: object) -> Publishers:
    (folder / "publishers.json").write_text(json.dumps({"publishers": entries}))
    return Publishers(str(folder / "publishers.json"))


def test_a_tenants_adapter_needs_a_signature_of_one_of_its_publishers(tmp_path: Path) -> None:
    acme, of_acme = _key(tmp_path, "acme.pem", "acme")
    merger, of_all = _key(tmp_path, "merger.pem", "*")
    other, of_other = _key(tmp_path, "other.pem", "beta")
    publishers = _publishers(tmp_path, of_acme, of_all, of_other)
    plain = decode(adapter_file(tenant="acme"))
    for signer in (acme, merger):
        again = decode(encode(signer.signed(plain)))
        publishers.check(again.manifest)
        assert dataclasses.replace(again.manifest, signature="") == plain.manifest
    with pytest.raises(InvalidArgument, match=r"^manifest.signature: is of none of the publishers of acme; sign it with a key of theirs"):
        publishers.check(other.signed(plain).manifest)
    with pytest.raises(InvalidArgument, match=r"^manifest.signature: is empty, and this installation asks for one; "):
        publishers.check(plain.manifest)
    Publishers("").check(plain.manifest)


def test_nothing_of_a_signed_manifest_can_be_changed(tmp_path: Path) -> None:
    signer, entry = _key(tmp_path, "a.pem", "*")
    publishers, manifest = _publishers(tmp_path, entry), signer.signed(decode(adapter_file(tenant="acme"))).manifest
    changed = {"tenant": "beta", "shared": True, "name": "x", "version": 2, "scaling": 2.0, "weights_sha256": "0" * 64, "tags": ("x",)}
    for field, value in changed.items():
        with pytest.raises(InvalidArgument, match=r"^manifest.signature: "):
            publishers.check(dataclasses.replace(manifest, **{field: value}))  # type: ignore[arg-type]
    for signature in ("x", "é", manifest.signature[:-4], "A" * 88, manifest.signature + "=="):
        with pytest.raises(InvalidArgument, match=r"^manifest.signature: "):
            publishers.check(dataclasses.replace(manifest, signature=signature))


def test_a_field_that_comes_later_leaves_what_was_signed_before(tmp_path: Path) -> None:
    signer, entry = _key(tmp_path, "a.pem", "*")
    publishers, manifest = _publishers(tmp_path, entry), signer.signed(decode(adapter_file())).manifest

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Later(Manifest):
        added: str = "x"

    publishers.check(Later(**vars(manifest)))
    with pytest.raises(InvalidArgument):
        publishers.check(Later(**vars(manifest), added="y"))


def test_a_file_without_a_signature_is_what_it_was_before_there_were_any() -> None:
    assert b"signature" not in adapter_file()
    assert encode(signing_by("")(decode(data := adapter_file()))) == data


def test_publishers_are_read_again_and_a_broken_file_leaves_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smoa.signatures._LOOK_EVERY_S", 0.0)
    signer, entry = _key(tmp_path, "a.pem", "acme")
    publishers, manifest = _publishers(tmp_path), signer.signed(decode(adapter_file(tenant="acme"))).manifest
    with pytest.raises(InvalidArgument):
        publishers.check(manifest)
    _publishers(tmp_path, entry)
    publishers.check(manifest)
    (tmp_path / "publishers.json").write_text("[")
    publishers.check(manifest)


def test_files_that_are_none_are_said_in_a_sentence(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"publishers": 1}', '{"publishers": [1]}', '{"publishers": [{"tenants": "x"}]}'):
        with pytest.raises(InvalidArgument, match=r"^publishers"):
            read_publishers(text)
    for key in (None, "", "x", "AAAA", 5):
        with pytest.raises(InvalidArgument, match=r"^publishers\[0\].public_key: is no key \("):
            read_publishers(json.dumps({"publishers": [{"tenants": ["a"], "public_key": key}]}))
    with pytest.raises(InvalidArgument, match=r"^publishers\[0\].tenants: "):
        read_publishers(json.dumps({"publishers": [{"tenants": [{}], "public_key": "A" * 43 + "="}]}))
    with pytest.raises(FailedPrecondition, match=r"^SMOA_PUBLISHERS: "):
        Publishers(str(tmp_path / "none"))
    (tmp_path / "bad.pem").write_text("x")
    for name in ("none", "bad.pem"):
        with pytest.raises(FailedPrecondition, match=r"^SMOA_SIGNING_KEY: .*; make one with `smoa access signing-key`$"):
            Signer(tmp_path / name)


def test_a_key_is_ones_own_and_never_written_over(tmp_path: Path) -> None:
    _key(tmp_path, "a.pem", "acme")
    assert os.stat(tmp_path / "a.pem").st_mode & 0o777 == 0o600
    again = CliRunner().invoke(access_group, ["signing-key", str(tmp_path / "a.pem"), "--tenant", "acme"])
    assert str(again.exception).startswith(f"file: {tmp_path}/a.pem is there; ")
