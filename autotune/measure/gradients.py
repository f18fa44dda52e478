"""Gradients of the user's own step, by K micro-batches at the same weights: the sums of a noise scale.

Each step draws K micro-batches of the user's own size from freshly shuffled data. Hooks on the parameters see
every gradient as the backward pass makes it: before clipping, in float32 without a scaler, whatever a
`train_step` does with it afterwards. The optimizer's `step` does nothing meanwhile, so that all K gradients
belong to the same weights. Steps that it is to take come before (`warm_steps`) and between (`apart`).
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch.utils.data import SequentialSampler

from autotune.measure import batches, loaders, timing
from autotune.measure.feed import Feed, HeldFeed
from autotune.measure.tap import GradientSum, GradientTap
from autotune.recipe.noise_scale import LEAST_STEPS, GradientStats, GradientStep
from autotune.settings import LoaderSettings

if TYPE_CHECKING:
    from autotune.measure.seam import GradientSpec
    from autotune.measure.session import Session

_HALVED_BATCHES = 8
"""Batches that are cut in two to tell a mean from a sum by."""
_LEAST_HALVED = 4
"""Of smaller batches two are drawn as one: batch norm needs two samples in each half."""
_MISSES = 16
"""Batches in a row that may have another size than the user's own."""


class _RefusedError(Exception):
    """These gradients give no noise scale; the text says why."""


def collect(session: Session, spec: GradientSpec, started: float) -> GradientStats:
    """The sums of `spec.steps` steps, or why there are none. Weights and buffers are put back.

    Args:
        session: its models are used, and are at their initial weights afterwards.
        spec: what is asked.
        started: `time.perf_counter()` when it was asked.

    Raises:
        OutOfTimeError: at `spec.timeout_s`.
        DivergedError: where most gradients are not finite.
    """
    own = None if session.parts is None else session.parts.settings.batch_size
    samples = session.held_batch(own)[1]
    stats = GradientStats(
        micro_samples=samples,
        micro_batches=spec.micro_batches,
        warm_steps=spec.warm_steps,
        apart=spec.apart,
    )
    probe = _Probe(session, spec, samples, started)
    try:
        stats = replace(stats, steps=probe.run(), notes=tuple(probe.notes))
    except _RefusedError as refusal:
        stats = replace(stats, refused=str(refusal), notes=tuple(probe.notes))
    finally:
        probe.close()
    session.restore()
    return replace(stats, wall_s=time.perf_counter() - started)


class _Probe:
    """One look at the gradients, from data to sums."""

    def __init__(self, session: Session, spec: GradientSpec, samples: int, started: float) -> None:
        self.notes: list[str] = []
        self._session, self._spec, self._samples = session, spec, samples
        self._started, self._deadline = started, started + spec.timeout_s
        self._kit = session.make_kit(spec.settings.replace(precision="float32"))
        self._parts = None if session.parts is None else self._shuffled(session.parts)
        self._tap: GradientTap | None = None

    def run(self) -> tuple[GradientStep, ...]:
        """Warm steps, then the sums with training between, then a check that the loss is a mean.

        Raises:
            _RefusedError, OutOfTimeError, DivergedError
        """
        self._check_one_loss()
        draws = self._draws()
        ends = self._started + self._spec.window_s
        self._train(draws, self._spec.warm_steps)
        self._tap = GradientTap(self._kit.optimizers.values())
        steps = self._steps(draws, self._tap, ends)
        if 2 * sum(step.finite for step in steps) < len(steps):
            raise timing.DivergedError("most gradients are NaN or infinite")
        with self._tap.standing_still():
            self._check_mean(self._tap)
        return steps

    def _train(self, draws: _Draws, steps: int) -> None:
        for _ in range(steps):
            self._kit.step(draws.next(self._deadline))
        if self._tap is not None:
            self._tap.take()  # what training left behind belongs to no sum

    def close(self) -> None:
        """Take the hooks away."""
        if self._tap is not None:
            self._tap.close()

    def _shuffled(self, parts: loaders.LoaderParts) -> loaders.LoaderParts:
        """The user's data in random order: neighbours that are alike would make the noise look larger."""
        parts = loaders.private_copy(parts)
        if parts.iterable or parts.batch_sampler is not None:
            self.notes.append(
                "batches come in the order of your own stream or sampler: where neighbours are alike, the "
                "noise scale is too high"
            )
        elif parts.sampler is None or type(parts.sampler) is SequentialSampler:
            return replace(parts, sampler=None, shuffle=True)
        return parts

    def _check_one_loss(self) -> None:
        if self._session.workload.train_step is not None and len(self._kit.optimizers) > 1:
            raise _RefusedError(
                "train_step trains with several optimizers, and a noise scale belongs to one loss"
            )
        available = None if self._parts is None else self._parts.samples()
        wanted = self._samples * self._spec.micro_batches
        if available is not None and available < wanted:
            raise _RefusedError(
                f"{available} samples hold no {self._spec.micro_batches} different batches of {self._samples}"
            )

    def _draws(self) -> _Draws:
        if self._parts is None:
            return _Draws(HeldFeed(None, self._samples), self._samples)
        loader = replace(self._spec.settings.loader, batch_size=self._parts.settings.batch_size)
        return _Draws(self._session.open_feed(self._parts, loader), self._samples)

    def _steps(self, draws: _Draws, tap: GradientTap, ends: float) -> tuple[GradientStep, ...]:
        steps: list[GradientStep] = []
        while len(steps) < self._spec.steps:
            if len(steps) >= LEAST_STEPS and time.perf_counter() > ends:
                break
            try:
                if steps and self._spec.apart:
                    self._train(draws, self._spec.apart)
                with tap.standing_still():
                    steps.append(self._one_step(draws, tap))
            except timing.OutOfTimeError:
                if len(steps) < LEAST_STEPS:
                    raise
                break  # what was seen until here counts
            if tap.asked < len(steps) * self._spec.micro_batches:
                raise _RefusedError(
                    "train_step does not step the optimizer once a batch: how many samples a step has is "
                    "not known"
                )
        return tuple(steps)

    def _one_step(self, draws: _Draws, tap: GradientTap) -> GradientStep:
        count, before = self._spec.micro_batches, tap.weights()
        squares, total = [], GradientSum()
        for _ in range(count):
            seen = self._gradients(draws, tap)
            squares.append(seen.square())
            total.absorb(seen)
        after = tap.weights()
        if after != before and not math.isnan(before):
            raise _RefusedError(
                "train_step moves the weights by itself, and a noise scale is taken where they stand still"
            )
        return GradientStep(mean_of_squares=sum(squares) / count, square_of_mean=total.square() / count**2)

    def _gradients(self, draws: _Draws, tap: GradientTap) -> GradientSum:
        return self._gradient_of(draws.next(self._deadline), tap)

    def _gradient_of(self, batch: Any, tap: GradientTap) -> GradientSum:
        self._kit.step(batch)
        seen = tap.take()
        if not seen:
            raise _RefusedError("no gradient reached the parameters that the optimizer holds")
        return seen

    def _check_mean(self, tap: GradientTap) -> None:
        """Refuse a loss that is summed over samples: its gradient grows with the batch by itself.

        The gradient of a batch is half of what its two halves have together for a mean, and all of it for a
        sum. Batches of two sizes would tell the same, but different samples differ by more than that.

        Raises:
            _RefusedError
        """
        halved = self._samples if self._samples >= _LEAST_HALVED else 2 * self._samples
        try:
            share = self._share_of_halves(halved, tap)
        except _RefusedError:
            raise
        except timing.OutOfTimeError:
            share = None
        except Exception as error:  # the user's model may take no other size, which is theirs to choose
            self.notes.append(
                f"whether the loss is a mean was not seen: half a batch raised {type(error).__name__}"
            )
            return
        if share is None:
            self.notes.append("whether the loss is a mean over the batch was not seen")
        elif share > math.sqrt(0.5):
            raise _RefusedError(
                "the loss is summed over the batch: twice the samples give a gradient "
                f"{2 * share:.2g} times as large; take the mean, so that batch size and learning "
                "rate can be chosen apart"
            )

    def _share_of_halves(self, size: int, tap: GradientTap) -> float | None:
        """Norm of a batch's gradient over that of its halves' sum; None where no batch can be cut in two."""
        if self._parts is None or self._parts.batch_sampler is not None:
            return None
        if self._parts.settings.batch_size is None:
            return None
        timing.in_time(self._deadline)  # before workers are started for it
        draws = _Draws(self._session.open_feed(self._parts, LoaderSettings(batch_size=size)), size)
        whole = together = 0.0
        for _ in range(_HALVED_BATCHES):
            batch = draws.next(self._deadline)
            halves = [_part(batch, size, 0, size // 2), _part(batch, size, size // 2, size)]
            if sum(batches.count_samples(half, 0) for half in halves) != size:
                return None
            whole += self._gradient_of(batch, tap).norm()
            both = self._gradient_of(halves[0], tap)
            both.absorb(self._gradient_of(halves[1], tap))
            together += both.norm()
        return whole / together if math.isfinite(whole) and 0 < together < math.inf else None


def _part(batch: Any, samples: int, start: int, stop: int) -> Any:
    """Some samples of a batch, copied, since a step may change its batch in place."""
    return batches.map_tensors(
        batch, lambda t: t[start:stop].clone() if t.dim() and t.size(0) == samples else t
    )


class _Draws:
    """Batches of one size; shorter ones, as at the end of an epoch, are passed over."""

    def __init__(self, feed: Feed, samples: int) -> None:
        self._feed, self._samples = feed, samples

    def next(self, deadline: float) -> Any:
        """The next batch.

        Raises:
            _RefusedError: where batches of this size hardly come.
            OutOfTimeError: after `deadline`.
        """
        for _ in range(_MISSES):
            if time.perf_counter() > deadline:
                raise timing.OutOfTimeError
            batch, samples = self._feed.next()
            if samples == self._samples:
                return batch
        raise _RefusedError(
            f"batches hold different numbers of samples: {_MISSES} in a row were not of {self._samples}"
        )
