"""Settings are frozen dataclasses read from an injected environment; a bad value names its key.

No setting is a number under 0, or under `least` in its field's metadata. A secret (a field that is not shown, `repr=False`) may come from a
file instead: `<KEY>_FILE` names it.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from smoa.errors import InvalidArgument
from smoa.text_file import read_secret

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Settings = TypeVar("Settings", bound=DataclassInstance)
else:
    Settings = TypeVar("Settings")

_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off", ""}


def from_environment(cls: type[Settings], environment: Mapping[str, str], prefix: str) -> Settings:
    """Build `cls` from `<PREFIX><FIELD>` keys; a field whose metadata has `key` reads that key instead.

    Raises:
        InvalidArgument: a value of the wrong type or too small, naming its key, or a secret that is given twice.
        FailedPrecondition: a secret's file cannot be read.
    """
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for item in dataclasses.fields(cls):
        key = item.metadata.get("key") or f"{prefix}{item.name.upper()}"
        if not item.repr and (path := environment.get(f"{key}_FILE")):
            if environment.get(key):
                raise InvalidArgument(f"{key}_FILE", f"is set, and so is {key}", "unset one of them")
            values[item.name] = read_secret(f"{key}_FILE", path)
        elif key in environment:
            value = values[item.name] = _parse(key, environment[key], hints[item.name])
            least = item.metadata.get("least", 0)
            if isinstance(value, int | float) and not least <= value < math.inf:  # nor is NaN
                raise InvalidArgument(key, f"{environment[key]!r} is not a number from {least} on", "correct it or unset it")
    return cls(**values)


def _parse(key: str, text: str, hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(option for option in get_args(hint) if option is not type(None))
    try:
        if hint is bool:
            if text.lower() in _TRUE | _FALSE:
                return text.lower() in _TRUE
            raise ValueError("not a yes or a no")
        return hint(text)
    except ValueError as error:
        raise InvalidArgument(
            key, f"{text!r} is not a valid {hint.__name__} ({error})", "correct the environment variable or unset it"
        ) from error
