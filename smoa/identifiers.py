"""Names that callers send: checked before anything is done with them, for they end up in keys, events and logs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import TypeVar

from ulid import ULID

from smoa.errors import InvalidArgument

DEFAULT_TENANT = "public"
TENANT_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
Word = TypeVar("Word", bound=str)
_ULID = re.compile("[0-7][0-9A-HJKMNP-TV-Z]{25}")


def checked_tenant(tenant: str, field: str = "tenant") -> str:
    """The tenant, `public` when empty.

    Raises:
        InvalidArgument: characters a tenant's name cannot have.
    """
    name = tenant or DEFAULT_TENANT
    if not TENANT_PATTERN.fullmatch(name):
        raise InvalidArgument(field, f"{name[:80]!r} is not a valid name", "use 1 to 63 of a-z, 0-9, '.', '_' and '-'")
    return name


def chosen_word(word: str, of: Sequence[Word], field: str, problem: str = "", remedy: str = "") -> Word:
    """The one of some words that a text is.

    Raises:
        InvalidArgument: it is none of them.
    """
    for one in of:
        if one == word:
            return one
    raise InvalidArgument(field, problem or f"{word!r} is unknown", remedy or f"use one of {', '.join(of)}")


def is_utf8(text: str) -> bool:
    """Whether an argument or a name of the file system is text: what is not, Python gives as surrogates, which nothing can send."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def shown(text: str) -> str:
    """The text as it can be printed."""
    return text.encode(errors="backslashreplace").decode()


def ulid_of(*parts: str) -> str:
    """The id that belongs to these texts: always the same, and of no others."""
    return str(ULID.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest()))


def is_ulid(text: str) -> bool:
    """True for the form of an adapter's id."""
    return _ULID.fullmatch(text) is not None


def check_ulid(text: str, field: str = "adapter_id", remedy: str = "use the id `smoa adapter list` shows") -> None:
    """Raise unless it is one.

    Raises:
        InvalidArgument: not a ULID.
    """
    if not is_ulid(text):
        raise InvalidArgument(field, f"{text[:80]!r} is not a ULID", remedy)
