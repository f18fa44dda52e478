"""What is tuned, as the user hands it over. Standard library only: torch objects pass through unlooked-at."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from autotune.errors import UsageError


@dataclass(frozen=True, slots=True)
class Workload:
    """A model, what it is trained on and how.

    Args:
        model: an `nn.Module`, a dict of them, or a function without arguments that makes one.
        dataset: a map-style dataset, an `IterableDataset`, a function that makes one, or a `DataLoader`,
            whose own settings are then *yours*. None for a loop without a DataLoader: give `step` or
            `train_step` and `samples_per_step`.
        loss: `callable(output, target) -> scalar tensor`. Without it: integer targets take cross entropy,
            float targets of the output's shape the mean squared error, and a model whose output carries
            `.loss` or is a dict of losses uses that.
        step: `callable(model, batch) -> loss`, for several inputs or a loss of your own.
        train_step: `callable(kit, batch) -> loss`, the whole training step: use `kit.model`,
            `kit.optimizer`, `kit.autocast()`, `kit.backward(loss)` and `kit.optimizer_step()`.
        optimizer: a function `params -> Optimizer`, a dict of them (keys as in a dict of models), or an
            Optimizer of this model, which is rebuilt from its class and param groups. Without it: SGD with
            lr 0.01, used for measuring alone.
        batch_size: samples in a batch; taken from the DataLoader where one is given. Default 32.
        samples_per_step: for a loop without a DataLoader, how many samples a step trains on.
        device: where to train; the accelerator where there is exactly one, else the CPU.
        shuffle: whether a map-style dataset is shuffled. Not used with a DataLoader, which says so itself.
        collate_fn: as for `DataLoader`. Not used with a DataLoader.
        drop_last: as for `DataLoader`. Not used with a DataLoader.
        name: what to call it in reports and file names.
        keep_effective: True to let each step of the optimizer have the samples of your batch, whatever batch
            size is chosen: gradients of several smaller batches are averaged for it. A number where your own
            loop gathers gradients already: so many samples are in a step, of which `batch_size` is a part.
            Not with `train_step`, which says itself when the optimizer steps.
    """

    model: Any
    dataset: Any = None
    loss: Callable[[Any, Any], Any] | None = None
    step: Callable[[Any, Any], Any] | None = None
    train_step: Callable[[Any, Any], Any] | None = None
    optimizer: Any = None
    batch_size: int | None = None
    samples_per_step: int | None = None
    device: str | None = None
    shuffle: bool = True
    collate_fn: Callable[[Any], Any] | None = None
    drop_last: bool = False
    name: str = ""
    keep_effective: bool | int = False

    def __post_init__(self) -> None:
        given = [name for name in ("loss", "step", "train_step") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(
                f"{' and '.join(f'`{name}`' for name in given)} cannot be given together",
                why="each of them says alone how the loss is had",
                fix="keep one: `loss(output, target)`, `step(model, batch)` or `train_step(kit, batch)`",
            )
        for name in (*given, *(["collate_fn"] if self.collate_fn is not None else [])):
            if not callable(getattr(self, name)):
                raise UsageError(
                    f"`{name}` is not callable",
                    why=f"it is {getattr(self, name)!r}",
                    fix="pass a function, or an object that can be called like one",
                )
        for name in ("batch_size", "samples_per_step"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise UsageError(
                    f"`{name}` must be a whole number of at least 1",
                    why=f"it is {value!r}",
                    fix="give the number of samples, or leave it out",
                )
        self._check_effective()
        self._check_dataset()

    def _check_effective(self) -> None:
        if self.keep_effective is False:
            return
        if not isinstance(self.keep_effective, int) or self.keep_effective < 1:
            raise UsageError(
                "`keep_effective` must be True, or the samples in a step of your optimizer",
                why=f"it is {self.keep_effective!r}",
                fix="pass True to keep your batch size, or a multiple of it if your loop gathers gradients",
            )
        if self.train_step is not None or self.dataset is None:
            lacks = "`train_step`" if self.train_step is not None else "a loop without a dataset"
            raise UsageError(
                f"`keep_effective` cannot go with {lacks}",
                why="which batches go into a step of the optimizer is said there already",
                fix="leave it out, or pass a dataset with `loss` or `step`: the step is then made here",
            )

    def _check_dataset(self) -> None:
        if isinstance(self.dataset, (str, bytes, os.PathLike)):
            raise UsageError(
                "`dataset` is a path, and no dataset",
                why=f"it is {self.dataset!r}",
                fix="make the dataset that reads it, and pass that or a function that makes it",
            )
        if self.dataset is None and (self.step is None and self.train_step is None):
            raise UsageError(
                "there is no dataset to train on",
                fix="pass a dataset; for a loop without one `step=` and `samples_per_step=`",
            )
        if self.dataset is None and self.samples_per_step is None:
            raise UsageError(
                "`samples_per_step` is missing",
                why="without a dataset nothing else says how many samples a step trains on",
                fix="pass samples_per_step=, such as the batch size of your loop",
            )

    @classmethod
    def of(cls, value: Any) -> Workload:
        """A Workload from what a target's factory returned: a Workload, a (model, dataset) pair or a mapping.

        Raises:
            UsageError: for anything else.
        """
        if isinstance(value, Workload):
            return value
        if isinstance(value, tuple) and len(value) == 2:
            return cls(*value)
        returned = f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__
        if isinstance(value, Mapping):
            unknown = [str(key) for key in value if key not in cls.__dataclass_fields__]
            if not unknown and "model" in value:
                return cls(**value)
            returned += f" with the unknown keys {', '.join(unknown)}" if unknown else " without `model`"
        raise UsageError(
            "the factory returned no workload",
            why=f"it returned {returned}",
            fix="return autotune.Workload(model, dataset, ...) or a (model, dataset) pair",
        )

    def with_(self, **changes: Any) -> Workload:
        """A copy with these fields changed."""
        return replace(self, **changes)
