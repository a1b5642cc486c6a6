"""Files that are read again when they change: the last good ones stay, and what is wrong is told once."""

from __future__ import annotations

from pathlib import Path

import pytest

from smoa.access.watched import Watched
from smoa.errors import FailedPrecondition


def test_the_last_good_value_stays_until_there_is_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, reads = tmp_path / "file", list[str]()

    def read() -> str:
        reads.append("")
        try:
            text = path.read_text()
        except OSError as error:
            raise FailedPrecondition(f"file: {error}") from error
        if not text:
            raise FailedPrecondition("file: is empty")
        return text

    with pytest.raises(FailedPrecondition):
        Watched([path], read)
    path.write_text("one")
    watched = Watched([path], read, -1.0)
    assert [watched.now(), watched.now()] == ["one", "one"]
    assert len(reads) == 2, "not read while it stays as it is"
    path.write_text("")
    assert [watched.now(), watched.now()] == ["one", "one"]
    assert [one.message for one in caplog.records] == [f"what {path} said last stays: file: is empty"], "once"
    path.unlink()
    assert watched.now() == "one"
    path.write_text("another")
    assert watched.now() == "another"
