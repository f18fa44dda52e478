"""What this process may use: CPUs, memory, shared memory and open files, as affinity and cgroups leave them.

Every reader takes the roots of /proc and /sys, so that a container's view can be laid out as files in a test.
Nothing here raises: what cannot be read is no limit.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PROC = Path("/proc")
SYS = Path("/sys")

_UNLIMITED_BYTES = 1 << 60
"""cgroup v1 says `no limit` by a number near 2^63, rounded down to pages of whatever size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """What the cgroups around this process leave it of memory."""

    limit_bytes: int
    """The lowest limit."""
    free_bytes: int
    """What is left under the fullest one, page cache that can be dropped not counted as used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """One cgroup directory that this process is in."""

    path: Path
    version: Literal[1, 2]


def affinity_cpus() -> int:
    """CPUs that the scheduler may put this process on, at least 1; Python's own override is honoured."""
    process_cpu_count: Callable[[], int | None] = getattr(os, "process_cpu_count", lambda: None)
    count = process_cpu_count()
    if count is None and sys.platform != "win32" and hasattr(os, "sched_getaffinity"):
        try:
            count = len(os.sched_getaffinity(0))
        except OSError:
            count = None
    return max(1, count or os.cpu_count() or 1)


def cpu_quota(*, proc: Path = PROC, sys_root: Path = SYS) -> float | None:
    """CPUs that the tightest cgroup around this process grants; None without a quota."""
    quotas = [quota for group in _groups("cpu", proc, sys_root) if (quota := _group_quota(group)) is not None]
    return min(quotas, default=None)


def usable_cpus(*, proc: Path = PROC, sys_root: Path = SYS) -> int:
    """CPUs worth keeping busy: affinity, cut to the quota rounded up, at least 1."""
    quota = cpu_quota(proc=proc, sys_root=sys_root)
    available = affinity_cpus()
    return available if quota is None else max(1, min(available, math.ceil(quota)))


def memory_limit(*, proc: Path = PROC, sys_root: Path = SYS) -> MemoryLimit | None:
    """The memory limits of all cgroups around this process; None without one."""
    found = [
        pair for group in _groups("memory", proc, sys_root) if (pair := _group_memory(group)) is not None
    ]
    if not found:
        return None
    return MemoryLimit(
        limit_bytes=min(limit for limit, _ in found),
        free_bytes=max(0, min(limit - used for limit, used in found)),
    )


def oom_kills(*, proc: Path = PROC, sys_root: Path = SYS) -> int:
    """Processes that the kernel has killed for memory so far; compare two readings.

    Counted in this process's own cgroup, else in the whole machine, else 0 where nothing counts.
    """
    for group in _groups("memory", proc, sys_root):
        name = "memory.events" if group.version == 2 else "memory.oom_control"
        count = _table(group.path / name).get("oom_kill")
        if count is not None:
            return count
    return _table(proc / "vmstat").get("oom_kill", 0)


def shm_free_bytes(path: Path = Path("/dev/shm")) -> int | None:
    """Free bytes where DataLoader workers put their batches; None where there is no such file system."""
    if sys.platform == "win32":
        return None
    try:
        stat = os.statvfs(path)
    except OSError:
        return None
    return stat.f_bavail * stat.f_frsize


def open_file_limits() -> tuple[int | None, int | None]:
    """Soft and hard limit of open files; None for no limit, or none that can be read."""
    try:
        import resource
    except ImportError:
        return None, None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        None if soft == resource.RLIM_INFINITY else soft,
        None if hard == resource.RLIM_INFINITY else hard,
    )


def _group_quota(group: _Group) -> float | None:
    if group.version == 2:
        words = _words(group.path / "cpu.max")
    else:
        words = _words(group.path / "cpu.cfs_quota_us") + _words(group.path / "cpu.cfs_period_us")
    if len(words) != 2:
        return None
    quota_us, period_us = _number(words[0]), _number(words[1])
    if quota_us is None or not period_us or quota_us <= 0:  # v2 says `max`, v1 says -1
        return None
    return quota_us / period_us


def _group_memory(group: _Group) -> tuple[int, int] | None:
    names = (
        ("memory.max", "memory.current")
        if group.version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    limit, used = (_number("".join(_words(group.path / name))) for name in names)
    if limit is None or used is None or limit >= _UNLIMITED_BYTES:
        return None
    stat = _table(group.path / "memory.stat")
    # v1 counts usage over the subtree, so the subtree's figure is the one to take off; v2 has only one
    droppable = stat.get("total_inactive_file", stat.get("inactive_file", 0))
    return limit, max(0, used - droppable)


def _groups(controller: str, proc: Path, sys_root: Path) -> Iterator[_Group]:
    """The cgroups that bind this process for `controller`, innermost first in each hierarchy."""
    try:
        memberships = (proc / "self" / "cgroup").read_text(errors="replace").splitlines()
        mounts = (proc / "self" / "mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return
    inside = _memberships(memberships, controller)
    for line in mounts:
        fields = line.split()
        if "-" not in fields[6:]:
            continue
        end = fields.index("-", 6)  # before it stand any number of optional fields
        kind, options = fields[end + 1], fields[-1].split(",")
        version: Literal[1, 2] = 2 if kind == "cgroup2" else 1
        wanted = kind == "cgroup2" or (kind == "cgroup" and controller in options)
        if wanted and version in inside:
            yield from _chain(inside[version], fields[3], _rooted(fields[4], sys_root), version)


def _memberships(lines: list[str], controller: str) -> dict[int, str]:
    """Where this process is in the v2 hierarchy and in `controller`'s v1 hierarchy, by version."""
    found: dict[int, str] = {}
    for line in lines:
        number, names, path = (*line.split(":", 2), "", "")[:3]
        if number == "0" and not names:
            found[2] = path
        elif controller in names.split(","):
            found[1] = path
    return found


def _chain(path: str, root: str, mount: Path, version: Literal[1, 2]) -> Iterator[_Group]:
    """From this process's directory up to the mount: a limit on any of them binds."""
    relative = os.path.relpath(path, root) if path.startswith(root) else "."
    directory = mount if relative.startswith("..") else mount / relative
    if not directory.is_dir():
        directory = (
            mount  # in a namespace the path is the host's and leads nowhere; the mount is our own group
        )
    while True:
        yield _Group(path=directory, version=version)
        if directory == mount:
            return
        directory = directory.parent


def _rooted(mount: str, sys_root: Path) -> Path:
    return sys_root / Path(mount).relative_to(SYS) if Path(mount).is_relative_to(SYS) else Path(mount)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").split()
    except OSError:
        return []


def _table(path: Path) -> dict[str, int]:
    """A file of `name number` lines."""
    words = _words(path)
    return {
        name: value for name, text in zip(words[::2], words[1::2]) if (value := _number(text)) is not None
    }


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
