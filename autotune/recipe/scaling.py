"""The recipe that goes with another batch size: every number that it moves, as one block.

The numbers' own rules are in `autotune.recipe.rules`. What is kept is what a number means for samples: over
how many something is forgotten or comes down. The learning rate alone follows how much more a step is worth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from autotune.errors import UsageError
from autotune.facts import WorkloadFacts
from autotune.outcome import Decay, DecayShape, LargeBatch, NoiseScale, Recipe
from autotune.recipe import rules
from autotune.recipe.large_batch import offer_large_batch

SGD_WARMUP_STEPS = 500
"""The MLPerf reference runs of ResNet-50 warm up for 600 to 1600 steps, at k of 6 to 256."""
UNWARMED_FACTOR = 2.0
"""A learning rate that grows no further needs no warmup (ADR 0014)."""
WARMUP_EPOCHS = 5
"""Goyal et al. warm up over five epochs."""
ADAM_BETA2 = 0.999
"""torch's default, where nobody said."""
RUN_SHARE = 0.1
"""A warmup takes no more than this part of the run."""
LARGE_GROWTH, LARGE_RUN_SHARE = 8.0, 0.25
"""Beyond so large a growth it may take this part."""
USUAL_EPOCHS = 10
"""The length of a run that nobody named: a warmup then takes one epoch at most."""
LEAST_RUN_STEPS = 500
LEAST_WARMUPS = 10
"""A run is at least this many times as long as its warmup, up to `LARGE_GROWTH`."""
LEAST_BATCH_NORM = 16
"""Samples that batch statistics should come from (Goyal et al. use 32)."""
_SCHEDULER = (
    "a scheduler of yours that counts steps goes to kit(scheduler=...), which moves it by samples: left alone"
    " it would come down at other samples than before"
)
_DECAY_RULES: dict[DecayShape, str] = {
    "cosine": "cosine to 0 (Loshchilov and Hutter 2017, arXiv:1608.03983)",
    "polynomial": "straight line to 0",
    "wsd": "last fifth, 1 - sqrt (Hagele et al. 2024, arXiv:2405.18392)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """The sizes that the numbers follow."""

    samples: int
    """In a step of the optimizer."""
    forward: int
    """In a forward pass."""
    reference: int
    """In a step of the user's own."""
    reference_forward: int
    factor: float
    """Of the learning rate."""

    @property
    def k(self) -> float:
        return self.samples / self.reference


def scale_recipe(
    workload: WorkloadFacts,
    batch_size: int,
    reference_batch_size: int,
    *,
    epochs: int | None = None,
    noise: NoiseScale | None = None,
    decay: DecayShape | None = None,
    keep_effective: bool = False,
) -> Recipe:
    """How to learn with `batch_size` what `reference_batch_size` learns.

    The same batch size changes nothing. An optimizer that no rule is known for keeps its numbers, and a note
    says so. What speaks against the batch (see `refusals`) is among the notes as well.

    Args:
        workload: gives the optimizer with its numbers, the samples of an epoch, and the kind of model.
        batch_size: samples in a batch of the run to come.
        reference_batch_size: samples in the batch that the user's numbers were chosen for.
        epochs: the length of the run to come.
        noise: the gradient noise scale at the user's batch; its lower bound counts.
        decay: let the learning rate come down so, over the whole run, to its last step; needs `epochs`.
        keep_effective: gather gradients of several batches for one step of the user's own size: the
            workload's `step_samples`, and where it has none, one batch of the user's.

    Raises:
        UsageError: for sizes under 1, a batch that does not make up the user's step where that is to be kept,
            and a decay over a run of unknown length.
    """
    _check(batch_size, reference_batch_size)
    accumulation = reference_accumulation = 1
    if keep_effective:
        effective = workload.step_samples or reference_batch_size
        accumulation = gathered(batch_size, effective)
        reference_accumulation = gathered(reference_batch_size, effective)
    samples, reference = batch_size * accumulation, reference_batch_size * reference_accumulation
    count_on = None if noise is None else noise.lower_bound
    factor, lr_rule = rules.lr_factor(workload, samples, reference, count_on)
    step = _Step(
        samples=samples,
        forward=batch_size,
        reference=reference,
        reference_forward=reference_batch_size,
        factor=factor,
    )
    weight_decays, weight_decay_rule = rules.scaled_weight_decays(workload, step.k, factor)
    beta2s, beta2_rule = rules.scaled_beta2s(workload.optimizer_family, workload.beta2s, step.k)
    momenta, batch_norm_rule = rules.scaled_batch_norms(
        workload.batch_norm_momenta, batch_size / reference_batch_size
    )
    warmup = _warmup(workload, step, beta2s or workload.beta2s, epochs)
    recipe = Recipe(
        batch_size=batch_size,
        reference_batch_size=reference_batch_size,
        learning_rates=tuple(lr * factor for lr in workload.learning_rates),
        reference_learning_rates=workload.learning_rates,
        lr_rule=lr_rule,
        warmup_samples=warmup.samples,
        warmup_start=warmup.start,
        warmup_rule=warmup.rule,
        weight_decays=weight_decays,
        reference_weight_decays=workload.weight_decays if weight_decays else (),
        weight_decay_rule=weight_decay_rule,
        beta2s=beta2s,
        reference_beta2s=workload.beta2s if beta2s else (),
        beta2_rule=beta2_rule,
        batch_norm_momenta=momenta,
        reference_batch_norm_momenta=workload.batch_norm_momenta if momenta else (),
        batch_norm_rule=batch_norm_rule,
        ema_power=step.k,
        ema_rule=rules.EMA_RULE if step.k != 1 else "",
        accumulation_steps=accumulation,
        reference_accumulation_steps=reference_accumulation,
        decay=None if decay is None else _decay(decay, _counted_samples(workload, batch_size, epochs)),
        large_batch=_offer(workload, step, epochs),
        notes=_notes(workload, step, count_on, decays=decay is not None),
    )
    return _with_refusals(recipe, workload, epochs)


def refusals(recipe: Recipe, workload: WorkloadFacts, *, epochs: int | None = None) -> tuple[str, ...]:
    """What speaks against training with this recipe's batch, in words; empty where nothing does.

    The time over which weight decay forgets is the user's own in samples and epochs, as `rules` keep it, so
    that only its share of a single step can get too large.
    """
    if recipe.growth <= 1:
        return ()
    found = []
    run_samples = (epochs or USUAL_EPOCHS) * (workload.dataset_samples or 0)
    steps, warmup_steps = (math.ceil(n / recipe.step_samples) for n in (run_samples, recipe.warmup_samples))
    if run_samples and steps < LEAST_RUN_STEPS:
        found.append(f"{steps} steps are left of the run, fewer than {LEAST_RUN_STEPS}")
    warmups = LEAST_WARMUPS if recipe.growth <= LARGE_GROWTH else 1 / LARGE_RUN_SHARE
    if run_samples and run_samples < warmups * recipe.warmup_samples:
        found.append(f"the run has {steps} steps, under {warmups:g} times its warmup of {warmup_steps}")
    most = max((lr * wd for lr, wd in zip(recipe.learning_rates, recipe.weight_decays)), default=0.0)
    if most > rules.MOST_DECAY:
        found.append(f"weight decay takes {most:.2g} of a weight in one step, over {rules.MOST_DECAY:g}")
    return tuple(found)


def _check(batch_size: int, reference: int) -> None:
    if batch_size < 1 or reference < 1:
        raise UsageError("a batch holds at least one sample", why=f"asked for {min(batch_size, reference)}")


def gathered(batch_size: int, step_samples: int) -> int:
    """Batches whose gradients make up a step of so many samples.

    Raises:
        UsageError: where whole batches do not make it up.
    """
    if step_samples % batch_size:
        raise UsageError(
            f"batches of {batch_size} do not make up a step of {step_samples} samples",
            why="gradients are gathered over whole batches, and the samples in a step are to be kept",
            fix=f"choose a batch size that divides {step_samples}",
        )
    return step_samples // batch_size


def _run_samples(workload: WorkloadFacts, epochs: int | None) -> int | None:
    """Samples of a run whose length is known."""
    if epochs is None or not workload.dataset_samples:
        return None
    return epochs * workload.dataset_samples


def _counted_samples(workload: WorkloadFacts, batch_size: int, epochs: int | None) -> int | None:
    """What schedules count over a run whose length is known: every batch of an epoch as a whole one.

    The last one too, which is smaller; it does not count where the loader drops it. Of batches that are
    gathered, those left over in an epoch go into the next one's first step, so each counts by itself. A
    stream is taken to be batched by one worker: several have a last batch each.
    """
    samples, dropped = workload.dataset_samples, workload.dropped_samples
    if epochs is None or not samples:
        return None
    batches = -(-samples // batch_size) if dropped is None else (samples + dropped) // batch_size
    return epochs * max(1, batches) * batch_size


def _decay(shape: DecayShape, samples: int | None) -> Decay:
    if samples is None:
        raise UsageError(
            f"a {shape} decay needs the length of the run",
            why="neither its shape nor its end is known without",
            fix="give epochs=, and a dataset that has a length",
        )
    return Decay(shape=shape, samples=samples, rule=_DECAY_RULES[shape])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Warmup:
    samples: int = 0
    start: float | None = None
    rule: str = ""


def _warmup(
    workload: WorkloadFacts, step: _Step, beta2s: tuple[float | None, ...], epochs: int | None
) -> _Warmup:
    sgd = workload.optimizer_family == "sgd"
    if step.factor <= UNWARMED_FACTOR:
        return _Warmup()
    slowest = max((beta2 for beta2 in beta2s if beta2 is not None), default=ADAM_BETA2)
    steps = SGD_WARMUP_STEPS if sgd else math.ceil(2 / max(1 - slowest, 1e-6))
    rule = f"{SGD_WARMUP_STEPS} steps, {WARMUP_EPOCHS} epochs at most" if sgd else "2 / (1 - beta2) steps"
    source = "Goyal et al. 2017; MLPerf" if sgd else "Ma and Yarats 2021, arXiv:1910.04209"
    samples, epoch = steps * step.samples, workload.dataset_samples
    if epoch:
        share = RUN_SHARE if step.k <= LARGE_GROWTH else LARGE_RUN_SHARE
        most = int(share * (epochs or USUAL_EPOCHS) * epoch)
        samples = min(samples, WARMUP_EPOCHS * epoch) if sgd else samples
        if most < samples:
            run = f"{epochs} epochs" if epochs else f"{USUAL_EPOCHS} epochs, as none were given"
            samples, rule = most, f"{share:g} of the run of {run}, in place of {rule}"
    # It starts from the rate that is known to work (ADR 0011).
    return (
        _Warmup(samples=samples, start=1 / step.factor, rule=f"{rule} ({source})") if samples else _Warmup()
    )


def _offer(workload: WorkloadFacts, step: _Step, epochs: int | None) -> LargeBatch | None:
    if step.k <= 1:
        return None
    return offer_large_batch(
        workload,
        step.samples,
        step.reference,
        run_samples=_run_samples(workload, epochs),
        decay_samples=_counted_samples(workload, step.forward, epochs),
    )


def _notes(workload: WorkloadFacts, step: _Step, noise: float | None, *, decays: bool) -> tuple[str, ...]:
    notes = []
    if step.k != 1:
        if why := rules.unscaled(workload):
            notes.append(f"the learning rate is not scaled to the batch: {why}")
        notes.append(_clipping(step, noise))
        if not decays:
            notes.append(_SCHEDULER)
    shrunk = step.forward < LEAST_BATCH_NORM and step.forward < step.reference_forward
    if shrunk and workload.batch_norm_momenta:
        few = f"BatchNorm takes its statistics from {step.forward} samples"
        notes.append(f"{few}: SyncBatchNorm or GroupNorm is steadier")
    return tuple(notes)


def _clipping(step: _Step, noise: float | None) -> str:
    """|g|^2 = |G|^2 + trace of the covariance / M: a batch of another size has gradients of another norm."""
    said = "a threshold for gradient clipping is left as it is"
    if noise is None or noise <= 0:
        return f"{said}: the larger the batch, the less often gradients reach it"
    same = math.sqrt((1 + noise / step.samples) / (1 + noise / step.reference))
    return f"{said}; multiplied by {same:.2g} it would clip as often as before"


def _with_refusals(recipe: Recipe, workload: WorkloadFacts, epochs: int | None) -> Recipe:
    against = refusals(recipe, workload, epochs=epochs)
    return replace(recipe, notes=(*recipe.notes, *against)) if against else recipe
