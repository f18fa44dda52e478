"""What the user holds after tuning: loaders and kits with the tuned settings, saved and loaded again."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import workloads as w
from profile_samples import OUTCOME, sample_profile
from strategies import plain_workload
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
)

import autotune
from autotune import result as result_module
from autotune.errors import AutotuneError, AutotuneWarning, ProfileMismatchWarning
from autotune.measure.probe import machine_facts
from autotune.outcome import Outcome
from autotune.profile.schema import summary_of_machine
from autotune.recipe.scaling import scale_recipe
from autotune.result import Result, Tuned
from autotune.settings import Settings
from autotune.workload import Workload

TUNED = Settings.from_flat(
    {"batch_size": 32, "num_workers": 2, "prefetch_factor": 4, "persistent_workers": True}
)


def here(settings: Settings = TUNED, workload: Workload | None = None) -> Tuned:
    """Tuned settings of this machine, as a run or a file would give them."""
    workload_summary = replace(sample_profile().workload, device="cpu")
    measured = replace(sample_profile().measured, best=replace(sample_profile().measured.yours))
    profile = replace(
        sample_profile(),
        settings=settings,
        measured=replace(measured, best=replace(measured.best, peak_host_bytes=None, peak_device_bytes=None)),
        machine=summary_of_machine(machine_facts()),
        workload=workload_summary,
    )
    return Tuned(profile, workload)


def test_a_recipe_meets_another_optimizer_with_a_warning() -> None:
    """Its numbers follow rules of the one that was tuned with; without another batch there are none."""
    tuned = here()
    tuned.profile = replace(tuned.profile, recipe=scale_recipe(plain_workload(), 128, 32))
    model = torch.nn.Linear(2, 2)
    with pytest.warns(AutotuneWarning, match="made for SGD, and this is AdamW"):
        tuned.kit(model, torch.optim.AdamW, device="cpu").close()
    tuned.kit(model, lambda p: torch.optim.SGD(p, lr=0.1), device="cpu").close()
    here().kit(model, torch.optim.AdamW, device="cpu").close()


def said(loader: DataLoader[Any]) -> dict[str, Any]:
    names = ("batch_size", "num_workers", "prefetch_factor", "persistent_workers", "pin_memory")
    return {name: getattr(loader, name) for name in names}


class Eights(BatchSampler):
    """A batch sampler of the user's own making."""


def ordered(worker: int) -> None:
    """A worker_init_fn to recognise."""


def test_a_loader_has_the_tuned_settings() -> None:
    """A plain DataLoader, shuffled as training data are, that gives whole batches."""
    loader = here().loader(w.Rows())
    assert type(loader) is DataLoader
    assert said(loader) == {name: value for name, value in TUNED.flat().items() if name in said(loader)}
    assert isinstance(loader.sampler, RandomSampler)
    batches = list(loader)
    assert [len(x) for x, _ in batches] == [32] * 8


def test_overrides_win_and_take_along_what_depends_on_them() -> None:
    """Without workers nothing is prefetched or kept; other arguments of DataLoader go through."""
    loader = here().loader(w.Rows(), num_workers=0, drop_last=True, batch_size=48)
    assert said(loader) == {
        "batch_size": 48,
        "num_workers": 0,
        "prefetch_factor": None,
        "persistent_workers": False,
        "pin_memory": False,
    }
    assert (loader.drop_last, len(loader)) == (True, 256 // 48)
    assert isinstance(here().loader(w.Rows(), shuffle=False).sampler, SequentialSampler)
    sampler = SubsetRandomSampler(range(10))
    assert here().loader(w.Rows(), sampler=sampler).sampler is sampler
    own = BatchSampler(sampler, 5, drop_last=False)
    assert here().loader(w.Rows(), batch_sampler=own).batch_sampler is own


def test_a_dataloader_keeps_all_but_its_settings() -> None:
    """collate_fn, sampler, drop_last, worker_init_fn and generator are the user's own."""
    generator = torch.Generator()
    given = DataLoader(
        w.Rows(),
        batch_size=7,
        sampler=SubsetRandomSampler(range(100), generator=generator),
        collate_fn=w.to_pair,
        drop_last=True,
        worker_init_fn=ordered,
        generator=generator,
    )
    for tuned in (here(), here(workload=Workload(w.Net(), given))):
        loader = tuned.loader(given)
        assert (loader.batch_size, loader.num_workers) == (32, 2)
        assert loader.sampler is given.sampler
        assert loader.collate_fn is w.to_pair
        assert loader.drop_last
        assert loader.worker_init_fn is ordered
        assert loader.generator is generator
    assert said(given)["batch_size"] == 7


def test_right_after_tuning_the_dataset_is_known() -> None:
    """`loader()` alone loads what was tuned on, in its order and with its collate function."""
    dataset = w.Rows()
    tuned = here(workload=Workload(w.Net(), dataset, shuffle=False, collate_fn=w.to_pair))
    loader = tuned.loader()
    assert loader.dataset is dataset
    assert loader.collate_fn is w.to_pair
    assert isinstance(loader.sampler, SequentialSampler)


def test_another_dataset_is_loaded_like_the_one_tuned_on() -> None:
    """After tuning on a DataLoader its collate_fn and drop_last hold for its own dataset and for others."""
    dataset = w.Rows()
    given = DataLoader(dataset, batch_size=16, shuffle=True, collate_fn=w.to_pair, drop_last=True)
    tuned = here(workload=Workload(w.Net(), given))
    assert tuned.loader(dataset).sampler is given.sampler
    other = tuned.loader(w.Rows(100))
    assert isinstance(other.sampler, RandomSampler)
    assert len(other.sampler) == 100
    for loader in (tuned.loader(dataset), other):
        assert (loader.collate_fn, loader.drop_last) == (w.to_pair, True)
    in_order = here(workload=Workload(w.Net(), DataLoader(dataset, batch_size=16)))
    assert isinstance(in_order.loader(w.Rows(100)).sampler, SequentialSampler)


def test_a_stream_is_loaded_without_a_sampler() -> None:
    """An IterableDataset gives its own order."""
    loader = here(TUNED.replace(num_workers=0, prefetch_factor=None, persistent_workers=False)).loader(
        w.Stream()
    )
    assert len(list(loader)) == 2


def test_settings_without_a_batch_size_ask_for_one() -> None:
    """Where dataset or batch sampler make the batches, a bare dataset does not say how."""
    tuned = here(Settings.from_flat({"batch_size": None}))
    with pytest.raises(AutotuneError) as raised:
        tuned.loader(w.Rows())
    assert "batch_size" in raised.value.fix
    assert tuned.loader(w.Rows(), batch_size=None).batch_size is None
    assert tuned.loader(w.Rows(), batch_size=4).batch_size == 4
    own = DataLoader(w.Rows(), batch_sampler=Eights(range(256), 8, drop_last=False))
    assert tuned.loader(own).batch_sampler is own.batch_sampler
    after = here(Settings.from_flat({"batch_size": None}), Workload(w.Net(), own))
    assert after.loader(own.dataset).batch_sampler is own.batch_sampler
    with pytest.raises(AutotuneError):
        after.loader(w.Rows(100))
    assert tuned.loader(DataLoader(w.Rows(), batch_size=5)).batch_size == 5
    assert tuned.loader(DataLoader(w.Rows(), batch_size=None)).batch_size is None


def test_no_dataset_is_said() -> None:
    """Neither given nor known: the error says to pass one."""
    for tuned in (here(), here(workload=Workload(w.Net(), step=w.draw_rows, samples_per_step=8))):
        with pytest.raises(AutotuneError) as raised:
            tuned.loader()
        assert "loader(dataset)" in raised.value.fix


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    """Settings, recipe and figures come back equal, and make the same loader and a kit that trains."""
    tuned = here()
    path = tuned.save(tmp_path / "autotune.yaml")
    again = autotune.load(path)
    assert again.profile == tuned.profile
    assert again.settings == TUNED
    dataset = w.Rows()
    assert said(again.loader(dataset)) == said(tuned.loader(dataset))
    with again.kit(w.Net(), w.sgd) as kit:
        assert torch.isfinite(kit.step(next(iter(again.loader(dataset, num_workers=0)))))
    assert "num_workers" in str(again)


def test_on_this_machine_nothing_is_warned_of() -> None:
    """A profile that fits is applied in silence."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        here().loader(w.Rows())


def test_another_machine_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what differs, at the user's own line, and not again for the kit."""
    elsewhere = replace(machine_facts(), usable_cpus=96, torch_version="2.9.0", cpu_name="another")
    tuned = here()
    monkeypatch.setattr(result_module, "machine_facts", lambda: elsewhere)
    with pytest.warns(ProfileMismatchWarning) as seen:
        tuned.loader(w.Rows())
    assert "96" in str(seen[0].message)
    assert "2.9.0" in str(seen[0].message)
    assert seen[0].filename == __file__
    tuned.kit(w.Net(), w.sgd)  # a second warning would be an error here


def test_a_kit_warns_at_the_users_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever comes first."""
    elsewhere = replace(machine_facts(), usable_cpus=96)
    tuned = here()
    monkeypatch.setattr(result_module, "machine_facts", lambda: elsewhere)
    with pytest.warns(ProfileMismatchWarning) as seen:
        tuned.kit(w.Net(), w.sgd)
    assert seen[0].filename == __file__


def test_a_kit_takes_what_was_tuned_with() -> None:
    """Right after tuning, loss, optimizer and device need not be said again; what is said wins."""
    losses: list[str] = []

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        losses.append("tuned")
        return torch.nn.functional.cross_entropy(output, target)

    tuned = here(workload=Workload(w.Net(), w.Rows(), loss=loss, optimizer=w.adam, device="cpu"))
    batch = next(iter(DataLoader(w.Rows(), batch_size=8)))
    kit = tuned.kit(w.Net())
    kit.step(batch)
    assert isinstance(kit.optimizer, torch.optim.Adam)
    assert losses == ["tuned"]
    own = tuned.kit(w.Net(), w.sgd, loss=torch.nn.functional.cross_entropy)
    own.step(batch)
    assert isinstance(own.optimizer, torch.optim.SGD)
    assert losses == ["tuned"]


def test_whether_a_run_ended_well_is_known() -> None:
    """A run cut short before its finals is not complete, and says so in its short form."""
    profile = sample_profile()
    assert Result(profile, OUTCOME, None).complete
    cut: Outcome = replace(OUTCOME, verdict=replace(OUTCOME.verdict, kind="incomplete", sentence="cut"))
    assert not Result(profile, cut, None).complete
    assert repr(Result(profile, cut, None)) == "<autotune.Result incomplete: cut>"
    assert "num_workers" in str(Result(profile, OUTCOME, None))
