"""`autotune check`: what it says of a profile, on a fake machine, and how it ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from click.testing import Result as Ran

import autotune.api
from autotune.cli.check import Checked, checked_with
from autotune.cli.main import cli
from autotune.errors import BaselineError
from autotune.outcome import BatchChoice, Interval, NoiseScale, Objective, Outcome, Verdict
from autotune.profile.schema import Profile, profile_of
from autotune.profile.yaml_io import dumps
from autotune.search.listener import SilentListener
from autotune.settings import Settings
from autotune.testing import FakeRunner, fake_description
from autotune.trial import Failure, Mode, TrialSpec

HERE = fake_description()
YOURS = HERE.yours
BEST = YOURS.replace(num_workers=2, prefetch_factor=2, persistent_workers=True)


def profile(winner: Settings = BEST, **changes: Any) -> Profile:
    """A profile of the fake machine: 1.5x yours when it was made."""
    ratio = Interval(value=1.5, low=1.45, high=1.55)
    kind = "faster" if winner != YOURS else "kept"
    outcome = Outcome(
        machine=HERE.machine,
        workload=HERE.workload,
        name="fake",
        yours=YOURS,
        verdict=Verdict(kind=kind, winner=winner, ratio=ratio, pairs=5),
    )
    made = profile_of(outcome, created="2026-11-23T10:00:00+00:00", version="0.1.0")
    return replace(made, **changes)


def world(gain: float, **options: Any) -> FakeRunner:
    """A machine on which the profile's settings are `gain` times as fast as yours."""

    def rate(settings: Settings, mode: Mode) -> float:
        return 1000.0 * (1.0 if settings == YOURS else gain)

    return FakeRunner(rate, **{"noise": 0.01, "startup_s": lambda _: 0.0, **options})


def checked(runner: FakeRunner, saved: Profile | None = None, budget_s: float = 30.0) -> Checked:
    """The answer within half a fake minute."""
    return checked_with(runner, saved or profile(), SilentListener(), budget_s=budget_s, clock=runner.clock)


@pytest.mark.parametrize(("gain", "kind"), [(1.5, "valid"), (1.2, "valid"), (1.0, "stale"), (0.7, "stale")])
def test_a_profile_is_valid_while_its_gain_is_surely_there(gain: float, kind: str) -> None:
    """A gain that shrank still counts; one that is gone or reversed makes it stale, with both figures."""
    found = checked(world(gain)).freshness
    assert found.kind == kind
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(gain, rel=0.03)
    assert found.was == Interval(value=1.5, low=1.45, high=1.55)
    assert f"{found.ratio.value:.2f}x" in found.sentence
    assert "was 1.50x" in found.sentence


LARGER = YOURS.replace(batch_size=128)
NOISE = NoiseScale(
    value=64.0,
    low=60.0,
    high=70.0,
    lower_bound=64.0,
    micro_samples=64,
    micro_batches=4,
    steps=32,
    skipped=0,
    at="initial weights",
)


def larger(objective: Objective = "goodput") -> Profile:
    """A profile with twice the batch, in which a sample teaches two thirds of what it did."""
    saved = profile(LARGER)
    choice = BatchChoice(
        rows=(),
        reference=64,
        recommended=128,
        max_throughput=128,
        objective=objective,
        gain=1.5,
        verified=True,
    )
    return replace(saved, measured=replace(saved.measured, batch=choice, noise=NOISE))


def test_a_changed_batch_is_judged_by_what_its_samples_teach() -> None:
    """1.4x the samples/s is a loss where each teaches two thirds; 2.25x is the 1.5x of the profile."""
    lost, kept = (checked(world(gain), larger()).freshness for gain in (1.4, 2.25))
    assert lost.kind == "stale"
    assert lost.ratio is not None
    assert lost.ratio.value == pytest.approx(1.4 * 2 / 3, rel=0.03)
    assert kept.kind == "valid"
    assert kept.ratio is not None
    assert kept.ratio.value == pytest.approx(1.5, rel=0.03)
    assert "samples counted by what they teach: 0.67 of yours" in kept.sentence


def test_throughput_counts_samples_whatever_they_teach() -> None:
    """A profile that was made for samples/s is held to them."""
    found = checked(world(1.4), larger("throughput")).freshness
    assert found.kind == "valid"
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(1.4, rel=0.03)
    assert "teach" not in found.sentence


def test_noise_is_no_verdict() -> None:
    """Where the interval holds both no gain and the old one, neither is claimed."""
    found = checked(world(1.2, noise=0.4)).freshness
    assert found.kind == "unsure"
    assert "too noisy" in found.sentence


@pytest.mark.parametrize("budget_s", [20.0, 30.0, 60.0])
def test_the_budget_is_kept_and_used(budget_s: float) -> None:
    """All of it together ends in time, with enough pairs for an answer."""
    runner = world(1.05, noise=0.05)
    found = checked(runner, budget_s=budget_s)
    assert found.freshness.pairs >= 4
    assert runner.clock() <= budget_s


def test_pairs_turn_around_and_the_first_run_does_not_count() -> None:
    """One run warms up; then yours and best, best and yours, all of them in the finals' way."""
    runner = world(1.5)
    checked(runner)
    warm, *pairs = runner.specs
    assert (warm.settings, warm.pair) == (BEST, None)
    assert [s.settings for s in pairs[:4]] == [YOURS, BEST, BEST, YOURS]
    assert [s.pair for s in pairs[:4]] == [0, 0, 1, 1]
    assert {s.stage for s in runner.specs} == {"final"}


def test_runs_get_fresh_processes_where_time_allows() -> None:
    """A process that starts in half a second is worth it in 30 s, one that takes ten is not."""
    quick, slow = world(1.5), world(1.5, description=fake_description(setup_s=10.0))
    checked(quick)
    checked(slow, budget_s=60.0)
    assert all(s.fresh_process for s in quick.specs[1:])
    assert not any(s.fresh_process for s in slow.specs)


def test_another_machine_is_told_without_measuring() -> None:
    """What differs and matters is listed, and no trial runs."""
    runner = world(1.5, description=fake_description(usable_cpus=64, torch_version="2.20.0"))
    found = checked(runner).freshness
    assert found.kind == "unfit"
    assert {d.what for d in found.differences if d.matters} == {"usable CPUs", "torch"}
    assert runner.specs == []


def test_a_difference_of_no_weight_is_told_and_measured() -> None:
    """A renamed model is worth a line, not a refusal."""
    found = checked(world(1.5, description=fake_description(model_class="Renamed"))).freshness
    assert found.kind == "valid"
    assert [d.what for d in found.differences] == ["model"]


def test_a_profile_that_keeps_yours_has_nothing_to_lose() -> None:
    """It fits or not; there is no gain to measure."""
    runner = world(1.5)
    assert checked(runner, profile(YOURS)).freshness.kind == "valid"
    assert runner.specs == []


def test_settings_that_fail_are_stale() -> None:
    """The failure is the answer."""
    failure = Failure(kind="worker_crash", message="a worker died")
    found = checked(world(1.5, failures=lambda s: failure if s == BEST else None)).freshness
    assert found.kind == "stale"
    assert "a worker died" in found.sentence


def test_a_baseline_that_fails_is_an_error() -> None:
    """Then there is nothing to compare with, as in tuning."""
    failure = Failure(kind="worker_crash", message="a worker died")
    with pytest.raises(BaselineError):
        checked(world(1.5, failures=lambda s: failure if s == YOURS else None))


def test_no_time_is_no_verdict() -> None:
    """A budget that holds no pair claims nothing, and says what to do."""
    found = checked(world(1.5, description=fake_description(setup_s=4.9)), budget_s=5.0).freshness
    assert found.kind == "unsure"
    assert "--budget" in found.sentence


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a profile and a script, and no home of the user's."""
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(dumps(profile()))
    (tmp_path / "t.py").write_text("def make(): ...\n")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, runner: FakeRunner, *arguments: str) -> Ran:
    """`autotune check p.yaml t.py:make` on this machine."""
    monkeypatch.setattr(autotune.api, "make_runner", lambda *_: runner)
    return CliRunner().invoke(cli, ["check", "p.yaml", "t.py:make", *arguments])


@pytest.mark.parametrize(
    ("runner", "code", "word"),
    [
        (world(1.5), 0, "valid"),
        (world(0.7), 4, "stale"),
        (world(1.2, noise=0.4), 4, "unsure"),
        (world(1.5, description=fake_description(device="cuda")), 3, "unfit"),
    ],
)
def test_each_answer_has_its_exit_code(
    target: Path, monkeypatch: pytest.MonkeyPatch, runner: FakeRunner, code: int, word: str
) -> None:
    """0 valid, 3 does not fit, 4 stale or doubtful; stdout holds the answer, stderr the runs."""
    ran = run(monkeypatch, runner)
    assert ran.exit_code == code
    assert ran.stdout.startswith(f"{word}: ")
    assert ("final" in ran.stderr) == (word != "unfit")
    assert runner.closed


def test_json_holds_the_answer_and_every_block(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One document, from which the ratio can be computed again."""
    ran = run(monkeypatch, world(1.5), "--json")
    data = json.loads(ran.stdout)
    assert data["check"] == "valid"
    assert data["ratio"]["low"] > 1
    assert data["was"]["value"] == 1.5
    assert data["weight"] == 1.0
    assert len(data["trials"]) == 1 + 2 * data["pairs"]
    assert all(trial["measurement"]["blocks"] for trial in data["trials"])


def test_ctrl_c_judges_what_there_is(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pairs so far are told, and the exit code says that it was cut short."""
    runner = world(1.5)
    whole = runner.run

    def stop(spec: TrialSpec) -> Any:
        if spec.pair == 4:
            raise KeyboardInterrupt
        return whole(spec)

    monkeypatch.setattr(runner, "run", stop)
    ran = run(monkeypatch, runner)
    assert ran.exit_code == 130
    assert ran.stdout.startswith("valid: ")
    assert "4 pairs" in ran.stdout
