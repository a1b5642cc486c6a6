"""Files that people name, among them those that strangers gave them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from smoa.errors import InvalidArgument
from smoa.peft import import_folder
from smoa.plain_files import read_plain, write_plain


def test_plain_files_are_read_and_links_to_them(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_plain(tmp_path / "file", "file") == read_plain(tmp_path / "link", "file") == b"x"


def test_what_has_no_end_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "zero", Path("/dev/zero"), tmp_path):
        with pytest.raises((InvalidArgument, IsADirectoryError), match=r"is not a plain file|Is a directory"):
            read_plain(path, "file")
    (tmp_path / "large").write_bytes(b"xxx")
    with pytest.raises(InvalidArgument, match=r"^file: .* has 3 bytes, over 2; name a smaller file$"):
        read_plain(tmp_path / "large", "file", 2)
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "nowhere", "file")


def test_a_folder_of_endless_weights_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").symlink_to("/dev/zero")
    with pytest.raises(InvalidArgument, match=r"^folder: .*adapter_model.safetensors is not a plain file"):
        import_folder(tmp_path, "base")


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / "out").symlink_to(tmp_path / "precious")
    write_plain(tmp_path / "out", b"new")
    assert (tmp_path / "precious").read_bytes() == b"mine"
    assert (tmp_path / "out").read_bytes() == b"new"
    assert not (tmp_path / "out").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "precious"]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="out"):
        write_plain(tmp_path / "out", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
