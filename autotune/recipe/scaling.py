"""The learning rate and its warmup that go with another batch size.

The learning rate grows with k = batch size / reference batch size: by k for SGD, since one step on a batch k
times as large stands for k steps (Goyal et al. 2017, arXiv:1706.02677), and by the square root of k for the
Adam family, whose step is divided by the gradient's own noise (Malladi et al. 2022, arXiv:2205.10287).
"""

from __future__ import annotations

import math

from autotune.errors import UsageError
from autotune.facts import WorkloadFacts
from autotune.outcome import Recipe

SGD_WARMUP_STEPS = 500
"""The MLPerf reference runs of ResNet-50 warm up for 600 to 1600 steps, at k of 6 to 256."""
ADAM_WARMUP_STEPS = 2000
"""2 / (1 - beta2) at torch's default beta2 of 0.999 (Ma and Yarats 2021, arXiv:1910.04209)."""
WARMUP_EPOCHS = 5
"""Goyal et al. warm up over five epochs."""
RUN_SHARE = 0.1
"""A warmup takes no more than this part of the run."""
USUAL_EPOCHS = 10
"""The length of a run that nobody named: a warmup then takes one epoch at most."""
_RULES = {
    "sgd": "linear (Goyal et al. 2017, arXiv:1706.02677)",
    "adam": "sqrt (Malladi et al. 2022, arXiv:2205.10287)",
}


def scale_recipe(
    workload: WorkloadFacts, batch_size: int, reference_batch_size: int, *, epochs: int | None = None
) -> Recipe:
    """How to learn with `batch_size` what `reference_batch_size` learns.

    Every param group's learning rate is multiplied by the same factor. A larger batch is warmed up to: in
    samples, the least of the steps above times the batch size, five epochs, and a tenth of the run. The same
    batch size changes nothing, and a smaller one needs no warmup.

    Args:
        workload: gives the optimizer's family, its learning rates and the samples of an epoch.
        batch_size: samples in a batch of the run to come.
        reference_batch_size: samples in the batch that the learning rates were chosen for.
        epochs: the length of the run to come.

    Raises:
        UsageError: for sizes under 1, and for an optimizer of no family that a rule is known for.
    """
    if batch_size < 1 or reference_batch_size < 1:
        raise UsageError(
            "a batch holds at least one sample", why=f"asked for {min(batch_size, reference_batch_size)}"
        )
    factor, rule = 1.0, "unchanged"
    if batch_size != reference_batch_size:
        factor, rule = _lr_factor(workload, batch_size / reference_batch_size)
    return Recipe(
        batch_size=batch_size,
        reference_batch_size=reference_batch_size,
        learning_rates=tuple(lr * factor for lr in workload.learning_rates),
        reference_learning_rates=workload.learning_rates,
        lr_rule=rule,
        warmup_samples=_warmup_samples(workload, batch_size, epochs) if factor > 1 else 0,
    )


def _lr_factor(workload: WorkloadFacts, k: float) -> tuple[float, str]:
    if workload.optimizer_family == "sgd":
        return k, _RULES["sgd"]
    if workload.optimizer_family == "adam":
        return math.sqrt(k), _RULES["adam"]
    raise UsageError(
        f"no rule scales the learning rate of {workload.optimizer_class or 'this optimizer'}",
        why="rules are known for SGD and for the Adam family",
        fix="keep the batch size, or choose the learning rate for the new one yourself",
    )


def _warmup_samples(workload: WorkloadFacts, batch_size: int, epochs: int | None) -> int:
    steps = SGD_WARMUP_STEPS if workload.optimizer_family == "sgd" else ADAM_WARMUP_STEPS
    by_steps = steps * batch_size
    epoch = workload.dataset_samples
    if not epoch:
        return by_steps
    return min(by_steps, WARMUP_EPOCHS * epoch, int(RUN_SHARE * (epochs or USUAL_EPOCHS) * epoch))


def warmup_factor(samples_seen: int, recipe: Recipe) -> float:
    """What to multiply the recipe's learning rates by after `samples_seen` samples.

    Rises linearly from reference over own learning rate to 1 at `warmup_samples`, then stays.
    """
    if samples_seen >= recipe.warmup_samples:
        return 1.0
    own = max(recipe.learning_rates, default=0.0)
    reference = max(recipe.reference_learning_rates, default=0.0)
    start = reference / own if own > 0 else 1.0
    return min(1.0, start + (1.0 - start) * samples_seen / recipe.warmup_samples)
