"""`autotune env`, and the text that it prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from autotune import codec
from autotune.cli.env import env
from autotune.facts import GpuFacts, MachineFacts
from autotune.measure import probe
from autotune.report.environment import environment_text

GIB = 1 << 30
VERSIONS = {"autotune": "0.1.0", "optuna": "5.0.0"}
H100 = GpuFacts(
    index=0,
    name="NVIDIA H100 80GB HBM3",
    memory_bytes=80 * GIB,
    free_bytes=70 * GIB,
    driver="570.124.06",
    capability=(9, 0),
    native_bf16=True,
    other_processes=2,
    power_limit_w=700.0,
)
T4 = GpuFacts(index=1, name="Tesla T4", memory_bytes=15 * GIB, capability=(7, 5))
BOX = MachineFacts(
    compile_fixed="",
    system="Linux",
    cpu_name="AMD EPYC 9354 32-Core Processor",
    logical_cpus=64,
    usable_cpus=6,
    cpu_quota=5.5,
    memory_bytes=503 * GIB,
    memory_limit_bytes=48 * GIB,
    memory_available_bytes=41 * GIB,
    shm_free_bytes=64 << 20,
    nofile_soft=1024,
    nofile_hard=1_048_576,
    start_method="fork",
    python_version="3.12.4",
    torch_version="2.14.1+cu130",
    cuda_version="13.0",
    cudnn_version=92400,
    cpu_native_bf16=True,
    gpus=(H100, T4),
)


def test_the_whole_text(golden: Callable[[str, str], None]) -> None:
    """A container on a shared host, with a good GPU and an old one."""
    golden("env.txt", environment_text(BOX, VERSIONS))


def line(facts: MachineFacts, label: str) -> str:
    """The line that begins with `label`."""
    return next(text for text in environment_text(facts, VERSIONS).splitlines() if text.startswith(label))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"usable_cpus": 64}, "all 64 usable"),
        ({"usable_cpus": 4}, "4 usable of 64: CPU affinity"),
        ({"usable_cpus": 4, "cpu_quota": None}, "4 usable of 64: CPU affinity"),
        ({"usable_cpus": 1, "cpu_quota": 0.5}, "1 usable of 64: cgroup quota of 0.5"),
    ],
)
def test_why_cpus_are_not_usable(changes: dict[str, object], said: str) -> None:
    """Affinity and quota are told apart, since they are lifted in different places."""
    assert line(replace(BOX, **changes), "CPUs").endswith(said)


@pytest.mark.parametrize(
    ("field", "value", "label", "said"),
    [
        ("shm_free_bytes", 2 * GIB, "/dev/shm", "2.00 GiB free"),
        ("shm_free_bytes", None, "/dev/shm", "none"),
        ("nofile_soft", None, "open files", "no limit"),
        ("nofile_hard", None, "open files", "no hard limit, warning: few for many workers"),
        ("memory_limit_bytes", None, "memory", "available of 503 GiB"),
        ("cudnn_version", 8902, "torch", "cuDNN 8.9.2"),
        ("cudnn_version", None, "torch", "CUDA 13.0"),
        ("cuda_version", None, "torch", "no CUDA, cuDNN 9.24.0"),
        ("wsl", True, "system", "Linux (WSL), Python 3.12.4, torch.compile"),
        ("compile_fixed", "no Triton", "system", "Python 3.12.4, no torch.compile: no Triton"),
        ("cpu_native_bf16", False, "CPU ", "no native bfloat16"),
        ("gpus", (), "GPU", "none"),
    ],
)
def test_what_a_line_says(field: str, value: object, label: str, said: str) -> None:
    """Each line ends with what is known, and warns only where there is cause."""
    assert line(replace(BOX, **{field: value}), label).endswith(said)


def test_gpus_that_are_alike_share_their_lines() -> None:
    """Eight of a kind are two lines, and the fullest and busiest of them is what is said."""
    eight = tuple(replace(H100, index=i, free_bytes=(70 - i) * GIB, other_processes=i) for i in range(8))
    text = environment_text(replace(BOX, gpus=eight), VERSIONS)
    assert "GPU 0-7    NVIDIA H100 80GB HBM3 x8, 63.0 GiB free of 80.0 GiB" in text
    assert "7 other processes" in text


def test_gpus_beyond_the_page_are_counted() -> None:
    """What is not shown is said to be there."""
    kinds = tuple(replace(T4, index=i, name=f"Kind {i}") for i in range(6))
    assert environment_text(replace(BOX, gpus=kinds), VERSIONS).endswith("and 4 more; --json lists them")


GPUS = st.builds(
    GpuFacts,
    index=st.integers(0, 99),
    name=st.text("abc ", max_size=90),
    memory_bytes=st.integers(0, 1 << 45),
    free_bytes=st.none() | st.integers(0, 1 << 45),
    driver=st.sampled_from(["", "570.124.06"]),
    capability=st.sampled_from([(), (9, 0), (12, 1)]),
    native_bf16=st.booleans(),
    integrated=st.booleans(),
    other_processes=st.none() | st.integers(0, 999),
    power_limit_w=st.none() | st.sampled_from([70.0, 1200.0]),
)


@given(
    gpus=st.lists(GPUS, max_size=9),
    cpu_name=st.text("xyz ", max_size=90),
    shm=st.none() | st.integers(0, 1 << 40),
    files=st.none() | st.integers(0, 1 << 40),
)
def test_the_page_is_never_overrun(
    gpus: list[GpuFacts], cpu_name: str, shm: int | None, files: int | None
) -> None:
    """At most 15 lines of 80 columns, whatever the machine."""
    facts = replace(
        BOX, gpus=tuple(gpus), cpu_name=cpu_name, shm_free_bytes=shm, nofile_soft=files, nofile_hard=files
    )
    lines = environment_text(facts, VERSIONS).splitlines()
    assert len(lines) <= 15
    assert max(map(len, lines)) <= 80


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine above instead of this one."""
    monkeypatch.setattr(probe, "machine_facts", lambda *, free_memory: BOX)


@pytest.mark.usefixtures("box")
def test_the_command_prints_the_text() -> None:
    """Without options: the text and a newline on stdout."""
    result = CliRunner().invoke(env, [])
    assert (result.exit_code, result.stderr) == (0, "")
    body = result.stdout.split("\n", 1)[1]
    assert body == environment_text(BOX, VERSIONS).split("\n", 1)[1] + "\n"


@pytest.mark.usefixtures("box")
def test_json_holds_every_fact() -> None:
    """What --json prints decodes to the facts themselves."""
    result = CliRunner().invoke(env, ["--json"])
    document = json.loads(result.stdout)
    assert codec.decode(MachineFacts, document["machine"]) == BOX
    assert set(document["versions"]) == {"autotune", "optuna"}


def test_the_real_machine_fits_the_page() -> None:
    """Nothing is patched: this machine's own facts are printed."""
    result = CliRunner().invoke(env, [])
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) <= 15
