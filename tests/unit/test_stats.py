"""Intervals over few numbers: values known from tables, edges, and coverage by simulation."""

from __future__ import annotations

import math
import random

import pytest

from autotune.measure.stats import BOOTSTRAP_FROM, rate_interval, ratio_interval, t_quantile, typical
from autotune.trial import Block


def block(samples: int = 64, elapsed_s: float = 0.5, marks: tuple[str, ...] = ()) -> Block:
    """A block of four steps."""
    return Block(steps=4, samples=samples, elapsed_s=elapsed_s, wait_s=0.0, marks=marks)


@pytest.mark.parametrize(
    ("probability", "df", "value"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.3027),
        (0.975, 3, 3.1824),
        (0.975, 4, 2.7764),
        (0.975, 9, 2.2622),
        (0.995, 4, 4.6041),
        (0.95, 30, 1.6973),
        (0.975, 1000, 1.9623),
    ],
)
def test_t_quantiles_are_those_of_printed_tables(probability: float, df: int, value: float) -> None:
    """Student's t quantiles agree with published tables to four decimals."""
    assert t_quantile(probability, df) == pytest.approx(value, abs=5e-5)


def test_few_pairs_get_students_t_interval() -> None:
    """Five pairs with known mean and spread give mean and t times standard error, on the log scale."""
    found = ratio_interval([0.08, 0.09, 0.10, 0.11, 0.12])
    half = 2.776445 * math.sqrt(0.00025 / 5)
    assert found.value == pytest.approx(math.exp(0.10))
    assert found.low == pytest.approx(math.exp(0.10 - half))
    assert found.high == pytest.approx(math.exp(0.10 + half))
    assert found.confidence == 0.95


def test_two_pairs_are_far_from_sure() -> None:
    """Two pairs that agree within 2 % still leave more than 12 % to each side: no sure gain."""
    found = ratio_interval([0.09, 0.11])
    assert found.low < 1.0
    assert found.low * 1.12 < found.value < found.high / 1.12


def test_more_confidence_is_wider() -> None:
    """An interval at 99 % encloses the one at 90 %, by t and by bootstrap."""
    for data in ([0.01, 0.05, -0.02, 0.03], [0.01, 0.05, -0.02, 0.03, 0.0, 0.02, 0.06, -0.01, 0.04]):
        wide, narrow = ratio_interval(data, confidence=0.99), ratio_interval(data, confidence=0.90)
        assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("steadiness", [0.0, 1e-6, 0.002])
def test_one_outlier_does_not_blow_the_interval_up(steadiness: float) -> None:
    """A far outlier among nine steady pairs leaves the interval between one and three times Student's t."""
    data = [x * steadiness for x in (1, -2, 3, 0, 2, -1, 1, -3)] + [0.25]
    centre = sum(data) / 9
    half = t_quantile(0.975, 8) * math.sqrt(sum((x - centre) ** 2 for x in data) / 8 / 9)
    found = math.log(ratio_interval(data).high) - centre
    assert half - 1e-12 <= found < 3 * half


def test_from_eight_pairs_on_the_bootstrap_can_widen_the_interval() -> None:
    """With heavy tails, eight pairs are often wider than Student's t, never narrower; seven are it."""
    rng = random.Random(3)
    wider = {7: 0, BOOTSTRAP_FROM: 0}
    for pairs in wider:
        for _ in range(40):
            data = [rng.gauss(0, 0.01) * rng.choice((1, 1, 1, 5)) for _ in range(pairs)]
            error = math.sqrt(sum((x - sum(data) / pairs) ** 2 for x in data) / (pairs - 1) / pairs)
            found = ratio_interval(data)
            excess = math.log(found.high / found.value) / (t_quantile(0.975, pairs - 1) * error)
            assert excess > 1 - 1e-9
            wider[pairs] += excess > 1.01
    assert wider[7] == 0
    assert wider[BOOTSTRAP_FROM] >= 10


def test_the_bootstrap_is_decided_by_its_seed() -> None:
    """Equal seeds give equal intervals; another seed gives another one."""
    rng = random.Random(4)
    data = [rng.gauss(0, 0.02) for _ in range(10)]
    assert ratio_interval(data, seed=1) == ratio_interval(data, seed=1)
    assert len({ratio_interval(data, confidence=0.99, resamples=300, seed=s).high for s in range(5)}) > 1


@pytest.mark.parametrize("pairs", [4, 5, 6, 8])
def test_nominal_95_percent_covers_the_truth_at_least_so_often(pairs: int) -> None:
    """Over 600 seeded draws the interval holds the true ratio in at least 93 % and is not absurdly wide."""
    rng = random.Random(pairs)
    covered, widths = 0, 0.0
    for _ in range(600):
        found = ratio_interval([rng.gauss(0.2, 0.03) for _ in range(pairs)], resamples=400)
        covered += found.low <= math.exp(0.2) <= found.high
        widths += math.log(found.high / found.low) / 2
    assert covered / 600 >= 0.93
    assert widths / 600 < 2 * 0.03


def test_a_single_ratio_has_no_interval() -> None:
    """One pair is refused rather than given a made-up width."""
    with pytest.raises(AssertionError, match="two pairs"):
        ratio_interval([0.1])


def test_a_rate_weighs_blocks_by_their_time() -> None:
    """The rate is all samples over all seconds, not the mean of the blocks' rates."""
    found = rate_interval([block(100, 1.0), block(100, 3.0)])
    assert found.value == pytest.approx(50.0)
    assert 0 < found.low < 50.0 < found.high


def test_equal_blocks_make_a_sure_rate() -> None:
    """Blocks that do not differ leave no width."""
    found = rate_interval([block()] * 4)
    assert found.low == found.value == found.high == 128.0


def test_one_block_gets_half_to_twice_its_rate() -> None:
    """A single block says nothing of spread, so the interval is wide by convention."""
    found = rate_interval([block(64, 0.5)])
    assert (found.low, found.value, found.high) == (64.0, 128.0, 256.0)


def test_a_rate_interval_covers_the_true_rate() -> None:
    """Over 600 seeded draws of six noisy blocks the interval holds the true rate in 93 to 97.5 %."""
    rng = random.Random(8)
    covered = 0
    for _ in range(600):
        found = rate_interval([block(64, 0.5 * rng.gauss(1, 0.05)) for _ in range(6)])
        covered += found.low <= 128.0 <= found.high
    assert 0.93 <= covered / 600 <= 0.975


NINE = [0.01, 0.02, 0.0, -0.01, 0.03, 0.01, 0.0, 0.02, 0.01]


@pytest.mark.parametrize(
    ("log_ratios", "out"),
    [
        (NINE, []),
        ([*NINE, -0.25], [9]),
        ([*NINE, 0.25], [9]),
        ([0.0, 0.001, 0.001, 0.0, 0.001, 0.0, 0.04], []),
        ([0.0, 0.001, 0.001, 0.0, 0.001, 0.0, 0.06], [6]),
        ([0.0] * 5 + [1.0], [5]),
        ([0.0] * 4 + [1.0], []),
        ([0.0] * 6 + [1.0] * 4, []),
    ],
    ids=["none", "slow", "fast", "near", "far enough", "five alike", "too few", "too many"],
)
def test_a_pair_far_from_all_others_is_an_outlier(log_ratios: list[float], out: list[int]) -> None:
    """Far by the others' spread and by 5 %, among six at least, and never more than three in ten."""
    found = typical(log_ratios)
    assert [index for index, counts in enumerate(found) if not counts] == out


def test_an_interval_without_draws_is_students() -> None:
    """No bootstrap widens it, however many pairs there are."""
    found = ratio_interval([*NINE, -0.25], resamples=0)
    data = [*NINE, -0.25]
    error = math.sqrt(sum((x - sum(data) / 10) ** 2 for x in data) / 9 / 10)
    assert math.log(found.high / found.value) == pytest.approx(t_quantile(0.975, 9) * error)
