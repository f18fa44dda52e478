"""Which batch size learns fastest: samples a second times what a sample still teaches.

    efficiency(M) = (phi + M0) / (phi + M)          goodput(M) = samples/s(M) * efficiency(M)

(Pollux: Qiao et al. 2021, OSDI) with the user's batch M0 and the gradient noise scale phi, of which the lower
bound is taken. The law behind it, samples needed = least * (1 + M / phi), is McCandlish et al.'s (2018,
arXiv:1812.06162). The batch with the most samples a second is shown beside the one recommended.

One figure of one stretch of training is thin ground, so caps bound what is recommended; each that mattered is
named. The cap on what a sample teaches goes by the estimate of phi: it asks what is likely, not what can be
counted on (ADR 0015).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autotune.errors import UsageError
from autotune.facts import WorkloadFacts
from autotune.outcome import BatchChoice, BatchRow, Interval, NoiseScale, Objective
from autotune.recipe.rules import unscaled
from autotune.recipe.scaling import LEAST_RUN_STEPS, USUAL_EPOCHS, refusals, scale_recipe

LEAST_EFFICIENCY = 0.8
MOST_GROWTH = 8.0
"""Rules for the learning rate are trusted up to so many times the user's batch, unless they name more."""
UNVERIFIED_GROWTH = {"sgd": 4.0, "adam": 2.0}
"""The same where no noise scale says how far."""
LEAST_BATCHES = 50
"""Batches that an epoch keeps."""
LEAST_GAIN = 1.03
"""A larger batch has to be better by more than this, beyond the noise of its measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRate:
    """What a batch size was measured at."""

    batch_size: int
    samples_per_s: Interval
    peak_bytes: int | None = None
    """Of the device, or of the host where there is none."""


def efficiency(batch_size: int, reference: int, noise: float) -> float:
    """What a sample teaches in batches of `batch_size`, relative to batches of `reference`.

    Times `batch_size / reference` it is the gain of AdaScale (Johnson et al. 2020, ICML): how many steps of
    the reference one step is worth.

    Args:
        batch_size: samples in a batch.
        reference: samples in the user's own batch.
        noise: the gradient noise scale in samples, at least 0.
    """
    return (noise + reference) / (noise + batch_size)


def choose_batch(
    rates: Sequence[BatchRate],
    noise: NoiseScale | None,
    workload: WorkloadFacts,
    *,
    objective: Objective = "goodput",
    max_batch_size: int | None = None,
    epochs: int | None = None,
) -> BatchChoice:
    """The table of batch sizes, and which one to train with.

    The user's own batch stays unless another is better by `LEAST_GAIN` beyond noise; among those as good as
    the best, the smallest is taken.

    Args:
        rates: measured batch sizes, that of the user (`workload.batch_samples`) among them.
        noise: taken at the user's batch; None where it could not be.
        workload: gives the user's batch, the samples of an epoch, and whether a rule for the learning rate is
            known.
        objective: what is best.
        max_batch_size: the largest that may be recommended; beyond `MOST_GROWTH` none is without it.
        epochs: length of the run to come; steps are counted over `USUAL_EPOCHS` without it.

    Raises:
        UsageError: where the user's batch is not among `rates`, and for sizes under 1.
    """
    reference = workload.batch_samples
    _check(rates, reference, max_batch_size)
    limits = _Limits(
        objective=objective,
        noise=noise,
        workload=workload,
        max_batch_size=max_batch_size,
        epochs=epochs,
    )
    rows = tuple(_row(rate, limits) for rate in sorted(rates, key=lambda rate: rate.batch_size))
    own = next(row for row in rows if row.batch_size == reference)
    best = _best([row for row in rows if not row.caps], own, objective)
    unbound = _best([row for row in rows if row.batch_size >= reference], own, objective)
    bound = unbound.batch_size != best.batch_size and _score(unbound, objective) > _score(best, objective)
    return BatchChoice(
        rows=rows,
        reference=reference,
        recommended=best.batch_size,
        max_throughput=max(rows, key=lambda row: row.samples_per_s.value).batch_size,
        objective=objective,
        gain=_score(best, objective) / _score(own, objective),
        verified=noise is not None,
        limited_by=unbound.caps if bound else (),
    )


def batch_caps(
    batch_size: int,
    noise: NoiseScale | None,
    workload: WorkloadFacts,
    *,
    objective: Objective = "goodput",
    max_batch_size: int | None = None,
    epochs: int | None = None,
) -> tuple[str, ...]:
    """Why this batch size is not recommended however fast it is, each in words; the user's own has none.

    The arguments are those of `choose_batch`, which gives each row of its table these caps.
    """
    limits = _Limits(
        objective=objective,
        noise=noise,
        workload=workload,
        max_batch_size=max_batch_size,
        epochs=epochs,
    )
    return _caps(batch_size, limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    """What the caps are computed from."""

    objective: Objective
    noise: NoiseScale | None
    workload: WorkloadFacts
    max_batch_size: int | None
    epochs: int | None

    @property
    def reference(self) -> int:
        return self.workload.batch_samples


def _check(rates: Sequence[BatchRate], reference: int, max_batch_size: int | None) -> None:
    sizes = [rate.batch_size for rate in rates]
    if min((*sizes, reference, 1 if max_batch_size is None else max_batch_size)) < 1:
        raise UsageError("a batch holds at least one sample")
    if reference not in sizes:
        raise UsageError(
            f"your own batch of {reference} was not measured",
            why=f"measured: {', '.join(map(str, sizes)) or 'none'}",
            fix="measure it too: every gain is relative to it",
        )


def _row(rate: BatchRate, limits: _Limits) -> BatchRow:
    size, samples = rate.batch_size, limits.workload.dataset_samples
    teaches = 1.0 if size == limits.reference else None
    if limits.noise is not None:
        teaches = efficiency(size, limits.reference, limits.noise.lower_bound)
    epochs = None if teaches is None else (limits.epochs or 1) / teaches
    return BatchRow(
        batch_size=size,
        samples_per_s=rate.samples_per_s,
        peak_bytes=rate.peak_bytes,
        efficiency=teaches,
        goodput=None if teaches is None else rate.samples_per_s.value * teaches,
        epochs_to_match=epochs,
        samples_to_match=None if epochs is None or samples is None else math.ceil(epochs * samples),
        steps=_steps(size, limits),
        caps=_caps(size, limits),
    )


def _steps(batch_size: int, limits: _Limits) -> int | None:
    samples = limits.workload.dataset_samples
    if samples is None:
        return None
    return (limits.epochs or USUAL_EPOCHS) * math.ceil(samples / batch_size)


def _caps(size: int, limits: _Limits) -> tuple[str, ...]:
    if size == limits.reference:
        return ()
    return (*_asked_caps(size, limits), *_learning_caps(size, limits))


def _asked_caps(size: int, limits: _Limits) -> tuple[str, ...]:
    """What holds for any objective."""
    caps = []
    if limits.workload.batch_size_fixed:
        caps.append(limits.workload.batch_size_fixed)
    if size < limits.reference:
        caps.append(f"{size} is smaller than your own batch")
    if limits.max_batch_size is not None and size > limits.max_batch_size:
        caps.append(f"{size} is over max_batch_size={limits.max_batch_size}")
    return tuple(caps)


def _learning_caps(size: int, limits: _Limits) -> tuple[str, ...]:
    """What keeps the learning safe; nobody who asks for throughput alone asked for that."""
    if limits.objective == "throughput":
        return ()
    caps = [*_rule_caps(limits.workload), *_growth_caps(size, limits), *_length_caps(size, limits)]
    if not caps:
        caps += _recipe_caps(size, limits)
    likely = _likely(size, limits)
    if limits.objective == "goodput" and likely < LEAST_EFFICIENCY:
        caps.append(
            f"in batches of {size} a sample likely teaches {likely:.3g} of what it does at "
            f"{limits.reference}, under {LEAST_EFFICIENCY:g}"
        )
    return tuple(caps)


def _likely(size: int, limits: _Limits) -> float:
    """What a sample teaches by the estimate of phi, or its bound where that is all there is; 1 without."""
    noise = limits.noise
    if noise is None:
        return 1.0
    return efficiency(size, limits.reference, noise.lower_bound if noise.value is None else noise.value)


def _rule_caps(workload: WorkloadFacts) -> list[str]:
    if workload.optimizer_class is None:
        return ["no optimizer was given, so there is no learning rate that could go with another batch"]
    why = unscaled(workload)
    return [why] if why else []


def _growth_caps(size: int, limits: _Limits) -> list[str]:
    growth, why = max(MOST_GROWTH, (limits.max_batch_size or 0) / limits.reference), ""
    unverified = UNVERIFIED_GROWTH.get(limits.workload.optimizer_family, growth)
    if limits.noise is None and unverified < growth:
        growth, why = unverified, ", and no noise scale was measured to support it"
    return [f"{size} is over {growth:g} times your batch{why}"] if size > growth * limits.reference else []


def _length_caps(size: int, limits: _Limits) -> list[str]:
    samples, steps = limits.workload.dataset_samples, _steps(size, limits)
    if samples is None or steps is None:
        return []
    caps = []
    if size * LEAST_BATCHES > samples:
        caps.append(f"{size} leaves fewer than {LEAST_BATCHES} batches in an epoch of {samples} samples")
    if steps < LEAST_RUN_STEPS:
        epochs = limits.epochs or USUAL_EPOCHS
        run = f"{epochs} epoch{'s' if epochs > 1 else ''}"
        caps.append(f"{size} leaves {steps} steps in {run}, fewer than {LEAST_RUN_STEPS}")
    return caps


def _recipe_caps(size: int, limits: _Limits) -> tuple[str, ...]:
    """What the recipe that would go with it speaks against, where its learning rate is known."""
    if not limits.workload.learning_rates:
        return ()
    recipe = scale_recipe(limits.workload, size, limits.reference, epochs=limits.epochs, noise=limits.noise)
    return refusals(recipe, limits.workload, epochs=limits.epochs)


def _score(row: BatchRow, objective: Objective) -> float:
    """What the objective makes of a row; where no noise scale is known only the rate can be told."""
    if objective == "throughput" or row.goodput is None:
        return row.samples_per_s.value
    return row.goodput


def _best(rows: Sequence[BatchRow], own: BatchRow, objective: Objective) -> BatchRow:
    """The smallest of those that nothing beats, if it surely beats the user's own."""
    better = [row for row in rows if _beats(row, own, objective)]
    if not better:
        return own
    top = max(better, key=lambda row: _score(row, objective))
    return next(row for row in better if row is top or not _beats(top, row, objective))


def _beats(one: BatchRow, other: BatchRow, objective: Objective) -> bool:
    """By more than `LEAST_GAIN`, at the lower end of the ratio of two rates with their own intervals."""
    log_ratio = math.log(_score(one, objective) / _score(other, objective))
    return log_ratio - math.hypot(_half_log(one), _half_log(other)) > math.log(LEAST_GAIN)


def _half_log(row: BatchRow) -> float:
    rate = row.samples_per_s
    return math.log(rate.high / rate.low) / 2
