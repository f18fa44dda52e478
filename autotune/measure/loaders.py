"""DataLoaders rebuilt with other settings from what the user handed over, which is never touched."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    default_collate,
    default_convert,
)

from autotune.errors import AutotuneError, DatasetError, DatasetTooSmallError, EmptyDatasetError, UsageError
from autotune.measure import by_value, own_batches
from autotune.measure.classify import user_traceback
from autotune.measure.handed_over import length_error, noted
from autotune.measure.sharding import wrapped_datasets
from autotune.settings import LoaderSettings
from autotune.workload import Workload

DEFAULT_BATCH_SIZE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderParts:
    """All that a DataLoader is made of, besides its settings."""

    dataset: Any
    settings: LoaderSettings
    """*Yours*."""
    sampler: Any = None
    batch_sampler: Any = None
    """Only one of the user's own making; the ordinary one is rebuilt for each batch size."""
    collate_fn: Callable[[Any], Any] | None = None
    drop_last: bool = False
    worker_init_fn: Callable[[int], None] | None = None
    generator: torch.Generator | None = None
    multiprocessing_context: Any = None
    timeout: float = 0
    in_order: bool = True
    shuffle: bool = False
    """Whether a sampler is made here because the user gave none."""
    note: str = ""

    @property
    def iterable(self) -> bool:
        """Whether the dataset is a stream."""
        return isinstance(self.dataset, IterableDataset)

    def samples(self) -> int | None:
        """Samples that an epoch of *yours* trains on, without those that `drop_last` leaves out.

        None where nobody knows: a dataset that makes batches counts those.
        """
        size = self.settings.batch_size
        if self.batch_sampler is not None:  # it may cover a part of the dataset, or give samples twice
            return own_batches.samples_of_epoch(private_copy(self).batch_sampler)
        if size is None:
            return None
        samples = self._length()
        return samples - samples % size if samples and size and self.drop_last else samples

    def _length(self) -> int | None:
        source = self.dataset if self.sampler is None or self.iterable else self.sampler
        if self.batch_sampler is not None or self.settings.batch_size is None:
            source = self.dataset
        try:
            return len(source)
        except (TypeError, NotImplementedError):  # a stream has no len(), or says so by raising this
            return None
        except Exception as error:  # the user's own `__len__`
            raise length_error(source, error) from None

    def check(self) -> None:
        """Refuse what cannot fill one batch.

        Raises:
            EmptyDatasetError, DatasetTooSmallError
            UsageError: where torch's own samplers need a length and there is none.
        """
        samples, batch_size = self._length(), self.settings.batch_size
        if samples is None:
            if not self.iterable and self.sampler is None and self.batch_sampler is None:
                raise UsageError(
                    "the dataset has no length",
                    why=f"{type(self.dataset).__name__} has no `__len__`, and there is no sampler",
                    fix="give it a `__len__`, pass a DataLoader with a sampler, or make it a stream",
                )
            return
        if samples == 0:
            raise EmptyDatasetError(
                "the dataset is empty",
                why=f"len({type(self.dataset).__name__}) is 0",
                fix="check the path and the filter that the dataset is made with",
            )
        if batch_size is not None and samples < batch_size:
            raise DatasetTooSmallError(
                "the dataset holds fewer samples than one batch",
                why=f"{samples} samples, batch_size {batch_size}",
                fix=f"pass a batch_size of at most {samples}, or more data",
            )


def parts_of(workload: Workload) -> LoaderParts | None:
    """The parts of the workload's loader; None for a loop without one.

    Raises:
        UsageError: for what is no dataset.
        DatasetError: when a function that makes one raises.
    """
    dataset = workload.dataset
    if dataset is None:
        return None
    if isinstance(dataset, DataLoader):
        return noted(_parts_of_loader(dataset), workload)
    if not isinstance(dataset, type) and (
        isinstance(dataset, IterableDataset) or hasattr(dataset, "__getitem__")
    ):
        return _parts_of_dataset(dataset, workload)
    if callable(dataset):
        return parts_of(workload.with_(dataset=_called(dataset)))
    raise UsageError(
        "`dataset` is no dataset",
        why=f"{type(dataset).__name__} has no `__getitem__` and is no IterableDataset",
        fix="pass a torch dataset, a list, a DataLoader, or a function that makes one",
    )


def _called(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except AutotuneError:
        raise
    except Exception as error:  # the user's own function
        raise DatasetError(
            "the function that makes the dataset raised",
            why=f"{type(error).__name__}: {error}",
            fix="make it work when it is called on its own, without arguments",
            detail=user_traceback(error),
        ) from None


def _parts_of_dataset(dataset: Any, workload: Workload) -> LoaderParts:
    return LoaderParts(
        dataset=dataset,
        settings=LoaderSettings(batch_size=workload.batch_size or DEFAULT_BATCH_SIZE),
        collate_fn=workload.collate_fn,
        drop_last=workload.drop_last,
        shuffle=workload.shuffle and not isinstance(dataset, IterableDataset),
    )


def _parts_of_loader(loader: DataLoader[Any]) -> LoaderParts:
    # Also where the user made it: then the loader's own batch_size, sampler and drop_last say nothing.
    usual = loader.batch_sampler if type(loader.batch_sampler) is BatchSampler else None
    own_batches = loader.batch_sampler is not None and usual is None
    iterable = isinstance(loader.dataset, IterableDataset)
    plain = type(loader) is DataLoader
    return LoaderParts(
        dataset=loader.dataset,
        settings=LoaderSettings(
            batch_size=usual.batch_size if usual is not None else loader.batch_size,
            num_workers=loader.num_workers,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
            pin_memory=loader.pin_memory,
        ),
        sampler=None if iterable or own_batches else usual.sampler if usual is not None else loader.sampler,
        batch_sampler=loader.batch_sampler if own_batches else None,
        # torch's own depends on whether there are batches, which overrides may change.
        collate_fn=None if loader.collate_fn in (default_collate, default_convert) else loader.collate_fn,
        drop_last=usual.drop_last if usual is not None else loader.drop_last,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,
        multiprocessing_context=_context_name(loader.multiprocessing_context),
        timeout=loader.timeout,
        in_order=getattr(loader, "in_order", True),
        note=""
        if plain
        else f"your {type(loader).__name__} is measured as a plain DataLoader of the same parts",
    )


def _context_name(context: Any) -> str | None:
    return None if context is None else context.get_start_method()


def private_copy(parts: LoaderParts) -> LoaderParts:
    """The parts with samplers and generators of their own, so that drawing from them leaves the user's alone.

    The dataset itself is shared: it can be large, and reading it is what it is for.
    """
    memo = wrapped_datasets(parts.dataset)
    own = {
        name: copy.deepcopy(getattr(parts, name), memo) for name in ("sampler", "batch_sampler", "generator")
    }
    return replace(parts, **own)


def build_loader(parts: LoaderParts, settings: LoaderSettings, **overrides: Any) -> DataLoader[Any]:
    """A plain DataLoader of these parts with these settings.

    `overrides` go to its constructor last, and what they exclude there is left out.
    """
    workers = overrides.get("num_workers", settings.num_workers)
    kwargs = _common(parts, replace(settings, num_workers=workers)) | _batching(parts, settings, overrides)
    return DataLoader(parts.dataset, **{**kwargs, **overrides})


def _batching(parts: LoaderParts, settings: LoaderSettings, overrides: dict[str, Any]) -> dict[str, Any]:
    if "batch_sampler" in overrides:
        return {}
    if parts.batch_sampler is not None and "batch_size" not in overrides:
        return {"batch_sampler": parts.batch_sampler}
    # A dataset that makes its batches goes on doing so; settings without a size leave it to these parts.
    size = parts.settings.batch_size and (settings.batch_size or parts.settings.batch_size)
    kwargs: dict[str, Any] = {"batch_size": size}
    if overrides.get("batch_size", size) is not None:
        kwargs["drop_last"] = parts.drop_last
    if not parts.iterable and not overrides.keys() & {"sampler", "shuffle"}:
        kwargs |= {"sampler": parts.sampler} if parts.sampler is not None else {"shuffle": parts.shuffle}
    return kwargs


def _common(parts: LoaderParts, settings: LoaderSettings) -> dict[str, Any]:
    kwargs: dict[str, Any] = {
        "num_workers": settings.num_workers,
        "pin_memory": settings.pin_memory,
        "collate_fn": parts.collate_fn,
        "worker_init_fn": parts.worker_init_fn,
        "generator": parts.generator,
    }
    if settings.num_workers > 0:
        kwargs |= {
            "prefetch_factor": settings.prefetch_factor,
            "persistent_workers": settings.persistent_workers,
            "timeout": parts.timeout,
            "multiprocessing_context": parts.multiprocessing_context,
        }
    if not parts.in_order:
        kwargs["in_order"] = False
    return kwargs


class EndlessBatches(Sampler[list[int]]):
    """The user's batches, epoch after epoch, without an end that a trial could run into.

    It remembers the indices of every batch not yet handed out, so that samples are counted whatever the
    collate function makes of them and a sample that raises can be named. `stop()` ends the epoch after the
    batches already drawn: so a true epoch boundary can be timed.
    """

    def __init__(self, batches: Any, *, own_sampler: bool) -> None:
        self.batches = batches
        self.own_sampler = own_sampler
        self.pending: deque[Collection[Any]] = deque()
        self._stopped = False

    def __iter__(self) -> Iterator[list[int]]:
        self.pending.clear()
        self._stopped = False
        while not self._stopped:
            drawn = False
            for indices in self.batches:
                if self._stopped:
                    return
                drawn = True
                self.pending.append(own_batches.asked_of(indices, own_sampler=self.own_sampler))
                yield indices
            if not drawn:
                return

    def stop(self) -> None:
        """No further batch is drawn."""
        self._stopped = True


def build_endless(
    parts: LoaderParts, settings: LoaderSettings
) -> tuple[DataLoader[Any], EndlessBatches | None]:
    """A loader that never runs out, and its sampler; a stream has an end and no sampler (None)."""
    if not parts.iterable:
        own = parts.batch_sampler is not None
        endless = EndlessBatches(epoch_batches(parts, settings), own_sampler=own)
        return build_over(parts, settings, endless), endless
    parts = _travelling(parts, settings)
    kwargs = _common(parts, settings)
    kwargs["batch_size"] = settings.batch_size
    if settings.batch_size is not None:
        kwargs["drop_last"] = parts.drop_last
    return DataLoader(parts.dataset, **kwargs), None


def epoch_batches(parts: LoaderParts, settings: LoaderSettings) -> Iterable[Any]:
    """What an epoch asks of a dataset that is no stream: lists of indices; one where it makes the batches.

    What the user's own batch sampler gives may be of another kind, and stays so.
    """
    if parts.batch_sampler is not None:
        return own_batches.LastingBatches(parts.batch_sampler)
    sampler = parts.sampler if parts.sampler is not None else _sampler(parts)
    if settings.batch_size is None:
        return sampler
    return BatchSampler(sampler, settings.batch_size, parts.drop_last)


def build_over(parts: LoaderParts, settings: LoaderSettings, wanted: Iterable[Any]) -> DataLoader[Any]:
    """A loader of just these batches, each as `epoch_batches` gives it, for a dataset that is no stream."""
    parts = _travelling(parts, settings)
    kwargs = _common(parts, settings)
    if parts.batch_sampler is None and settings.batch_size is None:
        return DataLoader(parts.dataset, sampler=wanted, batch_size=None, **kwargs)
    return DataLoader(parts.dataset, batch_sampler=wanted, **kwargs)


def _travelling(parts: LoaderParts, settings: LoaderSettings) -> LoaderParts:
    """The parts as workers can be given them, where those start from nothing."""
    if settings.num_workers == 0 or by_value.workers_fork(parts.multiprocessing_context):
        return parts
    return replace(
        parts,
        dataset=by_value.travelling_dataset(parts.dataset),
        collate_fn=by_value.travelling_function(parts.collate_fn),
        worker_init_fn=by_value.travelling_function(parts.worker_init_fn),
    )


def _sampler(parts: LoaderParts) -> Sampler[int]:
    if parts.shuffle:
        return RandomSampler(parts.dataset, generator=parts.generator)
    return SequentialSampler(parts.dataset)


def end_workers(iterator: Any, loader: DataLoader[Any] | None) -> None:
    """End the workers of an iterator of our own now instead of at garbage collection."""
    shutdown = getattr(iterator, "_shutdown_workers", None)
    if shutdown is not None:
        shutdown()
    if loader is not None and getattr(loader, "_iterator", None) is not None:
        loader._iterator = None
