"""What a run of the tuner found: the values that report, profile and result are made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autotune.facts import MachineFacts, WorkloadFacts
from autotune.settings import KnobValue, Settings
from autotune.trial import Trial

VerdictKind = Literal["faster", "kept", "unsure", "incomplete"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A ratio or a rate with its confidence interval."""

    value: float
    low: float
    high: float
    confidence: float = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Who won and how sure.

    faster: the interval of the paired ratio lies wholly above 1. kept: *yours* stays, nothing beat it.
    unsure: pairs were too few or too noisy to tell, so *yours* stays. incomplete: the run was cut short
    before the finals, and `winner` is the best full trial so far, not confirmed.
    """

    kind: VerdictKind
    winner: Settings
    ratio: Interval | None = None
    """Effective samples/s of the winner over *yours*, from the finals alone; None without finals.

    Where *yours* stays it is that of the best candidate over *yours*, to show what was compared.
    """
    pairs: int = 0
    sentence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """What one changed setting brings: the winner over the winner without it."""

    knob: str
    yours: KnobValue
    best: KnobValue
    ratio: Interval | None = None
    """None where the budget did not allow to measure it alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A knob that was not searched, and why."""

    knob: str
    value: KnobValue
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How learning goes with the chosen batch size. Lengths are in samples: no batch size changes them."""

    batch_size: int
    reference_batch_size: int
    learning_rates: tuple[float, ...]
    """One for each param group."""
    reference_learning_rates: tuple[float, ...]
    lr_rule: str
    """`linear`, `sqrt` or `unchanged`, with its source."""
    warmup_samples: int = 0
    """Samples over which the learning rate rises linearly from the reference to its own value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Everything a run found. All figures a user sees are computed from `trials`."""

    machine: MachineFacts
    workload: WorkloadFacts
    name: str
    yours: Settings
    verdict: Verdict
    worth: tuple[Worth, ...] = ()
    kept: tuple[Kept, ...] = ()
    trials: tuple[Trial, ...] = ()
    recipe: Recipe | None = None
    stop_reason: str = ""
    notes: tuple[str, ...] = ()
    epochs: int | None = None
    elapsed_s: float = 0.0
    budget_s: float = 0.0
    study: str = ""
    """Where the study is kept, as an Optuna storage URL or path."""

    @property
    def best(self) -> Settings:
        """The settings to train with: measured, all of them."""
        return self.verdict.winner

    def finals(self, settings: Settings) -> tuple[Trial, ...]:
        """The finals trials of these settings, in the order they ran."""
        return tuple(t for t in self.trials if t.spec.stage == "final" and t.settings == settings)

    def ceiling(self, mode: Literal["loader", "compute"]) -> float | None:
        """Samples/s of *yours* with the other side taken away; None where it was not measured."""
        rates = [
            t.measurement.samples_per_s
            for t in self.trials
            if t.spec.stage == "ceiling" and t.spec.mode == mode and t.measurement is not None
        ]
        return max(rates, default=None)
