"""A made-up machine for tests: a Runner that answers from a function, on a clock that only it moves.

    clock = FakeClock()
    runner = FakeRunner(lambda settings, mode: 100.0 * (1 + settings.loader.num_workers), clock=clock)
    outcome = tune(runner, TuneOptions(budget_s=300), SilentListener(), clock=clock)

Nothing here imports torch; a run of five fake minutes takes a second or two.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from typing import Any, TypeVar

from autotune.facts import MachineFacts, WorkloadFacts
from autotune.measure.seam import Description, GradientSpec, NumericsSpec, PilotSpec
from autotune.recipe.guard import GradientMatch, NumericsRecord, NumericsRun, NumericsStep
from autotune.recipe.noise_scale import GradientStats, GradientStep
from autotune.recipe.pilot import PilotRecord, PilotRun
from autotune.settings import LoaderSettings, Settings
from autotune.trial import Block, Failure, Measurement, Mode, Stopped, TrialSpec

_Found = TypeVar("_Found", GradientStats, NumericsRecord, PilotRecord)

Rate = Callable[[Settings, Mode], float]
"""From settings and a mode to steady samples/s."""


class FakeClock:
    """Seconds that pass only when told to; call it to read it."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        """Seconds now."""
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


def fake_description(**changes: Any) -> Description:
    """A made-up machine and workload: 4 CPUs, no accelerator, 50,000 samples in batches of 64.

    Args:
        changes: fields of `MachineFacts`, `WorkloadFacts`, `Settings`' knobs or `Description` by name.

    Raises:
        TypeError: for a name that is none of these.
    """
    machine = MachineFacts(
        system="Linux",
        cpu_name="fake CPU",
        logical_cpus=4,
        usable_cpus=4,
        cpu_quota=None,
        memory_bytes=16 << 30,
        memory_limit_bytes=None,
        memory_available_bytes=12 << 30,
        shm_free_bytes=4 << 30,
        nofile_soft=4096,
        nofile_hard=4096,
        start_method="fork",
        python_version="3.12.0",
        torch_version="2.9.0",
    )
    workload = WorkloadFacts(
        model_class="FakeModel",
        parameters=1_000_000,
        trainable_parameters=1_000_000,
        device="cpu",
        loss="cross_entropy",
        batch_samples=64,
        batch_bytes=64 * 3 * 32 * 32 * 4,
        dataset_class="FakeDataset",
        dataset_samples=50_000,
        optimizer_class="SGD",
        optimizer_family="sgd",
        step_s=0.05,
        setup_s=0.5,
    )
    yours = Settings(loader=LoaderSettings(batch_size=64))
    description = Description(machine=machine, workload=workload, yours=yours)
    return _changed(description, changes)


def _changed(description: Description, changes: dict[str, Any]) -> Description:
    parts: dict[str, dict[str, Any]] = {"machine": {}, "workload": {}, "yours": {}, "own": {}}
    for name, value in changes.items():
        if name in {f.name for f in dataclasses.fields(Description)}:
            parts["own"][name] = value
        elif name in {f.name for f in dataclasses.fields(MachineFacts)}:
            parts["machine"][name] = value
        elif name in {f.name for f in dataclasses.fields(WorkloadFacts)}:
            parts["workload"][name] = value
        elif name in description.yours.flat():
            parts["yours"][name] = value
        else:
            raise TypeError(f"no fact and no knob is called {name!r}")
    changed = Description(
        machine=dataclasses.replace(description.machine, **parts["machine"]),
        workload=dataclasses.replace(description.workload, **parts["workload"]),
        yours=description.yours.replace(**parts["yours"]),
        notes=description.notes,
    )
    return dataclasses.replace(changed, **parts["own"])


def fake_gradients(noise: float, samples: int) -> Callable[[GradientSpec], GradientStats]:
    """Gradients of this noise scale in micro-batches of `samples`, without chance."""

    def look(spec: GradientSpec) -> GradientStats:
        step = GradientStep(
            mean_of_squares=1 + noise / samples,
            square_of_mean=1 + noise / (samples * spec.micro_batches),
        )
        return GradientStats(
            micro_samples=samples,
            micro_batches=spec.micro_batches,
            steps=(step,) * spec.steps,
            warm_steps=spec.warm_steps,
            apart=spec.apart,
        )

    return look


def fake_numerics(spec: NumericsSpec, *, loss_change: float = 0.0, cosine: float = 1.0) -> NumericsRecord:
    """Losses that fall from 2.3 to 1.8, those of the settings being higher by the part `loss_change`."""
    falling = [2.3 - 0.5 * step / spec.steps for step in range(spec.steps)]
    runs = [
        NumericsRun(steps=tuple(NumericsStep(loss=scale * loss, gradient_norm=1.0) for loss in falling))
        for scale in (1.0, 1.0 + loss_change)
    ]
    return NumericsRecord(
        settings=spec.settings,
        reference=spec.reference,
        run=runs[1],
        reference_run=runs[0],
        again=runs[0],
        gradients=GradientMatch(cosine=cosine, norm_ratio=1.0),
        gradients_again=GradientMatch(cosine=1.0, norm_ratio=1.0),
    )


def fake_pilot(spec: PilotSpec, *, loss_change: float = 0.0) -> PilotRecord:
    """Held-out losses of 0.5, those of the changed batch being higher by the part `loss_change`."""
    runs = [
        PilotRun(losses=(loss,) * 4, priced=priced, most=2.0, steps=spec.steps)
        for loss, priced in ((0.5, (0.5,) * 4), (0.5 * (1 + loss_change), ()))
    ]
    return PilotRecord(
        settings=spec.settings,
        reference=spec.reference,
        priced=spec.priced,
        warm_steps=spec.warm_steps,
        samples=spec.steps * (spec.settings.loader.batch_size or 1),
        held_samples=512,
        first_loss=2.3,
        run=runs[1],
        reference_run=runs[0],
        again=runs[0],
    )


class FakeRunner:
    """A Runner whose measurements come from a function; time passes on its clock alone.

    Args:
        rate: steady samples/s of settings in a mode. In mode `full` it should not exceed the other two. An
            exception that it raises passes through `run`, so that a test can interrupt a run where it likes.
        noise: standard deviation of the log rate from run to run; a quarter of it from block to block.
        seed: of the noise.
        failures: a Failure for settings that fail, else None.
        clock: moved by each trial; a new one when absent.
        description: what `describe` returns.
        startup_s: seconds to start the loader's workers, from settings; 0.05 s for each when absent.
        warmup_s: seconds of warm-up in each trial that runs steps.
        marks: what is seen in every block of a trial, from its spec.
        edge_failures: a Failure for settings that fail across the end of an epoch alone.
        gradients: what looking at gradients gives; a noise scale of a thousand samples when absent.
        numerics: what comparing steps gives; no difference when absent.
        pilots: what training a while in two batch sizes gives; no difference when absent.
    """

    def __init__(  # noqa: PLR0913  # each is something that a test may want otherwise
        self,
        rate: Rate,
        *,
        noise: float = 0.0,
        seed: int = 0,
        failures: Callable[[Settings], Failure | None] = lambda settings: None,
        clock: FakeClock | None = None,
        description: Description | None = None,
        startup_s: Callable[[Settings], float] = lambda settings: 0.05 * settings.loader.num_workers,
        warmup_s: float = 0.2,
        marks: Callable[[TrialSpec], tuple[str, ...]] = lambda spec: (),
        edge_failures: Callable[[Settings], Failure | None] = lambda settings: None,
        gradients: Callable[[GradientSpec], GradientStats | Failure] | None = None,
        numerics: Callable[[NumericsSpec], NumericsRecord | Failure] = fake_numerics,
        pilots: Callable[[PilotSpec], PilotRecord | Failure] = fake_pilot,
    ) -> None:
        self.rate, self.failures, self.startup_s, self.warmup_s = rate, failures, startup_s, warmup_s
        self.marks, self.edge_failures = marks, edge_failures
        self.clock = clock or FakeClock()
        self.description = description or fake_description()
        self.gradients = gradients or fake_gradients(1000.0, self.description.workload.batch_samples)
        self.numerics = numerics
        self.pilots = pilots
        self.specs: list[TrialSpec] = []
        """All trials that were asked for, in order."""
        self.compared: list[NumericsSpec] = []
        """All comparisons of steps that were asked for, in order."""
        self.piloted: list[PilotSpec] = []
        """All pilots that were asked for, in order."""
        self.closed = False
        self._noise, self._random = noise, random.Random(seed)
        self._alive = False

    def describe(self) -> Description:
        """The description given; costs the time to bring up a process and a few steps."""
        facts = self.description.workload
        self.clock.advance(facts.setup_s + 3 * facts.step_s)
        self._alive = True
        return self.description

    def run(self, spec: TrialSpec) -> Measurement | Failure:
        """What the function says, after the time that it would have taken."""
        self.specs.append(spec)
        setup_s = self.description.workload.setup_s if spec.fresh_process or not self._alive else 0.0
        self._alive = not spec.fresh_process
        failure = self.failures(spec.settings)
        if failure is None and spec.epoch_edge:
            failure = self.edge_failures(spec.settings)
        if failure is not None:
            self._alive = False
            return self._end(dataclasses.replace(failure, wall_s=setup_s + self.warmup_s), spec)
        measurement = self._measured(spec)
        wall_s = setup_s + measurement.warmup_s + measurement.startup_s + measurement.elapsed_s
        return self._end(dataclasses.replace(measurement, wall_s=wall_s), spec)

    def probe_gradients(self, spec: GradientSpec) -> GradientStats | Failure:
        """What the function says, after the steps that it takes."""
        training = spec.warm_steps + spec.apart * (spec.steps - 1)
        micro_batches = training + spec.steps * spec.micro_batches
        return self._stepped(self.gradients(spec), micro_batches, spec.timeout_s)

    def compare_numerics(self, spec: NumericsSpec) -> NumericsRecord | Failure:
        """What the function says, after the steps of three runs."""
        self.compared.append(spec)
        return self._stepped(self.numerics(spec), 3 * (spec.steps + 1), spec.timeout_s)

    def pilot(self, spec: PilotSpec) -> PilotRecord | Failure:
        """What the function says, after the samples of three runs and the warm steps."""
        self.piloted.append(spec)
        samples = spec.steps * (spec.settings.loader.batch_size or 1)
        warm = spec.warm_steps * (spec.reference.loader.batch_size or 1)
        own_s = (2 * samples + warm) / self.rate(spec.reference, "full")
        return self._after(
            self.pilots(spec), own_s + samples / self.rate(spec.settings, "full"), spec.timeout_s
        )

    def _stepped(self, found: _Found | Failure, steps: int, timeout_s: float) -> _Found | Failure:
        """What was found, after so many steps, or no time for them."""
        return self._after(found, steps * self.description.workload.step_s, timeout_s)

    def _after(self, found: _Found | Failure, seconds: float, timeout_s: float) -> _Found | Failure:
        """What was found, after so many seconds, or no time for them."""
        wall_s = (0.0 if self._alive else self.description.workload.setup_s) + seconds
        self._alive = wall_s <= timeout_s and not isinstance(found, Failure)
        if wall_s > timeout_s:
            message = f"it did not end within {timeout_s:.0f} s"
            found, wall_s = Failure(kind="timeout", message=message), timeout_s
        self.clock.advance(wall_s)
        return dataclasses.replace(found, wall_s=wall_s)

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True

    def _end(self, outcome: Measurement | Failure, spec: TrialSpec) -> Measurement | Failure:
        if outcome.wall_s > spec.timeout_s:
            self._alive = False
            message = f"it did not end within {spec.timeout_s:.0f} s"
            outcome = Failure(kind="timeout", message=message, wall_s=spec.timeout_s)
        self.clock.advance(outcome.wall_s)
        return outcome

    def _measured(self, spec: TrialSpec) -> Measurement:
        settings = spec.settings
        run_rate = self.rate(settings, spec.mode) * math.exp(self._random.gauss(0, self._noise))
        samples = settings.loader.batch_size or self.description.workload.batch_samples
        step_s = samples / run_rate
        unit = 1 if spec.mode == "compute" else max(1, settings.loader.num_workers)
        steps = unit * max(1, math.ceil(spec.window_s / spec.min_blocks / (unit * step_s)))
        wait = self._wait_share(settings, spec.mode)
        blocks = []
        stopped: Stopped = "window"
        for _ in range(spec.min_blocks):
            elapsed_s = steps * step_s * math.exp(self._random.gauss(0, self._noise / 4))
            blocks.append(
                Block(
                    steps=steps,
                    samples=steps * samples,
                    elapsed_s=elapsed_s,
                    wait_s=wait * elapsed_s,
                    marks=self.marks(spec),
                )
            )
            if spec.give_up_below is not None and len(blocks) == 2 and run_rate < spec.give_up_below:
                stopped = "gave_up"
                break
        startup_s = 0.0 if spec.mode == "compute" else self.startup_s(settings)
        return Measurement(
            blocks=tuple(blocks),
            warmup_s=0.0 if spec.mode == "loader" else self.warmup_s,
            startup_s=startup_s,
            restart_s=0.0 if settings.loader.persistent_workers else startup_s,
            peak_host_bytes=(1 << 30) + settings.loader.num_workers * (1 << 26),
            first_loss=None if spec.mode == "loader" else 2.3,
            last_loss=None if spec.mode == "loader" else 2.2,
            stopped=stopped,
        )

    def _wait_share(self, settings: Settings, mode: Mode) -> float:
        if mode != "full":
            return 1.0 if mode == "loader" else 0.0
        return min(max(1 - self.rate(settings, "full") / self.rate(settings, "compute"), 0.0), 1.0)
