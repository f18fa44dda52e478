from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from finals_trials import YOURS, measured, workers

from autotune.codec import encode
from autotune.errors import StudyError, UsageError
from autotune.outcome import Interval
from autotune.trial import Measurement

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a script of the benchmarks; scripts import each other by their plain names."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def rate(measured_rate: float, **starts: float) -> Measurement:
    block = measured(YOURS, measured_rate).measurement
    assert block is not None
    return Measurement(blocks=block.blocks, **starts)


def test_the_parts_of_a_prediction_add_up_to_it(script: Any) -> None:
    """Begin, restarts and steps are all of `run_s`."""
    found = rate(100.0, warmup_s=0.5, startup_s=2.0, restart_s=1.0)
    parts = script("whole_runs").predicted_parts(found, 1000, 3)
    assert parts.total_s == pytest.approx(found.run_s(1000, 3))
    assert parts.restarts_s == pytest.approx(2.0)
    assert parts.steps_s == pytest.approx(30.0)


def test_the_parts_of_a_run_add_up_to_it(script: Any) -> None:
    """A start is what its first batch and step take beyond a steady step; closing counts to the next one."""
    runs = script("whole_runs")
    first = runs.Epoch(steps=11, first_batch_s=2.0, first_step_s=1.5, elapsed_s=8.5, closing_s=0.25)
    second = runs.Epoch(steps=11, first_batch_s=1.0, first_step_s=0.5, elapsed_s=6.5, closing_s=0.25)
    run = runs.WholeRun(samples=44, settings=YOURS, epochs=(first, second), total_s=15.35)
    parts = runs.true_parts(run)
    assert parts.total_s == pytest.approx(15.35)
    assert parts.steps_s == pytest.approx(11.0)
    assert parts.restarts_s == pytest.approx(1.0 + 0.25)
    assert parts.begin_s == pytest.approx(3.0 + 0.1)


def test_a_dataset_can_be_shorter_or_longer_than_it_is(script: Any) -> None:
    """Only the length changes; samples come again after the last one."""
    cycled = script("whole_runs").Cycled([10, 11, 12], 5)
    assert [cycled[i] for i in range(len(cycled))] == [10, 11, 12, 10, 11]
    assert len(script("whole_runs").Cycled([10, 11, 12], 2)) == 2


def test_the_order_is_right_where_the_true_times_are_clear(script: Any) -> None:
    """A tie is no mistake; a clear difference the other way round is."""
    startup = script("startup")
    true = {"0": 10.0, "1": 10.1, "2": 20.0}
    assert startup.agreement({"0": 2.0, "1": 1.0, "2": 3.0}, true) == (2, 2)
    assert startup.agreement({"0": 2.0, "1": 9.0, "2": 3.0}, true) == (1, 2)
    assert startup.order({"0": 2.0, "1": 9.0, "2": 3.0}) == ("0", "2", "1")
    assert startup.regret(true, "2") == pytest.approx(2.0)


def test_a_case_is_read_from_its_text(script: Any) -> None:
    """A workload, the samples of an epoch, and repeats."""
    case = script("startup").Case.parse("mnist:500:3")
    assert (case.workload, case.samples, case.repeats) == ("mnist", 500, 3)
    with pytest.raises(UsageError):
        script("startup").Case.parse("mnist:500")


def test_the_line_of_a_case_names_both_choices(script: Any) -> None:
    """The regret of the predicted choice is in true seconds, that of the tuner over all that was run."""
    startup = script("startup")
    case = startup.Case(workload="mnist", samples=500, repeats=1)
    said, true = {"0": 1.0, "2p": 2.0}, {"0": 3.0, "2p": 2.0, startup.FOUND: 2.5}
    text = startup.line(case, said, true, "2 workers")
    assert "choice 0, best 2p, regret 1.500" in text
    assert "2 workers, 2.50 s, regret 1.250" in text


def test_an_epoch_is_as_long_as_the_run_asks(script: Any) -> None:
    """15 seconds for three epochs at 1,234 samples/s are two digits of 6,170 samples each."""
    assert script("predicted_epochs").epoch_samples(1234.0, 15.0, 3) == 6200


def test_the_error_is_of_the_prediction(script: Any) -> None:
    """Eleven seconds said of ten is 10 % too much, and just within the goal."""
    predicted = script("predicted_epochs")
    assert "+9.9%  pass" in predicted.line("mnist", "yours", 500, 10.99, [9.0, 11.0])
    assert "-12.0%  FAIL" in predicted.line("mnist", "yours", 500, 8.8, [10.0])


def test_a_slow_choice_fails_and_not_knowing_passes(script: Any) -> None:
    """A choice under 97 % of the quiet rate passes only when the tuner said that it cannot judge."""
    neighbour = script("neighbour")

    def choice(kind: str) -> Any:
        unsure = kind == "unsure"
        return neighbour.Choice(settings=YOURS, kind=kind, sentence="", cannot_judge=unsure)

    slow, fast = (Interval(value=v, low=v, high=v) for v in (0.96, 0.97))
    assert not neighbour.passes(choice("kept"), slow)
    assert not neighbour.passes(choice("faster"), slow)
    assert not neighbour.passes(choice("faster"), None)
    assert neighbour.passes(choice("unsure"), slow)
    assert neighbour.passes(choice("faster"), fast)


@pytest.mark.parametrize(
    ("code", "why", "passed"),
    [("AT-E30", "the machine is too busy", True), ("AT-E30", "too short", False), ("AT-E13", "busy", False)],
)
def test_an_error_passes_only_where_it_blames_the_machine(
    script: Any, code: str, why: str, passed: bool
) -> None:
    """A budget that is too short because of the neighbour is an answer; any other error is none."""
    neighbour = script("neighbour")
    raw = {"error": {"code": code, "what": "no", "why": why}, "neighbour_cpus": 0.7}
    assert neighbour.passes(neighbour.choice_of(raw), None) is passed


def test_the_quiet_ratio_comes_from_pairs(script: Any) -> None:
    """Equal settings are exactly as fast; others by the mean of their pairs."""
    neighbour, other = script("neighbour"), workers(2)
    trials = [t for p in range(6) for t in (measured(YOURS, 100, pair=p), measured(other, 90 + p, pair=p))]
    assert neighbour.quiet_ratio(YOURS, YOURS, []).value == 1.0
    assert neighbour.quiet_ratio(YOURS, other, trials).value == pytest.approx(0.925, abs=1e-3)
    assert neighbour.quiet_ratio(YOURS, other, trials[:2]) is None


@pytest.mark.parametrize("name", ["raw.json", "raw.json.gz"])
def test_each_value_is_measured_once(script: Any, tmp_path: Path, name: str) -> None:
    """A file that is opened again gives what it holds, plain or compressed."""
    raw_file, count = script("raw_file"), itertools.count()
    first = raw_file.RawFile(tmp_path / name, {"budget": "90s"})
    assert first.once("a", lambda: encode(YOURS)) == encode(YOURS)
    assert [first.once("b", lambda: next(count)) for _ in range(2)] == [0, 0]
    assert raw_file.RawFile(tmp_path / name, {"budget": "90s"}).once("b", lambda: next(count)) == 0


def test_another_benchmark_s_file_is_refused(script: Any, tmp_path: Path) -> None:
    """Values of another machine or budget must not mix."""
    raw_file = script("raw_file")
    raw_file.RawFile(tmp_path / "raw.json", {"budget": "90s"}).once("a", lambda: 1)
    with pytest.raises(StudyError, match="something else"):
        raw_file.RawFile(tmp_path / "raw.json", {"budget": "60s"})


def test_the_neighbour_is_busy_two_thirds_of_the_time(script: Any) -> None:
    """Bursts and pauses vary, repeat with their seed, and none lasts more than eight seconds."""
    drawn = list(itertools.islice(script("burner").bursts(1), 2000))
    on_s, off_s = (sum(lengths) for lengths in zip(*drawn))
    assert on_s / (on_s + off_s) == pytest.approx(2 / 3, abs=0.03)
    assert drawn == list(itertools.islice(script("burner").bursts(1), 2000))
    assert max(max(pair) for pair in drawn) <= 8.0
    assert len(set(drawn)) > 1900


def test_the_neighbour_ends_with_its_block(script: Any) -> None:
    """Its process is gone, and what it used is known."""
    with script("burner").Burner(at_most_s=60.0) as burner:
        process = burner._process
        assert process.poll() is None
    assert process.poll() is not None
    assert burner.cpus >= 0.0
