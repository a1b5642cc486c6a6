"""What is judged: counts that cover the window, and what came since an adapter was restored."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.optimizer.control.views import facts_of, lifetime_of, protection_of, stratum_of, view_of
from services.optimizer.policy.library_policy import Rules, prunes, totals_of
from services.optimizer.policy.trial import Arm, Stratum, TrialRules, judge
from smoa.v1 import registry_pb2
from smoa.v1.registry_pb2 import AdapterStatistics, EpochCounts
from smoa.v1.state_pb2 import AdapterCounts

DAY_US = 86400 * 10**6
NOW_US = 100 * DAY_US
WEEK_S = 7 * 86400.0


def protection(adapter: registry_pb2.Adapter, counted_since_us: int | None) -> str:
    return protection_of(facts_of(adapter, WEEK_S), set(), set(), counted_since_us, WEEK_S, NOW_US)


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
    view = view_of(facts_of(adapter, WEEK_S), "", WEEK_S, NOW_US)
    assert (view.uses, view.outcomes, view.successes, view.age_s) == (30, 30, 28, 8 * 86400.0)
    assert view.recent_uses == pytest.approx(25.0)
    adapter.statistics.epoch = "f"  # its recent counts hold nothing of before
    assert view_of(facts_of(adapter, WEEK_S), "", WEEK_S, NOW_US).recent_uses == pytest.approx(40.0 * 0.5 ** (8 / 7) + 25.0)


def test_a_trial_is_judged_by_both_sides_and_no_user_of_a_shared_parent_alone_decides() -> None:
    parent = registry_pb2.Adapter(adapter_id="a", tenant="owner", shared=True)
    counts = AdapterCounts()
    for side, key, outcomes, successes in (
        ("stood_for", "owner/a", 40, 36),
        ("stood_for", "owner/b", 9, 9),
        ("stood_for", "liar/a", 1000, 0),
        ("control", "owner/a", 80, 72),
        ("control", "user/a", 10, 9),
        ("control", "x/a/a", 5, 5),
    ):
        tally = getattr(counts, side)[key]
        tally.outcomes, tally.successes = outcomes, successes
    began = AdapterStatistics(outcomes=100, successes=90, aside_outcomes=10)
    stratum = stratum_of(counts, parent, began)
    assert stratum.child.outcomes == pytest.approx(50), "a fifth of them at most are a liar's"
    assert stratum.child.successes == 36
    assert (stratum.parent, stratum.before) == (Arm(95, 86), Arm(90, 90))


def test_what_was_set_aside_judges_nobody() -> None:
    adapter = registry_pb2.Adapter(adapter_id="a", name="n")
    adapter.statistics.CopyFrom(AdapterStatistics(outcomes=50, successes=40, aside_outcomes=10, aside_successes=1, epoch="e"))
    view = view_of(facts_of(adapter, WEEK_S), "", WEEK_S, NOW_US)
    assert (view.outcomes, view.successes) == (40, 39)
    assert lifetime_of(adapter.statistics) == Arm(40, 39)


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
    views = [view_of(facts_of(adapter, 100.0), "", 100.0, now_us)]
    prunes(views, totals_of(views), Rules())
    arm = lifetime_of(now)
    assert 0 <= arm.successes <= arm.outcomes
    judge({"a": Stratum(arm, arm, arm, arm)}, 0.0, TrialRules())
