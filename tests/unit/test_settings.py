"""Settings: parsed by type from an injected environment; a bad value names its key."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path

import pytest

from smoa.errors import FailedPrecondition, InvalidArgument
from smoa.settings import from_environment


@dataclass(frozen=True, kw_only=True)
class _Settings:
    flag: bool = False
    count: int = 3
    ratio: float = 0.5
    rows: int = field(default=16, metadata={"least": 1})
    folder: Path = Path("a")
    name: str = "n"
    limit: int | None = None
    store: str = field(default="s", metadata={"key": "SHARED_STORE"})
    secret: str = field(default="", repr=False)


def _read(**environment: str) -> _Settings:
    return from_environment(_Settings, environment, "APP_")


def test_empty_environment_gives_the_defaults() -> None:
    assert _read() == _Settings()


def test_every_type() -> None:
    found = _read(APP_FLAG="yes", APP_COUNT="7", APP_RATIO="1e-3", APP_FOLDER="/x/y", APP_NAME="", APP_LIMIT="9", SHARED_STORE="s3://b")
    assert found == _Settings(flag=True, count=7, ratio=0.001, folder=Path("/x/y"), name="", limit=9, store="s3://b")
    assert isinstance(found.folder, Path)


@pytest.mark.parametrize("text", ["1", "true", "TRUE", "Yes", "on"])
def test_true(text: str) -> None:
    assert _read(APP_FLAG=text).flag is True


@pytest.mark.parametrize("text", ["0", "false", "False", "NO", "off", ""])
def test_false(text: str) -> None:
    assert _read(APP_FLAG=text).flag is False


@pytest.mark.parametrize(
    ("key", "text", "kind", "why"),
    [
        ("APP_FLAG", "maybe", "bool", "not a yes or a no"),
        ("APP_COUNT", "3.5", "int", "invalid literal for int() with base 10: '3.5'"),
        ("APP_COUNT", "", "int", "invalid literal for int() with base 10: ''"),
        ("APP_RATIO", "half", "float", "could not convert string to float: 'half'"),
        ("APP_LIMIT", "many", "int", "invalid literal for int() with base 10: 'many'"),
    ],
)
def test_bad_value_names_its_key(key: str, text: str, kind: str, why: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        _read(**{key: text})
    assert str(caught.value) == f"{key}: {text!r} is not a valid {kind} ({why}); correct the environment variable or unset it"
    assert caught.value.field == key


@pytest.mark.parametrize(
    ("key", "text", "least"),
    [("APP_COUNT", "-7", 0), ("APP_RATIO", "nan", 0), ("APP_RATIO", "inf", 0), ("APP_LIMIT", "-1", 0), ("APP_ROWS", "0", 1)],
)
def test_a_number_that_nothing_could_run_with(key: str, text: str, least: int) -> None:
    with pytest.raises(InvalidArgument, match=rf"^{key}: '{text}' is not a number from {least} on; correct it or unset it$"):
        _read(**{key: text})
    assert _read(APP_COUNT="0", APP_RATIO="0", APP_ROWS="1") == _Settings(count=0, ratio=0, rows=1)


def test_metadata_key_replaces_the_prefixed_one() -> None:
    assert _read(APP_STORE="ignored").store == "s"
    assert _read(SHARED_STORE="taken").store == "taken"


def test_other_keys_are_ignored() -> None:
    assert _read(APP_UNKNOWN="x", OTHER_COUNT="9", app_count="9") == _Settings()


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        _read().count = 4  # type: ignore[misc]


def test_a_secret_comes_from_a_file_and_is_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("s3cret\n")
    found = _read(APP_SECRET_FILE=str(file))
    assert (found.secret, "s3cret" in repr(found)) == ("s3cret", False)
    with pytest.raises(InvalidArgument, match=r"^APP_SECRET_FILE: is set, and so is APP_SECRET; unset one of them$"):
        _read(APP_SECRET_FILE=str(file), APP_SECRET="other")
    file.write_text("\n")
    with pytest.raises(FailedPrecondition, match=r"^APP_SECRET_FILE: .*/key is empty; "):
        _read(APP_SECRET_FILE=str(file))
    with pytest.raises(FailedPrecondition, match=r"^APP_SECRET_FILE: .*/none cannot be read \("):
        _read(APP_SECRET_FILE=str(tmp_path / "none"))
    assert _read(APP_NAME_FILE=str(file)).name == "n", "of secrets only"
