"""LARS and LAMB for a model: NVIDIA apex's fused LAMB where it really works, else timm's.

The package called `apex` on PyPI has nothing to do with NVIDIA's, and NVIDIA's can be installed without its
kernels: only a step that was taken shows that it works.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from autotune.errors import AutotuneWarning, EnvironmentFault
from autotune.outcome import LargeBatch

APEX_INSTALL = (
    "git clone https://github.com/NVIDIA/apex && cd apex && "
    "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install -v --no-build-isolation ."
)
_PYRAMID_VERSION = "0.9"
"""Of PyPI's apex, a toolkit for web sites; NVIDIA's begins at 0.1 and has no release of this number."""
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)

ApexState = Literal["working", "absent", "other_package", "incomplete", "broken"]
"""other_package: PyPI's `apex`. incomplete: NVIDIA's without its CUDA kernels. broken: its step fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApexProbe:
    """Whether NVIDIA apex can be used."""

    state: ApexState
    why: str = ""
    fix: str = ""

    @property
    def working(self) -> bool:
        """Whether its fused LAMB took a step."""
        return self.state == "working"


@lru_cache(maxsize=8)
def probe_apex(device: torch.device) -> ApexProbe:
    """Import NVIDIA apex, its kernels too, and take one step of its fused LAMB; the answer is kept.

    Args:
        device: where the step is taken. apex has kernels for CUDA alone.
    """
    if importlib.util.find_spec("apex") is None:
        return ApexProbe(state="absent", why="apex is not installed", fix=APEX_INSTALL)
    version = _version("apex")
    if version.startswith(_PYRAMID_VERSION):
        return ApexProbe(
            state="other_package",
            why=f"the apex {version} that is installed is another project's, which PyPI has under this name",
            fix=f"pip uninstall apex; {APEX_INSTALL}",
        )
    try:
        fused = importlib.import_module("apex.optimizers").FusedLAMB
        importlib.import_module("amp_C")
        applier = importlib.import_module("apex.multi_tensor_apply").multi_tensor_applier
        if not applier.available:
            raise ImportError("multi_tensor_applier is not available")
    except Exception as error:  # a foreign package raises what it likes while it is imported
        why = f"apex is installed without its CUDA kernels: {_said(error)}"
        return ApexProbe(state="incomplete", why=why, fix=APEX_INSTALL)
    try:
        _one_step(fused, device)
    except Exception as error:
        return ApexProbe(state="broken", why=f"a step of apex's FusedLAMB failed: {_said(error)}")
    return ApexProbe(state="working")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _one_step(kind: Any, device: torch.device) -> None:
    parameter = nn.Parameter(torch.ones(8, device=device))
    parameter.grad = torch.ones_like(parameter)
    kind([parameter], lr=0.1).step()
    if not bool((parameter.detach() < 1).all()):
        raise RuntimeError("it left the weights as they were")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def build_large_batch(offer: LargeBatch, models: Mapping[str, nn.Module], device: torch.device) -> Optimizer:
    """The optimizer of an offer, over all models' parameters in two groups, decayed and not.

    Both packages adapt what they decay, and leave the other group at the plain rate.

    Raises:
        EnvironmentFault: where neither package that has it can be used.
    """
    groups = split_groups(models.values(), offer.weight_decay)
    if offer.optimizer == "LARS":
        lars = _timm("Lars", offer)
        made: Optimizer = lars(groups, lr=offer.learning_rate, momentum=offer.momentum or 0.0)
        return made
    options = {"lr": offer.learning_rate, "betas": offer.betas or (0.9, 0.999)}
    apex = probe_apex(device)
    in_float32 = all(p.dtype is torch.float32 for group in groups for p in group["params"])
    if apex.working and in_float32:
        fused: Optimizer = importlib.import_module("apex.optimizers").FusedLAMB(groups, **options)
        return fused
    lamb = _timm("Lamb", offer, apex)
    if apex.state == "other_package":
        warnings.warn(f"{apex.why}; NVIDIA's, whose LAMB is fused: {apex.fix}", AutotuneWarning, stacklevel=4)
    other: Optimizer = lamb(groups, **options)
    return other


def split_groups(models: Iterable[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: weights, then biases and normalization layers, not decayed."""
    decayed: dict[int, nn.Parameter] = {}
    plain: dict[int, nn.Parameter] = {}
    for module in (module for model in models for module in model.modules()):
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                spared = isinstance(module, _NORMS) or parameter.dim() <= 1
                (plain if spared else decayed).setdefault(id(parameter), parameter)
    found = [(list(decayed.values()), weight_decay), (list(plain.values()), 0.0)]
    return [{"params": params, "weight_decay": wd} for params, wd in found if params]


def _timm(name: str, offer: LargeBatch, apex: ApexProbe | None = None) -> Any:
    try:
        return getattr(importlib.import_module("timm.optim"), name)
    except (ImportError, AttributeError) as error:
        there = apex is not None and apex.state != "absent"
        why, fix = (apex.why, apex.fix) if apex is not None and there else ("", "")
        raise EnvironmentFault(
            f"{offer.optimizer} needs timm, and it cannot be imported",
            why="; ".join(part for part in (_said(error), why) if part),
            fix="; or for NVIDIA's: ".join(filter(None, ('pip install "torch-autotune[large-batch]"', fix))),
        ) from error
