"""torch's global switches: read, set for a trial, and put back exactly as they were.

TF32 goes through the old setters only: once the new API (`torch.backends.*.fp32_precision`) was written,
reading the old one raises, and the compiler reads the old one (seen on torch 2.9 to 2.15).
"""

from __future__ import annotations

import contextlib
import random
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from autotune.settings import ComputeSettings, Precision

_FP32_PATHS = (
    ("generic", "all"),
    ("cuda", "all"),
    ("cuda", "matmul"),
    ("cuda", "conv"),
    ("cuda", "rnn"),
    ("mkldnn", "all"),
    ("mkldnn", "matmul"),
    ("mkldnn", "conv"),
    ("mkldnn", "rnn"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFlags:
    """What the user's process has set, as far as it bears on speed. Travels to the bench process."""

    cudnn_benchmark: bool
    deterministic: bool
    matmul_precision: str | None
    """`highest`, `high` or `medium`; None where the user mixed the two TF32 APIs."""
    cudnn_allow_tf32: bool | None
    fp32_precision: tuple[tuple[str, str, str], ...]
    num_threads: int
    default_dtype: str


def read_user_flags() -> UserFlags:
    """The flags of this process."""
    return UserFlags(
        cudnn_benchmark=bool(torch.backends.cudnn.benchmark),
        deterministic=torch.are_deterministic_algorithms_enabled()
        or bool(torch.backends.cudnn.deterministic),
        matmul_precision=_quietly(torch.get_float32_matmul_precision),
        cudnn_allow_tf32=_quietly(lambda: bool(torch.backends.cudnn.allow_tf32)),
        fp32_precision=_read_fp32(),
        num_threads=torch.get_num_threads(),
        default_dtype=str(torch.get_default_dtype()),
    )


def write_user_flags(flags: UserFlags) -> None:
    """Make this process's flags those: a bench process starts as the user's own is."""
    torch.backends.cudnn.benchmark = flags.cudnn_benchmark
    _write_fp32(flags)
    torch.set_num_threads(flags.num_threads)
    torch.set_default_dtype(getattr(torch, flags.default_dtype.removeprefix("torch.")))
    if flags.deterministic and not torch.are_deterministic_algorithms_enabled():
        torch.backends.cudnn.deterministic = True


def user_precision(flags: UserFlags, device_type: str) -> Precision:
    """What float32 means in the user's own run."""
    return "tf32" if device_type == "cuda" and flags.matmul_precision in ("high", "medium") else "float32"


def apply_flags(compute: ComputeSettings, yours: UserFlags, device_type: str) -> None:
    """Set the switches of `compute`; convolutions keep the user's own TF32 unless tf32 is asked for."""
    if device_type == "cuda":
        torch.backends.cudnn.benchmark = compute.cudnn_benchmark
        if compute.precision == "tf32":
            already = yours.matmul_precision if yours.matmul_precision in ("high", "medium") else "high"
            _set_tf32(already, conv=True)
        elif compute.precision == "float32" and yours.matmul_precision in ("high", "medium"):
            _set_tf32("highest", conv=bool(yours.cudnn_allow_tf32))
    if compute.cpu_threads is not None:
        torch.set_num_threads(compute.cpu_threads)


def _set_tf32(matmul: str, *, conv: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the newer API that must not be used here
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = conv


def _read_fp32() -> tuple[tuple[str, str, str], ...]:
    getter = getattr(torch._C, "_get_fp32_precision_getter", None)
    return tuple((*path, str(getter(*path))) for path in _FP32_PATHS) if getter is not None else ()


def _write_fp32(flags: UserFlags) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_path = {path[:2]: path[2] for path in flags.fp32_precision}
        fallback = "high" if by_path.get(("cuda", "matmul")) == "tf32" else "highest"
        torch.set_float32_matmul_precision(flags.matmul_precision or fallback)
        if flags.cudnn_allow_tf32 is not None:
            torch.backends.cudnn.allow_tf32 = flags.cudnn_allow_tf32
        setter = getattr(torch._C, "_set_fp32_precision_setter", None)
        for backend, operation, value in flags.fp32_precision:
            if setter is not None and torch._C._get_fp32_precision_getter(backend, operation) != value:
                setter(backend, operation, value)


def _quietly(read: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read()
        except RuntimeError:  # torch: "mix of the legacy and new APIs"
            return None


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Flags, thread count and every random state are after the block what they were before it."""
    flags = read_user_flags()
    cudnn_deterministic = torch.backends.cudnn.deterministic
    grad_enabled = torch.is_grad_enabled()
    states = _random_states()
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = flags.cudnn_benchmark
        torch.backends.cudnn.deterministic = cudnn_deterministic
        _write_fp32(flags)
        if torch.get_num_threads() != flags.num_threads:
            torch.set_num_threads(flags.num_threads)
        torch.set_grad_enabled(grad_enabled)
        _restore_random(states)


def _random_states() -> dict[str, Any]:
    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if "numpy" in sys.modules:
        states["numpy"] = sys.modules["numpy"].random.get_state()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _restore_random(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if "numpy" in states:
        sys.modules["numpy"].random.set_state(states["numpy"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])


def seed_everything(seed: int) -> None:
    """The same random numbers for every trial."""
    random.seed(seed)
    torch.manual_seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
