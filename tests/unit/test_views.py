"""What is judged: counts that cover the window, and what came since an adapter was restored."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.optimizer.control.views import arm_of, protection_of, view_of
from services.optimizer.policy.library_policy import Rules, prunes
from services.optimizer.policy.trial import Arm, Stratum, TrialRules, judge
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


def test_what_was_set_aside_judges_nobody() -> None:
    adapter = registry_pb2.Adapter(adapter_id="a", name="n")
    adapter.statistics.CopyFrom(AdapterStatistics(outcomes=50, successes=40, aside_outcomes=10, aside_successes=1, epoch="e"))
    view = view_of(adapter, "", WEEK_S, NOW_US)
    assert (view.outcomes, view.successes) == (40, 39)
    began = AdapterStatistics(epoch="a", epochs={"a": EpochCounts(outcomes=100, successes=90, aside_outcomes=5)})
    now = AdapterStatistics(epoch="a", epochs={"a": EpochCounts(outcomes=130, successes=100, aside_outcomes=15, aside_successes=2)})
    assert arm_of(now, began) == Arm(20, 8)


_COUNTS = st.builds(
    AdapterStatistics,
    uses=st.integers(0, 2**40),
    outcomes=st.integers(0, 2**40),
    successes=st.integers(0, 2**40),
    recent_uses=st.floats(0, 1e12),
    recent_outcomes=st.floats(0, 1e12),
    recent_successes=st.floats(0, 1e12),
    recent_at_us=st.integers(0, 2**62),
    epoch=st.sampled_from(["", "a", "b"]),
    epochs=st.dictionaries(
        st.sampled_from("ab"),
        st.builds(EpochCounts, outcomes=st.integers(0, 2**40), successes=st.integers(0, 2**40)),
    ),
)


_FADED = AdapterStatistics(recent_outcomes=3.2442131208741293e-198, recent_at_us=1)


@settings(deadline=None, derandomize=True, max_examples=300)
@example(now=_FADED, before=AdapterStatistics(), now_us=0)
@given(now=_COUNTS, before=_COUNTS, now_us=st.integers(0, 2**62))
def test_no_counts_that_an_adapter_may_have_break_a_pass_or_a_trial(now: AdapterStatistics, before: AdapterStatistics, now_us: int) -> None:
    """More successes than outcomes, which nobody counted: whoever wrote them, the others are judged all the same."""
    adapter = registry_pb2.Adapter(adapter_id="a", name="n", statistics=now, restored_baseline=before, restored_at_us=1)
    prunes([view_of(adapter, "", 100.0, now_us)], Rules())
    arm = arm_of(now, before)
    assert 0 <= arm.successes <= arm.outcomes
    judge({"a": Stratum(arm, arm, arm, arm)}, 0.0, TrialRules())
