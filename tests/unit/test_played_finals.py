"""The benchmarks that count false and missed wins: what they count, and from what."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from benchmark_scripts import load

from autotune.settings import Settings
from autotune.testing import FakeRunner, fake_description
from autotune.trial import Failure, Measurement, Trial, TrialSpec

for needed in ("burner", "grids", "played_finals", "live_finals"):
    load(needed)
played, windows, aa, steps = (load(n) for n in ("played_finals", "record_windows", "aa", "step_truth"))

YOURS = fake_description().yours
OTHER = YOURS.replace(num_workers=2, prefetch_factor=2)


def faster(gain: float, **options: Any) -> FakeRunner:
    """A machine on which the candidate is faster by `gain`."""
    return FakeRunner(
        lambda s, mode: 1000.0 * (1 + gain * (s == OTHER)), startup_s=lambda s: 0.0, seed=1, **options
    )


def test_a_share_of_few_is_known_badly_and_of_none_not_at_all() -> None:
    """The exact interval's ends, against the values that published tables give."""
    assert played.share_interval(0, 300) == (0.0, pytest.approx(0.01222, abs=1e-4))
    assert played.share_interval(1, 10) == (pytest.approx(0.0025, abs=1e-4), pytest.approx(0.4450, abs=1e-4))
    assert played.share_interval(10, 10) == (pytest.approx(0.6915, abs=1e-4), 1.0)


def test_finals_alternate_and_end_when_decided() -> None:
    """A gain of 30 % without much noise takes the fewest pairs at which a look is taken."""
    runner = faster(0.3, noise=0.01)
    finals = played.play(runner.run, (YOURS, OTHER))
    assert finals.verdict.kind == "faster"
    assert finals.rounds == 5
    assert [s.settings for s in runner.specs[:4]] == [YOURS, OTHER, OTHER, YOURS]
    assert [s.pair for s in runner.specs[:4]] == [0, 0, 1, 1]


def test_a_failure_is_a_side_of_a_pair_like_any_other() -> None:
    """A candidate that fails ends the finals, and *yours* stays."""
    broken = Failure(kind="timeout", message="no end")
    runner = faster(0.3, failures=lambda s: broken if s == OTHER else None)
    finals = played.play(runner.run, (YOURS, OTHER))
    assert (finals.verdict.kind, finals.rounds) == ("kept", 1)


def test_wins_and_covered_truths_are_counted() -> None:
    """Of three finals with a gain of 30 % all are won, and what is shown is near the truth."""
    finals = [played.play(faster(0.3, noise=0.01).run, (YOURS, OTHER)) for _ in range(3)]
    counted = played.count([(one.verdict, one.rounds) for one in finals], 0.3)
    assert (counted.finals, counted.wins, counted.compared) == (3, 3, 3)
    assert counted.shown == pytest.approx(1.3, rel=0.02)
    assert played.count([(one.verdict, one.rounds) for one in finals], 9.0).covered == 0


def recorded(tmp_path: Path, runs: int) -> Any:
    """A file of runs of *yours*, read back."""
    runner = faster(0.0, noise=0.02)
    described = runner.describe()
    path = windows.path_of(tmp_path, "made-up", "none")
    header = load("grids").Header(workload="made-up", command="-", description=described, axes=())
    windows.record(runner, path, header, windows.final_spec(described), runs)
    assert windows.complete(path, runs)
    assert not windows.complete(path, runs + 1)
    return load("grids").read_grid(path)


@pytest.mark.parametrize("by_chance", [False, True])
def test_a_finals_from_a_record_takes_runs_in_the_order_of_time(tmp_path: Path, by_chance: bool) -> None:
    """Each run is used once, one after the other, in pairs of both names."""
    grid = recorded(tmp_path, 30)
    order = [trial.measurement for trial in grid.trials]
    finals = aa.finals_of(grid, random.Random(3), last=12, by_chance=by_chance)
    taken: dict[int, list[int]] = {}
    for trial in finals.trials:
        taken.setdefault(trial.spec.pair, []).append(order.index(trial.measurement))
    first = min(taken[0])
    assert [sorted(pair) for pair in taken.values()] == [
        [first + 2 * pair, first + 2 * pair + 1] for pair in taken
    ]
    assert {trial.settings for trial in finals.trials} == {aa.twin(YOURS), YOURS}


def test_sides_taken_in_turn_cancel_a_drift(tmp_path: Path) -> None:
    """Runs that get slower one by one are a gain for neither name, where real finals would see none."""
    grid = recorded(tmp_path, 24)
    one = grid.trials[0].measurement
    assert isinstance(one, Measurement)

    def slowed(number: int) -> Trial:
        spec = TrialSpec(settings=YOURS, stage="final")
        blocks = tuple(played_block(block, 1 + 0.01 * number) for block in one.blocks)
        return Trial(number=number, spec=spec, measurement=Measurement(blocks=blocks))

    drifting = load("grids").Grid(header=grid.header, trials=tuple(slowed(n) for n in range(24)))
    logs = aa.finals_of(drifting, random.Random(0), last=12, by_chance=False).log_ratios(None)[0]
    assert abs(sum(logs)) < 0.01 < max(abs(log) for log in logs) * 12


def played_block(block: Any, factor: float) -> Any:
    """The block, taking so many times as long."""
    from dataclasses import replace

    return replace(block, elapsed_s=block.elapsed_s * factor)


def test_two_sides_run_beside_each_other() -> None:
    """Without noise a step takes as long as the slower side, and steps are timed by the fake clock alone."""
    for side, gain in (("loader", 0.1), ("compute", 0.1), ("both", 0.0)):
        case = steps.Case(gain=gain, noise=0.0, side=side)
        finals = plain_finals(case)
        yours, other = (
            next(t.measurement for t in finals.trials if t.settings == s)
            for s in (steps.YOURS, steps.CANDIDATE)
        )
        assert yours.step_s == pytest.approx(steps.STEP_S, rel=0.02)
        assert other.samples_per_s / yours.samples_per_s == pytest.approx(1 + gain, rel=0.02)


def plain_finals(case: Any) -> Any:
    """Finals of two pairs with nothing at random and no drift."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OUTLIERS", "DRIFT", "RUN_NOISE"):
            patch.setattr(steps, name, 0.0)
        return steps.finals(type(case)(gain=case.gain, noise=case.noise, side=case.side, last=2), 1)


def test_the_names_of_an_a_a_differ() -> None:
    """The twin is another key, and its twin is the first again."""
    assert aa.twin(Settings()) != Settings()
    assert aa.twin(aa.twin(Settings())) == Settings()
