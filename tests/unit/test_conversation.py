"""What a conversation is about: what turns do to a belief, and how beliefs are remembered."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.catalogue.records import AdapterRef, Candidate
from services.router.learning.vague_lines import GROUPS, means_of_groups, vague_lines
from services.router.routing.conversation import KEPT, MOVES, NONE, VAGUE, Belief, Said, Sessions, follow
from services.router.routing.hearing import Heard
from services.router.routing.scoring import Scored

IDS = [f"a{number}" for number in range(16)]
KEY = ("public", "base", "session")


def _clear(adapter_id: str, in_scope: float | None = 0.97) -> Said:
    """A turn that can only be of one adapter's topic."""
    return Said(IDS, [0.0 if one == adapter_id else -10.0 for one in IDS], -10.0, in_scope)


VAGUELY = Said(IDS, [-1.0] * len(IDS), 8.0, 0.05)
STRANGE = Said(IDS, [-1.0] * len(IDS), -10.0, 0.01)


def _first(before: Belief | None, said: Said) -> tuple[str, Belief]:
    log_odds, after = follow(before, said)
    return said.adapter_ids[int(np.argmax(log_odds))], after


def test_what_was_settled_on_stays_over_turns_that_say_nothing() -> None:
    _, belief = _first(None, _clear("a3"))
    assert belief.settled
    for _ in range(5):
        first, belief = _first(belief, VAGUELY)
        assert first == "a3"
        assert belief.settled


def test_a_turn_that_speaks_for_another_moves_the_topic_and_the_next_follow_it() -> None:
    _, belief = _first(None, _clear("a3"))
    first, belief = _first(belief, _clear("a5"))
    assert first == "a5"
    assert _first(belief, VAGUELY)[0] == "a5"
    assert _first(belief, _clear("a3"))[0] == "a3"


def test_a_turn_that_speaks_a_little_for_another_moves_nothing() -> None:
    _, belief = _first(None, _clear("a3"))
    leaning = Said(IDS, [0.0 if one == "a5" else -1.5 for one in IDS], 3.0, 0.2)
    assert _first(None, leaning)[0] == "a5"
    assert _first(belief, leaning)[0] == "a3"


def test_turns_that_are_like_nothing_known_end_it() -> None:
    _, belief = _first(None, _clear("a3"))
    for _ in range(4):
        _, belief = _first(belief, STRANGE)
    assert not belief.settled


def test_a_first_turn_keeps_its_own_order() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 3, len(IDS)).tolist()
    log_odds, _ = follow(None, Said(IDS, odds, 2.0, 0.6))
    assert np.argsort(log_odds).tolist() == np.argsort(odds).tolist()


def test_it_is_the_forward_step_of_a_hidden_markov_model() -> None:
    """Written out for two adapters: transition, then emission, then normalised."""
    before, ids = Belief({"a": 0.7, "b": 0.1}, 0.2), ["a", "b"]
    said = Said(ids, [math.log(0.2), math.log(0.8)], -1.0, 0.75)
    log_odds, after = follow(before, said)
    own = np.array([0.25, 1.0])
    strange = own.mean() / 3
    vague = 0.99 * math.exp(-1) + 0.01 * strange
    moved = np.array([*((1 - MOVES) * np.array([0.7, 0.1]) + MOVES * (1 - NONE) / 2), (1 - MOVES) * 0.2 + MOVES * NONE])
    joint = moved * ((1 - VAGUE) * np.array([*own, strange]) + VAGUE * vague)
    assert np.exp(log_odds) == pytest.approx(joint[:2])
    assert [after.shares["a"], after.shares["b"], after.none] == pytest.approx(joint / joint.sum())


def test_a_turn_that_nobody_can_answer_says_nothing() -> None:
    before = Belief({"a": 0.9}, 0.1)
    assert follow(before, Said([], [])) == ([], before)
    assert follow(None, Said([], [])) == ([], Belief({}, 1.0))


def test_while_a_conversation_is_about_nothing_a_line_speaks_for_itself() -> None:
    def scored(adapter_id: str, log_odds: float) -> Scored:
        return Scored(0.5, Candidate(AdapterRef(adapter_id, 1, ""), 0.5), log_odds)

    line = Heard(np.ones(2, np.float32), None, [scored("b", 0.0), scored("a", -0.2)])
    unsettled = line.following(Belief({"a": 0.3}, 0.65), -4.0, 0.3)
    assert unsettled.after is not None
    assert not unsettled.after.settled
    assert unsettled.together is None
    settled = line.following(Belief({"a": 0.95}, 0.05), 4.0, 0.1)
    assert settled.together is not None
    assert [one.candidate.ref.adapter_id for one in settled.together] == ["a", "b"]
    assert [one.candidate.ref.adapter_id for one in settled.ranked] == ["b", "a"]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(-1e6, 1e6), st.none() | st.floats(0, 1)),
        min_size=1,
        max_size=6,
    )
)
def test_beliefs_are_probabilities_of_a_bounded_number(turns: list[tuple[list[float], float, float | None]]) -> None:
    belief = None
    for odds, vague, in_scope in turns:
        log_odds, belief = follow(belief, Said([f"a{place}" for place in range(len(odds))], odds, vague, in_scope))
        assert np.isfinite(log_odds).all()
        assert len(belief.shares) <= KEPT
        assert all(0 < one <= 1 for one in belief.shares.values())
        assert sum(belief.shares.values()) + belief.none <= 1 + 1e-9
        assert 0 <= belief.none <= 1


def test_sessions_are_kept_apart_and_end_after_a_time() -> None:
    now_s = 0.0
    sessions = Sessions(1_000_000, 60.0, lambda: now_s)
    belief = Belief({"a": 0.9}, 0.1)
    sessions.keep(KEY, b"one", None, belief)
    assert sessions.before(KEY, b"two") == belief
    for place in range(3):
        other = tuple("another" if number == place else part for number, part in enumerate(KEY))
        assert sessions.before((other[0], other[1], other[2]), b"two") is None
    now_s = 59.0
    assert sessions.before(KEY, b"two") == belief
    now_s = 61.0
    assert sessions.before(KEY, b"two") is None
    assert len(sessions) == 0


def test_a_turn_that_is_sent_again_counts_once() -> None:
    """A caller whose deadline passed asks again; the router may have answered."""
    sessions = Sessions(1_000_000, 60.0)
    first, second = Belief({"a": 0.9}, 0.1), Belief({"b": 0.8}, 0.2)
    sessions.keep(KEY, b"one", None, first)
    assert sessions.before(KEY, b"one") is None
    sessions.keep(KEY, b"two", first, second)
    assert sessions.before(KEY, b"two") == first
    assert sessions.before(KEY, b"three") == second


def test_sessions_are_bounded_in_bytes() -> None:
    sessions = Sessions(100_000, 60.0)
    for number in range(10_000):
        sessions.keep(("public", "base", str(number)), b"one", None, Belief(dict.fromkeys(IDS[:KEPT], 0.1), 0.2))
    assert sessions._kept.bytes <= 100_000
    assert sessions.before(("public", "base", "9999"), b"two") is not None
    assert sessions.before(("public", "base", "0"), b"two") is None


def test_the_lines_are_many_and_no_two_alike() -> None:
    lines = vague_lines()
    assert len(lines) == len(set(lines)) > 200
    assert all(line == line.strip() and line for line in lines)


def test_groups_have_the_means_of_their_vectors() -> None:
    rng = np.random.default_rng(0)
    centres = 10 * rng.standard_normal((GROUPS, 16)).astype(np.float32)
    vectors = np.repeat(centres, 20, 0) + 0.01 * rng.standard_normal((20 * GROUPS, 16)).astype(np.float32)
    means = means_of_groups(vectors)
    distances = np.linalg.norm(means[:, None] - centres[None], axis=2)
    assert sorted(distances.argmin(1).tolist()) == list(range(GROUPS))
    assert distances.min(1).max() < 0.1
