"""Several batches in a step of the optimizer: how many there are, and steps that are whole."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from autotune.errors import UsageError
from autotune.measure import batches
from autotune.measure.device import DeviceClock
from autotune.measure.stepkit import StepKit
from autotune.measure.timing import WarmUp, warm_up
from autotune.recipe.scaling import gathered
from autotune.settings import Settings
from autotune.workload import Workload


def step_samples(workload: Workload, own: int | None, optimizers: int = 1) -> int | None:
    """Samples in each step of the optimizer; None where a step has one batch, whatever its size.

    Args:
        workload: says whether they are kept.
        own: the user's batch size; None where it is unknown.
        optimizers: how many there are.

    Raises:
        UsageError: where nobody knows how large a batch is, for several optimizers, and for a step that the
            user's own batches do not make up.
    """
    if workload.keep_effective is False:
        return None
    if own is None or optimizers > 1:
        unknown = "the dataset or a batch sampler makes the batches, and says nothing of their size"
        raise UsageError(
            "`keep_effective` cannot be kept here",
            why=unknown if own is None else "which batches go into a step of several optimizers is not known",
            fix="leave it out, or pass a batch_size and one optimizer",
        )
    effective = own if workload.keep_effective is True else workload.keep_effective
    gathered(own, effective)
    return effective


def batches_in_step(workload: Workload, own: int | None, settings: Settings) -> int:
    """How many batches of `settings` a step of the optimizer has."""
    effective, size = step_samples(workload, own), settings.loader.batch_size
    return 1 if effective is None or size is None else gathered(size, effective)


def warm_up_whole(
    kit: StepKit, held: batches.Held, clock: DeviceClock, gather: int, *, deadline: float, least_s: float
) -> WarmUp:
    """`timing.warm_up` by whole steps of the optimizer, told in batches.

    The optimizer's first step makes its buffers, so that a warm-up must not end before it.
    """

    def one() -> torch.Tensor | None:
        batch = held.fresh()
        # On the device, where a step that changes its batch would: on the host it may have one of its own.
        return held.stepped(kit.step, batch if batch is None else kit.to_device(batch))

    def step(_: Any) -> torch.Tensor | None:
        losses = [one() for _ in range(gather)]
        return losses[-1]

    found = warm_up(step, None, clock, deadline=deadline, least_s=least_s)
    return replace(found, steps=gather * found.steps, step_s=found.step_s / gather)


def whole_steps(workers: int, gather: int) -> int:
    """Batches of which a block holds a multiple: as many for each worker, and whole steps."""
    return math.lcm(max(1, workers), gather)
