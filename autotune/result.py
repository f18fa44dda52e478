"""What the user holds: tuned settings that make loaders and kits, and the result of a run that says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autotune.measure import loaders
from autotune.measure.probe import machine_facts
from autotune.outcome import Outcome
from autotune.profile import store
from autotune.profile.match import warn_if_unfit
from autotune.profile.schema import Profile
from autotune.profile.yaml_io import dumps
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
                it, right after tuning: the dataset that was tuned on.
            overrides: go to the DataLoader's constructor last.
        """
        self._compare()
        parts = self._parts(dataset)
        return loaders.build_loader(parts, self.settings.loader, **overrides)

    def _parts(self, dataset: Any) -> loaders.LoaderParts:
        from autotune.errors import UsageError

        workload = self._workload or Workload(model=None, dataset=dataset)
        if dataset is not None and dataset is not workload.dataset:
            workload = workload.with_(dataset=dataset)
        parts = loaders.parts_of(workload) if workload.dataset is not None else None
        if parts is None:
            raise UsageError("there is no dataset to load", fix="pass one: loader(dataset)")
        return parts

    def kit(
        self,
        model: Any,
        optimizer: Any = None,
        *,
        loss: Any = None,
        step: Any = None,
        train_step: Any = None,
        device: str | None = None,
    ) -> Any:
        """A training step with the tuned settings for your own model: see `autotune.kit.Kit`.

        Without `loss`, `step` and `train_step`, right after tuning: those that were tuned with.
        """
        from autotune.kit import make_kit

        self._compare()
        if self._workload is not None and loss is None and step is None and train_step is None:
            loss, step, train_step = self._workload.loss, self._workload.step, self._workload.train_step
        if device is None and self._workload is not None:
            device = self._workload.device
        return make_kit(
            self.settings,
            self.profile.recipe,
            model,
            optimizer,
            loss=loss,
            step=step,
            train_step=train_step,
            device=device,
        )

    def save(self, path: str | Path | None = None) -> Path:
        """Write the profile as YAML; to the user's profile folder without `path`.

        Returns:
            Where it was written.
        """
        target = Path(path) if path is not None else store.default_profile_path(self.profile.name)
        return store.save_text(target, dumps(self.profile))

    def _compare(self) -> None:
        """Warn once when this machine is not the one that was measured."""
        if not self._compared and self._workload is None:
            self._compared = True
            warn_if_unfit(self.profile, machine_facts(), stacklevel=4)

    def __str__(self) -> str:
        return render(view_of_profile(self.profile))


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
