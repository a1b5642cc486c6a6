"""The batched sampler against the definitions of what it does, written out slowly here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.executor.engine.sampling import COLDEST, Pick, Sampler, Sampling, TokenPicker
from smoa.errors import FailedPrecondition


def changed(logits: Sequence[float], sampling: Sampling, prompt: Collection[int], answer: Sequence[int]) -> list[float]:
    """Logits after bias and penalties, by their definitions."""
    counts, prompt = Counter(answer), set(prompt)
    values: list[float] = []
    for token, logit in enumerate(logits):
        value = logit + sampling.logit_bias.get(token, 0.0)
        if token in counts or token in prompt:
            value = value / sampling.repetition_penalty if value > 0 else value * sampling.repetition_penalty
        values.append(value - sampling.presence_penalty * (token in counts) - sampling.frequency_penalty * counts[token])
    return values


def probabilities(logits: Sequence[float], sampling: Sampling, prompt: Collection[int] = (), answer: Sequence[int] = ()) -> list[float]:
    """What each token is to be drawn with. Equals stay or go together."""
    values = changed(logits, sampling, prompt, answer)
    highest = max(values)
    weights = [math.exp((value - highest) / sampling.temperature) for value in values]
    weights = [weight if weight >= sampling.min_p else 0.0 for weight in weights]
    if sampling.top_k:
        last = sorted(weights, reverse=True)[min(sampling.top_k, len(weights)) - 1]
        weights = [weight if weight >= last else 0.0 for weight in weights]
    if sampling.top_p < 1:
        bound = sampling.top_p * sum(weights)
        weights = [weight if weight and sum(other for other in weights if other > weight) < bound else 0.0 for weight in weights]
    total = sum(weights)
    return [weight / total for weight in weights]


def pick(logits: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """One token for each sampler, whose logits are the row of its number."""
    picks = TokenPicker(len(samplers)).pick(logits, logits.argmax(-1).tolist(), range(len(samplers)), samplers)
    return [one.token for one in picks if isinstance(one, Pick)]


def draws(logits: Tensor, sampling: Sampling, count: int, prompt: Sequence[int] = ()) -> Counter[int]:
    """How often each token comes of one row of logits, over so many seeds."""
    return Counter(pick(logits.expand(count, -1), [Sampler(replace(sampling, seed=seed), prompt) for seed in range(count)]))


class _Even(Sampler):
    """Its random numbers lie evenly, so that frequencies are probabilities to a hair."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], number: float) -> None:
        super().__init__(sampling, prompt)
        self._number = number

    def uniform(self, attempt: int) -> float:
        return self._number


def random_logits(seed: int, vocabulary: int, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed))


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
TOKENS = st.lists(st.integers(0, 9), max_size=6)
SETTINGS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.05, 0.5, 1.0, 3.0]),
        "top_k": st.sampled_from([0, 0, 2, 7, 40, 1000]),
        "min_p": st.sampled_from([0.0, 0.0, 0.03, 0.4, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 0.5, 1.3, 5.0]),
        "presence_penalty": st.sampled_from([0.0, -2.0, 0.7]),
        "frequency_penalty": st.sampled_from([0.0, -0.4, 1.1]),
        "logit_bias": st.dictionaries(st.integers(0, 9), st.sampled_from([-100.0, -1.5, 2.0, 100.0]), max_size=4),
    }
)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([10, 128, 129, 300]), SETTINGS, TOKENS, TOKENS)
def test_tokens_come_with_the_probabilities_of_the_definitions(
    device: str, seed: int, vocabulary: int, fields: dict[str, Any], prompt: list[int], answer: list[int]
) -> None:
    logits, sampling, rows = random_logits(seed, vocabulary), Sampling(**fields), 200
    samplers = [_Even(sampling, prompt, (row + 0.5) / rows) for row in range(rows)]
    for sampler in samplers:
        for token in answer:
            sampler.take(token)
    found = Counter(pick(logits.expand(rows, -1).to(device), samplers))
    for token, probability in enumerate(probabilities(logits.tolist(), sampling, prompt, answer)):
        assert abs(found[token] - rows * probability) <= 1.001, (token, found[token], rows * probability)
        assert probability or not found[token]


@pytest.mark.parametrize("top_k", [2, 64, 65, 1000])
@pytest.mark.parametrize("device", DEVICES)
def test_top_k_of_a_large_vocabulary(device: str, top_k: int) -> None:
    """A small one is looked for in the best blocks of the vocabulary."""
    logits, sampling, rows = random_logits(2, 16_500), Sampling(temperature=2.0, top_k=top_k, min_p=0.01, logit_bias={16_499: 20.0}), 60
    samplers = [_Even(sampling, (), (row + 0.5) / rows) for row in range(rows)]
    found = Counter(pick(logits.expand(rows, -1).to(device), samplers))
    for token, probability in enumerate(probabilities(logits.tolist(), sampling)):
        assert abs(found[token] - rows * probability) <= 1.001
        assert probability or not found[token]


@pytest.mark.parametrize(
    "fields",
    [
        {"top_p": 0.9},
        {"top_p": 0.5},
        {"top_p": 0.05},
        {"top_p": 0.95, "temperature": 2.0},
        {"top_p": 0.8, "top_k": 12},
        {"top_p": 0.7, "min_p": 0.1},
        {"top_p": 0.9, "repetition_penalty": 1.5, "logit_bias": {3: 4.0}},
        {"temperature": 0.7},
    ],
)
def test_draws_fit_the_definition(fields: dict[str, Any]) -> None:
    """Chi-square of 8,000 draws: over six standard deviations would be a fault; a token outside the nucleus is one at once."""
    logits, sampling, count = random_logits(1, 300), Sampling(**{"temperature": 1.0, **fields}), 8000
    found, expected = draws(logits, sampling, count, prompt=(3, 5)), probabilities(logits.tolist(), sampling, (3, 5))
    assert all(expected[token] for token in found)
    common = [token for token, probability in enumerate(expected) if count * probability >= 5]
    rare, rarely = count - sum(found[token] for token in common), count * (1 - sum(expected[token] for token in common))
    terms = [(found[token] - count * expected[token]) ** 2 / (count * expected[token]) for token in common]
    if rarely > 1:
        terms.append((rare - rarely) ** 2 / rarely)
    freedom = max(1, len(terms) - 1)
    assert sum(terms) < freedom + 6 * math.sqrt(2 * freedom)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(1e-6, 0.999999), st.sampled_from([0.3, 1.0, 8.0]), st.integers(0, 60), st.booleans())
def test_a_nucleus_is_the_smallest_set_with_its_share(seed: int, top_p: float, temperature: float, top_k: int, equals: bool) -> None:
    logits = random_logits(seed, 200)
    if equals:  # many with the same probability: they are in or out together
        logits = logits.round()
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    found = draws(logits, sampling, 64)
    wider = probabilities(logits.tolist(), replace(sampling, top_p=min(1.0, top_p * (1 + 1e-5))))
    assert all(wider[token] for token in found)


def test_a_large_flat_vocabulary_needs_few_draws() -> None:
    logits = random_logits(0, 150_000, spread=0.1)
    asked: list[int] = []

    class Counting(Sampler):
        def uniform(self, attempt: int) -> float:
            asked.append(attempt)
            return super().uniform(attempt)

    for top_p in (1e-5, 0.001, 0.1, 0.9):
        asked.clear()
        assert len(pick(logits.expand(8, -1), [Counting(Sampling(temperature=1.0, top_p=top_p, seed=seed)) for seed in range(8)])) == 8
        assert max(asked) < 40, "each rejected draw halves what is left outside the nucleus, on average"


MIXED = [
    Sampling(),
    Sampling(temperature=1.0, seed=5),
    Sampling(temperature=0.7, top_p=0.9, seed=2**64 - 1),
    Sampling(temperature=1.5, top_k=30, top_p=0.6, seed=6),
    Sampling(temperature=1.0, min_p=0.05, seed=7),
    Sampling(repetition_penalty=1.3, frequency_penalty=0.2, logprobs=3),
    Sampling(temperature=1.2, presence_penalty=1.0, logit_bias={4: 2.0}, logprobs=0, seed=8),
]


def test_a_row_is_the_same_alone_and_in_any_batch() -> None:
    """To the bit: whoever is beside it, wherever it stands, and however many steps the others have made."""
    vocabulary, steps = 49_152, 12
    logits = torch.stack([random_logits(step, vocabulary) for step in range(steps)])

    def alone(sampling: Sampling) -> list[Pick | FailedPrecondition]:
        sampler, picker = Sampler(sampling, (1, 2, 3)), TokenPicker(1)
        return [picker.pick(logits[step : step + 1], [int(logits[step].argmax())], [0], [sampler])[0] for step in range(steps)]

    expected = [alone(sampling) for sampling in MIXED]
    picker = TokenPicker(len(MIXED))
    samplers, done = [Sampler(sampling, (1, 2, 3)) for sampling in MIXED], [0] * len(MIXED)
    order = torch.Generator().manual_seed(0)
    while min(done) < steps:
        chosen = [i for i in torch.randperm(len(MIXED), generator=order).tolist()[:4] if done[i] < steps]
        batch = torch.stack([logits[done[i]] for i in chosen] + [torch.full((vocabulary,), torch.nan)])
        picks = picker.pick(batch, batch.argmax(-1).tolist(), range(len(chosen)), [samplers[i] for i in chosen])
        for i, one in zip(chosen, picks, strict=True):
            assert one == expected[i][done[i]]
            done[i] += 1


def test_seeds_and_places_give_numbers_that_have_nothing_to_do_with_each_other() -> None:
    sampler = Sampler(Sampling(temperature=1.0, seed=1))
    numbers = [Sampler(Sampling(temperature=1.0, seed=seed)).uniform(0) for seed in range(4000)]
    numbers += [sampler.uniform(attempt) for attempt in range(4000)]
    for _ in range(4000):
        sampler.take(0)
        numbers.append(sampler.uniform(0))
    assert len(set(numbers)) == 11_999, "only seed 1's first one is there twice"
    assert all(0 < number < 1 for number in numbers)
    gaps = [abs(number - rank / len(numbers)) for rank, number in enumerate(sorted(numbers))]
    assert max(gaps) < 2 / math.sqrt(len(numbers)), "not uniform (Kolmogorov-Smirnov)"
    pairs = [(a - 0.5) * (b - 0.5) for a, b in pairwise(numbers)]
    assert abs(sum(pairs) / len(pairs)) < 5 / 12 / math.sqrt(len(pairs)), "neighbours are correlated"


@pytest.mark.parametrize("fields", [{}, {"temperature": 1e-38}, {"temperature": COLDEST / 2}, {"temperature": 2.0, "top_k": 1}])
def test_greedy_is_the_highest_after_penalties(fields: dict[str, Any]) -> None:
    logits, prompt = random_logits(3, 500, spread=1.0), list(range(0, 500, 2))
    assert pick(logits[None], [Sampler(Sampling(**fields))]) == [int(logits.argmax())]
    sampling = Sampling(**fields, repetition_penalty=1.4, presence_penalty=0.1, frequency_penalty=1.0, logit_bias={7: 1.0, 8: -1.0})
    sampler, answer, picker = Sampler(sampling, prompt), list[int](), TokenPicker(1)
    for _ in range(150):  # more tokens than there is room for at first
        (one,) = picker.pick(logits[None], [int(logits.argmax())], [0], [sampler])
        values = changed(logits.tolist(), sampling, prompt, answer)
        assert isinstance(one, Pick)
        assert values[one.token] >= max(values) - 1e-5
        answer.append(one.token)
    assert len(set(answer)) > 64


def test_of_equals_the_first_is_greedy() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0]])
    assert pick(logits, [Sampler(Sampling(logit_bias={3: 1.0}))]) == [1]
    assert pick(logits, [Sampler(Sampling(temperature=1.0, top_k=1, seed=9))]) == [1]


def test_a_bias_keeps_a_token_away_or_brings_it() -> None:
    logits = random_logits(4, 1000)
    best = int(logits.argmax())
    assert best not in draws(logits, Sampling(temperature=1.0, logit_bias={best: -100.0}), 500)
    assert set(draws(logits, Sampling(temperature=1.0, logit_bias={17: 100.0}), 500)) == {17}


def test_logits_stay_as_they_are() -> None:
    logits = torch.stack([random_logits(row, 1000) for row in range(len(MIXED))])
    before = logits.clone()
    pick(logits, [Sampler(sampling, (1, 2)) for sampling in MIXED])
    assert torch.equal(logits, before)


def test_rows_that_are_not_finite_fail_alone() -> None:
    good = random_logits(5, 300)
    logits = good.repeat(6, 1)
    logits[0, 299], logits[1] = torch.nan, torch.nan
    logits[2, 5], logits[3] = torch.inf, -torch.inf
    logits[4, torch.arange(300) != 11] = -torch.inf  # only one token is left, which is no error
    for sampling in MIXED:
        greedy = [0, 0, 5, 0, 11, int(good.argmax())]
        picks = TokenPicker(6).pick(logits, greedy, range(6), [Sampler(sampling) for _ in range(6)])
        failed = [isinstance(one, FailedPrecondition) for one in picks]
        assert failed[1:] == [True, True, True, False, False]
        assert failed[0] or sampling == Sampling(), "greedy rows are known by their highest logit only"
        assert isinstance(picks[4], Pick)
        assert picks[4].token == 11


def test_log_probabilities_are_the_models_own() -> None:
    logits = torch.stack([random_logits(row, 2000, spread=8.0) for row in range(4)])
    logits[1, 5] = -torch.inf
    options: dict[str, Any] = {"temperature": 5.0, "repetition_penalty": 2.0, "top_k": 3, "logit_bias": {9: 100.0}}
    wanted = [None, 0, 3, 20]
    samplers = [Sampler(Sampling(**options, logprobs=count, seed=1), (4, 5)) for count in wanted]
    picks = TokenPicker(4).pick(logits, logits.argmax(-1).tolist(), range(4), samplers)
    expected = logits.double().log_softmax(-1)
    for row, (one, count) in enumerate(zip(picks, wanted, strict=True)):
        assert isinstance(one, Pick)
        if count is None:
            assert one.logprob is None
            continue
        assert one.logprob is not None
        assert one.logprob.token == one.token == 9
        assert one.logprob.logprob == pytest.approx(expected[row, 9].item(), abs=1e-5)
        values, tokens = expected[row].topk(20)
        assert [told.token for told in one.logprob.alternatives] == tokens[:count].tolist()
        assert [told.logprob for told in one.logprob.alternatives] == pytest.approx(values[:count].tolist(), abs=1e-5)


def test_more_alternatives_than_tokens() -> None:
    (one,) = TokenPicker(1).pick(torch.zeros(1, 5), [0], [0], [Sampler(Sampling(logprobs=20))])
    assert isinstance(one, Pick)
    assert one.logprob is not None
    assert len(one.logprob.alternatives) == 5
