"""What is read of the machine and, from a fake driver, of its GPUs."""

from __future__ import annotations

import multiprocessing
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from autotune import codec
from autotune.facts import MachineFacts
from autotune.measure import limits, nvml, probe

GIB = 1 << 30


class FakeNvml(ModuleType):
    """A driver with two GPUs, of which the second shares the host's memory and supports next to nothing."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.open = 0
        self.pids = [os.getpid(), 4_000_000, 4_000_001]

    def nvmlInit(self) -> None:
        """Count sessions, so that a test sees whether each was closed."""
        self.open += 1

    def nvmlShutdown(self) -> None:
        """End a session."""
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        """Text, as today's bindings give it."""
        return "570.1"

    def nvmlDeviceGetCount(self) -> int:
        """Two."""
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        """The number itself."""
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        """A slice of the first GPU."""
        if uuid != "MIG-1":
            raise RuntimeError("not found")
        return 0

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        """Bytes, as older bindings give them."""
        return (b"GPU-aa11", b"GPU-bb22")[handle]

    def nvmlDeviceGetName(self, handle: int) -> str:
        """A board and a chip."""
        return ("NVIDIA H100", "NVIDIA GB10")[handle]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        """Not supported where there is no memory of its own."""
        if handle == 1:
            raise RuntimeError("not supported")
        return SimpleNamespace(total=80 * GIB, free=70 * GIB)

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        """One before bfloat16, one after."""
        return ((9, 0), (7, 5))[handle]

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        """Milliwatts."""
        if handle == 1:
            raise RuntimeError("not supported")
        return 700_000

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        """Ours and two others."""
        return [SimpleNamespace(pid=pid) for pid in self.pids]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """The fake driver, seen from the host."""
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(nvml, "_sees_host_pids", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def test_machine_facts_of_this_machine() -> None:
    """The real machine fills the facts consistently, and they survive a round trip through JSON."""
    facts = probe.machine_facts()
    assert 1 <= facts.usable_cpus <= facts.logical_cpus
    assert 0 < facts.memory_available_bytes <= facts.memory_bytes
    assert facts.torch_version == str(torch.__version__)
    assert facts.system == platform.system()
    assert facts.cpu_name
    assert facts.cudnn_version == torch.backends.cudnn.version()
    assert codec.decode(MachineFacts, codec.encode(facts)) == facts


def test_the_cgroup_bounds_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    """Psutil sees the whole host; a container may use only what its cgroup leaves."""
    bound = limits.MemoryLimit(limit_bytes=2000, free_bytes=500)
    monkeypatch.setattr(limits, "memory_limit", lambda: bound)
    facts = probe.machine_facts(initialise_cuda=False)
    assert (facts.memory_limit_bytes, facts.memory_available_bytes) == (2000, 500)


def test_cuda_is_left_alone_when_asked() -> None:
    """A process that must not open CUDA does not even ask torch whether there is a device."""
    code = (
        "import torch; from autotune.measure.probe import machine_facts\n"
        "def refuse(*_): raise SystemExit('asked torch for devices')\n"
        "torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = refuse\n"
        "machine_facts(initialise_cuda=False)\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_probe_starts_without_torch() -> None:
    """Importing the module is quick; torch comes when facts are asked for."""
    code = "import sys, autotune.measure.probe, autotune.measure.classify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_start_method_is_what_the_program_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method set by the program wins; asking sets none."""
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "spawn")
    assert probe.start_method() == "spawn"
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: None)
    assert probe.start_method() == multiprocessing.get_all_start_methods()[0]


@pytest.mark.parametrize(("release", "wsl"), [("5.15.90.1-microsoft-standard-WSL2", True), ("6.8.0", False)])
def test_wsl_is_seen_by_its_kernel(monkeypatch: pytest.MonkeyPatch, release: str, wsl: bool) -> None:
    """Microsoft's kernel names itself."""
    monkeypatch.setattr(platform, "release", lambda: release)
    assert probe.machine_facts(initialise_cuda=False).wsl is wsl


def test_the_cpus_name(tmp_path: Path) -> None:
    """The first processor's own words, with single spaces; the architecture where it has none."""
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some  CPU   @ 2GHz\n\nmodel name\t: Other\n")
    assert probe.cpu_name(info) == "Some CPU @ 2GHz"
    assert probe.cpu_name(tmp_path / "missing") in (platform.processor(), platform.machine())


@pytest.mark.parametrize(
    ("flags", "kernels", "native"),
    [("fpu avx512_bf16", True, True), ("fpu avx512f", True, False), ("fpu amx_bf16", False, False)],
)
def test_bf16_needs_the_hardware_and_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, kernels: bool, native: bool
) -> None:
    """AVX-512 alone converts, and a CPU that could helps nothing when oneDNN is told not to."""
    info = tmp_path / "cpuinfo"
    info.write_text(f"flags : {flags}\n")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    fake = SimpleNamespace(mkldnn=SimpleNamespace(_is_mkldnn_bf16_supported=lambda: kernels))
    monkeypatch.setattr(torch, "ops", fake)
    assert probe.cpu_has_native_bf16(info) is native


def test_gpus_from_the_driver_alone(driver: FakeNvml) -> None:
    """Without CUDA the driver's library tells all; what it does not support stays empty."""
    first, second = probe.machine_facts(initialise_cuda=False).gpus
    assert (first.name, first.memory_bytes, first.free_bytes) == ("NVIDIA H100", 80 * GIB, 70 * GIB)
    assert (first.driver, first.capability, first.native_bf16) == ("570.1", (9, 0), True)
    assert (first.other_processes, first.power_limit_w, first.integrated) == (2, 700.0, False)
    assert (second.index, second.native_bf16, second.integrated) == (1, False, True)
    assert (second.memory_bytes, second.free_bytes) == (psutil.virtual_memory().total, None)
    assert second.power_limit_w is None
    assert driver.open == 0


def test_processes_are_not_counted_from_inside_a_container(
    driver: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver numbers processes as the host does; in a container nobody knows whose they are."""
    monkeypatch.setattr(nvml, "_sees_host_pids", lambda: False)
    assert [gpu.other_processes for gpu in nvml.visible_gpus((), None)] == [None, None]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, ["NVIDIA H100", "NVIDIA GB10"]),
        ("1,0", ["NVIDIA GB10", "NVIDIA H100"]),
        ("", []),
        ("-1", []),
        ("0,7,1", ["NVIDIA H100"]),
        ("GPU-bb", ["NVIDIA GB10"]),
        ("GPU-", []),
        ("MIG-1", ["NVIDIA H100"]),
        ("MIG-2", []),
    ],
)
def test_the_visible_devices(driver: FakeNvml, value: str | None, names: list[str]) -> None:
    """CUDA_VISIBLE_DEVICES selects and orders, and ends at the first entry that names nothing."""
    assert [gpu.name for gpu in nvml.visible_gpus((), value)] == names


def refuse(*_: object) -> None:
    """What a call does on a machine without a driver."""
    raise RuntimeError("no driver")


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetCount"])
def test_a_driver_that_fails_is_no_gpu(
    driver: FakeNvml, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """No failure of the driver's library gets out."""
    monkeypatch.setattr(driver, broken, refuse)
    assert nvml.visible_gpus((), None) == ()
    assert driver.open == 0


def test_without_the_drivers_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-ml-py is optional."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.visible_gpus((), None) == ()


def fake_torch(driver_uuid: str, *, hip: str | None = None, fail: Callable[[], Any] | None = None) -> Any:
    """As much of torch as is asked for GPUs, with one device."""
    found = SimpleNamespace(
        name="NVIDIA H100 80GB", total_memory=79 * GIB, major=9, minor=0, uuid=driver_uuid, is_integrated=0
    )
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=fail or (lambda: 1),
        get_device_properties=lambda index: found,
        mem_get_info=lambda index: (60 * GIB, 79 * GIB),
    )
    return SimpleNamespace(cuda=cuda, version=SimpleNamespace(hip=hip))


def test_torch_and_the_driver_are_joined_by_uuid(driver: FakeNvml) -> None:
    """CUDA and the driver may number the same GPUs differently."""
    (gpu,) = probe._gpus(fake_torch("bb22"), initialise_cuda=True, free_memory=True)
    assert (gpu.name, gpu.memory_bytes, gpu.capability) == ("NVIDIA H100 80GB", 79 * GIB, (9, 0))
    assert (gpu.driver, gpu.power_limit_w) == ("570.1", None)
    assert gpu.free_bytes == 60 * GIB


def test_a_gpu_that_the_driver_does_not_list(driver: FakeNvml) -> None:
    """Then torch's own figures are all there is."""
    (gpu,) = probe._gpus(fake_torch("cc33", hip="6.2"), initialise_cuda=True)
    assert (gpu.driver, gpu.other_processes, gpu.capability) == ("", None, ())
    assert gpu.native_bf16


def test_a_driver_that_torch_cannot_open(driver: FakeNvml) -> None:
    """A broken CUDA still leaves what the driver's library says."""
    names = [gpu.name for gpu in probe._gpus(fake_torch("aa11", fail=refuse), initialise_cuda=True)]
    assert names == ["NVIDIA H100", "NVIDIA GB10"]


def neighbours(driver_uuids: list[str], unusable: int) -> tuple[Any, list[int]]:
    """As much of torch, with a GPU for each UUID of which one refuses; and on which a context was opened."""
    fake, opened = fake_torch("", fail=lambda: len(driver_uuids)), []
    alike = vars(fake.cuda.get_device_properties(0))

    def properties(index: int) -> Any:
        return SimpleNamespace(**{**alike, "uuid": driver_uuids[index]})

    def free(index: int) -> tuple[int, int]:
        opened.append(index)
        if index == unusable:
            raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")
        return 60 * GIB, 79 * GIB

    fake.cuda.get_device_properties, fake.cuda.mem_get_info = properties, free
    return fake, opened


@pytest.mark.usefixtures("no_library")
def test_no_context_is_opened_on_a_gpu_unless_its_free_memory_is_asked_for() -> None:
    """Under DDP each process would keep one on all GPUs, and hold memory there."""
    torch_, opened = neighbours(["aa11", "bb22"], unusable=1)
    assert [gpu.free_bytes for gpu in probe._gpus(torch_, initialise_cuda=True)] == [None, None]
    assert opened == []


@pytest.mark.usefixtures("no_library")
def test_a_gpu_that_cannot_be_used_takes_nothing_from_the_others() -> None:
    """Neither one whose memory cannot be asked for, nor one that cannot be described."""
    torch_, opened = neighbours(["aa11", "bb22", "cc33"], unusable=1)
    found = probe._gpus(torch_, initialise_cuda=True, free_memory=True)
    assert [(gpu.index, gpu.free_bytes) for gpu in found] == [(0, 60 * GIB), (1, None), (2, 60 * GIB)]
    assert opened == [0, 1, 2]
    described = torch_.cuda.get_device_properties
    torch_.cuda.get_device_properties = lambda index: refuse() if index == 1 else described(index)
    assert [gpu.index for gpu in probe._gpus(torch_, initialise_cuda=True)] == [0, 2]


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without nvidia-ml-py."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
