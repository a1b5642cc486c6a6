"""The page of settings, from the services' dataclasses and the strings under their fields."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

from docs.generate.markdown import NOTE, SERVICES, table


def settings_page() -> str:
    """Each service's variables with type, default and meaning."""
    parts = [
        NOTE,
        "# Settings",
        "A service reads its settings from environment variables when it starts. A bad value ends the start with a sentence that names the "
        "variable. `python -m services.router --help`, and the same of the other services, prints them on the machine where it runs. "
        "`smoa up` gives each service the addresses and folders of its own stack, and takes every other variable from its environment.\n",
    ]
    for service in SERVICES:
        cls, prefix = settings_of(service)
        parts += [f"## {service.capitalize()}", table(("variable", "type", "default", "meaning"), _setting_rows(cls, prefix))]
    parts += [
        "## Everywhere",
        table(
            ("variable", "default", "meaning"),
            (
                ("`SMOA_LOG_LEVEL`", "`INFO`", "What a service logs, to standard error."),
                (
                    "`SMOA_CACHE`",
                    "`~/.cache/smoa`",
                    "Folder of converted base models, their LoRA-XS bases and the forward pass.",
                ),
                ("`CXX`", "`c++` or `g++`", "Compiler of the native forward pass."),
            ),
        ),
    ]
    return "\n".join(parts)


def settings_of(service: str) -> tuple[type, str]:
    """The settings class of a service, and the prefix of its variables."""
    module = importlib.import_module(f"services.{service}.settings")
    return getattr(module, f"{service.capitalize()}Settings"), f"SMOA_{service.upper()}_"


def variables(service: str) -> dict[str, str]:
    """The variables of each field of a service's settings, to the field's name."""
    cls, prefix = settings_of(service)
    found = dict[str, str]()
    for item in dataclasses.fields(cls):
        key = item.metadata.get("key") or prefix + item.name.upper()
        found |= dict.fromkeys([key] if item.repr else [key, f"{key}_FILE"], item.name)
    return found


def _setting_rows(cls: type, prefix: str) -> Iterator[tuple[str, ...]]:
    meanings, hints = field_docstrings(cls), get_type_hints(cls)
    for item in dataclasses.fields(cls):
        key = item.metadata.get("key") or prefix + item.name.upper()
        default = str(item.default)
        also = "" if item.repr else f", or `{key}_FILE`: a file that holds it"
        yield f"`{key}`{also}", _type_name(hints[item.name]), f"`{default}`" if default else "empty", meanings.get(item.name, "")


def _type_name(hint: type) -> str:
    return {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "folder"}[hint]


def field_docstrings(cls: type) -> dict[str, str]:
    """The string under each field of a dataclass."""
    found = dict[str, str]()
    for base in reversed(cls.__mro__[:-1]):
        found |= _docstrings(base)
    return found


def _docstrings(cls: type) -> dict[str, str]:
    (body,) = (node.body for node in ast.parse(textwrap.dedent(inspect.getsource(cls))).body if isinstance(node, ast.ClassDef))
    found = {}
    for field, after in itertools.pairwise(body):
        match field, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = text
    return found
