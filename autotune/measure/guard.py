"""The same steps under two settings, one run after the other from the same weights, for a guard to judge.

Batches are drawn once, in the user's own size, or in that of settings that are compiled for it, and held on
the host, as many as `HELD_BYTES` take; where that is fewer than there are steps, they come round again.
Each run begins at the initial weights and the same random numbers. Before it, the gradient of the first
batch is looked at while no optimizer steps: there the weights are equal, so that rounding alone tells the
gradients apart. Where it tells them far apart, they are looked at again where the reference's steps led to.
A float16 scaler is lowered before the steps until nothing overflows, and a step that overflows later is
taken again while the scaler still looks for its factor: a run that lost steps to that would be behind for a
reason that a longer training does not have.

The reference runs once more where there is time: the batches of the first two thirds in reverse order, with
other random numbers. How far its losses over the last third move says what is no more than chance.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.dropout import _DropoutNd

from autotune.measure import batches, flags, timing
from autotune.measure.tap import GradientSum, GradientTap
from autotune.recipe.guard import (
    CALIBRATION_STEPS,
    GradientMatch,
    NumericsRecord,
    NumericsRun,
    NumericsStep,
    is_close,
    late_steps,
)
from autotune.settings import LoaderSettings, Settings

if TYPE_CHECKING:
    from autotune.measure.seam import NumericsSpec
    from autotune.measure.session import Session
    from autotune.measure.stepkit import StepKit

HELD_BYTES = 256 << 20
"""Batches held on the host; two at least, whatever they take."""
_SCALES = 18
"""Factors that a scaler is given to find one without overflow: 65536 halved until it is under 1."""
_SHARE = 0.01
"""With less of the gradient's norm a parameter has a direction of noise, such as a bias before batch norm."""


def compare(session: Session, spec: NumericsSpec, started: float) -> NumericsRecord:
    """Both runs, and the reference once more where there is time. Weights and buffers are put back.

    Args:
        session: its models are used, and are at their initial weights afterwards.
        spec: what is asked.
        started: `time.perf_counter()` when it was asked.

    Raises:
        OutOfTimeError: at `spec.timeout_s`.
    """
    deadline = started + spec.timeout_s
    drawn = _drawn(session, spec, deadline)
    order = [number % len(drawn) for number in range(spec.steps)]
    runs = _Runs(session, drawn, deadline)
    before_s = time.perf_counter()
    reference = runs.run(spec.reference, order, spec.seed)
    settled = _Weights(session)
    run_s = time.perf_counter() - before_s
    other = runs.run(spec.settings, order, spec.seed)
    record = NumericsRecord(
        settings=spec.settings,
        reference=spec.reference,
        run=other.run,
        reference_run=reference.run,
        gradients=_match(reference, other),
        gradients_settled=runs.settled_match(spec, settled, _match(reference, other)),
        gradients_apart=_match(
            reference, replace(reference, gradient=runs.gradient(spec.reference, 1, spec.seed))
        )
        if len(drawn) > 1
        else None,
    )
    del other, settled
    if time.perf_counter() + run_s <= min(started + spec.window_s, deadline):
        late = late_steps(spec.steps)
        shuffled = [*order[:-late][::-1], *order[-late:]]
        # A step that makes its own batches makes others of other random numbers: those would be no repeat.
        seed = spec.seed + (session.parts is not None)
        again = runs.run(spec.reference, shuffled, seed)
        record = replace(record, again=again.run, gradients_again=_match(reference, again))
    session.restore()
    return replace(record, wall_s=time.perf_counter() - started)


def _drawn(session: Session, spec: NumericsSpec, deadline: float) -> list[Any]:
    """As many batches as there are steps, or as fit into `HELD_BYTES`; a loop without a loader has none."""
    if session.parts is None:
        return [None]
    workers = spec.settings.loader
    loader = LoaderSettings(
        batch_size=compared_batch_size(session, spec.settings),
        num_workers=workers.num_workers,
        prefetch_factor=workers.prefetch_factor,
    )
    feed = session.open_feed(session.parts, loader)
    drawn: list[Any] = []
    held = 0
    while len(drawn) < spec.steps and (len(drawn) < 2 or held < HELD_BYTES):
        timing.in_time(deadline)
        batch, _ = feed.next()
        drawn.append(batches.copied(batch))  # what comes from a worker holds shared memory
        held += batches.batch_bytes(batch)
    return drawn


def compared_batch_size(session: Session, settings: Settings) -> int | None:
    """What was compiled for another size is no part of steps in the user's own."""
    if settings.compute.compile is not None:
        return settings.loader.batch_size
    return None if session.parts is None else session.parts.settings.batch_size


@dataclass(frozen=True, slots=True)
class _Seen:
    """A run, and the gradient at its start, on the host, without the scaler's factor."""

    run: NumericsRun
    gradient: dict[str, torch.Tensor] | None


class _Weights:
    """Parameters as they are now, on the host: the device may have no room for them."""

    def __init__(self, session: Session) -> None:
        self._values = [
            (p, p.detach().to("cpu", copy=True))
            for model in session.models.values()
            for p in model.parameters()
        ]

    @torch.no_grad()
    def put_back(self) -> None:
        """The same parameters have these values again."""
        for parameter, value in self._values:
            parameter.copy_(value)


class _Runs:
    """Runs of the same workload on the same batches."""

    def __init__(self, session: Session, drawn: Sequence[Any], deadline: float) -> None:
        self._session, self._drawn, self._deadline = session, drawn, deadline
        self._random = False
        """Whether a step draws random numbers where no module of torch's drops units."""

    def settled_match(
        self, spec: NumericsSpec, settled: _Weights, first: GradientMatch | None
    ) -> GradientMatch | None:
        """Both gradients where the steps led to; None where the `first` ones agree well enough."""
        if first is None or is_close(first):
            return None
        sides = (
            _Seen(NumericsRun(), self.gradient(settings, 0, spec.seed, settled))
            for settings in (spec.reference, spec.settings)
        )
        return _match(*sides)

    def gradient(
        self, settings: Settings, number: int, seed: int, weights: _Weights | None = None
    ) -> dict[str, torch.Tensor] | None:
        """The gradient of one of the batches, at the initial weights without others; None as in `run`."""
        kit = self._kit(settings)
        if weights is not None:
            weights.put_back()
        tap = GradientTap(kit.optimizers.values())
        try:
            return self._first_gradient(kit, tap, seed, number)
        finally:
            tap.close()

    def _kit(self, settings: Settings) -> StepKit:
        session = self._session
        # One run's switches must not be left for the next: `apply_flags` turns on more than it turns off.
        flags.write_user_flags(session.user_flags)
        flags.apply_flags(settings.compute, session.user_flags, session.device.type)
        return session.make_kit(settings.replace(batch_size=compared_batch_size(session, settings)))

    def run(self, settings: Settings, order: Sequence[int], seed: int) -> _Seen:
        """The gradient of the first batch, then a step on each batch in `order`, from the initial weights.

        Raises:
            OutOfTimeError: after the deadline.
        """
        session = self._session
        kit = self._kit(settings)
        tap = GradientTap(kit.optimizers.values())
        try:
            gradient = self._first_gradient(kit, tap, seed, 0)
            session.restore()  # buffers: a look moves the statistics of batch norm
            steps = self._steps(kit, tap, order, seed)
        finally:
            tap.close()
        return _Seen(NumericsRun(steps=steps, scale=_scale(kit)), gradient)

    def _steps(
        self, kit: StepKit, tap: GradientTap, order: Sequence[int], seed: int
    ) -> tuple[NumericsStep, ...]:
        """A step on each batch. Of those that the scaler skips, the first few are taken again instead."""
        steps: list[NumericsStep] = []
        again = CALIBRATION_STEPS
        while len(steps) < len(order):
            # Of every second one, so that a seed and the next one have no step's random numbers in common.
            flags.seed_everything(seed + 2 * len(steps))
            step = self._step(kit, tap, self._drawn[order[len(steps)]])
            if step.skipped and again > 0:
                again -= 1
            else:
                steps.append(step)
        return tuple(steps)

    def _first_gradient(
        self, kit: StepKit, tap: GradientTap, seed: int, number: int
    ) -> dict[str, torch.Tensor] | None:
        """None where none is seen, or none is finite at any scale.

        Without dropout: on a GPU the same seed drops other units in another format. Not of a compiled model
        that has some: without it, it would have to be compiled once more, and it draws numbers of its own, as
        it does wherever the model draws any.
        """
        dropping = [
            module
            for model in kit.models.values()
            for module in model.modules()
            if isinstance(module, _DropoutNd) and module.p > 0
        ]
        if (dropping or self._random) and kit.settings.compute.compile is not None:
            return None
        for module in dropping:
            module.training = False
        with tap.standing_still():
            for _ in range(_SCALES):
                timing.in_time(self._deadline)
                flags.seed_everything(seed)
                scale = _scale(kit) or 1.0
                before = flags.device_random_state(self._session.device)
                kit.step(batches.copied(self._drawn[number]))
                self._random |= not torch.equal(before, flags.device_random_state(self._session.device))
                seen = tap.take()
                if seen and math.isfinite(seen.norm()):
                    return _named(seen, tap, kit, scale)
                if not seen or kit.scaler is None:
                    return None
        return None

    def _step(self, kit: StepKit, tap: GradientTap, batch: Any) -> NumericsStep:
        timing.in_time(self._deadline)
        before = _scale(kit)
        returned = kit.step(batches.copied(batch))
        seen, after = tap.take(), _scale(kit)
        single = isinstance(returned, torch.Tensor) and returned.numel() == 1
        loss = float(returned) if single else None
        norm = seen.norm() / (before or 1.0) if seen else None
        return NumericsStep(
            loss=_finite(loss),
            gradient_norm=_finite(norm),
            finite=_finite(loss) == loss and _finite(norm) == norm,
            skipped=before is not None and after is not None and after < before,
        )


def _scale(kit: StepKit) -> float | None:
    return None if kit.scaler is None else float(kit.scaler.get_scale())


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _named(seen: GradientSum, tap: GradientTap, kit: StepKit, scale: float) -> dict[str, torch.Tensor]:
    names = {
        id(p): f"{model}.{name}" if model else name
        for model, module in kit.models.items()
        for name, p in module.named_parameters()
    }
    return {
        names.get(id(tap.parameters[number]), f"parameter {number}"): _dense(gradient) / scale
        for number, gradient in seen.by_parameter.items()
    }


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    """On the host, complex numbers as pairs of real ones."""
    dense = (gradient.to_dense() if gradient.is_sparse else gradient).cpu()
    return torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense


def _match(reference: _Seen, other: _Seen) -> GradientMatch | None:
    """How two gradients agree, in float64; None where one of them was not seen or is zero."""
    if reference.gradient is None or other.gradient is None:
        return None
    products: dict[str, tuple[float, float, float]] = {}
    for name in reference.gradient.keys() | other.gradient.keys():
        mine, theirs = other.gradient.get(name), reference.gradient.get(name)
        products[name] = _products(theirs, mine)
    dot, theirs_square, mine_square = (math.fsum(parts) for parts in zip(*products.values()))
    cosine = _cosine(dot, theirs_square, mine_square)
    if cosine is None:
        return None
    heavy = {
        name: found
        for name, (d, t, m) in products.items()
        if t >= _SHARE**2 * theirs_square and (found := _cosine(d, t, m)) is not None
    }
    worst = min(heavy, key=lambda name: (heavy[name], name), default="")
    return GradientMatch(
        cosine=cosine,
        norm_ratio=math.sqrt(mine_square / theirs_square),
        worst_cosine=heavy.get(worst, cosine),
        worst_parameter=worst,
    )


def _products(theirs: torch.Tensor | None, mine: torch.Tensor | None) -> tuple[float, float, float]:
    """Inner product and both squares; a gradient that is not there is zero."""
    a = None if theirs is None else theirs.double().flatten()
    b = None if mine is None else mine.double().flatten()
    return (
        0.0 if a is None or b is None else float(a @ b),
        0.0 if a is None else float(a @ a),
        0.0 if b is None else float(b @ b),
    )


def _cosine(dot: float, theirs: float, mine: float) -> float | None:
    """None where there is nothing to agree with; 0 where one side alone is zero."""
    if theirs <= 0:
        return None
    return dot / math.sqrt(theirs * mine) if mine > 0 else 0.0
