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

from autotune.measure import host_memory
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
    cudnn_deterministic: bool
    deterministic_mode: int
    """0 as usual, 1 warns of what is not deterministic, 2 raises: `torch.set_deterministic_debug_mode`."""
    matmul_precision: str | None
    """`highest`, `high` or `medium`; None where the user mixed the two TF32 APIs."""
    matmul_allow_tf32: bool | None
    """None as above, for CUDA devices alone."""
    cudnn_allow_tf32: bool | None
    fp32_precision: tuple[tuple[str, str, str], ...]
    num_threads: int
    default_dtype: str
    keep_host_memory: bool = False
    """Whether a kit has told the allocator to keep what is freed; the one switch that nothing puts back."""

    @property
    def deterministic(self) -> bool:
        """Whether the user asked for the same numbers every time."""
        return self.cudnn_deterministic or self.deterministic_mode > 0

    @property
    def matmul_tf32(self) -> bool:
        """Whether float32 matrices are multiplied in TF32 on CUDA devices, whichever API said so."""
        newer = _by_path(self.fp32_precision).get(("cuda", "matmul"))
        return newer == "tf32" if newer is not None else self.matmul_precision in ("high", "medium")

    @property
    def conv_tf32(self) -> bool:
        """The same of convolutions, where TF32 is torch's default."""
        newer = _by_path(self.fp32_precision).get(("cuda", "conv"))
        return newer == "tf32" if self.cudnn_allow_tf32 is None else self.cudnn_allow_tf32


def _by_path(fp32_precision: tuple[tuple[str, str, str], ...]) -> dict[tuple[str, str], str]:
    return {(backend, operation): value for backend, operation, value in fp32_precision}


def read_user_flags() -> UserFlags:
    """The flags of this process."""
    return UserFlags(
        cudnn_benchmark=bool(torch.backends.cudnn.benchmark),
        cudnn_deterministic=bool(torch.backends.cudnn.deterministic),
        deterministic_mode=torch.get_deterministic_debug_mode(),
        matmul_precision=_quietly(torch.get_float32_matmul_precision),
        matmul_allow_tf32=_quietly(lambda: bool(torch.backends.cuda.matmul.allow_tf32)),
        cudnn_allow_tf32=_quietly(lambda: bool(torch.backends.cudnn.allow_tf32)),
        fp32_precision=_read_fp32(),
        num_threads=torch.get_num_threads(),
        default_dtype=str(torch.get_default_dtype()),
        keep_host_memory=host_memory.kept(),
    )


def write_user_flags(flags: UserFlags) -> None:
    """Make this process's flags those: a bench process starts as the user's own is.

    How it allocates is left to the settings of a trial, since nothing takes that back.
    """
    torch.backends.cudnn.benchmark = flags.cudnn_benchmark
    torch.backends.cudnn.deterministic = flags.cudnn_deterministic
    if torch.get_deterministic_debug_mode() != flags.deterministic_mode:
        torch.set_deterministic_debug_mode(flags.deterministic_mode)
    _write_fp32(flags)
    if torch.get_num_threads() != flags.num_threads:
        torch.set_num_threads(flags.num_threads)
    torch.set_default_dtype(getattr(torch, flags.default_dtype.removeprefix("torch.")))


def user_precision(flags: UserFlags, device_type: str) -> Precision:
    """What float32 means in the user's own run."""
    return "tf32" if device_type == "cuda" and flags.matmul_tf32 else "float32"


def apply_flags(compute: ComputeSettings, yours: UserFlags, device_type: str) -> None:
    """Set the switches of `compute`; convolutions keep the user's own TF32 unless tf32 is asked for."""
    if device_type == "cuda":
        torch.backends.cudnn.benchmark = compute.cudnn_benchmark
        if compute.precision == "tf32":
            already = yours.matmul_precision if yours.matmul_precision in ("high", "medium") else "high"
            _set_tf32(already, conv=True)
        elif compute.precision == "float32" and yours.matmul_tf32:
            _set_tf32("highest", conv=yours.conv_tf32)
    if compute.cpu_threads is not None:
        torch.set_num_threads(compute.cpu_threads)
    if compute.keep_host_memory:
        host_memory.keep()


def _set_tf32(matmul: str, *, conv: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the newer API that must not be used here
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = conv


def _read_fp32() -> tuple[tuple[str, str, str], ...]:
    getter = getattr(torch._C, "_get_fp32_precision_getter", None)
    return tuple((*path, str(getter(*path))) for path in _FP32_PATHS) if getter is not None else ()


def _write_fp32(flags: UserFlags) -> None:
    if _fp32(flags) == _fp32(read_user_flags()):
        return
    # Where the older API could not be read, what is written to it must contradict the newer one again:
    # torch keeps both, and says no to a reader while they differ.
    older = not flags.matmul_tf32 if flags.matmul_allow_tf32 is None else flags.matmul_allow_tf32
    matmul = flags.matmul_precision or ("high" if older else "highest")
    conv = not flags.conv_tf32 if flags.cudnn_allow_tf32 is None else flags.cudnn_allow_tf32
    _set_tf32(matmul, conv=conv)
    setter = getattr(torch._C, "_set_fp32_precision_setter", None)
    for backend, operation, value in flags.fp32_precision:
        if setter is not None and torch._C._get_fp32_precision_getter(backend, operation) != value:
            setter(backend, operation, value)


def _fp32(flags: UserFlags) -> tuple[Any, ...]:
    return flags.matmul_precision, flags.matmul_allow_tf32, flags.cudnn_allow_tf32, flags.fp32_precision


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
    grad_enabled = torch.is_grad_enabled()
    states = _random_states()
    try:
        yield
    finally:
        write_user_flags(flags)
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


def device_random_state(device: torch.device) -> torch.Tensor:
    """Where the random numbers are that a step on this device draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
