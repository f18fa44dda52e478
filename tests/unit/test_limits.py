"""What is read of CPUs, memory, shared memory and open files, on laid-out file trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autotune.measure import limits

GIB = 1 << 30


class Tree:
    """A fake /proc and /sys."""

    def __init__(self, base: Path) -> None:
        self.proc, self.sys_root = base / "proc", base / "sys"
        self.mounts: list[str] = []
        self.paths: list[str] = []
        (self.proc / "self").mkdir(parents=True)
        self._write()

    def member(self, line: str) -> Tree:
        """Add a line to /proc/self/cgroup."""
        self.paths.append(line)
        return self._write()

    def mount(self, point: str, kind: str, options: str = "rw", root: str = "/") -> Tree:
        """Add a line to /proc/self/mountinfo."""
        self.mounts.append(f"30 25 0:26 {root} {point} rw,nosuid shared:9 - {kind} {kind} {options}")
        return self._write()

    def file(self, path: str, text: str) -> Tree:
        """Write a file below the cgroup mounts."""
        target = self.sys_root / "fs/cgroup" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return self

    def _write(self) -> Tree:
        (self.proc / "self/cgroup").write_text("".join(f"{line}\n" for line in self.paths))
        (self.proc / "self/mountinfo").write_text("".join(f"{line}\n" for line in self.mounts))
        return self

    @property
    def roots(self) -> dict[str, Path]:
        """What the readers take."""
        return {"proc": self.proc, "sys_root": self.sys_root}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """An empty machine."""
    return Tree(tmp_path)


def v2(tree: Tree, path: str = "/", root: str = "/") -> Tree:
    """Put this process into a cgroup v2."""
    return tree.member(f"0::{path}").mount("/sys/fs/cgroup", "cgroup2", root=root)


def v1(tree: Tree, controllers: str, path: str = "/", root: str = "/") -> Tree:
    """Put this process into a cgroup v1."""
    return tree.member(f"4:{controllers}:{path}").mount(
        f"/sys/fs/cgroup/{controllers}", "cgroup", f"rw,{controllers}", root=root
    )


def test_a_machine_without_cgroups_has_no_limits(tmp_path: Path) -> None:
    """Nothing readable means no quota, no memory limit and no kills, not an error."""
    roots = {"proc": tmp_path / "none", "sys_root": tmp_path / "none"}
    assert limits.cpu_quota(**roots) is None
    assert limits.memory_limit(**roots) is None
    assert limits.oom_kills(**roots) == 0


def test_v2_quota_is_the_tightest_of_all_ancestors(tree: Tree) -> None:
    """A parent's lower quota binds a child that has a higher one."""
    v2(tree, "/a/b").file("a/b/cpu.max", "400000 100000\n").file("a/cpu.max", "150000 100000\n")
    assert limits.cpu_quota(**tree.roots) == 1.5


def test_v2_max_is_no_quota(tree: Tree) -> None:
    """`max` grants everything."""
    v2(tree, "/a").file("a/cpu.max", "max 100000\n")
    assert limits.cpu_quota(**tree.roots) is None


def test_v1_quota_with_the_controllers_mounted_together(tree: Tree) -> None:
    """`cpu,cpuacct` is one hierarchy; -1 there is no quota."""
    v1(tree, "cpu,cpuacct", "/docker/1").file("cpu,cpuacct/docker/1/cpu.cfs_quota_us", "50000\n")
    tree.file("cpu,cpuacct/docker/1/cpu.cfs_period_us", "100000\n")
    tree.file("cpu,cpuacct/cpu.cfs_quota_us", "-1\n").file("cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert limits.cpu_quota(**tree.roots) == 0.5


def test_a_container_that_sees_its_own_group_as_the_mount(tree: Tree) -> None:
    """Where the mount's root is the process's own path, the limit lies in the mount itself."""
    v1(tree, "cpu", "/docker/1", root="/docker/1").file("cpu/cpu.cfs_quota_us", "300000\n")
    tree.file("cpu/cpu.cfs_period_us", "100000\n")
    assert limits.cpu_quota(**tree.roots) == 3.0


@pytest.mark.parametrize("path", ["/kubepods/pod7/c1", "/../../user.slice"])
def test_a_path_that_is_not_visible_falls_back_to_the_mount(tree: Tree, path: str) -> None:
    """A namespaced mount shows the own group at its root although the path names the host's."""
    v2(tree, path).file("cpu.max", "200000 100000\n")
    assert limits.cpu_quota(**tree.roots) == 2.0


def test_both_versions_mounted_at_once(tree: Tree) -> None:
    """A hybrid machine keeps its quota in v1 and an empty v2 beside it."""
    v1(tree, "cpu").file("cpu/cpu.cfs_quota_us", "100000").file("cpu/cpu.cfs_period_us", "50000")
    tree.member("0::/").mount("/sys/fs/cgroup/unified", "cgroup2")
    assert limits.cpu_quota(**tree.roots) == 2.0


def test_damaged_files_are_no_limit(tree: Tree) -> None:
    """Text where a number belongs is ignored."""
    v2(tree, "/a").file("a/cpu.max", "lots of it\n").file("a/memory.max", "").file("a/memory.current", "7")
    assert limits.cpu_quota(**tree.roots) is None
    assert limits.memory_limit(**tree.roots) is None


@pytest.mark.parametrize(
    ("affinity", "quota", "usable"),
    [(8, "150000 100000", 2), (8, "50000 100000", 1), (2, "800000 100000", 2), (4, "max 100000", 4)],
)
def test_usable_cpus_is_affinity_cut_to_the_quota_rounded_up(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, affinity: int, quota: str, usable: int
) -> None:
    """1.5 CPUs can keep two processes busy; a quota above the affinity adds nothing."""
    monkeypatch.setattr(limits, "affinity_cpus", lambda: affinity)
    v2(tree).file("cpu.max", quota)
    assert limits.usable_cpus(**tree.roots) == usable


def test_affinity_honours_pythons_own_override(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python counts the process's CPUs itself, its number is taken."""
    monkeypatch.setattr(os, "process_cpu_count", lambda: 3, raising=False)
    assert limits.affinity_cpus() == 3


def test_v2_memory_counts_no_droppable_page_cache(tree: Tree) -> None:
    """inactive_file can be had back, so it is not used."""
    v2(tree, "/a").file("a/memory.max", str(4 * GIB)).file("a/memory.current", str(3 * GIB))
    tree.file("a/memory.stat", f"anon 5\ninactive_file {GIB}\nactive_file 9\n")
    assert limits.memory_limit(**tree.roots) == limits.MemoryLimit(limit_bytes=4 * GIB, free_bytes=2 * GIB)


def test_memory_limit_and_free_come_from_the_groups_that_bind(tree: Tree) -> None:
    """The lowest limit and the least free may lie in different ancestors."""
    v2(tree, "/a/b").file("a/b/memory.max", str(2 * GIB)).file("a/b/memory.current", "0")
    tree.file("a/memory.max", str(8 * GIB)).file("a/memory.current", str(7 * GIB))
    assert limits.memory_limit(**tree.roots) == limits.MemoryLimit(limit_bytes=2 * GIB, free_bytes=GIB)


def test_v1_memory_without_a_limit(tree: Tree) -> None:
    """The huge number by which v1 says `none` is none."""
    v1(tree, "memory").file("memory/memory.limit_in_bytes", "9223372036854771712")
    tree.file("memory/memory.usage_in_bytes", "5")
    assert limits.memory_limit(**tree.roots) is None


def test_v1_memory_takes_off_the_page_cache_of_the_subtree(tree: Tree) -> None:
    """v1 counts usage over the subtree, so `total_inactive_file` is what can be dropped."""
    v1(tree, "memory").file("memory/memory.limit_in_bytes", "1000")
    tree.file("memory/memory.usage_in_bytes", "900")
    tree.file("memory/memory.stat", "inactive_file 100\ntotal_inactive_file 300\n")
    assert limits.memory_limit(**tree.roots) == limits.MemoryLimit(limit_bytes=1000, free_bytes=400)


def test_oom_kills_from_v2_the_own_group_first(tree: Tree) -> None:
    """A kill in a neighbour of the same parent is not ours."""
    v2(tree, "/a/b").file("a/b/memory.events", "low 0\noom 2\noom_kill 2\n").file(
        "a/memory.events", "oom_kill 9\n"
    )
    assert limits.oom_kills(**tree.roots) == 2


def test_oom_kills_from_v1(tree: Tree) -> None:
    """v1 counts in memory.oom_control."""
    v1(tree, "memory", "/x").file("memory/x/memory.oom_control", "oom_kill_disable 0\noom_kill 4\n")
    assert limits.oom_kills(**tree.roots) == 4


def test_oom_kills_of_a_machine_whose_root_group_does_not_count(tree: Tree) -> None:
    """The root cgroup has no memory.events; then the machine's own counter is read."""
    v2(tree)
    (tree.proc / "vmstat").write_text("nr_free_pages 7\noom_kill 3\n")
    assert limits.oom_kills(**tree.roots) == 3


def test_shm_free_is_that_of_the_file_system(tmp_path: Path) -> None:
    """Free bytes where it exists, None where it does not."""
    free = limits.shm_free_bytes(tmp_path)
    assert free is not None
    assert free > 0
    assert limits.shm_free_bytes(tmp_path / "missing") is None


def test_open_file_limits_are_the_processs_own() -> None:
    """Soft never exceeds hard."""
    resource = pytest.importorskip("resource")
    soft, hard = limits.open_file_limits()
    real = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert (soft, hard) == tuple(None if n == resource.RLIM_INFINITY else n for n in real)


def test_this_machine_can_be_read() -> None:
    """The real trees give at least one CPU and no exception."""
    assert 1 <= limits.usable_cpus() <= (os.cpu_count() or 1)
    assert limits.oom_kills() >= 0
