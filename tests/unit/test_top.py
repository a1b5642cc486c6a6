"""`smoa top`: what a frame shows of what came."""

from __future__ import annotations

import io

from rich.console import Console

from smoa.cli.top import SILENT_S, WINDOW_S, Traffic
from smoa.v1.common_pb2 import WeightedAdapter
from smoa.v1.events_pb2 import LIFECYCLE_ACTION_ROLLED_BACK, ExecutorStatus, LifecycleEvent, UsageEvent
from smoa.v1.feedback_pb2 import Outcome
from smoa.v1.router_pb2 import Decision


def _shown(traffic: Traffic) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(traffic.frame({"A": "first"}))
    return console.export_text()


def test_a_frame_shows_rates_residency_and_the_library() -> None:
    traffic = Traffic()
    for second in range(5):
        traffic.take([Decision(adapters=[WeightedAdapter(adapter_id="A")], cached=second == 0, handler_us=2000)] * 4, 100.0 + second)
    traffic.take([Decision(), Outcome(success=True), Outcome(success=False), UsageEvent(tokens=50)], 104.5)
    traffic.take([ExecutorStatus(address="h:1", active=["A"], free_slots=7, rows=16, running=3, waiting=2)], 104.6)
    traffic.take([LifecycleEvent(adapter_id="C", action=LIFECYCLE_ACTION_ROLLED_BACK, reason="child 0.10 of 12")], 104.7)
    assert traffic.totals()["adapter A"] == 20
    shown = _shown(traffic)
    for wanted in ("4.2", "19%", "5%", "first", "1.90", "50%", "10.0", "3 of 16", "rolled back", "child 0.10 of 12"):
        assert wanted in shown, wanted


def test_what_is_old_or_leaves_is_not_shown() -> None:
    traffic = Traffic()
    traffic.take([Decision(), ExecutorStatus(address="silent:1"), ExecutorStatus(address="leaving:1")], 100.0)
    traffic.take([ExecutorStatus(address="leaving:1", leaving=True), ExecutorStatus(address="there:1")], 100.0 + SILENT_S)
    shown = _shown(traffic)
    assert "there:1" in shown
    assert "silent:1" not in shown
    assert "leaving:1" not in shown
    traffic.take([], 100.0 + SILENT_S + WINDOW_S + 1)
    assert not traffic.totals().get("decisions")
