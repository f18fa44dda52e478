"""How each number of a recipe goes with the batch size: value and rule, one number at a time.

k is samples in a step (M) over samples in the user's own step (M0); phi is the gradient noise scale in
samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from autotune.facts import OptimizerFamily, WorkloadFacts

MOST_LINEAR = 8.0
"""Without a noise scale, SGD's learning rate grows no further."""
LEAST_BETA2 = 0.9
"""A second moment over fewer than ten steps is mostly noise."""
MOST_DECAY = 0.1
"""Of weight decay in a single step: lr * wd."""
UNCHANGED = "unchanged"
_SAME_DECAY = "wd * k * lr / new lr: same decay for a sample (Wang and Aitchison 2025, arXiv:2405.13698)"
_BETA2 = f"beta2 ** k, at least {LEAST_BETA2:g} (Marek et al. 2025, arXiv:2507.07101)"
_BATCH_NORM = "1 - (1 - momentum) ** k: same half-life in samples (after Busbridge et al. 2023)"
EMA_RULE = "decay ** k (Busbridge et al. 2023, arXiv:2307.13813)"


def gain(batch_size: int, reference: int, noise: float) -> float:
    """How many steps at `reference` one step at `batch_size` is worth: k * (phi + M0) / (phi + M).

    AdaScale's gain (Johnson et al. 2020, ICML); between 1 and k, where it is for a larger batch.
    """
    return batch_size / reference * (noise + reference) / (noise + batch_size)


def lr_factor(
    workload: WorkloadFacts, batch_size: int, reference: int, noise: float | None
) -> tuple[float, str]:
    """What to multiply every group's learning rate by, and why.

    Args:
        workload: gives the optimizer and its family.
        batch_size: samples in a step of the run to come.
        reference: samples in the user's own step.
        noise: the noise scale to count on, in samples; None where it is unknown.
    """
    if batch_size == reference:
        return 1.0, UNCHANGED
    if why := unscaled(workload):
        return 1.0, f"{UNCHANGED}: {why}"
    k = batch_size / reference
    worth = None if noise is None else gain(batch_size, reference, noise)
    if workload.optimizer_family == "sgd":
        return _sgd_factor(k, worth, noise)
    root = math.sqrt(k)
    rule = "sqrt (Malladi et al. 2022, arXiv:2205.10287)"
    if worth is None or (root <= worth if k > 1 else root >= worth):
        return root, rule
    return (
        worth,
        f"gain (AdaScale, Johnson et al. 2020), under sqrt at a noise scale of at least {noise:.3g} samples",
    )


def _sgd_factor(k: float, worth: float | None, noise: float | None) -> tuple[float, str]:
    if worth is not None:
        return worth, f"gain (AdaScale, Johnson et al. 2020) at a noise scale of at least {noise:.3g} samples"
    rule = "linear (Goyal et al. 2017, arXiv:1706.02677)"
    if k > MOST_LINEAR:
        return MOST_LINEAR, f"{rule}, no further than {MOST_LINEAR:g} times without a noise scale"
    return k, rule


def unscaled(workload: WorkloadFacts) -> str:
    """Why no rule gives a learning rate for another batch size; empty where one does."""
    if workload.optimizer_class is None:
        return "no optimizer was given, so no learning rate is known"
    if workload.learning_rates and not any(workload.learning_rates):
        return "every learning rate is 0"
    if workload.optimizer_family == "other":
        return f"no rule scales the learning rate of {workload.optimizer_class}"
    return ""


def scaled_weight_decays(workload: WorkloadFacts, k: float, factor: float) -> tuple[tuple[float, ...], str]:
    """Weight decay of every group, and its rule; empty where none has any.

    With lr * wd left as it was for a sample, the weights' memory is as long as it was. Adam's L2 goes through
    the division by the second moment's root, which shrinks by as much as it would have to grow.
    """
    own = workload.weight_decays
    if k == 1 or not any(own):
        return (), ""
    if unscaled(workload):
        return own, f"{UNCHANGED}, as the learning rate"
    if workload.optimizer_family == "adam" and not workload.decoupled_weight_decay:
        return own, f"{UNCHANGED}: L2 is divided by the second moment, as the gradient is"
    return tuple(wd * k / factor for wd in own), _SAME_DECAY


def scaled_beta2(beta2: float, k: float) -> float:
    """The decay of a second moment that forgets as many samples as `beta2` did; never raised by the floor."""
    return float(max(beta2**k, min(beta2, LEAST_BETA2)))


def scaled_beta2s(
    family: OptimizerFamily, own: Sequence[float | None], k: float
) -> tuple[tuple[float | None, ...], str]:
    """`scaled_beta2` for every group of the Adam family, and its rule; empty for others."""
    if k == 1 or family != "adam" or not any(beta2 is not None for beta2 in own):
        return (), ""
    return tuple(None if beta2 is None else scaled_beta2(beta2, k) for beta2 in own), _BETA2


def scaled_batch_norm(momentum: float, k: float) -> float:
    """The momentum of running statistics that forgets as many samples as `momentum` did.

    Args:
        momentum: torch's: the weight of the newest batch.
        k: samples in a forward pass over those in the user's.
    """
    return float(1 - (1 - momentum) ** k)


def scaled_batch_norms(own: Sequence[float], k: float) -> tuple[tuple[float, ...], str]:
    """`scaled_batch_norm` for each, and its rule; empty where nothing changes."""
    if k == 1 or not own:
        return (), ""
    return tuple(scaled_batch_norm(momentum, k) for momentum in own), _BATCH_NORM
