"""What the user holds: tuned settings that make loaders and kits, and the result of a run that says why."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import DataLoader, SequentialSampler

from autotune.errors import AutotuneWarning, UsageError
from autotune.measure import loaders
from autotune.measure.probe import machine_facts
from autotune.outcome import Outcome
from autotune.profile import store
from autotune.profile.match import changes_batch, warn_if_unfit
from autotune.profile.schema import Profile
from autotune.profile.yaml_io import dumps_readable
from autotune.report.text import render
from autotune.report.view import view_of, view_of_profile
from autotune.settings import Settings
from autotune.workload import Workload


class Tuned:
    """A profile, ready to train with: `loader(dataset)` and `kit(model, optimizer)`."""

    def __init__(self, profile: Profile, workload: Workload | None = None) -> None:
        self.profile = profile
        self._workload = workload
        self._compared = False

    @property
    def settings(self) -> Settings:
        """The settings to train with."""
        return self.profile.settings

    def loader(self, dataset: Any = None, **overrides: Any) -> Any:
        """A plain `torch.utils.data.DataLoader` over `dataset` with the tuned settings.

        Args:
            dataset: a dataset, or a DataLoader whose collate_fn, sampler and the like are kept. Without
                it, right after tuning: the dataset that was tuned on. Right after tuning with a DataLoader,
                another dataset is loaded as that one was; a sampler of your own stays behind. A file holds
                the settings alone: from `autotune.load`, and after tuning by name, a plain dataset is
                shuffled, and collated as torch does, unless `overrides` say otherwise.
            overrides: go to the DataLoader's constructor last.

        Raises:
            UsageError: without a dataset, and where the settings leave open how batches are made.
        """
        self._compare()
        parts = self._parts(dataset)
        own = dataset is None or isinstance(dataset, DataLoader) or parts.settings.batch_size is None
        sized = overrides.keys() & {"batch_size", "batch_sampler"}
        if self.settings.loader.batch_size is None and not own and not sized:
            raise UsageError(
                "the settings do not say how large a batch is",
                why="they were found for a loop in which the dataset or a batch sampler makes the batches",
                fix="pass the DataLoader itself, or batch_size=None, batch_size=... or batch_sampler=...",
            )
        return loaders.build_loader(parts, self.settings.loader, **overrides)

    def _parts(self, dataset: Any) -> loaders.LoaderParts:
        tuned = self._workload
        if dataset is None and (tuned is None or tuned.dataset is None):
            raise UsageError(
                "there is no dataset to load",
                why="none was given, and none is known here",
                fix="pass one: loader(dataset)",
            )
        workload = tuned or Workload(model=None, dataset=dataset)
        known = loaders.parts_of(workload)
        if dataset is None or dataset is workload.dataset:
            found = known
        elif known is not None and isinstance(workload.dataset, DataLoader):
            found = _like(known, workload.with_(dataset=dataset))
        else:
            found = loaders.parts_of(workload.with_(dataset=dataset))
        assert found is not None, "there is a dataset"
        return found

    def kit(  # noqa: PLR0913  # each option is the user's
        self,
        model: Any,
        optimizer: Any = None,
        *,
        loss: Any = None,
        step: Any = None,
        train_step: Any = None,
        device: str | None = None,
        scheduler: Any = None,
        scheduler_interval: Literal["step", "epoch"] = "step",
        large_batch: bool = False,
    ) -> Any:
        """A training step with the tuned settings for your own model: see `autotune.kit.make_kit`.

        Without `loss`, `step` and `train_step`, right after tuning: those that were tuned with. So with
        `optimizer`, where a function that makes it was tuned with.
        """
        from autotune.kit import make_kit

        self._compare()
        if self._workload is not None and loss is None and step is None and train_step is None:
            loss, step, train_step = self._workload.loss, self._workload.step, self._workload.train_step
        if self._workload is not None:
            device = device or self._workload.device
            optimizer = self._workload.optimizer if optimizer is None else optimizer
        kit = make_kit(
            self.settings,
            self.profile.recipe,
            model,
            optimizer,
            loss=loss,
            step=step,
            train_step=train_step,
            device=device,
            scheduler=scheduler,
            scheduler_interval=scheduler_interval,
            large_batch=large_batch,
        )
        if not large_batch:
            self._compare_optimizer(type(kit.optimizer).__name__)
        return kit

    def save(self, path: str | Path | None = None) -> Path:
        """Write the profile as YAML; to the user's profile folder without `path`.

        Returns:
            Where it was written.

        Raises:
            EnvironmentFault: where the file system refuses.
            ProfileError: for a profile that is too large to be read again.
        """
        target = Path(path) if path is not None else store.default_profile_path(self.profile.name)
        return store.save_text(target, dumps_readable(self.profile))

    def _compare(self) -> None:
        """Warn once when this machine is not the one that was measured."""
        if not self._compared and self._workload is None:
            self._compared = True
            warn_if_unfit(self.profile, machine_facts(), stacklevel=4)

    def _compare_optimizer(self, given: str) -> None:
        tuned = self.profile.workload.optimizer_class
        if changes_batch(self.profile) and given != tuned:
            warnings.warn(
                f"the recipe's numbers were made for {tuned}, and this is {given}: other rules hold for it. "
                'Tune with it, or keep your batch with allow="numerics"',
                AutotuneWarning,
                stacklevel=3,
            )

    def __str__(self) -> str:
        return render(view_of_profile(self.profile))


def _like(known: loaders.LoaderParts, workload: Workload) -> loaders.LoaderParts | None:
    """The workload's dataset, loaded as the DataLoader that was tuned on loaded its own."""
    found = loaders.parts_of(workload)
    if found is None or isinstance(workload.dataset, DataLoader):
        return found
    if found.dataset is known.dataset:
        return known
    in_order = known.iterable or isinstance(known.sampler, SequentialSampler)
    return replace(
        known,
        dataset=found.dataset,
        # A batch sampler that is left behind leaves open how large a batch is.
        settings=found.settings if known.batch_sampler is not None else known.settings,
        sampler=None,
        batch_sampler=None,
        shuffle=found.shuffle and not in_order,
        note="",
    )


class Result(Tuned):
    """What `find_best` returns."""

    def __init__(self, profile: Profile, outcome: Outcome, workload: Workload | None) -> None:
        super().__init__(profile, workload)
        self.outcome = outcome

    @property
    def complete(self) -> bool:
        """False when the run was interrupted before its finals."""
        return self.outcome.verdict.kind != "incomplete"

    def __str__(self) -> str:
        return render(view_of(self.outcome, version=self.profile.autotune_version))

    def __repr__(self) -> str:
        return f"<autotune.Result {self.outcome.verdict.kind}: {self.outcome.verdict.sentence}>"
