"""glibc's allocator: when it can be told to keep memory, and that it does. Told in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from autotune.measure import host_memory

needs_glibc = pytest.mark.skipif(bool(host_memory.fixed()), reason=f"no telling here: {host_memory.fixed()}")

MAPPED = """
import ctypes, torch
from autotune.measure import host_memory

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in "arena ordblks smblks hblks a b c d e f".split()]

libc = ctypes.CDLL(None)
libc.mallinfo.restype = Info

def mapped():
    before = libc.mallinfo().hblks
    held = torch.empty(31 << 20, dtype=torch.uint8)
    return libc.mallinfo().hblks - before

{prepare}
print(mapped())
"""
SETTLED = {
    "by itself": "host_memory.settle()",
    "a bench process": """
from autotune.measure import bench, payload
from autotune.workload import Workload

def step(model, batch):
    return model(batch).mean()

bench._session(payload.pickle_workload(Workload(torch.nn.Linear(4, 2), torch.zeros(64, 4), step=step)))
""",
    "a kit": """
from autotune.kit import make_kit
from autotune.settings import Settings

settings = Settings.from_flat({"batch_size": 4})
make_kit(settings, None, torch.nn.Linear(4, 2), lambda p: torch.optim.SGD(p, lr=0.1)).close()
""",
}
"""What ends with a process in which a large block has been freed."""
FAULTS = """
import resource, torch
from autotune.measure import host_memory

def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        held = [torch.empty(12 << 20, dtype=torch.uint8).fill_(1) for _ in range(8)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
host_memory.keep()
faults(5)
print(faults(5))
"""
GROWTH = """
import psutil, sys, torch
from autotune.measure import host_memory

torch.set_num_threads(1)
host_memory.keep()
resident = []
for _ in range(30):
    torch.empty(int(sys.argv[1]) << 20, dtype=torch.uint8).fill_(1)
    resident.append(psutil.Process().memory_info().rss >> 20)
print(resident[4], resident[-1])
"""
KIT = """
import torch
from autotune.kit import make_kit
from autotune.measure import flags
from autotune.settings import Settings

model = torch.nn.Linear(4, 2)
settings = Settings.from_flat({"batch_size": 4, "keep_host_memory": True})
with make_kit(settings, None, model, lambda p: torch.optim.SGD(p, lr=0.1)):
    pass
print(flags.read_user_flags().keep_host_memory)
"""


def told(code: str, *arguments: str) -> list[str]:
    """The words that `code` prints in a process of its own."""
    run = [sys.executable, "-c", code, *arguments]
    return subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True, timeout=120).stdout.split()


@needs_glibc
def test_large_blocks_come_from_memory_that_is_kept() -> None:
    """A first block of 31 MiB would be mapped by itself, and unmapped when it is freed."""
    assert told(MAPPED.format(prepare="")) == ["1"]
    assert told(MAPPED.format(prepare="host_memory.keep()")) == ["0"]


@needs_glibc
@pytest.mark.parametrize("how", SETTLED)
def test_a_trial_and_a_kit_begin_where_a_long_run_soon_is(how: str) -> None:
    """Once a large block was freed, one of 31 MiB is no longer mapped by itself, without being told so."""
    assert told(MAPPED.format(prepare=SETTLED[how])) == ["0"]


@needs_glibc
def test_settling_leaves_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a threshold of the user's own glibc moves none, and neither does this."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    assert told(MAPPED.format(prepare=SETTLED["by itself"])) == ["1"]


@needs_glibc
def test_pages_are_taken_once() -> None:
    """Ninety-six MiB, freed and taken again five times, cost no fault for each of 24,576 pages of 4 KiB."""
    (faults,) = told(FAULTS)
    assert int(faults) < 1000


@needs_glibc
@pytest.mark.parametrize("block_mib", ["1", "31", "64", "200"])
def test_a_process_does_not_grow(block_mib: str) -> None:
    """Blocks of one size, taken and freed in turn, need the room of a few however often they come."""
    soon, late = map(int, told(GROWTH, block_mib))
    assert late <= soon + 2 * int(block_mib) + 16


@needs_glibc
def test_a_kit_tells_it_and_a_later_run_knows() -> None:
    """It stays for the life of the process, so it is then part of what the user runs."""
    assert told(KIT) == ["True"]
    assert not host_memory.kept()


@needs_glibc
def test_a_kit_leaves_the_users_own_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile from elsewhere may ask for it where the user has set another way."""
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert told(KIT) == ["False"]


@needs_glibc
@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({}, ""),
        ({"GLIBC_TUNABLES": "glibc.pthread.rseq=0", "LD_PRELOAD": "/lib/libother.so"}, ""),
        ({"MALLOC_TRIM_THRESHOLD_": "0"}, "you set MALLOC_TRIM_THRESHOLD_"),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_max=0"}, "you set glibc.malloc.mmap_max"),
        ({"LD_PRELOAD": "/lib/a.so:/lib/libjemalloc.so.2"}, "libjemalloc.so.2 allocates memory here"),
    ],
)
def test_whoever_set_it_before_is_left_alone(environment: dict[str, str], why: str) -> None:
    """An allocator of another make, or thresholds of the user's own, are reasons to leave it."""
    assert host_memory.fixed(environment) == why


def test_without_glibc_there_is_nothing_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other systems know no such name, and keeping does nothing there."""

    def unknown(name: str) -> str:
        raise ValueError(name)

    monkeypatch.setattr(host_memory.os, "confstr", unknown, raising=False)
    assert host_memory.fixed({}) == "needs glibc's allocator"
    host_memory.keep()
    assert not host_memory.kept()
