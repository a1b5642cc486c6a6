"""What is kept of a compilation is loaded only if it is that, and nobody else's."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from services.executor.backends.native.library import is_as_compiled


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    library = tmp_path / "native" / "one.so"
    library.parent.mkdir(mode=0o700)
    library.write_bytes(b"code")
    library.chmod(0o600)
    library.with_suffix(".sha256").write_text(hashlib.sha256(b"code").hexdigest())
    return library


def test_what_was_compiled_is_taken(kept: Path) -> None:
    assert is_as_compiled(kept)


def test_another_binary_one_that_others_may_write_and_none_are_not(kept: Path) -> None:
    kept.write_bytes(b"another")
    assert not is_as_compiled(kept)
    kept.write_bytes(b"code")
    for mode in (0o620, 0o602, 0o666):
        kept.chmod(mode)
        assert not is_as_compiled(kept)
    kept.chmod(0o600)
    kept.parent.chmod(0o777)
    assert not is_as_compiled(kept)
    kept.parent.chmod(0o700)
    kept.with_suffix(".sha256").unlink()
    assert not is_as_compiled(kept)
    kept.unlink()
    assert not is_as_compiled(kept)
