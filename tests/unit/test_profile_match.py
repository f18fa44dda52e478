from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
from profile_samples import GIB, MACHINE, WORKLOAD, YOURS, sample_profile
from strategies import plain_workload

from autotune.errors import ProfileMismatchWarning
from autotune.profile.match import differences, warn_if_unfit
from autotune.recipe.scaling import scale_recipe

PROFILE = sample_profile()


def _machine(**changes: Any) -> dict[str, tuple[str, str, bool]]:
    return _shown(differences(PROFILE, replace(MACHINE, **changes), WORKLOAD))


def _workload(**changes: Any) -> dict[str, tuple[str, str, bool]]:
    return _shown(differences(PROFILE, MACHINE, replace(WORKLOAD, **changes)))


def _shown(found: Any) -> dict[str, tuple[str, str, bool]]:
    return {d.what: (d.there, d.here, d.matters) for d in found}


def test_where_it_was_measured_it_fits():
    """The same machine and workload differ in nothing, and no warning is issued."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_if_unfit(PROFILE, MACHINE, WORKLOAD) == ()
        assert warn_if_unfit(PROFILE, MACHINE) == ()


def test_what_changes_freely_is_not_compared():
    """Free memory, file limits, the GPU's other users and torch's patch number are no difference."""
    gpu = replace(MACHINE.gpus[0], free_bytes=1, other_processes=3)
    changed = {
        "memory_available_bytes": 1,
        "nofile_soft": 64,
        "gpus": (gpu,),
        "torch_version": "2.14.9+cu126",
    }
    assert _machine(**changed) == {}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"usable_cpus": 4}, {"usable CPUs": ("16", "4", True)}),
        ({"torch_version": "2.15.0"}, {"torch": ("2.14.1+cu126", "2.15.0", True)}),
        ({"cuda_version": "12.8"}, {"CUDA": ("12.6", "12.8", False)}),
        ({"cuda_version": "13.0"}, {"CUDA": ("12.6", "13.0", True)}),
        ({"cuda_version": None}, {"CUDA": ("12.6", "none", True)}),
        ({"start_method": "spawn"}, {"start method": ("fork", "spawn", True)}),
        ({"cpu_name": "Other"}, {"CPU": ("AMD Ryzen 9 7950X", "Other", False)}),
        ({"memory_limit_bytes": 2 * GIB}, {"memory": ("3.00 GiB used", "2.00 GiB", True)}),
        ({"gpus": ()}, {"GPU": ("NVIDIA GeForce RTX 4090", "none", True)}),
    ],
)
def test_a_machine_that_differs_is_described(changes: dict[str, Any], expected: dict[str, Any]):
    """Each difference says what it was, what it is here, and whether another choice may be best."""
    assert _machine(**changes) == expected


def test_the_gpu_compared_is_the_one_trained_on():
    """The device's own index picks the GPU, on both sides."""
    assert _workload(device="cuda") == {}
    found = _workload(device="cuda:1")
    assert found == {"GPU": ("NVIDIA GeForce RTX 4090", "NVIDIA T4", True)}


def test_a_gpu_with_less_memory_than_was_used_matters():
    """A card of the same name with less memory than the profile's peak cannot run it."""
    gpu = replace(MACHINE.gpus[0], memory_bytes=6 * GIB, driver="550")
    found = _machine(gpus=(gpu,))
    assert found == {
        "GPU driver": ("560.35.03", "550", False),
        "GPU memory": ("8.00 GiB used", "6.00 GiB", True),
    }


def test_another_kind_of_device_ends_the_comparison_of_devices():
    """A GPU's profile on a CPU says so once, not in the GPU's every detail."""
    assert _workload(device="cpu") == {"device": ("cuda:0", "cpu", True)}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"parameters": 7}, {"parameters": ("25,557,032", "7", True)}),
        ({"model_class": "Net"}, {"model": ("ResNet", "Net", False)}),
        ({"dataset_class": None}, {"dataset": ("ImageFolder", "unknown", True)}),
        ({"dataset_samples": 90_000}, {"dataset samples": ("100,000", "90,000", False)}),
        ({"dataset_samples": 500}, {"dataset samples": ("100,000", "500", True)}),
        ({"dataset_samples": None}, {"dataset samples": ("100,000", "unknown", False)}),
        ({"batch_samples": 32}, {"samples in a batch": ("64", "32", True)}),
        ({"optimizer_class": "Adam"}, {"optimizer": ("SGD", "Adam", False)}),
    ],
)
def test_a_workload_that_differs_is_described(changes: dict[str, Any], expected: dict[str, Any]):
    """What is trained is compared by what makes the settings right, not by its name alone."""
    assert _workload(**changes) == expected


def test_a_recipes_numbers_belong_to_their_optimizer():
    """Where the batch was changed, SGD's rates are no good to Adam."""
    here = replace(PROFILE.workload, optimizer_class="Adam")
    grown = replace(PROFILE, recipe=scale_recipe(plain_workload(), 128, 32))
    (found,) = differences(grown, MACHINE, here)
    assert (found.what, found.matters) == ("optimizer", True)


def test_the_start_method_matters_only_to_workers():
    """Without workers nothing is started."""
    profile = replace(PROFILE, settings=YOURS)
    (found,) = differences(profile, replace(MACHINE, start_method="spawn"))
    assert not found.matters


def test_the_warning_lists_all_and_begins_with_what_matters():
    """One warning names each difference; it points at the caller."""
    machine = replace(MACHINE, usable_cpus=2, cpu_name="Other")
    with pytest.warns(ProfileMismatchWarning) as caught:
        found = warn_if_unfit(PROFILE, machine)
    lines = str(caught[0].message).splitlines()
    assert lines[1:] == [
        "  usable CPUs: 16 when measured, 2 here",
        "  CPU: AMD Ryzen 9 7950X when measured, Other here",
    ]
    assert [d.what for d in found] == ["usable CPUs", "CPU"]
    assert caught[0].filename == __file__


def test_differences_that_do_not_matter_are_not_warned_of():
    """A newer driver alone is worth knowing and no reason to warn."""
    gpus = tuple(replace(gpu, driver="999") for gpu in MACHINE.gpus)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = warn_if_unfit(PROFILE, replace(MACHINE, gpus=gpus))
    assert found.what == "GPU driver"
