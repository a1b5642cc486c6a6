"""Text files that people bring along: UTF-8, or one sentence that says what to do."""

from __future__ import annotations

from pathlib import Path

from smoa.errors import InvalidArgument


def read_text(field: str, path: Path) -> str:
    """The text of a UTF-8 file, without its byte order mark.

    Raises:
        InvalidArgument: another encoding; `field` is what is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgument(field, f"{path} is not UTF-8 text ({error.reason})", "save it as UTF-8") from error
    if "\0" in text:  # every second byte of English in UTF-16 is zero
        raise InvalidArgument(field, f"{path} is not UTF-8 text (it holds zero bytes)", "save it as UTF-8")
    return text
