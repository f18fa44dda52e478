"""The values of each knob that are worth trying on a machine, and why a knob is not searched."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

from autotune.facts import MachineFacts, WorkloadFacts
from autotune.settings import KnobValue, Precision, Settings
from autotune.space.rules import (
    COMPILE_RANK,
    DEFAULT_PREFETCH,
    MAX_WORKERS,
    PRECISION_RANK,
    batch_size_kept,
    channels_last_kept,
    compile_kept,
    cudnn_kept,
    device_type,
    host_memory_kept,
    runs_in,
    transfer_kept,
    violations,
    workers_kept,
)

_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_PREFETCH = (2, 4, 8)
_MOST_GROWTH = 8
"""Beyond so many times the user's batch no rule for the learning rate is trusted, unless they name more."""
_ALIGNMENT = 8
_LEAST_PART = 0.75
"""Of a size is left where it becomes a multiple of that."""
_LEAST_MORE = 1.25
"""Times as large a batch that lies between two doublings has to be."""
MIN_STEPS_PER_EPOCH = 50
"""A larger batch would leave an epoch with too few optimizer steps to learn from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a knob can be: values in their order, and why it is kept where it is not to be searched."""

    values: tuple[KnobValue, ...] = ()
    kept: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What legal values depend on."""

    machine: MachineFacts
    workload: WorkloadFacts
    yours: Settings
    start: Settings
    """Where candidates begin: *yours* with what the user fixed."""
    fixed: frozenset[str]
    max_batch_size: int | None = None
    """The largest that the user named."""

    def allows(self, **changes: KnobValue) -> bool:
        """Whether these changes to `start` run here."""
        tried = self.start.replace(**changes)
        return not violations(tried, self.machine, self.workload, yours=self.yours)


def steps_up_to(limit: int) -> tuple[int, ...]:
    """1, 2, 3, 4, then coarser, up to and with `limit`."""
    return tuple(sorted({step for step in _STEPS if step < limit} | {limit})) if limit > 0 else ()


def rank(value: KnobValue) -> int:
    """A value's place among its knob's: None, then numbers upwards, plain precision to half, off to on."""
    if value is None:
        return -1
    if value in COMPILE_RANK:
        return COMPILE_RANK[value]
    return PRECISION_RANK[cast(Precision, value)] if isinstance(value, str) else int(value)


def ordered(values: Iterable[KnobValue]) -> tuple[KnobValue, ...]:
    """`values` in their order, without repeats."""
    return tuple(sorted(set(values), key=rank))


def choice(name: str, ground: Ground) -> Choice:
    """What the knob `name` can be; what the user fixed and which classes may change is not looked at."""
    return _CHOICES[name](ground)


def _num_workers(ground: Ground) -> Choice:
    if kept := workers_kept(ground.workload):
        return Choice(kept=kept)
    usable = ground.machine.usable_cpus
    ladder = {0, *steps_up_to(min(usable, MAX_WORKERS)), *steps_up_to(min(2 * usable, MAX_WORKERS))}
    legal = [n for n in ladder if ground.allows(**_lightest(ground, n)) and _fits_fixed(ground, n)]
    return Choice(values=ordered([*legal, ground.yours.loader.num_workers]))


def _lightest(ground: Ground, workers: int) -> dict[str, KnobValue]:
    """`workers` workers with as little prefetched as may be."""
    start = ground.start.loader
    if workers == 0:
        return {"num_workers": 0, "prefetch_factor": None, "persistent_workers": False}
    fixed = "prefetch_factor" in ground.fixed
    return {"num_workers": workers, "prefetch_factor": start.prefetch_factor if fixed else DEFAULT_PREFETCH}


def _fits_fixed(ground: Ground, workers: int) -> bool:
    """Whether what the user fixed leaves this number of workers open: only workers prefetch and persist."""
    start = ground.start.loader
    if "prefetch_factor" in ground.fixed and (start.prefetch_factor is None) != (workers == 0):
        return False
    return workers > 0 or not ("persistent_workers" in ground.fixed and start.persistent_workers)


def _prefetch_factor(ground: Ground) -> Choice:
    if not ground.workload.has_loader:
        return Choice(kept="there is no DataLoader")
    workers = _searched_workers(ground)
    least = min((n for n in workers if n), default=0)
    if not least:
        return Choice(kept="there are no workers to prefetch")
    legal = [n for n in _PREFETCH if ground.allows(num_workers=least, prefetch_factor=n)]
    without = [None] if 0 in workers else []
    return Choice(values=ordered([*without, *legal, ground.yours.loader.prefetch_factor]))


def _searched_workers(ground: Ground) -> tuple[int, ...]:
    if "num_workers" in ground.fixed or workers_kept(ground.workload):
        return (ground.start.loader.num_workers,)
    return tuple(n for n in _num_workers(ground).values if isinstance(n, int))


def _persistent_workers(ground: Ground) -> Choice:
    if not ground.workload.has_loader:
        return Choice(kept="there is no DataLoader")
    if ground.workload.persistent_fixed:
        return Choice(kept=ground.workload.persistent_fixed)
    return Choice(kept="" if any(_searched_workers(ground)) else "there are no workers")


def _transfer(ground: Ground) -> Choice:
    kept = transfer_kept(ground.workload)
    return Choice(kept=kept) if kept else Choice(values=(False, True))


def _batch_size(ground: Ground) -> Choice:
    workload, yours = ground.workload, ground.yours
    now = ground.start.loader.batch_size
    kept = batch_size_kept(workload, yours)
    if kept or now is None:
        return Choice(kept=kept)
    if workload.step_samples is not None:
        return Choice(values=ordered([now, *_parts_of_a_step(ground, workload.step_samples, now)]))
    if workload.optimizer_class is None:
        return Choice(kept="no optimizer was given, so no learning rate could go with another one")
    if workload.optimizer_family == "other":
        return Choice(kept=f"no rule scales the learning rate of {workload.optimizer_class}")
    samples = workload.dataset_samples
    limit = max(now * _MOST_GROWTH, ground.max_batch_size or 0)
    if samples:
        limit = min(limit, max(now, samples // MIN_STEPS_PER_EPOCH))
    sizes = _ladder(now, limit)
    if len(sizes) < 2:
        return Choice(kept=f"a larger one would leave fewer than {MIN_STEPS_PER_EPOCH} steps in an epoch")
    lightest = _lightest(ground, min(_searched_workers(ground)))
    legal = [size for size in sizes if ground.allows(**{**lightest, "batch_size": size})]
    return Choice(values=ordered([now, *legal]))


def _ladder(now: int, limit: int) -> list[int]:
    """The batch itself and its doublings up to `limit`; between two of them half as much again, in eights."""
    sizes = [now]
    while (double := _doubling(now, len(sizes))) <= limit:
        sizes.append(double)
    between = [size for low in sizes if (size := _half_more(low)) and size <= limit]
    return sorted({*sizes, *between})


def _doubling(own: int, times: int) -> int:
    return _aligned(own << times)


def _half_more(size: int) -> int:
    """Half as much again, as a multiple of 8; 0 where that is not much more."""
    found = size * 3 // 2 // _ALIGNMENT * _ALIGNMENT
    return found if found >= _LEAST_MORE * size else 0


def stands_in_for(size: int, own: int) -> int | None:
    """The doubling of the user's own batch that this size lies below; None for the doublings themselves."""
    if size <= own:
        return None
    double = next(double for times in itertools.count(1) if (double := _doubling(own, times)) >= size)
    return None if double == size else double


def _aligned(size: int) -> int:
    """A multiple of 8, as kernels for half the width want their sizes, where one lies little below."""
    lower = size - size % _ALIGNMENT
    return lower if lower >= _LEAST_PART * size else size


def _parts_of_a_step(ground: Ground, step_samples: int, now: int) -> list[int]:
    """Batches that whole steps of so many samples can be gathered from; learning needs no rule for them."""
    most = step_samples.bit_length()
    sizes = [step_samples >> halved for halved in range(most) if step_samples % (1 << halved) == 0]
    lightest = _lightest(ground, min(_searched_workers(ground)))
    near = [size for size in sizes if now <= size * _MOST_GROWTH]
    return [size for size in near if ground.allows(**{**lightest, "batch_size": size})]


def _precision(ground: Ground) -> Choice:
    yours = ground.yours.compute.precision
    values = ordered([yours, *(p for p in PRECISION_RANK if ground.allows(precision=p))])
    if len(values) == 1 and ground.workload.autocast_fixed:
        return Choice(kept=ground.workload.autocast_fixed)
    return Choice(values=values)


def _cudnn_benchmark(ground: Ground) -> Choice:
    kept = cudnn_kept(ground.workload)
    return Choice(kept=kept) if kept else Choice(values=(False, True))


def _channels_last(ground: Ground) -> Choice:
    kept = channels_last_kept(ground.workload)
    return Choice(kept=kept) if kept else Choice(values=(False, True))


def _fused_optimizer(ground: Ground) -> Choice:
    if not ground.workload.fused_available:
        optimizer = ground.workload.optimizer_class or "the optimizer"
        return Choice(kept=f"{optimizer} has no fused kernel here")
    return Choice(values=(False, True))


def _cpu_threads(ground: Ground) -> Choice:
    if ground.workload.accelerated:
        return Choice(kept="the model does not run on the CPU")
    return Choice(
        values=ordered([*steps_up_to(ground.machine.usable_cpus), ground.yours.compute.cpu_threads])
    )


def _keep_host_memory(ground: Ground) -> Choice:
    kept = host_memory_kept(ground.machine, ground.workload)
    return Choice(kept=kept) if kept else Choice(values=(False, True))


def _compile(ground: Ground) -> Choice:
    if kept := compile_kept(ground.machine, ground.workload):
        return Choice(kept=kept)
    legal = [mode for mode in COMPILE_RANK if ground.allows(compile=mode)]
    return Choice(values=ordered([None, *legal, ground.yours.compute.compile]))


_CHOICES: dict[str, Callable[[Ground], Choice]] = {
    "num_workers": _num_workers,
    "prefetch_factor": _prefetch_factor,
    "persistent_workers": _persistent_workers,
    "pin_memory": _transfer,
    "non_blocking": _transfer,
    "batch_size": _batch_size,
    "precision": _precision,
    "cudnn_benchmark": _cudnn_benchmark,
    "channels_last": _channels_last,
    "fused_optimizer": _fused_optimizer,
    "cpu_threads": _cpu_threads,
    "keep_host_memory": _keep_host_memory,
    "compile": _compile,
}


def native_precisions(machine: MachineFacts, workload: WorkloadFacts) -> tuple[str, ...]:
    """Precisions worth a first guess, best first.

    Half formats halve the traffic, and bfloat16 needs no loss scaling. On a CPU even native bfloat16 is
    slower for many models, so nothing is guessed there.
    """
    if device_type(workload) == "cpu":
        return ()
    return tuple(p for p in ("bfloat16", "float16", "tf32") if runs_in(p, machine, workload))
