"""What a worker knows of the library between passes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from services.optimizer.control.library import LOOK_BACK_S, READ_ANEW_S, Away, Library
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2


class _Registry:
    """Lists what was given to it, and remembers since when it was asked."""

    def __init__(self) -> None:
        self.written: list[registry_pb2.Adapter] = []
        self.since_us: list[int] = []
        self.error: grpc.aio.AioRpcError | None = None

    async def list_all(self, *, written_since_us: int, **_: Any) -> AsyncIterator[registry_pb2.Adapter]:
        self.since_us.append(written_since_us)
        for one in self.written:
            yield one
        if self.error is not None:
            raise self.error


def _adapter(name: str, state: common.AdapterState = common.ADAPTER_STATE_ACTIVE, reason: str = "") -> registry_pb2.Adapter:
    return registry_pb2.Adapter(adapter_id=name, tenant="t", state=state, state_reason=reason, updated_at_us=7)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, which the test sets."""
    now = [10_000_000.0]
    monkeypatch.setattr("services.optimizer.control.library.time.time_ns", lambda: int(now[0] * 1e9))
    return now


async def test_all_is_read_once_and_then_what_was_written_since_with_a_minute_to_spare(clock: list[float]) -> None:
    registry = _Registry()
    library = Library(registry)  # type: ignore[arg-type]
    registry.written = [_adapter("b"), _adapter("a", common.ADAPTER_STATE_CANARY), _adapter("c", common.ADAPTER_STATE_RETIRED, "by hand")]
    await library.refresh()
    assert (list(library.live), dict(library.away)) == (["a", "b"], {})
    clock[0] += 60
    registry.written = [_adapter("b", common.ADAPTER_STATE_RETIRED, "pruned: fails"), _adapter("aa")]
    await library.refresh()
    assert list(library.live) == ["a", "aa"]
    assert library.away["b"] == Away("t", 7, "pruned: fails", is_archived=False)
    registry.written = [_adapter("b", common.ADAPTER_STATE_PURGED, "pruned: fails")]
    clock[0] += 60
    await library.refresh()
    assert dict(library.away) == {}
    assert registry.since_us == [0, int((10_000_000 - LOOK_BACK_S) * 1e6), int((10_000_060 - LOOK_BACK_S) * 1e6)]
    clock[0] += READ_ANEW_S
    registry.written = [_adapter("z")]
    await library.refresh()
    assert (registry.since_us[-1], list(library.live)) == (0, ["z"])


async def test_a_listing_that_breaks_off_is_asked_for_again_from_where_it_was(clock: list[float]) -> None:
    registry = _Registry()
    library = Library(registry)  # type: ignore[arg-type]
    registry.written = [_adapter("a")]
    await library.refresh()
    clock[0] += 600
    registry.written, registry.error = (
        [_adapter("b")],
        grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata()),
    )
    with pytest.raises(grpc.aio.AioRpcError):
        await library.refresh()
    assert list(library.live) == ["a"]
    clock[0] += 600
    registry.error = None
    await library.refresh()
    assert list(library.live) == ["a", "b"]
    assert registry.since_us[1] == registry.since_us[2]
