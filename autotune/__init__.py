"""Measures real training steps and returns the settings that train fastest without training worse.

    best = autotune.find_best(model, dataset)

Importing this package imports neither torch nor optuna; both come when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autotune.errors import AutotuneError, AutotuneWarning, ProfileMismatchWarning
from autotune.settings import Settings
from autotune.workload import Workload

if TYPE_CHECKING:
    from autotune.api import find_best, load
    from autotune.result import Result

__version__ = "0.1.0"

__all__ = [
    "AutotuneError",
    "AutotuneWarning",
    "ProfileMismatchWarning",
    "Result",
    "Settings",
    "Workload",
    "find_best",
    "load",
]

_LAZY = {"find_best": "autotune.api", "load": "autotune.api", "Result": "autotune.result"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'autotune' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
