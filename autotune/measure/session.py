"""A workload brought up in one process, and trials run on it one after the other.

The same code runs in the bench process and, when asked for, in the user's own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from autotune.errors import AutotuneError, BaselineError, ModelError, UsageError
from autotune.facts import MachineFacts
from autotune.measure import (
    applying,
    batches,
    broken,
    compiling,
    edge,
    flags,
    gathering,
    gradients,
    guard,
    limits,
    loaders,
    losses,
    models,
    optimizers,
    pilot,
    survey,
    timing,
)
from autotune.measure.classify import classify
from autotune.measure.classify import failure as make_failure
from autotune.measure.device import DeviceClock, choose_device
from autotune.measure.feed import Feed, HeldFeed, LoaderFeed, TailFeed
from autotune.measure.seam import Description, GradientSpec, NumericsSpec, PilotSpec
from autotune.measure.signals import deaf_to_workers
from autotune.measure.stepkit import StepKit, is_channels_last
from autotune.recipe.guard import NumericsRecord
from autotune.recipe.noise_scale import GradientStats
from autotune.recipe.pilot import PilotRecord
from autotune.settings import LoaderSettings, Settings
from autotune.space.rules import canonical
from autotune.trial import Block, Failure, Measurement, Stopped, TrialSpec
from autotune.workload import Workload

_T = TypeVar("_T")


class Session:
    """A workload that is ready for trials.

    Args:
        workload: with live objects or factories; everything in it belongs to this session.
        parts: the loader's parts, None for a loop without one.
        user_flags: torch's switches as the user has them.
        machine: a function that reads the facts of this machine; called once.
        making_s: what it took to make the workload here; every fresh process pays it again.

    Raises:
        AutotuneError: when the workload cannot run at all.
    """

    def __init__(
        self,
        workload: Workload,
        parts: loaders.LoaderParts | None,
        user_flags: flags.UserFlags,
        machine: Callable[[], MachineFacts],
        *,
        making_s: float = 0.0,
    ) -> None:
        started = time.perf_counter()
        self.workload = workload
        self.user_flags = user_flags
        self.parts = parts
        self._read_machine = machine
        if parts is not None:
            parts.check()
        self.models = models.build_models(workload.model)
        self.device = choose_device(workload.device, list(self.models.values()))
        self.clock = DeviceClock(self.device)
        self._check_trainable()
        self._modes = self._training_modes()
        self.channels_last = all(is_channels_last(model) for model in self.models.values())
        for module in (*self.models.values(), workload.loss):
            if isinstance(module, nn.Module):  # a loss may have weights of its own
                module.to(self.device)
        self._frozen_optimizer = optimizers.freeze_optimizer(workload.optimizer)
        self._initial = self._snapshot()
        self._buffers = models.buffer_places(self.models.values())
        self._held: dict[int | None, tuple[Any, int]] = {}
        self._plan: losses.LossPlan | None = None
        self._description: Description | None = None
        self._setup_s = making_s + time.perf_counter() - started

    # -- describing ----------------------------------------------------------------------------------

    def describe(self) -> Description:
        """What this workload is; runs the user's own settings for a few steps.

        Raises:
            AutotuneError: when they do not run.
        """
        if self._description is None:
            started = time.perf_counter()
            seen = self._survey()
            machine = self._read_machine()
            facts = replace(seen.workload, setup_s=self._setup_s + time.perf_counter() - started)
            # Switches that do nothing here, such as pinned memory on a CPU, are no part of what is compared.
            yours = canonical(seen.yours, machine, facts, keep_persistent=True)
            self._description = Description(
                machine=machine, workload=facts, yours=yours, name=self.workload.name, notes=seen.notes
            )
        return self._description

    def _survey(self) -> survey.Survey:
        try:
            return survey.survey(self)
        except AutotuneError:
            raise
        except Exception as error:  # what is left is the device's, such as too little memory
            failure = classify(error, phase="in the first step")
        raise BaselineError(
            "your own settings do not run",
            why=failure.message,
            fix=failure.hint,
            detail=failure.traceback,
        )

    def held_batch(self, batch_size: int | None) -> tuple[Any, int]:
        """One batch on the host and its number of samples, fetched once for each batch size.

        Raises:
            DatasetError: when the dataset raises; the index is named.
        """
        if self.parts is None:
            return None, self.workload.samples_per_step or 1
        if batch_size not in self._held:
            fetched = survey.fetch_one(self.parts, batch_size)
            own = self._own_batch_size()
            # The user's own and the latest other one: a ladder of large batches would fill the memory.
            self._held = {size: held for size, held in self._held.items() if size == own}
            self._held[batch_size] = fetched
        return self._held[batch_size]

    def loss_plan(self) -> losses.LossPlan | None:
        """How the loss is had; None where `train_step` does it all."""
        if self.workload.train_step is not None:
            return None
        if self._plan is None:
            batch, _ = self.held_batch(self._own_batch_size())
            batch = batches.copied(batch)  # the model may change it in place
            on_device = batches.to_device(batch, self.device) if batch is not None else None
            self._plan = losses.plan_loss(
                self.main_model, on_device, loss=self.workload.loss, step=self.workload.step
            )
        return self._plan

    @property
    def main_model(self) -> nn.Module:
        """The model, or the first of several."""
        return next(iter(self.models.values()))

    def make_kit(self, settings: Settings, *, gather: int = 1) -> StepKit:
        """The user's step under `settings`, on the initial weights; `gather` batches make up one."""
        self.restore()
        plan = self.loss_plan()
        return StepKit(
            models=self.models,
            optimizers_=self.build_optimizers(),
            settings=settings,
            device=self.device,
            loss_of=None if plan is None else plan.loss_of,
            train_step=self.workload.train_step,
            gather=gather,
        )

    def build_optimizers(self) -> dict[str, Optimizer]:
        """The user's optimizers as they make them, without a step taken."""
        return optimizers.build_optimizers(self._frozen_optimizer, self.models)

    def _own_batch_size(self) -> int | None:
        return None if self.parts is None else self.parts.settings.batch_size

    def _check_trainable(self) -> None:
        if not any(p.requires_grad for model in self.models.values() for p in model.parameters()):
            raise ModelError(
                "the model has no trainable parameters",
                why="no parameter of it has requires_grad",
                fix="unfreeze what is to be trained",
            )

    # -- state ---------------------------------------------------------------------------------------

    def _training_modes(self) -> list[tuple[nn.Module, bool]]:
        """Each module's own flag, so that a frozen part in evaluation stays there.

        A model that is in evaluation as a whole was validated last, and is trained in training mode.
        """
        if not any(model.training for model in self.models.values()):
            for model in self.models.values():
                model.train()
        return [(module, module.training) for model in self.models.values() for module in model.modules()]

    def _snapshot(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        with torch.no_grad():
            return [
                (tensor, tensor.detach().to("cpu", copy=True))
                for tensor in self._tensors()
                if not models.is_expanded(tensor)
            ]

    def _tensors(self) -> list[torch.Tensor]:
        return [
            tensor for model in self.models.values() for tensor in (*model.parameters(), *model.buffers())
        ]

    def restore(self) -> None:
        """Initial weights and buffers, no gradients: every trial starts from the same place."""
        models.put_back(self._buffers)
        with torch.no_grad():
            for tensor, value in self._initial:
                tensor.copy_(value)
        for model in self.models.values():
            model.zero_grad(set_to_none=True)
        for module, training in self._modes:
            module.training = training

    # -- trials --------------------------------------------------------------------------------------

    def run(self, spec: TrialSpec) -> Measurement | Failure:
        """One trial. Exceptions of the user's code become a Failure; global state is put back."""
        with self._momenta(spec.settings.loader.batch_size):
            return self._guarded(spec, spec.mode, lambda started: self._measure(spec, started))

    def probe_gradients(self, spec: GradientSpec) -> GradientStats | Failure:
        """Sums of the user's own gradients; everything is put back, as after a trial."""
        return self._guarded(spec, "gradients", lambda started: gradients.collect(self, spec, started))

    def compare_numerics(self, spec: NumericsSpec) -> NumericsRecord | Failure:
        """The same steps under two settings; everything is put back, as after a trial."""
        with self._momenta(guard.compared_batch_size(self, spec.settings)):
            return self._guarded(spec, "numerics", lambda started: guard.compare(self, spec, started))

    def pilot(self, spec: PilotSpec) -> PilotRecord | Failure:
        """Both batch sizes trained for a while; everything is put back, as after a trial."""
        return self._guarded(spec, "pilot", lambda started: pilot.train_both(self, spec, started))

    def _momenta(self, batch_size: int | None) -> contextlib.AbstractContextManager[None]:
        return applying.batch_norms_at(self.models.values(), batch_size, self._own_batch_size())

    def _guarded(
        self,
        spec: TrialSpec | GradientSpec | NumericsSpec | PilotSpec,
        phase: str,
        body: Callable[[float], _T],
    ) -> _T | Failure:
        """What `body` gives, or what became of it."""
        started = time.perf_counter()
        kills = limits.oom_kills()
        self._feed: Feed | TailFeed | None = None
        failure: Failure | None = None
        try:
            with flags.preserved():
                flags.apply_flags(spec.settings.compute, self.user_flags, self.device.type)
                flags.seed_everything(spec.seed)
                return body(started)
        except timing.DivergedError as error:
            failure = Failure(kind="non_finite", message=str(error), hint="try a lower learning rate")
        except compiling.NothingCompiledError as error:
            failure = make_failure("compile_error", message=str(error))
        except timing.OutOfTimeError:
            failure = make_failure("timeout", message=f"no end after {spec.timeout_s:.0f} s")
        except Exception as error:  # anything the user's code raises is this trial's outcome
            with deaf_to_workers():
                failure = classify(error, phase=phase, oom_killed=limits.oom_kills() > kills)
        finally:
            with deaf_to_workers():
                feed = self._close_feed()
            compiling.forget(self.models.values())
        # Only here, outside of `except`, are the failed frame's tensors free to go.
        failure, named = broken.with_sample(failure, self.parts, feed)
        # The feed may hold a batch on the device.
        failure, feed = edge.placed(failure, feed, one_sample=named), None
        if failure.kind not in ("sticky_cuda",):
            self.restore()
            self.clock.reset()
        return replace(failure, wall_s=time.perf_counter() - started)

    def _close_feed(self) -> Feed | TailFeed | None:
        feed, self._feed = self._feed, None
        if feed is not None:
            feed.close()
        return feed

    def _measure(self, spec: TrialSpec, started: float) -> Measurement:
        deadline = started + spec.timeout_s
        self.clock.reset()
        if spec.mode == "loader":
            return self._measure_loader(spec, started)
        gather = gathering.batches_in_step(self.workload, self._own_batch_size(), spec.settings)
        kit = self.make_kit(spec.settings, gather=gather)
        batch, samples = self.held_batch(spec.settings.loader.batch_size)
        held = batches.Held(batch)
        # On a CPU the clock rises within milliseconds, and nothing has to be waited for.
        least_s = spec.least_warm_s if self.device.type != "cpu" else 0.0
        compiled = compiling.compilations()
        warm = gathering.warm_up_whole(kit, held, self.clock, gather, deadline=deadline, least_s=least_s)
        compiling.check_compiled(kit.models.values(), compiled)
        if spec.mode == "full" and self.parts is not None:
            feed = self.open_feed(self.parts, spec.settings.loader)
        else:
            resident = kit.to_device(held.fresh()) if batch is not None else None
            self._feed = feed = HeldFeed(resident, samples, copies=held.copies)
        workers = spec.settings.loader.num_workers if spec.mode == "full" else 0
        workers = gathering.whole_steps(workers, gather)
        timer = timing.BlockTimer(kit.step, feed, self.clock, workers, deadline)
        step_s = timer.discard(spec.window_s) if spec.mode == "full" else warm.step_s
        blocks, stopped = timing.measure_blocks(timer, spec, step_s)
        found = self._put_together(spec, timer, blocks, stopped, warm, started)
        if not spec.epoch_edge or stopped == "gave_up":
            return found
        self._cross_epoch(spec, kit.step, deadline)
        peak = self.clock.peak_bytes()
        return replace(found, peak_device_bytes=peak, wall_s=time.perf_counter() - started)

    def _cross_epoch(self, spec: TrialSpec, step: timing.Step, deadline: float) -> None:
        """Steps across the end of an epoch; none for a loop without a loader."""
        feed, loader = self._feed, spec.settings.loader
        if not isinstance(feed, LoaderFeed):
            return
        if feed.parts.iterable:
            edge.cross_stream(step, feed, self.clock, deadline, at_most_s=spec.window_s)
            return
        with deaf_to_workers():
            self._close_feed()  # its workers would hold memory that training does not need
        self._feed = tail = TailFeed(feed.parts, loader, edge.epoch_tail(feed.parts, loader))
        edge.cross(step, tail, self.clock, deadline)

    def _measure_loader(self, spec: TrialSpec, started: float) -> Measurement:
        if self.parts is None:
            raise UsageError("a loop without a DataLoader has no loader to measure")
        feed = self.open_feed(self.parts, spec.settings.loader)
        workers, deadline = spec.settings.loader.num_workers, started + spec.timeout_s
        timer = timing.BlockTimer(None, feed, self.clock, workers, deadline)
        step_s = timer.discard(spec.window_s)
        blocks, stopped = timing.measure_blocks(timer, spec, step_s)
        return self._put_together(spec, timer, blocks, stopped, None, started)

    def open_feed(self, parts: loaders.LoaderParts, settings: LoaderSettings) -> Feed:
        """Batches from a loader that is ended with what is being run; the one before it ends now."""
        with deaf_to_workers():
            self._close_feed()
        self._feed = feed = LoaderFeed(parts, settings)
        feed.start()  # known by now, so that a first fetch that raises is named and its workers are ended
        return feed

    def open_batches(
        self, parts: loaders.LoaderParts, settings: LoaderSettings, wanted: Sequence[Any]
    ) -> TailFeed:
        """Just these batches, from a loader that is ended with what is being run."""
        with deaf_to_workers():
            self._close_feed()
        self._feed = feed = TailFeed(parts, settings, wanted, at_the_end=False)
        return feed

    def _put_together(
        self,
        spec: TrialSpec,
        timer: timing.BlockTimer,
        blocks: tuple[Block, ...],
        stopped: Stopped,
        warm: timing.WarmUp | None,
        started: float,
    ) -> Measurement:
        assert isinstance(self._feed, (LoaderFeed, HeldFeed)), "measured from a feed"
        timer.memory.finish()
        startup_s, restart_s = timing.excess_start_s(self._feed.first_batch_s, blocks), 0.0
        if isinstance(self._feed, LoaderFeed):
            restart_s = timing.time_restart(
                timer, self._feed, blocks, at_most_s=spec.window_s, settled=stopped == "window"
            )
        return timing.measurement(
            blocks,
            stopped,
            timer=timer,
            clock=self.clock,
            warm=warm,
            startup_s=startup_s,
            restart_s=restart_s,
            wall_s=time.perf_counter() - started,
        )
