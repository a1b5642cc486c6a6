"""The rules that `proto/` states beside fields (protovalidate's), held where bytes enter: requests and events alike."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any, Final

from google.protobuf.message import Message
from protovalidate import Validator, Violation

from smoa.errors import InvalidArgument

_MOST_SHOWN: Final = 80
_validator: Final = Validator()


def check_rules(message: Message) -> None:
    """Refuse a message that breaks a rule.

    Raises:
        InvalidArgument: naming the first field that does, what is wrong with its value, and what may be there.
    """
    for violation in _validator.collect_violations(message, fail_fast=True):
        raise InvalidArgument(_path(violation), _problem(violation.field_value), violation.proto.message or "see proto/smoa/v1")


def _path(violation: Violation) -> str:
    path = ""
    for element in violation.proto.field.elements if violation.proto.field else ():
        path += f".{element.field_name}" if path else element.field_name
        if element.subscript is not None:
            path += f"[{str(element.subscript.value)[:_MOST_SHOWN]}]"
    return path or "request"


def _problem(value: Any) -> str:
    if isinstance(value, str) and len(value) <= _MOST_SHOWN:
        return f"{value!r} is not allowed"
    if isinstance(value, str | bytes):
        return f"has {len(value):,} {'characters' if isinstance(value, str) else 'bytes'}"
    if isinstance(value, Mapping | Sized):
        return f"holds {len(value):,}"
    return f"is {value}"
