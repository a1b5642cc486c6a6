"""What a router makes of a Qdrant collection's strict mode."""

from __future__ import annotations

from typing import Any

import pytest
from qdrant_client import models

from services.router.catalogue.qdrant_connection import Limits, limits_of
from smoa.errors import FailedPrecondition


@pytest.mark.parametrize(
    ("strict", "wanted"),
    [
        (None, Limits()),
        ({"enabled": False, "max_query_limit": 1}, Limits()),
        ({"enabled": True}, Limits()),
        ({"enabled": True, "max_query_limit": 100, "search_max_hnsw_ef": 64}, Limits(read=100, hnsw_ef=64)),
        ({"enabled": True, "upsert_max_batchsize": 50, "search_max_oversampling": 1.5}, Limits(write=50, oversampling=1.5)),
        ({"enabled": True, "filter_max_conditions": 30}, Limits(write=10)),
    ],
)
def test_a_router_works_within_strict_mode(strict: dict[str, Any] | None, wanted: Limits) -> None:
    assert limits_of("smoa_adapters", None if strict is None else models.StrictModeConfigOutput(**strict), 14) == wanted


@pytest.mark.parametrize(("field", "value", "least"), [("max_query_limit", 20, 65), ("max_payload_index_count", 5, 14)])
def test_what_it_cannot_work_within_is_refused_by_name(field: str, value: int, least: int) -> None:
    message = (
        rf"^index: strict mode of the Qdrant collection 'smoa_adapters' has {field} {value}, this router needs {least}; raise it there$"
    )
    strict: dict[str, Any] = {"enabled": True, field: value}
    with pytest.raises(FailedPrecondition, match=message):
        limits_of("smoa_adapters", models.StrictModeConfigOutput(**strict), 14)
