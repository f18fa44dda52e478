"""One complete choice of how to train."""

from __future__ import annotations

import dataclasses

import pytest

from autotune.settings import GROUP_OF, GROUPS, LoaderSettings, Settings


def test_the_defaults_are_torchs() -> None:
    """What a DataLoader and a training loop do when nothing is said."""
    assert Settings().flat() == {
        "batch_size": None,
        "num_workers": 0,
        "prefetch_factor": None,
        "persistent_workers": False,
        "pin_memory": False,
        "non_blocking": False,
        "precision": "float32",
        "cudnn_benchmark": False,
        "channels_last": False,
        "fused_optimizer": False,
        "cpu_threads": None,
        "keep_host_memory": False,
        "compile": None,
    }


def test_every_knob_has_one_name() -> None:
    """No name stands in two groups, so that a name alone says which knob is meant."""
    names = [name for group in GROUPS.values() for name in group]
    assert len(set(names)) == len(names)
    assert GROUP_OF["num_workers"] == "loader"
    assert GROUP_OF["non_blocking"] == "transfer"
    assert GROUP_OF["precision"] == "compute"


def test_replace_changes_the_named_knobs_alone() -> None:
    """Knobs of several groups at once; the original stays what it was."""
    before = Settings(loader=LoaderSettings(batch_size=8))
    after = before.replace(num_workers=4, precision="bfloat16")
    assert after.flat() == before.flat() | {"num_workers": 4, "precision": "bfloat16"}
    assert before == Settings(loader=LoaderSettings(batch_size=8))


def test_a_name_that_is_no_knob_is_refused() -> None:
    """A misspelt knob never passes silently."""
    with pytest.raises(KeyError, match="num_workres"):
        Settings().replace(num_workres=4)
    with pytest.raises(KeyError, match="loader"):
        Settings.from_flat({"loader": None})


def test_changed_from_gives_the_values_here() -> None:
    """What to change in the other to get this."""
    assert Settings().replace(num_workers=4).changed_from(Settings()) == {"num_workers": 4}
    assert Settings().changed_from(Settings().replace(num_workers=4)) == {"num_workers": 0}


def test_settings_cannot_be_changed_in_place() -> None:
    """They are keys of what was measured."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().loader.num_workers = 4  # type: ignore[misc]
