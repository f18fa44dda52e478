"""The choice of a batch size, case by case: what is marked, which cap bit, and what it says."""

from __future__ import annotations

import dataclasses

import pytest
from batch_worlds import noise as exactly
from strategies import plain_workload

from autotune.errors import UsageError
from autotune.outcome import BatchChoice, Interval, NoiseScale
from autotune.recipe.goodput import BatchRate, choose_batch, efficiency

FACTS = plain_workload(batch_samples=64, dataset_samples=1_000_000)


def rates(noise: float = 0.01, **changes: float) -> list[BatchRate]:
    """Samples/s that saturate: 64 -> 1000, 128 -> 1600, 256 -> 2200, 512 -> 2600, 1024 -> 2800."""
    measured = {64: 1000.0, 128: 1600.0, 256: 2200.0, 512: 2600.0, 1024: 2800.0}
    measured |= {int(name.removeprefix("b")): rate for name, rate in changes.items()}
    return [
        BatchRate(
            batch_size=size,
            samples_per_s=Interval(value=rate, low=rate * (1 - noise), high=rate * (1 + noise)),
            peak_bytes=size << 20,
        )
        for size, rate in measured.items()
    ]


def noise(lower_bound: float) -> NoiseScale:
    """A noise scale with this lower bound."""
    return exactly(lower_bound, value=lower_bound * 1.2, low=lower_bound * 0.9, high=lower_bound * 1.5)


def test_a_row_by_hand() -> None:
    """With phi 448 and M0 64: at 256 a sample teaches 512 / 704, and 10 epochs become 13.75."""
    chosen = choose_batch(rates(), noise(448), FACTS, epochs=10)
    row = chosen.row(256)
    assert row.efficiency == pytest.approx(512 / 704)
    assert row.goodput == pytest.approx(2200 * 512 / 704)
    assert row.epochs_to_match == pytest.approx(13.75)
    assert row.samples_to_match == 13_750_000
    assert row.steps == 10 * 3907
    assert row.peak_bytes == 256 << 20
    assert efficiency(256, 64, 448) == row.efficiency


def test_the_fastest_and_the_recommended_batch_are_marked_apart() -> None:
    """1024 has the most samples/s; under the efficiency cap 128 is left (0.9), 256 (0.76) is named."""
    chosen = choose_batch(rates(), noise(448), FACTS)
    assert (chosen.max_throughput, chosen.recommended) == (1024, 128)
    assert chosen.gain == pytest.approx(1.6 * 512 / 576)
    assert chosen.limited_by == (
        "in batches of 256 a sample likely teaches 0.758 of what it does at 64, under 0.8",
    )
    assert chosen.row(128).caps == ()


def test_the_cap_goes_by_the_estimate_and_the_count_by_its_bound() -> None:
    """At 228 samples (bound 190) one in batches of 128 teaches 0.82, of which 0.799 are counted."""
    chosen = choose_batch(rates(), noise(190), FACTS)
    assert chosen.recommended == 128
    assert chosen.row(128).efficiency == pytest.approx(254 / 318)
    assert chosen.row(128).efficiency < 0.8
    open_above = dataclasses.replace(noise(190), value=None, high=None)
    assert choose_batch(rates(), open_above, FACTS).recommended == 64


def test_time_takes_the_best_goodput_without_the_cap_on_efficiency() -> None:
    """With epochs added for what each teaches less, 256 at 0.73 ends sooner than 128 at 0.89."""
    chosen = choose_batch(rates(), noise(448), FACTS, objective="time")
    assert (chosen.recommended, chosen.limited_by) == (256, ())


def test_throughput_takes_the_most_samples_whatever_they_teach() -> None:
    """Only what the user asked for, or what cannot be run, bounds it."""
    assert choose_batch(rates(), noise(1), FACTS, objective="throughput").recommended == 1024
    capped = choose_batch(rates(), noise(1), FACTS, objective="throughput", max_batch_size=256)
    assert capped.recommended == 256
    assert capped.limited_by == ("1024 is over max_batch_size=256",)


def test_growth_is_bounded_unless_the_user_raises_it() -> None:
    """Eight times the batch, however high the noise scale; a larger `max_batch_size` lifts that."""
    chosen = choose_batch(rates(), noise(1e6), FACTS)
    assert (chosen.recommended, chosen.limited_by) == (512, ("1024 is over 8 times your batch",))
    assert choose_batch(rates(), noise(1e6), FACTS, max_batch_size=1024).recommended == 1024


@pytest.mark.parametrize(("family", "expected"), [("sgd", 256), ("adam", 128)])
def test_without_a_noise_scale_growth_is_small_and_unverified(family: str, expected: int) -> None:
    """Four times for SGD, twice for Adam, and the report can say that nothing stands behind it."""
    facts = plain_workload(batch_samples=64, dataset_samples=1_000_000, optimizer_family=family)
    chosen = choose_batch(rates(), None, facts)
    assert (chosen.recommended, chosen.verified) == (expected, False)
    assert chosen.row(512).efficiency is None
    assert chosen.row(512).epochs_to_match is None
    assert chosen.row(64).efficiency == 1.0
    assert "no noise scale was measured" in chosen.limited_by[0]


def test_an_epoch_keeps_fifty_batches_and_a_run_its_steps() -> None:
    """Both caps are said with their figures."""
    small = plain_workload(batch_samples=64, dataset_samples=10_000)
    chosen = choose_batch(rates(), noise(1e6), small, epochs=5)
    assert chosen.recommended == 64
    assert chosen.row(512).caps == (
        "512 leaves fewer than 50 batches in an epoch of 10000 samples",
        "512 leaves 100 steps in 5 epochs, fewer than 500",
    )
    assert chosen.row(128).caps == ("128 leaves 395 steps in 5 epochs, fewer than 500",)


def test_a_tie_goes_to_the_smaller_batch() -> None:
    """A gain of 2 % over the next smaller one, or one within the noise of both, is none."""
    assert choose_batch(rates(b128=2160), noise(1e6), FACTS, max_batch_size=256).recommended == 128
    assert choose_batch(rates(noise=0.2, b128=2000), noise(1e6), FACTS, max_batch_size=256).recommended == 128


def test_nothing_to_gain_keeps_the_users_batch() -> None:
    """Rates within 3 % or within their own noise change nothing, and no cap is blamed for it."""
    flat = rates(b128=1020, b256=1025, b512=1010, b1024=1000)
    chosen = choose_batch(flat, noise(1e6), FACTS)
    assert (chosen.recommended, chosen.gain, chosen.limited_by) == (64, 1.0, ())


def test_without_a_rule_for_the_learning_rate_the_batch_stays() -> None:
    """An unknown optimizer, or none, is the reason that is given."""
    unknown = plain_workload(batch_samples=64, optimizer_class="Lion", optimizer_family="other")
    missing = plain_workload(batch_samples=64, optimizer_class=None, optimizer_family="other")
    fixed = plain_workload(batch_samples=64, batch_size_fixed="your batch sampler makes the batches")

    def first_cap(facts: object) -> tuple[int, str]:
        chosen: BatchChoice = choose_batch(rates(), noise(1e6), facts)  # type: ignore[arg-type]
        return chosen.recommended, chosen.row(128).caps[0]

    assert first_cap(unknown) == (64, "no rule scales the learning rate of Lion")
    assert first_cap(missing)[0] == 64
    assert first_cap(missing)[1].startswith("no optimizer was given")
    assert first_cap(fixed) == (64, "your batch sampler makes the batches")


def test_a_smaller_batch_is_shown_and_not_recommended() -> None:
    """It would learn more from each sample, and what that does to speed is for the user to ask."""
    chosen = choose_batch(rates(b32=5000), noise(448), FACTS)
    assert chosen.recommended != 32
    assert chosen.row(32).efficiency == pytest.approx(512 / 480)
    assert chosen.row(32).caps[0] == "32 is smaller than your own batch"
    assert 32 not in {int(cap.split()[0]) for cap in chosen.limited_by if cap[0].isdigit()}


def test_bad_tables_are_refused() -> None:
    """The user's batch must be among the measured ones, and sizes count from one."""
    with pytest.raises(UsageError, match="64 was not measured"):
        choose_batch(rates()[1:], None, FACTS)
    with pytest.raises(UsageError, match="at least one"):
        choose_batch(rates(), None, FACTS, max_batch_size=0)
    with pytest.raises(KeyError):
        choose_batch(rates(), None, FACTS).row(77)
