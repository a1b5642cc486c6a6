"""Typed reads of a config's fields, each refusal with the field and the remedy."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from smoa.errors import FailedPrecondition

REMEDY = "take the model's own config.json"


class Fields:
    """A config's JSON object; `prefix` is where it is in `config.json`. A null is as good as nothing.

    Every read raises FailedPrecondition where the value is of another kind, or there is none and no default.
    """

    def __init__(self, values: Mapping[str, object], prefix: str = "") -> None:
        self._values, self._prefix = values, prefix

    def refused(self, name: str, problem: str, remedy: str) -> FailedPrecondition:
        """What to raise of a field."""
        return FailedPrecondition(f"base_model: {self._prefix}{name} {problem}; {remedy}")

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number over 0."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.refused(name, f"is {value!r}, not a whole number over 0", REMEDY)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise self.refused(name, f"is {value!r:.40}, not a number", REMEDY)
        return float(value)

    def positive(self, name: str, default: float | None = None) -> float:
        """A finite number over 0."""
        if self._values.get(name) is None and default is not None:
            return default
        if (value := self.number(name)) <= 0:
            raise self.refused(name, f"is {value!r}, not over 0", REMEDY)
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.refused(name, f"is {value!r}, not true or false", REMEDY)
        return value

    def parameters(self, name: str) -> dict[str, object]:
        """A JSON object, empty where there is none."""
        value = self._value(name, {})
        if not isinstance(value, dict):
            raise self.refused(name, f"is {value!r}, not an object", REMEDY)
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """Finite numbers over 0."""
        value = self._value(name, None)
        if not isinstance(value, list):
            raise self.refused(name, f"is {value!r}, not a list of numbers", REMEDY)
        return tuple(Fields({name: one}, self._prefix).positive(name) for one in value)

    def _value(self, name: str, default: object) -> object:
        value = self._values.get(name)
        if value is None and default is None:
            raise self.refused(name, "is missing", REMEDY)
        return default if value is None else value
