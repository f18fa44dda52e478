"""What is said of a dataset or a DataLoader as the user handed it over."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch.utils.data import RandomSampler

from autotune.errors import DatasetError
from autotune.measure.classify import user_traceback
from autotune.workload import Workload

if TYPE_CHECKING:
    from autotune.measure.loaders import LoaderParts


def noted(parts: LoaderParts, workload: Workload) -> LoaderParts:
    """The parts of a DataLoader, with a note where the workload asks for something else than it does."""
    asked = {
        "batch_size": workload.batch_size not in (None, parts.settings.batch_size),
        "shuffle=False": not workload.shuffle and isinstance(parts.sampler, RandomSampler),
        "collate_fn": workload.collate_fn not in (None, parts.collate_fn),
        "drop_last": workload.drop_last and not parts.drop_last,
    }
    unused = ", ".join(name for name, differs in asked.items() if differs)
    if not unused:
        return parts
    note = f"{unused}: not used, since your DataLoader says otherwise and comes first"
    return replace(parts, note=f"{parts.note}; {note}" if parts.note else note)


def length_error(source: Any, error: Exception) -> DatasetError:
    """The error for a `__len__` of the user's that raises."""
    return DatasetError(
        f"len() of your {type(source).__name__} raised",
        why=f"{type(error).__name__}: {error}",
        fix="make len(dataset) give the number of its samples",
        detail=user_traceback(error),
    )
