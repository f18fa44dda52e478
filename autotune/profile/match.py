"""Does a profile fit where it is applied? Pure, but for the one function that warns."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autotune.errors import ProfileMismatchWarning
from autotune.facts import MachineFacts, WorkloadFacts
from autotune.profile.schema import (
    GpuSummary,
    MachineSummary,
    Profile,
    WorkloadSummary,
    summary_of_machine,
    summary_of_workload,
)
from autotune.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that is not as it was when the profile was measured."""

    what: str
    there: str
    """As measured."""
    here: str
    matters: bool
    """Whether another choice of settings may be best here; otherwise it is only worth knowing."""

    def __str__(self) -> str:
        return f"{self.what}: {self.there} when measured, {self.here} here"


def differences(
    profile: Profile, machine: MachineFacts, workload: WorkloadFacts | None = None
) -> tuple[Difference, ...]:
    """What differs from where the profile was measured, first what matters.

    Without `workload` only the machine is compared, for the profile's own device.
    """
    here = summary_of_machine(machine)
    found = list(
        _devices(profile, here, workload.device if workload is not None else profile.workload.device)
    )
    found += _host(profile, here)
    found += _versions(profile.machine, here)
    if workload is not None:
        found += _workload(profile, summary_of_workload(workload))
    return tuple(sorted(found, key=lambda difference: not difference.matters))


def warn_if_unfit(
    profile: Profile, machine: MachineFacts, workload: WorkloadFacts | None = None, *, stacklevel: int = 2
) -> tuple[Difference, ...]:
    """Issues a ProfileMismatchWarning that lists what differs, if any of it matters.

    Args:
        profile: what is to be applied.
        machine: where.
        workload: to what; None compares the machine alone.
        stacklevel: as for `warnings.warn`: 2 is the caller.

    Returns:
        All differences, also those that do not matter.
    """
    found = differences(profile, machine, workload)
    if any(difference.matters for difference in found):
        listed = "".join(f"\n  {difference}" for difference in found)
        warnings.warn(
            f"the profile `{profile.name}` was measured elsewhere; tune again to be sure{listed}",
            ProfileMismatchWarning,
            stacklevel=stacklevel,
        )
    return found


def _devices(profile: Profile, here: MachineSummary, device: str) -> Iterator[Difference]:
    old_type, new_type = _type(profile.workload.device), _type(device)
    if old_type != new_type:
        yield Difference(what="device", there=profile.workload.device, here=device, matters=True)
        return
    if new_type == "cpu":
        return
    old, new = _gpu(profile.machine.gpus, profile.workload.device), _gpu(here.gpus, device)
    if old is None:
        return
    yield from _differs("GPU", old.name, new.name if new else "none", matters=True)
    if new is None:
        return
    yield from _differs("GPU driver", old.driver, new.driver, matters=False)
    yield from _too_small("GPU memory", profile.measured.best.peak_device_bytes, new.memory_bytes)


def _host(profile: Profile, here: MachineSummary) -> Iterator[Difference]:
    there, on_cpu = profile.machine, _type(profile.workload.device) == "cpu"
    yield from _differs("CPU", there.cpu_name, here.cpu_name, matters=on_cpu)
    yield from _differs("usable CPUs", there.usable_cpus, here.usable_cpus, matters=True)
    workers = profile.settings.loader.num_workers
    yield from _differs("start method", there.start_method, here.start_method, matters=workers > 0)
    yield from _too_small("memory", profile.measured.best.peak_host_bytes, here.memory_bytes)


def _versions(there: MachineSummary, here: MachineSummary) -> Iterator[Difference]:
    if _version(there.torch_version, 2) != _version(here.torch_version, 2):
        yield from _differs("torch", there.torch_version, here.torch_version, matters=True)
    major = _version(there.cuda_version, 1) != _version(here.cuda_version, 1)
    yield from _differs("CUDA", there.cuda_version or "none", here.cuda_version or "none", matters=major)


def _workload(profile: Profile, here: WorkloadSummary) -> Iterator[Difference]:
    there = profile.workload
    yield from _differs("model", there.model_class, here.model_class, matters=False)
    yield from _differs("parameters", there.parameters, here.parameters, matters=True)
    yield from _differs("dataset", there.dataset_class, here.dataset_class, matters=True)
    old, new = there.dataset_samples, here.dataset_samples
    # Start-up is spread over an epoch, so only another order of length can change the choice.
    far = bool(old and new and not 0.5 <= new / old <= 2)
    yield from _differs("dataset samples", old, new, matters=far)
    yield from _differs("samples in a batch", there.batch_samples, here.batch_samples, matters=True)
    tied = profile.settings.compute.fused_optimizer or changes_batch(profile)
    yield from _differs("optimizer", there.optimizer_class, here.optimizer_class, matters=tied)


def changes_batch(profile: Profile) -> bool:
    """Whether the recipe's numbers belong to another batch than the user's, and so to one optimizer."""
    return profile.recipe is not None and profile.recipe.growth != 1


def _differs(what: str, there: object, here: object, *, matters: bool) -> Iterator[Difference]:
    if there != here:
        yield Difference(what=what, there=_text(there), here=_text(here), matters=matters)


def _too_small(what: str, peak_bytes: int | None, memory_bytes: int) -> Iterator[Difference]:
    if peak_bytes is not None and memory_bytes < peak_bytes:
        yield Difference(
            what=what, there=f"{format_bytes(peak_bytes)} used", here=format_bytes(memory_bytes), matters=True
        )


def _text(value: object) -> str:
    if value is None or value == "":
        return "unknown"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _type(device: str) -> str:
    return device.partition(":")[0]


def _gpu(gpus: Sequence[GpuSummary], device: str) -> GpuSummary | None:
    """The accelerator that `device` names; `cuda` alone is the first."""
    _, _, index = device.partition(":")
    wanted = int(index) if index.isdecimal() else 0
    return next((gpu for gpu in gpus if gpu.index == wanted), None)


def _version(version: str | None, parts: int) -> tuple[str, ...]:
    """The first numbers of a version: `2.14.1+cpu` is 2, 14."""
    return tuple(re.findall(r"\d+", version or "")[:parts])
