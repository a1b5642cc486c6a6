"""Words of the contract's enums."""

from __future__ import annotations

from functools import cache
from typing import Any

from smoa.errors import InvalidArgument


@cache
def word_of(enum: Any, value: int, prefix: str, field: str) -> str:
    """The word of an enum's value.

    Raises:
        InvalidArgument: a value that this version does not know.
    """
    try:
        return str(enum.Name(value)).removeprefix(prefix).lower()
    except ValueError as error:
        raise InvalidArgument(field, f"{value} is unknown", f"use a {enum.DESCRIPTOR.name} of smoa.v1") from error
