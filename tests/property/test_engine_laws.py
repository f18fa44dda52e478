"""Laws of whole runs, over random machines, rates, failures, budgets and interrupts."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from search_worlds import random_failures, random_rate
from strategies import plain_gpu, plain_machine, plain_workload, situations

from autotune.errors import AutotuneError
from autotune.measure.seam import Description
from autotune.outcome import Outcome
from autotune.search.engine import TuneOptions, tune
from autotune.search.listener import SilentListener
from autotune.settings import LoaderSettings, Settings
from autotune.space.candidates import build_space
from autotune.testing import FakeClock, FakeRunner
from autotune.trial import TrialSpec

few = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything that decides how a run goes."""

    description: Description
    seed: int
    spread: float
    steps_per_s: float
    noise: float
    failing: float
    budget_s: float
    epochs: int | None
    allow: str
    interrupt_at: int | None

    def run(self) -> tuple[FakeRunner, Outcome | AutotuneError]:
        """Run it anew; the outcome or the error."""
        clock = FakeClock()
        runner = FakeRunner(
            random_rate(self.seed, self.spread, self.steps_per_s * self.description.workload.batch_samples),
            noise=self.noise,
            seed=self.seed,
            failures=random_failures(self.seed, self.failing, self.description.yours),
            clock=clock,
            description=self.description,
            startup_s=lambda settings: 0.05 * settings.loader.num_workers * bool(self.spread),
        )
        inner = runner.run

        def run(spec: TrialSpec):
            if len(runner.specs) == self.interrupt_at:
                raise KeyboardInterrupt
            return inner(spec)

        runner.run = run  # type: ignore[method-assign]
        options = TuneOptions(
            budget_s=self.budget_s,
            seed=self.seed,
            epochs=self.epochs,
            allow=self.allow,  # type: ignore[arg-type]
        )
        try:
            return runner, tune(runner, options, SilentListener(), clock=clock)
        except AutotuneError as error:
            return runner, error


def _open():
    """A situation in which every knob can move and batches are small."""
    machine = plain_machine(gpus=(plain_gpu(),))
    return machine, plain_workload(device="cuda"), Settings(loader=LoaderSettings(batch_size=32))


@st.composite
def worlds(draw: st.DrawFn, *, alike: bool = False) -> World:
    """Worlds; with `alike` all settings start and run alike, and nothing fails or wobbles."""
    machine, workload, yours = draw(st.just(_open()) | situations())
    return World(
        description=Description(machine=machine, workload=workload, yours=yours),
        seed=draw(st.integers(0, 10_000)),
        spread=0.0 if alike else draw(st.sampled_from((0.5, 0.05, 0.0))),
        steps_per_s=draw(st.sampled_from((300.0, 50.0, 2.0))),
        noise=0.0 if alike else draw(st.sampled_from((0.0, 0.01, 0.1))),
        failing=0.0 if alike else draw(st.sampled_from((0.0, 0.2, 0.8))),
        budget_s=draw(st.sampled_from((60.0, 200.0, 25.0, 3.0))),
        epochs=draw(st.none() | st.integers(1, 100)),
        allow=draw(st.sampled_from(("numerics", "recipe", "exact"))),
        interrupt_at=None if alike else draw(st.none() | st.integers(0, 60)),
    )


@few
@given(worlds())
def test_only_measured_settings_are_returned(world):
    """The answer is *yours* or ran well in full; a winner ran well in every one of its finals."""
    _, outcome = world.run()
    assume(isinstance(outcome, Outcome))
    ran = {t.settings for t in outcome.trials if t.spec.mode == "full" and t.measurement is not None}
    assert outcome.best == outcome.yours or outcome.best in ran
    if outcome.verdict.kind == "faster":
        finals = outcome.finals(outcome.best)
        assert len(finals) >= 4
        assert all(t.measurement is not None for t in finals)
        assert outcome.verdict.ratio.low > 1
    elif outcome.verdict.kind in ("kept", "unsure"):
        assert outcome.best == outcome.yours


@few
@given(worlds(alike=True))
def test_equal_settings_have_no_winner(world):
    """Where nothing is faster in fact and nothing wobbles, *yours* stays."""
    _, outcome = world.run()
    assume(isinstance(outcome, Outcome))
    assert outcome.best == outcome.yours


@few
@given(worlds())
def test_the_budget_is_kept(world):
    """A run ends within its budget, whatever fails or hangs; only the first look may pass it."""
    runner, _ = world.run()
    facts = world.description.workload
    assert runner.clock() <= max(world.budget_s, facts.setup_s + 3 * facts.step_s) + 0.01


@few
@given(worlds())
def test_the_same_world_gives_the_same_outcome(world):
    """Seed and measurements decide everything."""
    first, again = world.run()[1], world.run()[1]
    assert str(first) == str(again) if isinstance(first, AutotuneError) else first == again


@few
@given(worlds())
def test_only_legal_settings_are_run(world):
    """Every settings that a runner is asked for is in the space, or *yours*."""
    runner, _ = world.run()
    told = world.description
    space = build_space(told.machine, told.workload, told.yours, allow=world.allow)
    assert all(spec.settings == told.yours or space.legal(spec.settings) for spec in runner.specs)
