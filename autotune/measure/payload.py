"""A workload on its way to another process: by reference, or pickled with copies of its device tensors."""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from torch.utils.data import DataLoader

from autotune.errors import AutotuneError, NotPicklableError
from autotune.measure import compiling, flags, loaders, optimizers
from autotune.measure.target import load_target, parse_target
from autotune.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """What a bench process needs to bring a workload up."""

    blob: bytes | None
    """The pickled (Workload, LoaderParts | None); None where `target` says how to make it."""
    target: str | None = None
    """`module:factory` or `file.py:factory`."""
    overrides: bytes | None = None
    """The pickled Workload fields that replace the target's own."""
    user_flags: flags.UserFlags | None = None
    """None: as the target's own import leaves them."""
    start_method: str | None = None
    sys_path: tuple[str, ...] = ()
    cwd: str = ""


class _HostPickler(cloudpickle.CloudPickler):  # type: ignore[misc]
    """Pickles device tensors as CPU copies that go back there: the parent's memory stays the parent's."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor) and obj.device.type not in ("cpu", "meta"):
            made = _parameter if isinstance(obj, torch.nn.Parameter) else _tensor
            return made, (obj.detach().to("cpu"), obj.requires_grad, str(obj.device))
        return super().reducer_override(obj)


def _tensor(copied: torch.Tensor, requires_grad: bool, device: str) -> torch.Tensor:
    return _placed(copied, device).requires_grad_(requires_grad)


def _parameter(copied: torch.Tensor, requires_grad: bool, device: str) -> torch.nn.Parameter:
    return torch.nn.Parameter(_placed(copied, device), requires_grad)


def _placed(copied: torch.Tensor, device: str) -> torch.Tensor:
    """On the device that it came from: a step, a loss or a dataset may count on it. Here where there is none.

    This opens the device in the process that unpickles: the bench, never the server that it is forked from.
    """
    wanted, here = torch.device(device), torch.accelerator.current_accelerator(check_available=True)
    if here is None or here.type != wanted.type or (wanted.index or 0) >= torch.accelerator.device_count():
        return copied
    return copied.to(wanted)


def pickle_workload(workload: Workload) -> Payload:
    """The workload as bytes; nothing of the user's is changed by it.

    Raises:
        NotPicklableError: naming the part that cannot travel.
        ModelError: for a model that would not be the same there.
    """
    compiling.check_travels(workload.model)
    parts = None if _is_factory(workload.dataset) else loaders.parts_of(workload)
    light = workload.with_(
        dataset=workload.dataset
        if _is_factory(workload.dataset)
        else None
        if parts is None
        else _TRAVELS_AS_PARTS,
        optimizer=optimizers.freeze_optimizer(workload.optimizer),
        device=workload.device or _own_device(workload.model),
    )
    try:
        blob = _dumps((light, parts))
    except Exception as error:  # pickling runs the user's own code
        raise _blame(_parts_that_travel(light, parts), error) from None
    return Payload(
        blob=blob,
        user_flags=flags.read_user_flags(),
        start_method=_start_method(),
        sys_path=tuple(sys.path),
        cwd=os.getcwd(),
    )


_ROOT = str(Path(__file__).absolute().parents[2])
_TRAVELS_AS_PARTS = ("in parts",)


def _own_device(model: Any) -> str | None:
    """Where a live model is: a trial is to run on the same device."""
    modules = [model] if isinstance(model, torch.nn.Module) else []
    if isinstance(model, dict):
        modules = [m for m in model.values() if isinstance(m, torch.nn.Module)]
    for module in modules:
        for parameter in module.parameters():
            if parameter.device.type not in ("cpu", "meta"):
                return str(parameter.device)
    return None


def _is_factory(dataset: Any) -> bool:
    return (
        callable(dataset)
        and not hasattr(dataset, "__getitem__")
        and not isinstance(dataset, (DataLoader, torch.utils.data.IterableDataset))
    )


def _dumps(value: Any) -> bytes:
    buffer = io.BytesIO()
    _HostPickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


def _parts_that_travel(workload: Workload, parts: loaders.LoaderParts | None) -> dict[str, Any]:
    names: tuple[str, ...] = ("model", "loss", "step", "train_step", "optimizer", "dataset", "collate_fn")
    candidates: dict[str, Any] = {name: getattr(workload, name) for name in names}
    if parts is not None:
        names = ("dataset", "collate_fn", "sampler", "batch_sampler", "worker_init_fn", "generator")
        candidates |= {name: getattr(parts, name) for name in names}
    return candidates


def _blame(candidates: Mapping[str, Any], error: Exception) -> NotPicklableError:
    culprit, reason = "workload", f"{type(error).__name__}: {error}"
    for name, value in candidates.items():
        try:
            _dumps(value)
        except Exception as own:  # any refusal to be pickled names the part
            culprit, reason = name, f"{type(own).__name__}: {own}"
            break
    return NotPicklableError(
        f"the {culprit} cannot be sent to another process",
        why=reason,
        fix=f"keep open files, locks and connections out of the {culprit} (open them on first use), pass a"
        ' function that makes it, or measure in this process with runner="in_process"',
    )


def _start_method() -> str | None:
    import multiprocessing

    return multiprocessing.get_start_method(allow_none=True)


def target_payload(target: str, **overrides: Any) -> Payload:
    """A workload that the bench process makes for itself; the parent never runs its factory.

    Raises:
        NotPicklableError: naming the override that cannot travel.
    """
    try:
        pickled = _dumps(overrides)
    except Exception as error:  # pickling runs the user's own code
        raise _blame(overrides, error) from None
    return Payload(
        blob=None,
        target=target,
        overrides=pickled,
        start_method=_start_method(),
        sys_path=tuple(sys.path),
        cwd=os.getcwd(),
    )


def enter(payload: Payload) -> None:
    """Make this process look like the user's: paths, working directory, torch's switches."""
    import multiprocessing

    sys.path[:] = [*payload.sys_path, *(path for path in sys.path if path not in payload.sys_path)]
    if _ROOT not in sys.path:  # workers that are spawned look for this package too
        sys.path.append(_ROOT)
    if payload.cwd:
        os.chdir(payload.cwd)
    if payload.start_method is not None:
        multiprocessing.set_start_method(payload.start_method, force=True)
    if payload.user_flags is not None:
        flags.write_user_flags(payload.user_flags)


def unpack(payload: Payload) -> tuple[Workload, loaders.LoaderParts | None]:
    """The workload of a payload, in the process that will run it.

    Raises:
        AutotuneError: when it cannot be brought up here.
    """
    if payload.blob is None:
        assert payload.target is not None, "a payload is bytes or a target"
        workload = load_target(parse_target(payload.target))
        if payload.overrides is not None:
            workload = workload.with_(**_loads(payload.overrides))
        return workload, loaders.parts_of(workload)
    workload, parts = _loads(payload.blob)
    if parts is None and _is_factory(workload.dataset):
        parts = loaders.parts_of(workload)
    return workload, parts


def _loads(pickled: bytes) -> Any:
    try:
        return pickle.loads(pickled)
    except AutotuneError:
        raise
    except Exception as error:  # unpickling runs the user's own code
        raise NotPicklableError(
            "the workload could not be rebuilt in another process",
            why=f"{type(error).__name__}: {error}",
            fix='make its classes importable, or measure in this process with runner="in_process"',
        ) from None
