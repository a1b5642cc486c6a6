"""Text files that people bring along: UTF-8, or one sentence that says what to do."""

from __future__ import annotations

from pathlib import Path

from smoa.errors import FailedPrecondition, InvalidArgument


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


def read_secret(variable: str, path: str) -> str:
    """What a file holds, without the blanks around it; `variable` names it.

    Raises:
        FailedPrecondition: it cannot be read, or holds nothing.
    """
    try:
        secret = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"{variable}: {path} cannot be read ({error}); correct it") from error
    if not secret:
        raise FailedPrecondition(f"{variable}: {path} is empty; put the secret there, or unset it")
    return secret
