"""Accounts of tenants: nobody gains by being away, and the memory of it is bounded."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from smoa.fairness import Fairness


def test_a_newcomer_starts_level_and_a_debt_is_kept() -> None:
    accounts = Fairness()
    for tenant in ("heavy", "light"):
        accounts.enter(tenant)
    accounts.serve("heavy", 100)
    accounts.serve("light", 10)
    accounts.leave("heavy")
    accounts.enter("new")
    accounts.serve("new", 1)
    accounts.enter("heavy")
    assert accounts.by_turn(["heavy", "light", "new"]) == ["light", "new", "heavy"]
    accounts.serve("new", 1)
    assert accounts.by_turn(["heavy", "light", "new"])[-1] == "heavy"


def test_when_all_were_away_the_one_served_most_is_still_last() -> None:
    accounts = Fairness()
    for tenant in ("heavy", "light"):
        accounts.enter(tenant)
    accounts.serve("heavy", 100)
    accounts.serve("light", 10)
    accounts.leave("heavy")
    accounts.leave("light")
    for tenant in ("heavy", "light", "new"):
        accounts.enter(tenant)
    assert accounts.by_turn(["heavy", "light", "new"])[-1] == "heavy"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 50)), max_size=200))
def test_nobody_is_ever_below_the_level_and_few_accounts_are_kept(steps: list[tuple[str, int]]) -> None:
    accounts, there = Fairness(most_away=2), list[str]()
    for tenant, cost in steps:
        if tenant not in there:
            accounts.enter(tenant)
            there.append(tenant)
        elif cost % 3:
            accounts.serve(tenant, cost)
        else:
            accounts.leave(tenant)
            there.remove(tenant)
        accounts.check_integrity(there)
        assert all(accounts._served[one] >= accounts._level for one in there[:1] if len(there) == 1)
        assert len(accounts._served) <= len(there) + 2 * 2 + 1
