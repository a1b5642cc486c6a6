"""The contracts' vocabulary, and that the router does not carry torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from smoa.adapter import GRANULARITIES, SPECIALIZATIONS
from smoa.v1 import common_pb2


@pytest.mark.parametrize(
    ("enum", "prefix", "names"),
    [
        (common_pb2.Granularity, "GRANULARITY_", {"NANO", "MICRO", "MINI", "SMALL", "MEDIUM", "LARGE"}),
        (
            common_pb2.Specialization,
            "SPECIALIZATION_",
            {"GENERAL", "DOMAIN", "TASK", "LANGUAGE", "STYLE", "FORMAT", "REASONING", "TOOL", "PERSONA", "SAFETY"},
        ),
        (
            common_pb2.RoutingStrategy,
            "ROUTING_STRATEGY_",
            {"SEMANTIC", "TASK", "LEARNED", "HYBRID", "HIERARCHICAL", "MIXTURE"},
        ),
        (common_pb2.CompositionStrategy, "COMPOSITION_STRATEGY_", {"PARALLEL", "SEQUENTIAL", "HIERARCHICAL"}),
    ],
)
def test_enum_has_exactly_its_names(enum: Any, prefix: str, names: set[str]) -> None:
    assert set(enum.keys()) == {f"{prefix}{name}" for name in names | {"UNSPECIFIED"}}
    assert enum.Value(f"{prefix}UNSPECIFIED") == 0


def test_enum_sizes() -> None:
    enums: list[Any] = [common_pb2.Granularity, common_pb2.Specialization, common_pb2.RoutingStrategy, common_pb2.CompositionStrategy]
    assert [len(enum.keys()) - 1 for enum in enums] == [6, 10, 6, 3]


def test_adapter_files_use_the_contracts_words() -> None:
    granularities: list[str] = list(common_pb2.Granularity.keys())[1:]
    specializations: list[str] = list(common_pb2.Specialization.keys())[1:]
    assert [f"GRANULARITY_{name}" for name, _ in GRANULARITIES] == granularities
    assert [f"SPECIALIZATION_{name.upper()}" for name in SPECIALIZATIONS] == specializations


def test_router_does_not_import_torch() -> None:
    code = "import sys, services.router.app; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
