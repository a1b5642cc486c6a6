"""Places for calls: no more than there are, no more than a caller's share, and all given back."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoa.access.places import Places
from smoa.errors import ResourceExhausted


@settings(deadline=None, derandomize=True, max_examples=300)
@given(total=st.integers(1, 12), each=st.integers(1, 12), calls=st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_places_are_bounded_in_all_and_for_each(total: int, each: int, calls: list[tuple[str, bool]]) -> None:
    places, held = Places(total, each), dict[str, list[ExitStack]]()
    for caller, begins in calls:
        mine = held.setdefault(caller, [])
        if not begins:
            if mine:
                mine.pop().close()
            continue
        room = len(mine) < each and sum(map(len, held.values())) < total
        stack = ExitStack()
        if not room:
            with pytest.raises(ResourceExhausted, match=f"calls: {caller} has " if len(mine) >= each else "calls: "):
                stack.enter_context(places.held(caller))
            continue
        stack.enter_context(places.held(caller))
        mine.append(stack)
        assert places.taken == sum(map(len, held.values()))
    for mine in held.values():
        for stack in mine:
            stack.close()
    assert places.taken == 0


def test_more_is_held_and_given_back_as_it_comes_and_goes() -> None:
    places = Places(10, 6, "bytes")
    with places.held("a", 0) as more:
        more(4)
        with pytest.raises(ResourceExhausted, match="bytes: a has 4 of its 6 at once"):
            more(3)
        more(-3)
        more(5)
        assert places.taken == 6
        with places.held("b", 4), pytest.raises(ResourceExhausted, match="bytes: 10 of 10 are taken"), places.held("c"):
            pass
    assert places.taken == 0


def test_a_place_is_given_back_after_an_error() -> None:
    places = Places(1, 1)
    with pytest.raises(ZeroDivisionError), places.held("a"):
        raise ZeroDivisionError
    with places.held("b"):
        assert places.taken == 1
