"""What torch.compile needs of a machine. Without torch, which takes seconds to load."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

_SWITCHED_OFF = ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE")
_COMPILERS = {"win32": ("cl",), "darwin": ("clang++",)}
"""By platform, what torch calls where CXX names nothing else; `g++` elsewhere."""
_FREE_THREADED = (3, 13, 3)
"""The first Python without its lock that torch compiles under."""


def compile_fixed(
    environ: Mapping[str, str] = os.environ, *, headers: Path | None = None, cuda: bool = False
) -> str:
    """Why nothing can be compiled on this machine; empty where it can be, as far as is seen without trying.

    Args:
        environ: the environment of the process.
        headers: where Python's own headers are; asked of Python without.
        cuda: whether there is a GPU to compile for.
    """
    for name in _SWITCHED_OFF:
        if environ.get(name, "0") not in ("", "0"):
            return f"you set {name}"
    if sysconfig.get_config_var("Py_GIL_DISABLED") and sys.version_info < _FREE_THREADED:
        return f"this free-threaded Python is older than {'.'.join(map(str, _FREE_THREADED))}"
    names = (environ["CXX"],) if environ.get("CXX") else _COMPILERS.get(sys.platform, ("g++",))
    if not any(shutil.which(name, path=environ.get("PATH")) for name in names):
        return f"no C++ compiler ({' or '.join(names)})"
    include = Path(sysconfig.get_path("include")) if headers is None else headers
    if not (include / "Python.h").is_file():
        return "Python's headers (python3-dev) are missing"
    if cuda and find_spec("triton") is None:
        return "no Triton"
    return ""
