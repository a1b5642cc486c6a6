"""What is judged: counts that cover the window, and what came since an adapter was restored."""

from __future__ import annotations

import pytest

from services.optimizer.trial import Arm
from services.optimizer.views import arm_of, protection_of, view_of
from smoa.v1 import registry_pb2
from smoa.v1.registry_pb2 import AdapterStatistics, EpochCounts

DAY_US = 86400 * 10**6
NOW_US = 100 * DAY_US
WEEK_S = 7 * 86400.0


def protection(adapter: registry_pb2.Adapter, counted_since_us: int | None) -> str:
    return protection_of(adapter, set(), set(), counted_since_us, WEEK_S, NOW_US)


@pytest.mark.parametrize(
    ("age_days", "counted_days", "judged"),
    [
        (30, 30, True),
        (30, 8, True),  # a whole window is covered
        (30, 6, False),  # counts were lost within it
        (2, 30, True),
        (2, 2, True),
        (2, 1, False),  # younger than the window, and older than its counts
        (30, None, False),
        (2, 2 - 5 / 1440, True),  # registered five minutes before the first worker was ready
        (2, 2 - 30 / 1440, False),
    ],
)
def test_nothing_is_judged_by_counts_that_do_not_cover_the_window(age_days: int, counted_days: float | None, judged: bool) -> None:
    adapter = registry_pb2.Adapter(adapter_id="a", created_at_us=NOW_US - age_days * DAY_US)
    since_us = None if counted_days is None else NOW_US - int(counted_days * DAY_US)
    assert (protection(adapter, since_us) == "") is judged


def test_a_restored_adapter_is_left_alone_for_a_window_and_then_judged_by_what_came_since() -> None:
    adapter = registry_pb2.Adapter(adapter_id="a", restored_at_us=NOW_US - 6 * DAY_US, created_at_us=DAY_US)
    assert protection(adapter, 0).startswith("restored")
    adapter.restored_at_us = NOW_US - 8 * DAY_US
    assert protection(adapter, 0) == ""
    adapter.restored_baseline.CopyFrom(
        AdapterStatistics(uses=50, outcomes=50, successes=2, recent_uses=40.0, recent_at_us=NOW_US - 8 * DAY_US, epoch="e")
    )
    adapter.statistics.CopyFrom(AdapterStatistics(uses=80, outcomes=80, successes=30, recent_at_us=NOW_US, epoch="e"))
    adapter.statistics.recent_uses = 40.0 * 0.5 ** (8 / 7) + 25.0
    view = view_of(adapter, "", WEEK_S, NOW_US)
    assert (view.uses, view.outcomes, view.successes, view.age_s) == (30, 30, 28, 8 * 86400.0)
    assert view.recent_uses == pytest.approx(25.0)
    adapter.statistics.epoch = "f"  # its recent counts hold nothing of before
    assert view_of(adapter, "", WEEK_S, NOW_US).recent_uses == pytest.approx(40.0 * 0.5 ** (8 / 7) + 25.0)


def test_a_trial_is_judged_by_the_epoch_that_is_whole() -> None:
    began = AdapterStatistics(epoch="a", epochs={"a": EpochCounts(outcomes=100, successes=90)})
    within = AdapterStatistics(epoch="a", epochs={"a": EpochCounts(outcomes=120, successes=100)})
    assert arm_of(within, began) == Arm(20, 10)
    lost = AdapterStatistics(epoch="b", epochs={"a": EpochCounts(outcomes=105, successes=95), "b": EpochCounts(outcomes=30, successes=3)})
    assert arm_of(lost, began) == Arm(30, 3), "not 35: of the others some are unknown"
    assert arm_of(AdapterStatistics()) == Arm(0, 0)
