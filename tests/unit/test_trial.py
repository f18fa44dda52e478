"""What the figures of a trial are computed from, and how."""

from __future__ import annotations

from typing import Any

import pytest

from autotune.settings import Settings
from autotune.trial import Block, Failure, Measurement, Trial, TrialSpec

SPEC = TrialSpec(settings=Settings().replace(num_workers=2), stage="joint")


def measured(**changes: Any) -> Measurement:
    """Twelve steps of 8 samples in 1.2 s: 80 samples/s."""
    blocks = (
        Block(steps=4, samples=32, elapsed_s=0.8, wait_s=0.2),
        Block(steps=8, samples=64, elapsed_s=0.4, wait_s=0.1),
    )
    return Measurement(**{"blocks": blocks, "warmup_s": 3.0, "startup_s": 2.0, "restart_s": 0.5, **changes})


def test_rates_are_totals_over_totals() -> None:
    """A fast short block does not count as much as a slow long one."""
    found = measured()
    assert (found.steps, found.samples) == (12, 96)
    assert found.elapsed_s == pytest.approx(1.2)
    assert found.samples_per_s == pytest.approx(80)
    assert found.step_s == pytest.approx(0.1)
    assert found.wait_share == pytest.approx(0.25)
    assert [block.samples_per_s for block in found.blocks] == pytest.approx([40, 160])


def blocks_of(*marks: str) -> tuple[Block, ...]:
    """One block for each mark (`-` is clean), the n-th of them at n samples/s."""
    return tuple(
        Block(steps=1, samples=n, elapsed_s=1.0, wait_s=0.0, marks=() if mark == "-" else (mark,))
        for n, mark in enumerate(marks, 1)
    )


@pytest.mark.parametrize(
    ("marks", "steady"),
    [
        (("-", "-", "-"), [1, 2, 3]),
        (("transient", "-", "-"), [2, 3]),
        (("-", "busy_machine", "-"), [1, 3]),
        (("-", "epoch_edge", "-"), [1, 2, 3]),
        (("-", "busy_machine", "throttled"), [1, 2, 3]),
        (("transient", "-", "alloc_retry", "-"), [2, 4]),
        (("transient", "-", "alloc_retry"), [2, 3]),
        (("transient", "transient"), [1, 2]),
    ],
)
def test_rates_leave_out_what_is_not_steady(marks: tuple[str, ...], steady: list[int]) -> None:
    """Transient blocks go, disturbed ones while two clean are left; something always stays."""
    found = measured(blocks=blocks_of(*marks))
    assert [block.samples for block in found.steady] == steady
    assert found.samples_per_s == pytest.approx(sum(steady) / len(steady))
    assert found.samples == sum(range(1, len(marks) + 1))


def test_a_run_counts_every_start() -> None:
    """Warm-up and the first start once, a restart before each further epoch, and the epochs themselves."""
    found = measured()
    assert found.run_s(800, epochs=1) == pytest.approx(3 + 2 + 10)
    assert found.run_s(800, epochs=4) == pytest.approx(3 + 2 + 3 * 0.5 + 4 * 10)


def test_steps_of_the_warm_up_are_steps_of_the_run() -> None:
    """Only what they took beyond steady steps is a cost of its own: those take 0.075 s without their wait."""
    found = measured(warmup_s=0.5, warmup_steps=4)
    assert found.warmup_excess_s == pytest.approx(0.5 - 4 * 0.075)
    assert found.run_s(800, epochs=2) == pytest.approx(0.2 + 2 + 0.5 + 20)
    assert found.run_s(800) == measured().run_s(800)


def test_a_warm_up_that_was_quicker_than_steady_steps_gives_nothing_back() -> None:
    """No start makes a run shorter."""
    assert measured(warmup_s=0.1, warmup_steps=4).warmup_excess_s == 0


def test_what_settles_slowly_is_paid_once() -> None:
    """Blocks before the steady state are out of its rate, so the run begins with what they took too much."""
    blocks = (
        Block(steps=4, samples=32, elapsed_s=0.7, wait_s=0.0, marks=("transient",)),
        *(Block(steps=4, samples=32, elapsed_s=0.4, wait_s=0.0) for _ in range(3)),
    )
    found = measured(blocks=blocks, warmup_s=0.0)
    assert found.settling_s == pytest.approx(0.7 - 4 * 0.1)
    assert found.run_s(800, epochs=3) == pytest.approx(0.3 + 2 + 2 * 0.5 + 3 * 10)
    assert found.run_s(800) == pytest.approx(0.5 + 10)


def test_a_start_that_was_quicker_than_the_steady_state_gives_nothing_back() -> None:
    """A clock that falls with heat would make long runs look short."""
    fast = Block(steps=4, samples=32, elapsed_s=0.3, wait_s=0.0, marks=("transient",))
    slow = Block(steps=4, samples=32, elapsed_s=0.4, wait_s=0.0)
    assert measured(blocks=(fast, slow, slow)).settling_s == 0


def test_blocks_that_are_all_there_is_are_no_cost_beside_themselves() -> None:
    """Where nothing is steady the rate is theirs already."""
    assert measured(blocks=blocks_of("transient", "transient")).settling_s == 0


def test_without_a_number_of_epochs_one_of_many_counts() -> None:
    """One-time starts vanish in a long run, the restart of each epoch does not."""
    found = measured()
    assert found.run_s(800) == pytest.approx(0.5 + 10)
    assert found.run_s(800) == pytest.approx(found.run_s(800, epochs=10**9) / 10**9)  # type: ignore[operator]


@pytest.mark.parametrize("samples", [None, 0])
def test_a_run_of_unknown_length_takes_nobody_knows_how_long(samples: int | None) -> None:
    """Then the steady rate is all that can be compared."""
    found = measured()
    assert found.run_s(samples, epochs=3) is None
    assert found.effective_samples_per_s(samples, epochs=3) == found.samples_per_s


def test_the_effective_rate_is_all_samples_over_the_whole_run() -> None:
    """Starts lower it; without them it is the steady rate."""
    found = measured()
    assert found.effective_samples_per_s(800) == pytest.approx(800 / 10.5)
    assert found.effective_samples_per_s(800, epochs=4) == pytest.approx(3200 / 46.5)
    free = measured(warmup_s=0.0, startup_s=0.0, restart_s=0.0)
    assert free.effective_samples_per_s(800, epochs=7) == pytest.approx(free.samples_per_s)


def test_a_trial_has_exactly_one_outcome() -> None:
    """Neither none nor two."""
    failure = Failure(kind="timeout", message="it hung")
    with pytest.raises(AssertionError):
        Trial(number=0, spec=SPEC)
    with pytest.raises(AssertionError):
        Trial(number=0, spec=SPEC, measurement=measured(), failure=failure)
    assert Trial(number=0, spec=SPEC, failure=failure).settings == SPEC.settings
