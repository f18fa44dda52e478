"""Laws of the choice of a batch size: what no table of rates and no noise scale may bring about."""

from __future__ import annotations

import dataclasses

import pytest
from batch_worlds import noise
from hypothesis import given
from hypothesis import strategies as st
from strategies import workloads

from autotune.facts import WorkloadFacts
from autotune.outcome import Interval, NoiseScale
from autotune.recipe.goodput import LEAST_EFFICIENCY, BatchRate, choose_batch, efficiency

OBJECTIVES = st.sampled_from(("goodput", "throughput", "time"))
SCALES = st.floats(0.0, 1e6)


def noise_of(lower_bound: float) -> NoiseScale:
    """A noise scale with this lower bound, open above."""
    return noise(lower_bound, value=None, high=None)


NOISES = st.none() | SCALES.map(noise_of)


@st.composite
def tables(draw: st.DrawFn) -> tuple[WorkloadFacts, list[BatchRate]]:
    """A workload and rates of its own batch and of others, with intervals of their own."""
    facts = draw(workloads())
    sizes = {facts.batch_samples} | draw(st.sets(st.integers(1, 4096), max_size=6))
    measured = []
    for size in draw(st.permutations(sorted(sizes))):
        rate, spread = draw(st.floats(1.0, 1e5)), draw(st.floats(0.0, 0.3))
        interval = Interval(value=rate, low=rate / (1 + spread), high=rate * (1 + spread))
        measured.append(BatchRate(batch_size=size, samples_per_s=interval))
    return facts, measured


@given(tables(), NOISES, OBJECTIVES, st.none() | st.integers(1, 4096), st.none() | st.integers(1, 100))
def test_what_is_recommended_was_measured_and_is_no_worse(table, noise, objective, largest, epochs):
    """It is yours, or one without a cap that gains more than 3 %; and no larger than asked for."""
    facts, measured = table
    chosen = choose_batch(measured, noise, facts, objective=objective, max_batch_size=largest, epochs=epochs)
    assert [row.batch_size for row in chosen.rows] == sorted(rate.batch_size for rate in measured)
    if chosen.recommended == facts.batch_samples:
        assert chosen.gain == 1.0
    else:
        assert chosen.gain > 1.03
        assert chosen.row(chosen.recommended).caps == ()
        assert chosen.recommended > facts.batch_samples
        assert largest is None or chosen.recommended <= largest


@given(tables(), SCALES, st.none() | st.floats(1.0, 3.0))
def test_goodput_never_gives_up_a_fifth_of_what_a_sample_teaches(table, scale, over):
    """Whatever the rates: by the estimate of phi, or by its bound where the steps give no estimate."""
    facts, measured = table
    value = None if over is None else over * scale
    chosen = choose_batch(measured, dataclasses.replace(noise_of(scale), value=value), facts)
    likely = scale if value is None else value
    assert efficiency(chosen.recommended, facts.batch_samples, likely) >= LEAST_EFFICIENCY
    assert chosen.recommended <= 8 * facts.batch_samples


@given(tables(), NOISES, OBJECTIVES, st.randoms())
def test_the_order_of_the_rates_does_not_matter(table, noise, objective, rng):
    """The table is a set of measurements."""
    facts, measured = table
    shuffled = rng.sample(measured, len(measured))
    first, second = (choose_batch(m, noise, facts, objective=objective) for m in (measured, shuffled))
    assert (first.recommended, first.rows, first.limited_by) == (
        second.recommended,
        second.rows,
        second.limited_by,
    )


@given(tables(), SCALES, st.integers(-8, 8))
def test_a_machine_that_is_faster_throughout_changes_nothing(table, scale, exponent):
    """All rates times the same factor give the same choice; powers of two do not even round."""
    facts, measured = table
    factor = 2.0**exponent
    faster = [
        dataclasses.replace(
            rate,
            samples_per_s=Interval(
                value=rate.samples_per_s.value * factor,
                low=rate.samples_per_s.low * factor,
                high=rate.samples_per_s.high * factor,
            ),
        )
        for rate in measured
    ]
    one, other = (choose_batch(m, noise_of(scale), facts) for m in (measured, faster))
    assert (one.recommended, one.gain, one.limited_by) == (other.recommended, other.gain, other.limited_by)


@given(st.integers(1, 4096), st.integers(1, 4096), SCALES, SCALES)
def test_efficiency_is_one_at_home_and_falls_with_the_batch(batch, reference, scale, other):
    """It lies between 1 / k and 1 for larger batches, and rises with the noise scale."""
    assert efficiency(reference, reference, scale) == 1.0
    found = efficiency(batch, reference, scale)
    k = batch / reference
    assert min(1.0, 1 / k) * 0.999999 <= found <= max(1.0, 1 / k) * 1.000001
    low, high = sorted((scale, other))
    if batch >= reference:
        assert efficiency(batch, reference, low) <= efficiency(batch, reference, high) * 1.000001


@given(st.integers(1, 512), st.integers(1, 512), st.integers(1, 512), SCALES)
def test_efficiencies_chain(one, two, three, scale):
    """From one batch to a third is the same by way of a second."""
    chained = efficiency(two, one, scale) * efficiency(three, two, scale)
    assert chained == pytest.approx(efficiency(three, one, scale))
