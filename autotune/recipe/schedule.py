"""The learning rate over a run as a function of samples: no batch size changes it.

Samples are counted by whole steps, as a schedule sees them, and a decay over the run ends with its last one:
where the last batch of each epoch is smaller or dropped, that end is rounded differently for each batch size.
As a function of the part of the run that is done, a decay is the same in all.

Warmup and decay are joined by the lesser of both, so a decay that starts at once is met where the warmup
reaches it, and of two warmups the longer counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from autotune.outcome import Decay, Recipe


def warmup_start(recipe: Recipe) -> float:
    """The part of the recipe's learning rates that the warmup starts from, 0 to 1."""
    if recipe.warmup_start is not None:
        return min(1.0, recipe.warmup_start)
    own = max(recipe.learning_rates, default=0.0)
    reference = max(recipe.reference_learning_rates, default=0.0)
    return min(1.0, reference / own) if own > 0 else 1.0


def warmup_factor(samples: float, recipe: Recipe) -> float:
    """What to multiply the recipe's learning rates by after `samples` samples, its decay aside.

    Rises linearly to 1 at `warmup_samples`, then stays.
    """
    if samples >= recipe.warmup_samples:
        return 1.0
    start = warmup_start(recipe)
    return min(1.0, start + (1.0 - start) * samples / recipe.warmup_samples)


def decay_factor(samples: float, decay: Decay) -> float:
    """What is left of the learning rate after `samples` samples, 1 to `decay.end`.

    cosine: Loshchilov and Hutter 2017, arXiv:1608.03983. wsd: its cooldown goes with 1 - sqrt (Hagele et al.
    2024, arXiv:2405.18392).
    """
    done = min(1.0, samples / decay.samples)
    if decay.shape == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * done))
    elif decay.shape == "polynomial":
        left = (1.0 - done) ** decay.power
    else:
        cooled = max(0.0, done - (1.0 - decay.cooldown))
        left = 1.0 - math.sqrt(min(1.0, cooled / decay.cooldown)) if decay.cooldown > 0 else 1.0
    return decay.end + (1.0 - decay.end) * left


def schedule_factor(samples: float, recipe: Recipe) -> float:
    """Warmup and decay together."""
    warm = warmup_factor(samples, recipe)
    return warm if recipe.decay is None else min(warm, decay_factor(samples, recipe.decay))


@dataclass(frozen=True, kw_only=True)  # without slots: LambdaLR saves what is in __dict__
class SampleSchedule:
    """A recipe's schedule by steps of the optimizer, for a loop without a kit.

    Goes to `torch.optim.lr_scheduler.LambdaLR(optimizer, SampleSchedule(recipe=recipe))`, the optimizer being
    made with the recipe's learning rates; step it after every step of the optimizer. Can be pickled.
    """

    recipe: Recipe

    def __call__(self, step: int) -> float:
        """What to multiply the learning rate by in this step, the first being 0."""
        return schedule_factor(step * self.recipe.step_samples, self.recipe)
