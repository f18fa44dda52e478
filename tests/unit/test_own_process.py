"""A process that has chosen its kernels keeps them: what must not be measured in the same one."""

from __future__ import annotations

from typing import Any, cast

import pytest
from search_worlds import History, context, space_of

from autotune.measure.payload import Payload
from autotune.measure.process_runner import ProcessRunner
from autotune.measure.seam import GradientSpec
from autotune.recipe.noise_scale import GradientStats
from autotune.search.cost import Costs
from autotune.search.engine import TuneOptions, tune
from autotune.search.knowledge import Knowledge
from autotune.search.listener import SilentListener
from autotune.search.parts import next_part
from autotune.settings import Settings
from autotune.testing import FakeRunner, fake_description
from autotune.trial import Block, Failure, Measurement, Mode, TrialSpec

MEASURED = Measurement(blocks=(Block(steps=1, samples=1, elapsed_s=1.0, wait_s=0.0),))
PLAIN = fake_description().yours
SEARCHED = PLAIN.replace(cudnn_benchmark=True)
GPU: dict[str, Any] = {"device": "cuda:0", "has_conv2d": True, "image_input": True}


class Bench:
    """A bench process that answers at once, and its connection."""

    pid = 0

    def __init__(self) -> None:
        self.connection = self
        self.request = ""

    def send(self, asked: tuple[str, Any]) -> None:
        self.request = asked[0]

    def poll(self, timeout_s: float) -> bool:
        return True

    def recv(self) -> tuple[str, Any]:
        seen = GradientStats(micro_samples=8, micro_batches=4)
        answers = {"describe": fake_description(), "gradients": seen}
        return "ok", answers.get(self.request, MEASURED)

    def kill(self) -> int:
        return 0


class Launcher:
    """Counts the processes that were started."""

    def __init__(self) -> None:
        self.started = 0

    def launch(self) -> Bench:
        self.started += 1
        return Bench()

    def mark_log(self) -> None:
        """Nothing is written."""

    def log_tail(self) -> str:
        return ""

    def close(self) -> None:
        """Nothing to end."""


def started(*trials: tuple[Settings, Mode]) -> int:
    """Processes started for a description and these trials."""
    launcher = Launcher()
    runner = ProcessRunner(Payload(blob=b""), launcher=cast(Any, launcher))
    runner.describe()
    for settings, mode in trials:
        runner.run(TrialSpec(settings=settings, stage="joint", mode=mode))
    return launcher.started


def test_the_search_of_cudnn_is_switched_in_a_process_of_its_own() -> None:
    """Plans found or guessed stay for the life of a process, so each switch needs another one."""
    assert started((PLAIN, "full"), (PLAIN, "compute")) == 1
    assert started((SEARCHED, "full"), (SEARCHED, "compute"), (SEARCHED, "full")) == 2
    assert started((SEARCHED, "full"), (PLAIN, "compute"), (SEARCHED, "full")) == 4


def test_a_look_at_gradients_is_a_step_like_any_other() -> None:
    """Between two trials that search alike it starts a process of its own, and leaves one of its own kind."""
    launcher = Launcher()
    runner = ProcessRunner(Payload(blob=b""), launcher=cast(Any, launcher))
    runner.run(TrialSpec(settings=SEARCHED, stage="joint"))
    runner.probe_gradients(GradientSpec(settings=PLAIN))
    assert launcher.started == 2
    runner.run(TrialSpec(settings=PLAIN, stage="joint"))
    assert launcher.started == 2
    runner.run(TrialSpec(settings=SEARCHED, stage="joint"))
    assert launcher.started == 3


def test_a_loader_alone_runs_in_any_process() -> None:
    """No step is run, so no kernel is chosen and none is in the way."""
    assert started((PLAIN, "full"), (SEARCHED, "loader"), (PLAIN, "full")) == 1


def test_memory_once_kept_is_kept_for_the_life_of_a_process() -> None:
    """So what does not keep it runs in another process, and a trial of the loader alone marks one as well."""
    keeping = PLAIN.replace(keep_host_memory=True)
    assert started((PLAIN, "full"), (keeping, "full"), (keeping, "loader")) == 1
    assert started((keeping, "full"), (PLAIN, "full"), (PLAIN, "compute")) == 2
    assert started((keeping, "loader"), (PLAIN, "full")) == 2
    assert started((keeping, "full"), (PLAIN, "loader")) == 2


def test_switching_is_expected_to_cost_a_process_and_its_kernels() -> None:
    """The plan knows what the runner will do: start anew, and search again."""
    space = space_of(setup_s=7.0, gpus=(), **GPU)
    history = History().opened(space)
    costs = Costs(Knowledge(context(space), history))
    same, other = (TrialSpec(settings=s, stage="joint") for s in (space.yours, SEARCHED))
    assert costs.predicted_s(other) == pytest.approx(costs.predicted_s(same) + 7.0, abs=1.5)


def test_a_long_first_warm_up_is_not_expected_again() -> None:
    """Sixteen seconds of choosing kernels are paid once in a process, not in every further trial."""
    space = space_of(setup_s=1.0, **GPU)
    first = space.settings(channels_last=True)
    history = History().opened(space)
    history.ran(first, 200, wall_s=20.0, warmup_s=16.0)
    costs = Costs(Knowledge(context(space), history))
    assert costs.overhead_s(first, "full") == pytest.approx(2.0)
    assert costs.overhead_s(first, "full", fresh=True) == pytest.approx(1.0 + 2.0 + 16.0)


def test_a_search_for_kernels_is_expected_to_take_as_long_as_the_last_one() -> None:
    """Another precision is searched for anew, however quickly kernels that are guessed warm up."""
    space = space_of(setup_s=1.0, **GPU)
    history = History().opened(space).ran(space.settings(channels_last=True), 200, warmup_s=0.1, wall_s=3.1)
    searched = space.settings(cudnn_benchmark=True)
    history.ran(searched, 300, warmup_s=16.0, wall_s=20.0)
    costs = Costs(Knowledge(context(space), history))
    assert costs.overhead_s(searched.replace(channels_last=True), "full") > 16.0
    assert costs.overhead_s(space.settings(fused_optimizer=True), "full") < 3.0


def test_what_needs_another_process_is_tried_last() -> None:
    """Variants of the step are measured in one process as long as there are any for it."""
    space = space_of(fused_available=True, **GPU)
    history = History().ran(space.yours, 100, "yours", wall_s=30.0)
    history.ran(space.yours, 300, "ceiling", "loader").ran(space.yours, 300, "ceiling", "compute")
    asked = []
    while True:
        know = Knowledge(context(space), history)
        spec = next_part(know, Costs(know), 500.0, ["compute"])
        if spec is None:
            break
        asked.append(spec.settings.compute.cudnn_benchmark)
        history.ran(spec.settings, 300, "compute", "compute")
    assert len(asked) >= 3
    assert asked == sorted(asked)
    assert asked[-1]


def test_finals_that_cannot_share_a_process_are_planned_as_fresh() -> None:
    """Where the incumbent searches for its kernels and yours does not, each final starts a process anyway."""
    space = space_of(setup_s=60.0, **GPU)
    history = History().opened(space)
    assert not Costs(Knowledge(context(space), history)).fresh_finals
    history.ran(space.settings(cudnn_benchmark=True), 300)
    assert Costs(Knowledge(context(space), history)).fresh_finals


@pytest.mark.parametrize("budget_s", [30.0, 40.0, 50.0, 70.0])
def test_a_trial_cut_short_by_the_budget_ends_the_search(budget_s: float) -> None:
    """No second trial runs into the same end: what is left belongs to the finals."""
    runner = Stalling(
        lambda settings, mode: 3000.0 if settings.loader.num_workers else 1000.0,
        description=fake_description(**GPU, setup_s=0.5),
    )
    outcome = tune(runner, TuneOptions(budget_s=budget_s), SilentListener(), clock=runner.clock)
    failures = sum(trial.failure is not None for trial in outcome.trials)
    assert runner.stalled - failures <= 1
    assert outcome.verdict.kind == "faster"


class Stalling(FakeRunner):
    """Full trials of the search never end, but for the first."""

    tried = 0
    stalled = 0

    def run(self, spec: TrialSpec) -> Measurement | Failure:
        """A timeout, or what the function says."""
        searched = spec.stage in ("joint", "sampled")
        self.tried += searched
        if not searched or self.tried == 1:
            return super().run(spec)
        self.stalled += 1
        self.clock.advance(spec.timeout_s)
        return Failure(kind="timeout", message="no end", wall_s=spec.timeout_s)


def test_finals_of_settings_that_keep_memory_are_fresh() -> None:
    """*Yours* after them starts a process in any case, so sides that share one would not be alike."""
    space = space_of(setup_s=60.0, gpus=(), device="cpu", host_memory_fixed="")
    keeping = space.settings(keep_host_memory=True)
    history = History().opened(space)
    for _ in range(2):
        history.ran(keeping, 150.0)
    know = Knowledge(context(space), history)
    assert know.incumbent == keeping
    assert Costs(know).fresh_finals
