"""Every knob of Settings: what class it is of, what it needs, what it costs to try."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from autotune.errors import UsageError

KnobClass = Literal["exact", "numerics", "recipe"]
"""exact: the same numbers come out. numerics: rounding changes. recipe: learning changes."""

MoveGroup = Literal["loader", "transfer", "compute", "recipe"]
"""Knobs that answer the same bottleneck, and so are tried together."""

CLASS_RANK: dict[KnobClass, int] = {"exact": 0, "numerics": 1, "recipe": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One field of Settings."""

    name: str
    group: MoveGroup
    kind: KnobClass
    needs: str
    """What it cannot do without, a phrase; empty where it always applies."""
    doc: str
    """What it does, a phrase for the user."""
    cost_rank: int
    """What one value costs to try: 0 a flag, 1 new kernels, 2 new processes, 3 another memory need."""


KNOBS: tuple[Knob, ...] = (
    Knob(
        name="num_workers",
        group="loader",
        kind="exact",
        needs="a DataLoader",
        doc="worker processes that load and transform samples beside the training process",
        cost_rank=2,
    ),
    Knob(
        name="prefetch_factor",
        group="loader",
        kind="exact",
        needs="at least one worker",
        doc="batches that each worker prepares ahead",
        cost_rank=2,
    ),
    Knob(
        name="persistent_workers",
        group="loader",
        kind="exact",
        needs="at least one worker",
        doc="workers live on from epoch to epoch",
        cost_rank=2,
    ),
    Knob(
        name="pin_memory",
        group="transfer",
        kind="exact",
        needs="a CUDA or XPU device",
        doc="batches are put in page-locked memory, from which the device copies faster",
        cost_rank=2,
    ),
    Knob(
        name="non_blocking",
        group="transfer",
        kind="exact",
        needs="a CUDA or XPU device",
        doc="the copy to the device runs beside the host's next work",
        cost_rank=0,
    ),
    Knob(
        name="batch_size",
        group="recipe",
        kind="recipe",
        needs="an optimizer of the SGD or Adam family, whose learning rate can be scaled",
        doc="samples in a batch; the learning rate is scaled with it",
        cost_rank=3,
    ),
    Knob(
        name="precision",
        group="compute",
        kind="numerics",
        needs="hardware that computes in it",
        doc="number format of matrix products and convolutions",
        cost_rank=1,
    ),
    Knob(
        name="cudnn_benchmark",
        group="compute",
        kind="numerics",
        needs="a CUDA device and convolutions",
        doc="cuDNN times its algorithms for each shape and keeps the fastest",
        cost_rank=1,
    ),
    Knob(
        name="channels_last",
        group="compute",
        kind="numerics",
        needs="2-D convolutions and 4-D inputs",
        doc="images and weights in NHWC memory order",
        cost_rank=1,
    ),
    Knob(
        name="fused_optimizer",
        group="compute",
        kind="numerics",
        needs="an optimizer with a fused kernel",
        doc="the whole optimizer step in one kernel",
        cost_rank=0,
    ),
    Knob(
        name="cpu_threads",
        group="compute",
        kind="numerics",
        needs="a model that runs on the CPU",
        doc="threads that share one operation; sums are split among them",
        cost_rank=0,
    ),
    Knob(
        name="keep_host_memory",
        group="compute",
        kind="exact",
        needs="a model that runs on the CPU, and glibc's allocator",
        doc="memory that a step frees stays with the process for the next one",
        cost_rank=2,
    ),
    Knob(
        name="compile",
        group="compute",
        kind="numerics",
        needs="a CPU or a CUDA device, and a C++ compiler",
        doc="torch.compile makes kernels for this very model; it takes seconds to minutes at the start",
        cost_rank=1,
    ),
)

_BY_NAME = {each.name: each for each in KNOBS}


def knob(name: str) -> Knob:
    """The knob of that name.

    Raises:
        UsageError: for a name that is no knob.
    """
    if name not in _BY_NAME:
        close = difflib.get_close_matches(name, _BY_NAME, n=1)
        raise UsageError(
            f"there is no setting `{name}`",
            why=f"did you mean `{close[0]}`?" if close else "",
            fix=f"the settings are {', '.join(_BY_NAME)}",
        )
    return _BY_NAME[name]
