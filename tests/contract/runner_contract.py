"""What every Runner must do. Mix `RunnerContract` into a test class that has a `runner` fixture."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from autotune.codec import decode, encode
from autotune.measure.seam import Description, GradientSpec, NumericsSpec, PilotSpec, Runner
from autotune.recipe.guard import NumericsRecord, judge_numerics
from autotune.recipe.noise_scale import GradientStats
from autotune.recipe.pilot import PilotRecord, judge_pilot
from autotune.recipe.scaling import scale_recipe
from autotune.trial import Failure, Measurement, TrialSpec


class RunnerContract:
    """Tests of the seam. The runner's workload must run well with its own settings."""

    window_s = 0.3
    """Timed seconds of a trial; short, so that real runners are quick to test."""

    def spec(self, runner: Runner, **changes: object) -> TrialSpec:
        """A short full trial of *yours*."""
        yours = runner.describe().yours
        return replace(TrialSpec(settings=yours, stage="yours", window_s=self.window_s), **changes)

    def measured(self, runner: Runner, **changes: object) -> Measurement:
        """The measurement of such a trial."""
        found = runner.run(self.spec(runner, **changes))
        assert isinstance(found, Measurement), found
        return found

    def test_describe_is_stable(self, runner: Runner) -> None:
        """Asking twice gives the same, and *yours* with it."""
        first = runner.describe()
        assert isinstance(first, Description)
        assert runner.describe().yours == first.yours
        assert runner.describe().workload.fingerprint() == first.workload.fingerprint()

    def test_a_full_trial_measures_whole_blocks(self, runner: Runner) -> None:
        """Blocks, two at the least, each with steps, samples and a waiting time within its own time."""
        found = self.measured(runner)
        assert len(found.blocks) >= 2
        for block in found.blocks:
            assert block.steps >= 1
            assert block.samples >= block.steps
            assert block.elapsed_s > 0
            assert 0 <= block.wait_s <= block.elapsed_s * 1.001

    def test_samples_are_steps_times_batch(self, runner: Runner) -> None:
        """Blocks hold batches of the size that was asked for; a last, smaller one may be among them."""
        batch = runner.describe().workload.batch_samples
        assert all(block.samples <= block.steps * batch for block in self.measured(runner).blocks)

    def test_the_window_is_aimed_at(self, runner: Runner) -> None:
        """Timed seconds reach the window unless the data ended before."""
        found = self.measured(runner)
        assert found.stopped == "exhausted" or found.elapsed_s >= 0.5 * self.window_s

    def test_the_whole_costs_more_than_the_timed_part(self, runner: Runner) -> None:
        """`wall_s` holds warm-up and start as well."""
        found = self.measured(runner)
        assert found.wall_s >= found.elapsed_s
        assert min(found.warmup_s, found.startup_s, found.restart_s) >= 0

    def test_losses_are_seen(self, runner: Runner) -> None:
        """A full trial trains: it saw a loss at its start and at its end."""
        found = self.measured(runner)
        assert found.first_loss is not None
        assert found.last_loss is not None

    def test_the_step_alone_does_not_wait(self, runner: Runner) -> None:
        """Compute mode runs on batches that are there already."""
        assert self.measured(runner, mode="compute", stage="ceiling").wait_share < 0.05

    def test_the_loader_alone_delivers(self, runner: Runner) -> None:
        """Loader mode draws batches without a step."""
        if not runner.describe().workload.has_loader:
            # Runners of loops without a loader keep the rest of the contract.
            pytest.skip("no loader in this workload")
        assert self.measured(runner, mode="loader", stage="ceiling").samples > 0

    def test_a_hopeless_trial_is_given_up(self, runner: Runner) -> None:
        """Far under `give_up_below` after two blocks, it ends there."""
        found = self.measured(runner, give_up_below=1e12, min_blocks=6)
        assert found.stopped == "gave_up"
        assert 2 <= len(found.blocks) < 6

    def test_fresh_processes_measure_too(self, runner: Runner) -> None:
        """A trial in a new process is followed by one that goes on as usual."""
        assert self.measured(runner, fresh_process=True, stage="final", pair=0).samples > 0
        assert self.measured(runner).samples > 0

    def test_no_time_is_a_typed_failure(self, runner: Runner) -> None:
        """A timeout gives a Failure, not an exception, and the next trial runs."""
        found = runner.run(self.spec(runner, timeout_s=0.001))
        assert isinstance(found, Failure)
        assert found.kind == "timeout"
        assert found.message
        assert self.measured(runner).samples > 0

    def test_results_can_be_stored(self, runner: Runner) -> None:
        """A measurement survives JSON, as the study keeps it."""
        found = self.measured(runner)
        assert decode(Measurement, json.loads(json.dumps(encode(found)))) == found

    def test_closing_twice_is_safe(self, runner: Runner) -> None:
        """The second close finds nothing to do."""
        runner.close()
        runner.close()


class StepsContract(RunnerContract):
    """The seam with gradients, numerics and pilots: for Runners that have a step to look at."""

    def test_gradients_are_seen_between_trials(self, runner: Runner) -> None:
        """Sums of as many steps as were asked for, or a reason; they survive JSON, and trials go on."""
        yours = runner.describe().yours
        asked = GradientSpec(settings=yours, micro_batches=3, steps=9, warm_steps=2, apart=1)
        found = runner.probe_gradients(asked)
        assert isinstance(found, GradientStats), found
        assert (len(found.steps), found.refused) == (9, "")
        assert (found.micro_batches, found.warm_steps, found.apart) == (3, 2, 1)
        assert found.micro_samples == runner.describe().workload.batch_samples
        assert all(0 < step.square_of_mean <= step.mean_of_squares * 1.001 for step in found.steps)
        assert decode(GradientStats, json.loads(json.dumps(encode(found)))) == found
        assert self.measured(runner).samples > 0

    def test_no_time_for_gradients_is_a_typed_failure(self, runner: Runner) -> None:
        """A timeout gives a Failure, not an exception, and the next trial runs."""
        yours = runner.describe().yours
        found = runner.probe_gradients(GradientSpec(settings=yours, timeout_s=0.001))
        assert isinstance(found, Failure)
        assert found.kind == "timeout"
        assert self.measured(runner).samples > 0

    def test_numerics_are_compared_between_trials(self, runner: Runner) -> None:
        """As many steps as asked for; *yours* is the same as itself; it survives JSON, and trials go on."""
        yours = runner.describe().yours
        found = runner.compare_numerics(NumericsSpec(settings=yours, reference=yours, steps=9))
        assert isinstance(found, NumericsRecord), found
        assert (found.settings, found.reference, found.refused) == (yours, yours, "")
        assert found.again is not None
        assert [len(run.steps) for run in (found.run, found.reference_run, found.again)] == [9, 9, 9]
        assert all(step.loss is not None and step.finite for step in found.run.steps)
        assert judge_numerics(found).kind == "same"
        assert decode(NumericsRecord, json.loads(json.dumps(encode(found)))) == found
        assert self.measured(runner).samples > 0

    def test_no_time_for_numerics_is_a_typed_failure(self, runner: Runner) -> None:
        """A timeout gives a Failure, not an exception, and the next trial runs."""
        yours = runner.describe().yours
        found = runner.compare_numerics(NumericsSpec(settings=yours, reference=yours, timeout_s=0.001))
        assert isinstance(found, Failure)
        assert found.kind == "timeout"
        assert self.measured(runner).samples > 0

    def pilot_spec(self, runner: Runner, **changes: object) -> PilotSpec:
        """Batches twice as large as the user's own, for a few steps."""
        told = runner.describe()
        own = told.yours.loader.batch_size
        if own is None:
            pytest.skip("a loop without a loader has no batch size to change")
        spec = PilotSpec(
            settings=told.yours.replace(batch_size=2 * own),
            reference=told.yours,
            recipe=scale_recipe(told.workload, 2 * own, own),
            priced=0.75,
            steps=6,
            warm_steps=3,
        )
        return replace(spec, **changes)

    def test_a_pilot_runs_between_trials(self, runner: Runner) -> None:
        """Both batch sizes on equal samples, with losses at every mark; it survives JSON, trials go on."""
        spec = self.pilot_spec(runner)
        found = runner.pilot(spec)
        assert isinstance(found, PilotRecord), found
        assert (found.settings, found.reference, found.refused) == (spec.settings, spec.reference, "")
        assert (found.priced, found.warm_steps) == (0.75, 3)
        assert found.samples == 6 * (spec.settings.loader.batch_size or 0)
        assert found.run.steps == 6
        assert found.again is not None
        assert all(run.complete for run in (found.run, found.reference_run, found.again))
        assert judge_pilot(found).change is not None
        assert decode(PilotRecord, json.loads(json.dumps(encode(found)))) == found
        assert self.measured(runner).samples > 0

    def test_no_time_for_a_pilot_is_a_typed_failure(self, runner: Runner) -> None:
        """A timeout gives a Failure, not an exception, and the next trial runs."""
        found = runner.pilot(self.pilot_spec(runner, timeout_s=0.001))
        assert isinstance(found, Failure)
        assert found.kind == "timeout"
        assert self.measured(runner).samples > 0
