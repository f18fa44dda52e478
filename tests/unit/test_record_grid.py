from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from benchmark_scripts import load

from autotune.errors import StudyError, UsageError
from autotune.settings import Settings
from autotune.testing import FakeRunner, fake_description
from autotune.trial import Failure, Mode

grids = load("grids")
recorder = load("record_grid")
VALUES = {"num_workers": (0, 2), "prefetch_factor": (None, 2, 4), "cpu_threads": (1, 2)}


def rate(settings: Settings, mode: Mode) -> float:
    return 100.0 + 10 * settings.loader.num_workers


def make(runner: FakeRunner, values: dict[str, Any] = VALUES) -> tuple[Any, list[Any]]:
    """A header and the specs of one round."""
    space = recorder.space_of(runner.describe())
    axes = recorder.axes_of(space, values)
    header = grids.Header(workload="made-up", command="-", description=runner.describe(), axes=axes)
    return header, recorder.specs_of(space, axes, 0.6)


def record(out: Path, runner: FakeRunner, **plan: Any) -> str:
    header, specs = make(runner)
    return recorder.record(runner, out, header, specs, recorder.Plan(**plan), clock=runner.clock)


def test_a_round_holds_every_legal_combination_once(tmp_path: Path) -> None:
    """Nothing is prefetched without workers: (1 + 2) loaders times 2 thread counts, and yours."""
    _, specs = make(FakeRunner(rate))
    full = [spec.settings for spec in specs if spec.mode == "full"]
    assert len(full) == len(set(full)) == 7
    assert sum(spec.mode == "loader" for spec in specs) == 3
    assert sum(spec.mode == "compute" for spec in specs) == 3
    assert specs[0].settings == FakeRunner(rate).describe().yours


def test_values_that_are_not_legal_here_are_left_out() -> None:
    """On a machine without a GPU nothing is said of pinned memory, and no precision but float32 is tried."""
    space = recorder.space_of(fake_description())
    wanted = {"pin_memory": (True,), "precision": ("float32", "float16"), "num_workers": (0, 4, 99)}
    assert {axis.knob: axis.values for axis in recorder.axes_of(space, wanted)} == {
        "precision": ("float32",),
        "num_workers": (0, 4),
    }


def test_everything_is_measured_as_often_as_asked_in_changing_order(tmp_path: Path) -> None:
    """Three rounds measure each trial three times, and no two rounds have the same order."""
    runner = FakeRunner(rate)
    out = tmp_path / "grid.jsonl.gz"
    assert record(out, runner, rounds=3) == "complete"
    trials = grids.read_grid(out).trials
    size = len(trials) // 3
    rounds = [[(t.spec.mode, t.settings) for t in trials[i * size : (i + 1) * size]] for i in range(3)]
    assert all(set(a) == set(b) and a != b for a, b in itertools.combinations(rounds, 2))


def test_what_is_read_is_what_was_measured(tmp_path: Path) -> None:
    """Header, settings, blocks and failures come back as they were."""
    failure = Failure(kind="shm", message="too little", hint="use fewer", wall_s=0.7)
    runner = FakeRunner(rate, failures=lambda s: failure if s.loader.prefetch_factor == 4 else None)
    out = tmp_path / "grid.jsonl.gz"
    record(out, runner, rounds=1)
    header, _ = make(runner)
    grid = grids.read_grid(out)
    assert grid.header == header
    failed = [t for t in grid.trials if t.failure is not None]
    assert {t.settings.loader.prefetch_factor for t in failed} == {4}
    assert all(
        t.measurement.samples_per_s == pytest.approx(rate(t.settings, t.spec.mode))
        for t in grid.trials
        if t.measurement is not None
    )


def test_the_budget_ends_it_and_the_next_session_goes_on(tmp_path: Path) -> None:
    """What the first session measured is not measured again; together they hold the whole grid."""
    out = tmp_path / "grid.jsonl.gz"
    first, second = FakeRunner(rate), FakeRunner(rate)
    assert "used up" in record(out, first, rounds=2, budget_s=10.0)
    assert record(out, second, rounds=2) == "complete"
    assert len(first.specs) > 0
    assert len(first.specs) + len(second.specs) == 2 * len(make(first)[1])
    assert [t.number for t in grids.read_grid(out).trials] == list(range(2 * len(make(first)[1])))


def test_a_file_that_was_cut_off_is_gone_on_with(tmp_path: Path) -> None:
    """Lines that are whole survive a kill; the rest is measured again."""
    out = tmp_path / "grid.jsonl.gz"
    record(out, FakeRunner(rate), rounds=2)
    whole = grids.read_grid(out).trials
    out.write_bytes(out.read_bytes()[:-200])
    left = grids.read_grid(out).trials
    assert 0 < len(left) < len(whole)
    assert left == whole[: len(left)]
    assert record(out, FakeRunner(rate), rounds=2) == "complete"
    assert len(grids.read_grid(out).trials) == len(whole)


def test_a_file_of_another_grid_is_left_alone(tmp_path: Path) -> None:
    """Trials of two machines in one file would say nothing of either."""
    out = tmp_path / "grid.jsonl.gz"
    record(out, FakeRunner(rate), rounds=1)
    before = out.read_bytes()
    with pytest.raises(StudyError, match="another grid"):
        record(out, FakeRunner(rate, description=fake_description(cpu_name="another CPU")), rounds=1)
    assert out.read_bytes() == before


def test_knobs_can_be_narrowed_down() -> None:
    """A name keeps its declared values, values after it are taken as written."""
    space = recorder.space_of(fake_description())
    assert recorder.chosen(VALUES, ["num_workers=4", "cpu_threads"], space) == {
        "num_workers": (4,),
        "cpu_threads": (1, 2),
    }
    with pytest.raises(UsageError, match="cannot be 99"):
        recorder.chosen(VALUES, ["num_workers=99"], space)


def test_every_workload_has_a_space_of_known_knobs() -> None:
    """The names of the workloads and of the declared spaces are the same."""
    workloads = load("real_workloads").WORKLOADS
    assert set(recorder.SPACES) == set(workloads)
    assert {name for values in recorder.SPACES.values() for name in values} <= set(Settings().flat())


def test_without_options_a_plan_is_as_usual() -> None:
    """Three rounds of short windows in 25 minutes, of all knobs declared."""
    args = recorder.arguments(["tabular"])
    assert (args.rounds, args.window_s, args.budget, args.knobs) == (3, 0.6, "25m", [])
