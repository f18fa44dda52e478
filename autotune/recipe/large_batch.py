"""LARS and LAMB for very large batches: when they are worth a look, and with which settings.

SGD and Adam match them where they are tuned as well (Nado et al. 2021, arXiv:2102.06356), so they are an
offer and never the default. Their learning rates are new ones: nothing scales the user's own to them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from autotune.errors import UsageError
from autotune.facts import WorkloadFacts
from autotune.outcome import Decay, LargeBatch, Recipe

LARS_LEAST = 8192
LAMB_LEAST = 4096
LAMB_LEAST_GROWTH = 16.0
_IMAGENET_SAMPLES = 1_281_167
_UNPROVEN = "needs a validation run of its own"


@dataclass(frozen=True, slots=True, kw_only=True)
class _LarsPoint:
    """Settings with which the MLPerf reference of ResNet-50 converges at a batch size."""

    batch_size: int
    learning_rate: float
    warmup_epochs: int
    """Of ImageNet, as the reference gives it."""
    momentum: float

    @property
    def warmup_steps(self) -> int:
        """The same in steps of this batch: epochs * 1,281,167 / batch size, to the nearest whole step.

        782, 883, 626 and 606 in the order of `_LARS`: they do not simply come down as the batch grows, so
        that a list of rounded steps does not tell which is whose.
        """
        return round(self.warmup_epochs * _IMAGENET_SAMPLES / self.batch_size)


_LARS = (
    _LarsPoint(batch_size=8_192, learning_rate=17.0, warmup_epochs=5, momentum=0.9),
    _LarsPoint(batch_size=13_056, learning_rate=12.8, warmup_epochs=9, momentum=0.9),
    _LarsPoint(batch_size=32_768, learning_rate=21.2, warmup_epochs=16, momentum=0.94),
    _LarsPoint(batch_size=65_536, learning_rate=24.7, warmup_epochs=31, momentum=0.952),
)
_LARS_WEIGHT_DECAY = 5e-5
_LAMB_WEIGHT_DECAY = 0.01
_LAMB_BETAS = (0.9, 0.999)
_LAMB_LR, _LAMB_BATCH, _LAMB_WARMUP = 5e-3, 32_768, 0.2
"""At this batch, with this part of the run as warmup: You et al. 2020."""
_LEAST_WARMUP_START = 0.01
_MOST_WARMUP = 0.25
"""Part of the run."""


def offer_large_batch(
    workload: WorkloadFacts,
    batch_size: int,
    reference: int,
    *,
    run_samples: int | None,
    decay_samples: int | None,
) -> LargeBatch | None:
    """LARS for a convolutional network with SGD, LAMB for a transformer with AdamW; None for batches under.

    Args:
        workload: gives the kind of model and the optimizer.
        batch_size: samples in a step.
        reference: samples in the user's own step.
        run_samples: of the whole run; None where it is unknown.
        decay_samples: the same as schedules count it; None where it is unknown, and then nothing decays.
    """
    if workload.optimizer_family == "sgd" and workload.has_conv2d and batch_size >= LARS_LEAST:
        return _lars(batch_size, run_samples, decay_samples)
    grown = batch_size >= LAMB_LEAST and batch_size >= LAMB_LEAST_GROWTH * reference
    if workload.optimizer_class == "AdamW" and workload.has_attention and grown:
        return _lamb(batch_size, run_samples, decay_samples)
    return None


def _lars(batch_size: int, run_samples: int | None, decay_samples: int | None) -> LargeBatch:
    point = min(_LARS, key=lambda one: abs(math.log(one.batch_size / batch_size)))
    decay = None
    if decay_samples is not None:
        decay = Decay(shape="polynomial", samples=decay_samples, end=1e-4 / point.learning_rate, power=2.0)
        decay = replace(decay, rule="power 2 to 1e-4 (MLPerf)")
    return LargeBatch(
        optimizer="LARS",
        learning_rate=point.learning_rate,
        weight_decay=_LARS_WEIGHT_DECAY,
        momentum=point.momentum,
        warmup_samples=_capped(point.warmup_steps * batch_size, run_samples),
        warmup_start=_LEAST_WARMUP_START,
        decay=decay,
        rule=f"MLPerf ResNet-50 at {point.batch_size} (LARS: You et al. 2017, arXiv:1708.03888); {_UNPROVEN}",
    )


def _lamb(batch_size: int, run_samples: int | None, decay_samples: int | None) -> LargeBatch:
    share = batch_size / _LAMB_BATCH
    warmup, decay = int(2 / (1 - _LAMB_BETAS[1])) * batch_size, None
    if run_samples is not None:
        warmup = int(_LAMB_WARMUP * share * run_samples)
    if decay_samples is not None:
        decay = Decay(shape="polynomial", samples=decay_samples, rule="straight to 0 (LAMB's BERT)")
    return LargeBatch(
        optimizer="LAMB",
        learning_rate=_LAMB_LR * math.sqrt(share),
        weight_decay=_LAMB_WEIGHT_DECAY,
        betas=_LAMB_BETAS,
        warmup_samples=_capped(warmup, run_samples),
        warmup_start=_LEAST_WARMUP_START,
        decay=decay,
        rule=f"5e-3 * sqrt(M / 32768), BERT (LAMB: You et al. 2020, arXiv:1904.00962); {_UNPROVEN}",
    )


def _capped(warmup_samples: int, run_samples: int | None) -> int:
    return warmup_samples if run_samples is None else min(warmup_samples, int(_MOST_WARMUP * run_samples))


def large_batch_recipe(recipe: Recipe | None) -> tuple[LargeBatch, Recipe]:
    """What a recipe offers, and the recipe with its learning rate and schedule in place of the scaled ones.

    Raises:
        UsageError: where nothing is offered.
    """
    offer = None if recipe is None else recipe.large_batch
    if recipe is None or offer is None:
        raise UsageError(
            "no optimizer for large batches is offered",
            why="the recipe has none: the batch is not so large, or the model is of another kind",
            fix="leave large_batch=True out",
        )
    own = replace(
        recipe,
        learning_rates=(offer.learning_rate,),
        reference_learning_rates=(offer.learning_rate,),
        lr_rule=offer.rule,
        warmup_samples=offer.warmup_samples,
        warmup_start=offer.warmup_start,
        warmup_rule=offer.rule,
        weight_decays=(),
        reference_weight_decays=(),
        weight_decay_rule="",
        beta2s=(),
        reference_beta2s=(),
        beta2_rule="",
        decay=offer.decay,
    )
    return offer, own
