"""The text assembler: what it sends never has to be taken back, and a stop string is never sent."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.engine.text import Answer, TextAssembler


def _bytes_decode(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


def _feed(text: str, stops: Sequence[str]) -> tuple[list[str], TextAssembler]:
    assembler = TextAssembler(_bytes_decode, stops)
    sent: list[str] = []
    for token in text.encode():
        sent.append(assembler.push(token))
        if assembler.stopped:
            break
    return [*sent, assembler.finish()], assembler


def _first_stop(text: str, stops: Sequence[str]) -> str:
    return text[: min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=len(text))]


def test_text_is_sent_as_it_comes() -> None:
    assert _feed("abc", [])[0] == ["a", "b", "c", ""]


def test_stop_over_token_boundaries_is_left_out() -> None:
    sent, assembler = _feed("hello END more", ["END"])
    assert ("".join(sent), assembler.stopped) == ("hello ", True)


def test_stop_inside_one_token() -> None:
    assembler = TextAssembler(lambda ids: "".join(["one ", "two\n\nthree"][id_] for id_ in ids), ["\n\n"])
    assert [assembler.push(0), assembler.push(1), assembler.finish()] == ["one ", "two", ""]
    assert assembler.stopped


def test_partial_stop_is_held_back_and_released_by_finish() -> None:
    sent, assembler = _feed("aEN", ["END"])
    assert (sent, assembler.stopped) == (["a", "", "", "EN"], False)


def test_partial_stop_is_released_when_it_turns_out_not_to_be_one() -> None:
    assert _feed("aENx", ["END"])[0] == ["a", "", "", "ENx", ""]


def test_overlapping_start_of_a_stop() -> None:
    assert "".join(_feed("aaab!", ["aab"])[0]) == "a"


def test_earliest_of_several_stops() -> None:
    assert "".join(_feed("a;b.c", [".", ";"])[0]) == "a"


def test_empty_stop_is_ignored() -> None:
    assert "".join(_feed("abc", [""])[0]) == "abc"


@pytest.mark.parametrize("text", ["é", "€", "😀", "a€b😀"])
def test_characters_split_over_tokens_are_sent_whole(text: str) -> None:
    sent, _ = _feed(text, [])
    assert "".join(sent) == text
    assert not any("\ufffd" in part for part in sent)


def test_half_a_character_at_the_end_is_released_by_finish() -> None:
    assembler = TextAssembler(_bytes_decode)
    assert [assembler.push(0x61), assembler.push(0xE2), assembler.finish()] == ["a", "", "\ufffd"]


@pytest.mark.parametrize(("max_tokens", "last"), [(2, b"END\xe2"), (9, b"END\xe2")])
def test_a_stop_beside_half_a_character_is_left_out(max_tokens: int, last: bytes) -> None:
    """One token may hold a whole stop string and the beginning of a character: whatever ends the answer, it ended there."""
    tokens = {1: b"so ", 2: last, 3: b""}
    answer = Answer(lambda ids: b"".join(tokens[one] for one in ids).decode("utf-8", "replace"), ["END"], {3}, max_tokens)
    sent, ended = zip(*(answer.push(token) for token in ((1, 2) if max_tokens == 2 else (1, 2, 3))), strict=True)
    assert "".join(sent) == "so "
    assert ended[-1] == "stop_string"


def test_stop_of_multi_byte_characters() -> None:
    assert "".join(_feed("price 5€ 6", ["€"])[0]) == "price 5"


def test_the_cost_of_a_token_does_not_grow_with_the_answer() -> None:
    decoded = 0

    def decode(ids: list[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return _bytes_decode(ids)

    assembler = TextAssembler(decode, ["END"])
    text = "a€b😀" * 500
    assert "".join([assembler.push(token) for token in text.encode()] + [assembler.finish()]) == text
    assert decoded < 12 * len(text.encode())


def _words(ids: list[int]) -> str:
    """As a word-level tokenizer decodes: spaces between words, nothing for the special token 0."""
    return " ".join(f"w{number}" for number in ids if number)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 3), max_size=20))
def test_words_keep_their_spaces_over_special_tokens(ids: list[int]) -> None:
    assembler = TextAssembler(_words)
    assert "".join([*map(assembler.push, ids), assembler.finish()]) == _words(ids)


TEXTS = st.text(st.sampled_from("ab€😀\n"), max_size=30)
STOPS = st.lists(st.text(st.sampled_from("ab€😀\n"), min_size=1, max_size=4), max_size=3)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXTS, st.text(st.sampled_from("ab€😀\n"), max_size=4))
def test_bytes_give_the_text_up_to_the_stop(text: str, stop: str) -> None:
    sent, assembler = _feed(text, [stop])
    assert "".join(sent) == _first_stop(text, [stop])
    assert assembler.stopped == (bool(stop) and stop in text)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.text(st.sampled_from("ab€\n"), max_size=5), max_size=12), STOPS)
def test_chunks_give_the_text_up_to_the_first_stop_to_complete(chunks: list[str], stops: list[str]) -> None:
    assembler = TextAssembler(lambda ids: "".join(chunks[id_] for id_ in ids), stops)
    sent, seen = "", ""
    for number, chunk in enumerate(chunks):
        seen += chunk
        sent += assembler.push(number)
        assert seen.startswith(sent)
        if assembler.stopped:
            break
    sent += assembler.finish()
    assert sent == _first_stop(seen, stops)
    assert assembler.stopped == any(stop in seen for stop in stops)
