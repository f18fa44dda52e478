"""What won before on a workload and machine like these, from the saved profiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autotune.errors import AutotuneError
from autotune.facts import MachineFacts, WorkloadFacts
from autotune.profile import store
from autotune.profile.match import differences
from autotune.profile.schema import Profile
from autotune.profile.yaml_io import loads
from autotune.settings import Settings

MOST_READ = 30
"""Profiles that are looked at, the newest: reading each takes some milliseconds."""


def earlier_settings(machine: MachineFacts, workload: WorkloadFacts) -> tuple[Settings, ...]:
    """Settings that won on the like of this workload here or elsewhere, the most alike first.

    A file that cannot be read is passed over: it is no part of what was asked for.
    """
    return alike(_saved(), machine, workload)


def alike(
    profiles: Sequence[Profile], machine: MachineFacts, workload: WorkloadFacts
) -> tuple[Settings, ...]:
    """The winners among `profiles` of the same model class on the same kind of device; pure.

    Args:
        profiles: the newest first.
        machine: where the search runs.
        workload: what is tuned.

    Returns:
        Those with the fewest differences that matter first, each settings once.
    """
    kind = workload.device.split(":")[0]
    found = [
        (sum(difference.matters for difference in differences(profile, machine, workload)), profile)
        for profile in profiles
        if profile.measured.verdict == "faster"
        and profile.workload.model_class == workload.model_class
        and profile.workload.device.split(":")[0] == kind
    ]
    found.sort(key=lambda one: one[0])
    return tuple(dict.fromkeys(profile.settings for _, profile in found))


def _saved() -> list[Profile]:
    profiles = []
    for path in store.newest_profiles()[:MOST_READ]:
        profile = _read(path)
        if profile is not None:
            profiles.append(profile)
    return profiles


def _read(path: Path) -> Profile | None:
    try:
        return loads(store.read_bytes(path), source=str(path))
    except AutotuneError:
        return None
