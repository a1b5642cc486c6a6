"""`smoa router snapshot`."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from services.router.commands import router_group
from services.router.snapshots import too_old
from tests.qdrant_support import URL


def test_the_last_ones_are_kept_in_order_of_time() -> None:
    made = [("b", "2026-01-02T00:00:00"), ("a", "2026-01-03T00:00:00"), ("c", "2026-01-01T00:00:00")]
    assert [too_old(made, keep) for keep in (1, 2, 3, 4)] == [["c", "b"], ["c"], [], []]


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, message in (
        (["--qdrant", "http://127.0.0.1:1"], "qdrant: http://127.0.0.1:1 made no snapshot"),
        (["--qdrant", ""], "qdrant: is not given; name the server with --qdrant or SMOA_QDRANT_URL"),
    ):
        done = CliRunner().invoke(router_group, ["snapshot", *arguments])
        assert message in str(done.exception)


@pytest.mark.skipif(not URL, reason="SMOA_TEST_QDRANT_URL is not set: only a real server makes snapshots")
def test_a_server_keeps_so_many() -> None:
    names = []
    for _ in range(3):
        done = CliRunner().invoke(router_group, ["snapshot", "--qdrant", URL, "--keep", "2", "--json"], catch_exceptions=False)
        names.append(json.loads(done.output)["snapshot"])
    assert json.loads(done.output)["deleted"] == [names[0]]
