"""Tests sampling: greedy rows, reproducible seeds, and correct distributions.

In any batch, a row's token depends only on its logits, its settings and its number of tokens. top_p keeps
the smallest set that reaches it. Extreme settings work.
"""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import assume, given, strategies as st
from torch import Tensor

from ladder.llm.loading import Model
from ladder.llm.sampling import SamplingBatch, SamplingSettings, keep_nucleus, sample, uniform
from ladder.web.schema import GenerateRequest
from ladder.web.sequence import Sequence, sample_one

VOCABULARY = 50

seeds = st.integers(-(2**70), 2**70)
requests = st.builds(
    SamplingSettings,
    temperature=st.one_of(st.just(0.0), st.floats(0.01, 2.0)),
    top_p=st.floats(0.01, 1.0),
    seed=seeds,
)


def random_logits(rows: int, key: int, vocabulary: int = VOCABULARY) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(key)) * 3


def draw(logits: Tensor, rows: list[SamplingSettings], counts: list[int] | None = None) -> list[int]:
    tokens: list[int] = sample(logits, SamplingBatch(rows), counts or [0] * len(rows)).tolist()
    return tokens


def draw_many(logits: Tensor, number: int, temperature: float = 1.0, top_p: float = 1.0) -> Counter[int]:
    """One token per seed, all from the same logits."""
    rows = [SamplingSettings(temperature, top_p, seed) for seed in range(number)]
    return Counter(draw(logits.expand(number, -1), rows))


def chi_square(counts: Counter[int], probabilities: list[float], number: int) -> float:
    return sum((counts[i] - number * p) ** 2 / (number * p) for i, p in enumerate(probabilities))


def upper_bound(degrees: int) -> float:
    """The mean of a chi-square variable and five standard deviations more."""
    return degrees + 5 * math.sqrt(2 * degrees)


@given(rows=st.lists(requests, min_size=1, max_size=6), key=st.integers(0, 10**6))
def test_temperature_zero_is_greedy_in_any_batch(rows: list[SamplingSettings], key: int) -> None:
    logits = random_logits(len(rows), key)
    likeliest = logits.argmax(-1).tolist()
    tokens = draw(logits, rows)
    for row, token, best in zip(rows, tokens, likeliest, strict=True):
        if row.temperature == 0:
            assert token == best


@given(
    row=requests,
    count=st.integers(0, 5000),
    before=st.lists(requests, max_size=4),
    after=st.lists(requests, max_size=4),
    key=st.integers(0, 10**6),
)
def test_a_seeded_row_gets_the_same_token_alone_and_in_any_batch(
    row: SamplingSettings,
    count: int,
    before: list[SamplingSettings],
    after: list[SamplingSettings],
    key: int,
) -> None:
    logits = random_logits(len(before) + 1 + len(after), key)
    place = len(before)
    counts = [7] * len(before) + [count] + [9] * len(after)
    together = draw(logits, [*before, row, *after], counts)
    assert together[place] == draw(logits[place : place + 1], [row], [count])[0]


def naive_nucleus(probabilities: list[float], top_p: float) -> set[int]:
    """The likeliest tokens, in order, until their sum reaches top_p."""
    kept: set[int] = set()
    mass = 0.0
    for token in sorted(range(len(probabilities)), key=lambda i: -probabilities[i]):
        kept.add(token)
        mass += probabilities[token]
        if mass >= top_p:
            break
    return kept


@given(logits=st.lists(st.floats(-8, 8), min_size=2, max_size=20, unique=True), top_p=st.floats(0.01, 0.99))
def test_top_p_keeps_exactly_the_smallest_set(logits: list[float], top_p: float) -> None:
    weights = torch.tensor([logits]).softmax(-1)
    masses = weights.sort(descending=True).values.cumsum(-1)
    assume(float((masses - top_p).abs().min()) > 1e-5)  # at the boundary, rounding decides
    expected = naive_nucleus(weights[0].tolist(), top_p)
    kept = keep_nucleus(weights.clone(), torch.tensor([[top_p]]))[0]
    assert {i for i, weight in enumerate(kept.tolist()) if weight > 0} == expected
    for token in expected:
        assert kept[token] == weights[0, token]


def test_top_p_draws_only_kept_tokens() -> None:
    logits = random_logits(1, key=1)
    kept = naive_nucleus(logits[0].softmax(-1).tolist(), 0.8)
    assert 2 < len(kept) < VOCABULARY / 2
    assert set(draw_many(logits, 4000, top_p=0.8)) == kept


def test_each_row_has_its_own_top_p() -> None:
    logits = random_logits(1, key=2).expand(2000, -1)
    rows = [SamplingSettings(1.0, 1e-6 if seed % 2 else 1.0, seed) for seed in range(2000)]
    tokens = draw(logits, rows)
    assert set(tokens[1::2]) == {int(logits[0].argmax())}
    assert len(set(tokens[::2])) > 10


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_many_seeds_follow_the_softmax_distribution(temperature: float) -> None:
    logits = torch.linspace(-1.5, 1.5, 12).unsqueeze(0)
    probabilities = (logits[0] / temperature).softmax(-1).tolist()
    counts = draw_many(logits, 20_000, temperature)
    assert chi_square(counts, probabilities, 20_000) < upper_bound(11)


def test_the_steps_of_one_request_are_independent_draws() -> None:
    """Pairs would not be uniform if a row repeated its number or stepped through the unit interval."""
    numbers = uniform(SamplingBatch([SamplingSettings(seed=3)] * 20_000).seeds, range(20_000))
    pairs = Counter(int(8 * a) * 8 + int(8 * b) for a, b in zip(numbers[::2], numbers[1::2], strict=True))
    assert chi_square(pairs, [1 / 64] * 64, 10_000) < upper_bound(63)


def test_a_request_draws_a_new_number_for_every_token(bundled: Model) -> None:
    sequence = Sequence(bundled, GenerateRequest(prompt="a", temperature=1.0, seed=1, max_tokens=20))
    while not sequence.finish_reason:
        sequence.append(sample_one(sequence, torch.zeros(1, 1024), started=0.0))
    assert len(set(sequence.token_ids)) > 10


def test_neighbouring_seeds_are_independent_draws() -> None:
    rows = [SamplingSettings(seed=seed) for seed in range(20_000)]
    numbers = uniform(SamplingBatch(rows).seeds, [0] * 20_000)
    pairs = Counter(int(8 * a) * 8 + int(8 * b) for a, b in zip(numbers[::2], numbers[1::2], strict=True))
    assert chi_square(pairs, [1 / 64] * 64, 10_000) < upper_bound(63)


def test_without_a_seed_two_requests_differ() -> None:
    logits = torch.zeros(1, 2**20)
    (first,), (second,) = (draw(logits, [SamplingSettings(1.0)]) for _ in range(2))
    assert first != second


@given(seed=seeds)
def test_seeds_are_equal_modulo_two_to_the_64(seed: int) -> None:
    row, same = SamplingSettings(1.0, 1.0, seed), SamplingSettings(1.0, 1.0, seed % 2**64)
    logits = random_logits(1, key=4)
    assert draw(logits, [row]) == draw(logits, [same])


@given(temperature=st.sampled_from([5e-324, 1e-50, 1e-40, 1e-30, 1e-10, 1e-6]), seed=seeds)
def test_a_tiny_temperature_is_almost_greedy(temperature: float, seed: int) -> None:
    logits = random_logits(1, key=5)
    assert draw(logits, [SamplingSettings(temperature, 1.0, seed)]) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("top_p", [5e-324, 1e-50, 1e-44, 1e-7])
def test_a_tiny_top_p_keeps_only_the_likeliest_token(top_p: float) -> None:
    logits = random_logits(1, key=6)
    assert draw_many(logits, 50, top_p=top_p).keys() == {int(logits.argmax())}


def test_equal_logits_are_drawn_equally_often() -> None:
    counts = draw_many(torch.full((1, 16), 7.0), 16_000, temperature=0.7)
    assert chi_square(counts, [1 / 16] * 16, 16_000) < upper_bound(15)


def test_top_p_keeps_its_share_of_equal_logits() -> None:
    assert len(draw_many(torch.zeros(1, 16), 2000, top_p=0.5)) == 8


@pytest.mark.parametrize("temperature", [2.0, 1e-3, 1e-30])
def test_huge_logits_and_masked_tokens_work(temperature: float) -> None:
    logits = torch.tensor([[3e38, -3e38, float("-inf"), 3e38]])
    assert draw_many(logits, 200, temperature).keys() == {0, 3}


def test_every_bit_of_a_seed_changes_the_draw() -> None:
    rows = [SamplingSettings(seed=2**bit) for bit in range(64)]
    assert len(set(uniform(SamplingBatch(rows).seeds, [0] * 64).tolist())) == 64


@given(row=requests, logit=st.floats(-(2.0**100), 2.0**100, width=32))
def test_a_vocabulary_of_one_always_gives_that_token(row: SamplingSettings, logit: float) -> None:
    assert draw(torch.tensor([[logit]]), [row]) == [0]


def test_a_large_vocabulary_in_bfloat16_gives_valid_tokens() -> None:
    logits = random_logits(64, key=7, vocabulary=151_936).bfloat16()
    rows = [SamplingSettings(2.0, 0.999 if seed % 2 else 1.0, seed) for seed in range(64)]
    assert all(0 <= token < 151_936 for token in draw(logits, rows))


def test_random_numbers_stay_below_one() -> None:
    """The largest number is 1 - 2 ** -24. Scaled by the sum of the weights, it still selects a token."""
    seeds = SamplingBatch([SamplingSettings(seed=seed) for seed in range(100_000)]).seeds
    numbers = uniform(seeds, [0] * 100_000)
    assert numbers.min() >= 0
    assert 0.9999 < numbers.max() < 1
