"""One Settings run on the Workload for long enough: what was asked, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from autotune.settings import Settings

Mode = Literal["full", "loader", "compute"]
"""full: the real step. loader: batches alone, no model. compute: the step alone, on a resident batch."""

Stage = Literal["yours", "ceiling", "compute", "loader", "joint", "sampled", "final", "worth"]

FailureKind = Literal[
    "oom_device",
    "oom_host",
    "shm",
    "file_descriptors",
    "worker_crash",
    "process_crash",
    "pickle",
    "timeout",
    "sticky_cuda",
    "non_finite",
    "compile_error",
    "user_error",
]

Stopped = Literal["window", "gave_up", "exhausted"]

DISTURBANCES = ("alloc_retry", "recompiled", "busy_machine", "throttled")
"""Marks of blocks that something slowed which is not the settings' own doing, or not lastingly."""
TRANSIENT = "transient"
"""Mark of the blocks at the head of a trial that ran before the rate was steady."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """What a Runner is asked to run."""

    settings: Settings
    stage: Stage
    mode: Mode = "full"
    reason: str = ""
    """Why it is tried, a phrase for the user."""
    window_s: float = 2.0
    """Timed seconds to aim at."""
    min_blocks: int = 4
    """Blocks to record at least, even when the window is over."""
    give_up_below: float | None = None
    """Stop after two blocks when samples/s is under this."""
    compare_with: float | None = None
    """Samples/s of the settings to beat: stop once the rate is surely below it, go on while that is open."""
    window_cap_s: float | None = None
    """Timed seconds after which the trial ends although `compare_with` is still open; None is `window_s`."""
    least_warm_s: float = 0.0
    """Seconds of steps before the timed ones at least, on an accelerator: its clocks rise with load."""
    epoch_edge: bool = False
    """Run across the end of an epoch as well, its last batch included, and into the next one."""
    timeout_s: float = 120.0
    """Wall seconds after which the bench process is ended."""
    seed: int = 0
    fresh_process: bool = False
    """Run in a bench process that has run nothing before."""
    pair: int | None = None
    """In the finals: which comparison with *yours* this is one side of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A timed run of steps with one synchronisation at each end."""

    steps: int
    samples: int
    elapsed_s: float
    wait_s: float
    """Seconds of `elapsed_s` spent waiting for the loader."""
    foreign_cpus: float | None = None
    """CPUs kept busy by processes that are not ours, on average; None where it cannot be read."""
    waited_share: float | None = None
    """Part of the time in which some process waited for a CPU, ours included; None where it is not told."""
    gpu_mhz: int | None = None
    """Clock of the GPU's processors at the end of the block; None without NVML."""
    gpu_celsius: int | None = None
    marks: tuple[str, ...] = ()
    """What was seen: one of `DISTURBANCES`, `TRANSIENT`, or `epoch_edge`; empty is clean."""

    @property
    def disturbed(self) -> bool:
        """Whether something else slowed it."""
        return any(mark in DISTURBANCES for mark in self.marks)

    @property
    def samples_per_s(self) -> float:
        """Samples in a second of this block."""
        return self.samples / self.elapsed_s


def steady_blocks(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """The blocks after the transient that nothing disturbed, where at least two are left.

    Else all blocks after the transient, and all of them where there is nothing else.
    """
    settled = tuple(block for block in blocks if TRANSIENT not in block.marks) or tuple(blocks)
    clean = tuple(block for block in settled if not block.disturbed)
    return clean if len(clean) >= 2 else settled


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a trial measured. Every figure shown to a user is computed from these."""

    blocks: tuple[Block, ...]
    warmup_s: float = 0.0
    """Steps on a held batch before anything is timed: kernels chosen, memory allocated."""
    warmup_steps: int = 0
    """How many steps took `warmup_s`; 0 in records that do not tell, where all of it counts as a cost."""
    startup_s: float = 0.0
    """From `iter(loader)` to the first batch, beyond what a steady step waits: workers starting."""
    restart_s: float = 0.0
    """The same at the start of every further epoch."""
    peak_device_bytes: int | None = None
    """Reserved by the allocator at its peak; None without an accelerator."""
    peak_host_bytes: int | None = None
    """Resident memory of the bench process and its workers at the fullest block edge."""
    first_loss: float | None = None
    last_loss: float | None = None
    stopped: Stopped = "window"
    wall_s: float = 0.0
    """What the whole trial cost."""

    @property
    def steps(self) -> int:
        """Timed steps."""
        return sum(block.steps for block in self.blocks)

    @property
    def samples(self) -> int:
        """Timed samples."""
        return sum(block.samples for block in self.blocks)

    @property
    def elapsed_s(self) -> float:
        """Timed seconds."""
        return sum(block.elapsed_s for block in self.blocks)

    @property
    def steady(self) -> tuple[Block, ...]:
        """The blocks that rates are computed from: see `steady_blocks`."""
        return steady_blocks(self.blocks)

    @property
    def disturbed(self) -> bool:
        """Whether most blocks after the transient were slowed by something else."""
        settled = [block for block in self.blocks if TRANSIENT not in block.marks]
        return 2 * sum(block.disturbed for block in settled) > len(settled)

    @property
    def samples_per_s(self) -> float:
        """Steady rate: all samples of the steady blocks over all their seconds."""
        return sum(b.samples for b in self.steady) / sum(b.elapsed_s for b in self.steady)

    @property
    def step_s(self) -> float:
        """Seconds of a steady step."""
        return sum(b.elapsed_s for b in self.steady) / sum(b.steps for b in self.steady)

    @property
    def wait_share(self) -> float:
        """Part of the steady time in which the step waited for the loader, 0 to 1."""
        return sum(b.wait_s for b in self.steady) / sum(b.elapsed_s for b in self.steady)

    @property
    def warmup_excess_s(self) -> float:
        """What the steps of the warm-up took beyond steady ones, whose batches were there already."""
        return max(0.0, self.warmup_s - self.warmup_steps * self.step_s * (1 - self.wait_share))

    @property
    def settling_s(self) -> float:
        """What the blocks before the steady state took beyond as many steady steps."""
        before = [block for block in self.blocks if TRANSIENT in block.marks and block not in self.steady]
        return max(0.0, math.fsum(b.elapsed_s - b.steps * self.step_s for b in before))

    def run_s(self, samples: int | None, epochs: int | None = None) -> float | None:
        """Seconds to train `epochs` epochs of `samples` samples, starts included.

        Without `epochs`: one further epoch in a long run, so that the one-time start does not count.
        None for a dataset of unknown length.
        """
        if not samples:
            return None
        epoch_s = samples / self.samples_per_s
        if epochs is None:
            return self.restart_s + epoch_s
        once_s = self.warmup_excess_s + self.startup_s + self.settling_s
        return once_s + (epochs - 1) * self.restart_s + epochs * epoch_s

    def effective_samples_per_s(self, samples: int | None, epochs: int | None = None) -> float:
        """Samples in a second over the run of `run_s`; the steady rate where the length is unknown."""
        run_s = self.run_s(samples, epochs)
        if run_s is None or samples is None:
            return self.samples_per_s
        return samples * (1 if epochs is None else epochs) / run_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a trial gave no measurement."""

    kind: FailureKind
    message: str
    """One sentence: what happened."""
    hint: str = ""
    """The way out."""
    traceback: str = ""
    """The user's own traceback where there is one."""
    sample_index: int | None = None
    """The dataset index that raised, where it is known."""
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A TrialSpec and its outcome: exactly one of `measurement` and `failure`."""

    number: int
    spec: TrialSpec
    measurement: Measurement | None = None
    failure: Failure | None = None

    def __post_init__(self) -> None:
        assert (self.measurement is None) != (self.failure is None), "one outcome per trial"

    @property
    def settings(self) -> Settings:
        """What was run."""
        return self.spec.settings

    @property
    def wall_s(self) -> float:
        """What it cost, failed or not."""
        outcome = self.measurement or self.failure
        assert outcome is not None, "one outcome per trial"
        return outcome.wall_s
