"""glibc's allocator: brought where a long run brings it by itself, and told to keep what a process frees.

As it is, `malloc` maps a large block by itself and unmaps it when it is freed, and gives the top of its heap
back once 128 KiB of it are free; each page then comes again with a page fault. Both thresholds grow by
themselves, to 32 and 64 MiB, once a block of 32 MiB was freed: the speed of a step is up to what else a
process did. Source: mallopt(3).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = (1 << 31) - 1
_MAPPED_BYTES = 32 << 20
"""As far as glibc goes by itself. Above it, aligned blocks, as torch asks for, do not fit where one of their
own size was freed, and the heap grew by 64 MiB with each (glibc 2.36)."""
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")
_TUNABLES = ("trim_threshold", "mmap_threshold", "mmap_max", "top_pad")

_kept = False


def fixed(environment: Mapping[str, str] = os.environ) -> str:
    """Why the allocator of this process is left as it is; empty where `keep` applies."""
    try:
        glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # another system, or another library of C
        glibc = False
    if not glibc:
        return "needs glibc's allocator"
    preloaded = environment.get("LD_PRELOAD", "").replace(":", " ").split()
    other = next((os.path.basename(path) for path in preloaded if "malloc" in path), "")
    if other:
        return f"{other} allocates memory here"
    tunables = environment.get("GLIBC_TUNABLES", "")
    own = [name for name in _VARIABLES if name in environment]
    own += [f"glibc.malloc.{name}" for name in _TUNABLES if f"glibc.malloc.{name}=" in tunables]
    return f"you set {own[0]}" if own else ""


def keep() -> None:
    """Keep what is freed from now on, in this process and those forked from it; nothing takes it back.

    Nothing happens where `fixed` gives a reason.
    """
    global _kept  # noqa: PLW0603  # a property of the process, which the library does not tell
    if _kept or fixed():
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    _kept = True


def settle() -> None:
    """Free a block of nearly 32 MiB, once: both thresholds are then where glibc lets them grow to.

    A process that has read a dataset, a checkpoint or a test set has most often done as much. One made for
    trials has not, and would run the same steps up to a quarter slower than the run that it stands for.
    """
    if fixed():
        return
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.free(libc.malloc(_MAPPED_BYTES - (1 << 16)))  # with its header a mapped block of at most 32 MiB


def kept() -> bool:
    """Whether `keep` was called in this process, or in the one that it was forked from."""
    return _kept
