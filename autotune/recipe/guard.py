"""Whether other arithmetic trains as well: the same steps in the user's own way and in another. Pure.

Rounding that harms learning shows within a few dozen steps from the same weights, on the same batches: in the
gradient at equal weights, in steps that the scaler skips, and in the loss. How far the loss of the user's own
arithmetic moves when batches come in another order says what is no more than chance.

Limits are widened by how much one batch's gradient differs from another's. They are this project's own,
set where they let ordinary models through with room. On a perceptron, a convolutional network with batch
norm and a small transformer, 60 steps each, bfloat16 and float16 changed the loss of the last steps by at
most 0.07 % and the first gradient's cosine by 0.0003, its norm by 0.05 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from autotune.settings import Settings

STEPS = 32
"""Steps of each run, of the few dozen in which arithmetic that is too coarse shows."""
LEAST_STEPS = 16
"""Fewer are no check: the first ten calibrate a scaler."""
CHECKED = ("precision", "compile")
"""Knobs that bring another format, or code that nobody has read.

Not `channels_last`, `fused_optimizer`, `cudnn_benchmark` and `cpu_threads`: they add up the same numbers in
another order, in the same format. In a network that amplifies differences that alone moves the losses of a
few dozen steps by percents, as another order of the batches does.
"""

LOSS_LIMIT = 0.01
"""Change of the mean loss over the last third of the steps; 0.0007 was seen where all is well."""
NOISE_FACTOR = 2.0
"""The loss may change by so many times what another order of the batches does."""
LOSS_LIMIT_ALONE = 0.5
"""A change beyond this counts although there was no time for another order of the batches, or it is noisy."""
TOO_NOISY = 0.05
"""Where another order changes the loss by more than this, only a change beyond `LOSS_LIMIT_ALONE` counts."""
COSINE_LIMIT = 0.99
"""Of the two gradients at the same weights; 0.9997 and more were seen in small networks where all is well."""
NOISE_SHARE = 0.25
"""Rounding may turn the gradient by this part of what another batch does, as variance (1 - cosine squared).

Deep networks amplify rounding: a ResNet-18's first gradient had a cosine of 0.946 in bfloat16. What is
small beside the noise that every batch brings along is averaged away with it.

At weights that were just drawn that can be most of the gradient, and it passes within a few steps. A
ResNet-50's gradient in bfloat16 had a cosine of 0.49 with float32's at the initial weights, 0.78 after 4
steps, 0.990 after 8 and 0.9995 after 16. In float32 itself, weights and pictures that were 2**-9 off, which
is how far bfloat16 rounds, gave 0.62, 0.83, 0.993 and 0.9997. So a gradient is off only where it still is
after the reference's steps.
"""
NORM_LIMIT = 0.05
"""Change of the gradient's norm at the same weights; 0.0005 was seen where all is well."""
SKIP_LIMIT = 0.05
"""Part of the steps after `CALIBRATION_STEPS` that a scaler may skip."""
CALIBRATION_STEPS = 10
"""A scaler begins at 65536 and halves with each step it skips: so many skips are its usual start."""
LEAST_SCALE = 1.0
"""A scaler that has to make gradients smaller meets overflow in the step itself."""
_FLAT = 0.1
"""A loss under this part of the first one is compared with that part: it is next to nothing itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumericsStep:
    """What one step showed."""

    loss: float | None
    """None where the step returns none, and where it is not finite."""
    gradient_norm: float | None
    """Without the scaler's factor; None where no gradient was seen, and where it is not finite."""
    finite: bool = True
    """Whether loss and gradient, as far as they were seen, are numbers."""
    skipped: bool = False
    """Whether a scaler skipped the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumericsRun:
    """The steps of one run from the initial weights."""

    steps: tuple[NumericsStep, ...] = ()
    scale: float | None = None
    """The scaler's factor at the end; None without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientMatch:
    """Two gradients of the same batch at the same weights."""

    cosine: float
    norm_ratio: float
    """The other's norm over the reference's."""
    worst_cosine: float = 1.0
    """Of a single parameter, among those that hold a hundredth of the norm or more."""
    worst_parameter: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumericsRecord:
    """The same steps under two settings, and under the reference with the batches in another order."""

    settings: Settings
    reference: Settings
    """The same, but for `CHECKED`, which are the user's own."""
    run: NumericsRun = NumericsRun()
    reference_run: NumericsRun = NumericsRun()
    again: NumericsRun | None = None
    """The last third of its batches is that of the other runs; None where there was no time for it."""
    gradients: GradientMatch | None = None
    """At the initial weights; None where no gradient was seen, or none was finite at any scale."""
    gradients_settled: GradientMatch | None = None
    """Where the reference's steps led to; None as above, and where the first agree well enough."""
    gradients_again: GradientMatch | None = None
    """Of the reference with itself and other random numbers."""
    gradients_apart: GradientMatch | None = None
    """Of the reference on two batches, at the initial weights; None where there is one only."""
    refused: str = ""
    """Why nothing was compared; empty where it was."""
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    """What a record comes to.

    same: within all limits. worse: beyond one of them. unknown: nothing that could be compared.
    """

    kind: Literal["same", "worse", "unknown"]
    reason: str
    """In words, without the settings' name."""
    settings: Settings
    reference: Settings
    steps: int = 0
    loss_change: float | None = None
    """Of the mean loss over the last third, relative, signed; None without losses on both sides."""
    loss_limit: float = LOSS_LIMIT
    cosine: float | None = None
    norm_ratio: float | None = None
    worst_cosine: float | None = None
    worst_parameter: str = ""
    skipped: int = 0
    """Steps that the scaler skipped after `CALIBRATION_STEPS`."""

    def in_words(self) -> str:
        """`bfloat16: same as float32 over 32 steps (loss within 0.021 %, gradients' cosine 0.9998)`."""
        return f"{label(self.settings, self.reference)}: {self.reason}"


def changes(settings: Settings, reference: Settings) -> frozenset[tuple[str, object]]:
    """The `CHECKED` knobs in which `settings` differ, with their values: what a check is about."""
    changed = settings.changed_from(reference)
    return frozenset((name, changed[name]) for name in CHECKED if name in changed)


def known_of(judged: Sequence[Numerics], settings: Settings, reference: Settings) -> Numerics | None:
    """What earlier comparisons say of these settings, whatever else they change; None where nothing does."""
    wanted = changes(settings, reference)
    if not wanted:
        return None
    return next((found for found in judged if changes(found.settings, found.reference) == wanted), None)


def label(settings: Settings, reference: Settings) -> str:
    """What is compared, by name: `bfloat16`, or `bfloat16, compiled (default)`."""
    mine, theirs = settings.compute, reference.compute
    named: list[str] = [mine.precision] if mine.precision != theirs.precision else []
    if mine.compile != theirs.compile:
        named.append(f"compiled ({mine.compile})" if mine.compile else "not compiled")
    return ", ".join(named) or "the same settings"


def late_steps(count: int) -> int:
    """How many steps at the end of `count` the losses are compared over."""
    return max(1, count // 3)


def is_close(match: GradientMatch) -> bool:
    """Whether two gradients agree by the limits of small networks, not widened by anything."""
    return match.cosine >= COSINE_LIMIT and abs(match.norm_ratio - 1) <= NORM_LIMIT


def judge_numerics(record: NumericsRecord) -> Numerics:
    """Whether the settings train as the reference does, by the limits above.

    The limits on loss and gradient are widened to `NOISE_FACTOR` times what separates the reference from
    itself. A change is held against the larger of the loss and a tenth of the first one, and counts in either
    direction: a loss that falls faster than in float32 is as much another training as a slower one.
    """
    losses, match = _losses(record), record.gradients
    found = Numerics(
        kind="unknown",
        reason=record.refused,
        settings=record.settings,
        reference=record.reference,
        steps=len(record.run.steps),
        loss_change=losses.change,
        loss_limit=_loss_limit(losses.noise),
        cosine=None if match is None else match.cosine,
        norm_ratio=None if match is None else match.norm_ratio,
        worst_cosine=None if match is None else match.worst_cosine,
        worst_parameter="" if match is None else match.worst_parameter,
        skipped=sum(step.skipped for step in record.run.steps[CALIBRATION_STEPS:]),
    )
    base = _base(record)
    if record.refused:
        return found
    if not all(step.finite or step.skipped for step in record.reference_run.steps):
        return replace(found, reason=f"{base} itself gives losses or gradients that are NaN or infinite")
    noise = losses.noise or 0.0
    worse = next(_faults(record, found), "")
    if worse:
        return replace(found, kind="worse", reason=worse)
    if found.loss_change is None and found.cosine is None:
        return replace(found, reason="the step returns no loss and shows no gradient")
    change = abs(found.loss_change or 0.0)
    if losses.noise is None and change > LOSS_LIMIT:
        why = f"there was no time to see what another order of the batches does to {base}'s own"
        return replace(found, reason=f"the loss was {_percent(change)} off, and {why}")
    if noise > TOO_NOISY and change > LOSS_LIMIT:
        own = f"another order of the batches changes {base}'s own by {_percent(noise)}"
        return replace(found, reason=f"the loss was {_percent(change)} off, but {own}")
    seen = [] if found.loss_change is None else [f"loss within {_percent(change)}"]
    seen += _cosines(record)
    reason = f"same as {base} over {found.steps} steps ({', '.join(seen)})"
    return replace(found, kind="same", reason=reason)


def _loss_limit(noise: float | None) -> float:
    """The change of the loss beyond which the settings are worse; under it a large one may stay unknown."""
    if noise is None:
        return LOSS_LIMIT_ALONE
    return max(LOSS_LIMIT if noise <= TOO_NOISY else LOSS_LIMIT_ALONE, NOISE_FACTOR * noise)


def _faults(record: NumericsRecord, found: Numerics) -> Iterator[str]:
    """What is beyond a limit, the most telling first."""
    count, run = found.steps, record.run
    if found.skipped > SKIP_LIMIT * max(count - CALIBRATION_STEPS, 0):
        total = sum(step.skipped for step in run.steps)
        yield f"{total} of {count} steps were skipped: their gradients overflowed"
    if run.scale is not None and run.scale < LEAST_SCALE:
        yield f"gradients overflowed until the scaler's factor was {run.scale:.2g}"
    bad = sum(not step.finite and not step.skipped for step in run.steps)
    if bad:
        yield f"loss or gradient was NaN or infinite in {bad} of {count} steps"
    yield from _gradient_faults(record)
    change = found.loss_change
    if change is not None and abs(change) > found.loss_limit:
        direction = "above" if change > 0 else "below"
        yield (
            f"the loss after {count} steps was {_percent(abs(change))} {direction} {_base(record)}'s"
            f" (limit {_percent(found.loss_limit)})"
        )


def _gradient_faults(record: NumericsRecord) -> Iterator[str]:
    match, again, base = record.gradients, record.gradients_again, _base(record)
    if match is None:
        return
    settled = record.gradients_settled or match
    apart, stretched = (0.0, 0.0) if again is None else (1 - again.cosine, abs(again.norm_ratio - 1))
    least = min(COSINE_LIMIT, 1 - NOISE_FACTOR * apart)
    if record.gradients_apart is not None:
        least = min(least, math.sqrt(1 - NOISE_SHARE * (1 - record.gradients_apart.cosine**2)))
    if match.cosine < least and settled.cosine < least:
        where = f"; {match.worst_parameter}: {match.worst_cosine:.4f}" if match.worst_parameter else ""
        yield (
            f"at equal weights its gradient's cosine with {base}'s was {match.cosine:.4f}"
            f" (limit {least:.4f}{where})"
        )
    most = max(NORM_LIMIT, NOISE_FACTOR * stretched)
    if abs(match.norm_ratio - 1) > most and abs(settled.norm_ratio - 1) > most:
        yield (
            f"at equal weights its gradient was {match.norm_ratio:.3g} times as large as {base}'s"
            f" (limit {_percent(most)} more or less)"
        )


def _cosines(record: NumericsRecord) -> list[str]:
    match, settled = record.gradients, record.gradients_settled
    if match is None:
        return []
    later = "" if settled is None else f", {settled.cosine:.4f} after the steps"
    return [f"gradients' cosine {match.cosine:.4f}{later}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Losses:
    change: float | None
    """Relative to the reference; None where one side has no loss."""
    noise: float | None
    """Of the reference with its batches in another order; None where that was not run."""


def _losses(record: NumericsRecord) -> _Losses:
    theirs, mine = _late(record.reference_run), _late(record.run)
    again = None if record.again is None else _late(record.again)
    if theirs is None:
        return _Losses(change=None, noise=None)
    first = next(step.loss for step in record.reference_run.steps if step.loss is not None)
    size = max(abs(theirs), _FLAT * abs(first))
    return _Losses(
        change=None if mine is None else _relative(mine - theirs, size),
        noise=None if record.again is None or again is None else _scatter(record.again, record, size),
    )


def _scatter(again: NumericsRun, record: NumericsRecord, size: float) -> float:
    """Root mean square of the differences, step by step: that of their means alone can be small by luck."""
    count = late_steps(len(record.reference_run.steps))
    both = zip(again.steps[-count:], record.reference_run.steps[-count:])
    squares = [(a.loss - b.loss) ** 2 for a, b in both if a.loss is not None and b.loss is not None]
    return math.sqrt(math.fsum(squares) / len(squares)) / size if squares and size > 0 else 0.0


def _relative(difference: float, size: float) -> float:
    return difference / size if size > 0 else math.copysign(math.inf, difference) if difference else 0.0


def _late(run: NumericsRun) -> float | None:
    """Mean of the losses over the last third of the steps; None where none of them has one."""
    seen = [step.loss for step in run.steps[-late_steps(len(run.steps)) :] if step.loss is not None]
    return math.fsum(seen) / len(seen) if seen else None


def _base(record: NumericsRecord) -> str:
    """What is compared with: the format's name where that is what differs."""
    theirs = record.reference.compute.precision
    return theirs if theirs != record.settings.compute.precision else "yours"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.2g} %"
