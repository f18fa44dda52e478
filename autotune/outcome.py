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


DecayShape = Literal["cosine", "polynomial", "wsd"]
"""wsd: warmup, stable, decay; the rate stays until a cooldown at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decay:
    """How the learning rate comes down over the run."""

    shape: DecayShape
    samples: int
    """Samples after which it has come down to `end`, where it stays.

    Over a whole run they are counted as its steps count them, each as a full one. The last batch of an epoch
    is smaller or dropped, so that this length differs between batch sizes by the rounding of an epoch.
    """
    end: float = 0.0
    """The part of the learning rate that is left then."""
    power: float = 1.0
    """Of a polynomial decay; 1 is a straight line."""
    cooldown: float = 0.2
    """Of wsd: the last part of the samples, in which the rate comes down."""
    rule: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LargeBatch:
    """An optimizer made for very large batches, with settings of its own. Used only when it is asked for."""

    optimizer: Literal["LARS", "LAMB"]
    learning_rate: float
    weight_decay: float
    """Of weights; biases and the parameters of normalization layers are neither decayed nor adapted."""
    momentum: float | None = None
    """Of LARS."""
    betas: tuple[float, float] | None = None
    """Of LAMB."""
    warmup_samples: int = 0
    warmup_start: float = 0.0
    """The part of the learning rate that the warmup starts from."""
    decay: Decay | None = None
    rule: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How learning goes with the chosen batch size. Lengths are in samples: no batch size changes them.

    A decay alone ends with the run's last step, which rounds each epoch to whole batches.

    A number goes with its rule, which names its source. `reference_` is what the user has at
    `reference_batch_size`.
    """

    batch_size: int
    reference_batch_size: int
    learning_rates: tuple[float, ...]
    """One for each param group."""
    reference_learning_rates: tuple[float, ...]
    lr_rule: str
    """`linear`, `gain`, `sqrt` or `unchanged`, with its source."""
    warmup_samples: int = 0
    """Samples over which the learning rate rises linearly to its own value."""
    warmup_start: float | None = None
    """The part of the learning rate that the warmup starts from; None is reference over own rate."""
    warmup_rule: str = ""
    weight_decays: tuple[float, ...] = ()
    """One for each param group; empty where weight decay is left alone."""
    reference_weight_decays: tuple[float, ...] = ()
    weight_decay_rule: str = ""
    beta2s: tuple[float | None, ...] = ()
    """Decay of the second moment, one for each param group; empty where it is left alone."""
    reference_beta2s: tuple[float | None, ...] = ()
    beta2_rule: str = ""
    batch_norm_momenta: tuple[float, ...] = ()
    """For each different momentum among the model's BatchNorm layers; empty where they are left alone."""
    reference_batch_norm_momenta: tuple[float, ...] = ()
    batch_norm_rule: str = ""
    ema_power: float = 1.0
    """The decay of an average of the weights, taken at every step, is raised to this power."""
    ema_rule: str = ""
    accumulation_steps: int = 1
    """Batches whose gradients are averaged for one step of the optimizer."""
    reference_accumulation_steps: int = 1
    """The same in the user's own loop."""
    decay: Decay | None = None
    """None where the learning rate comes down as the user has it, or not at all."""
    large_batch: LargeBatch | None = None
    """What could train in place of the user's optimizer; None for batches that are not so large."""
    notes: tuple[str, ...] = ()

    @property
    def step_samples(self) -> int:
        """Samples in one step of the optimizer."""
        return self.batch_size * self.accumulation_steps

    @property
    def reference_step_samples(self) -> int:
        """Samples in one step of the user's own."""
        return self.reference_batch_size * self.reference_accumulation_steps

    @property
    def growth(self) -> float:
        """How many times as many samples a step has as the user's own."""
        return self.step_samples / self.reference_step_samples


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseScale:
    """The noise scale in samples, with what the steps leave open."""

    value: float | None
    """None where the steps do not bound it above: then it is at least `lower_bound`."""
    low: float
    high: float | None
    """`low` and `high` hold it with 95 %; None where `value` is."""
    lower_bound: float
    """A tenth of the resamples lie under it: what samples are counted by, as too small a noise scale harms
    nothing. The cap on what they may teach goes by `value`."""
    micro_samples: int
    micro_batches: int
    steps: int
    """Those that count."""
    skipped: int
    """Those whose gradients were not finite."""
    at: str
    """Where in training: `weights as handed over`, or `after N to M warm steps` from there."""

    def in_words(self) -> str:
        """Such as `577 samples (417 to 679), after 214 to 400 warm steps`, or `at least 210 samples, ...`."""
        if self.value is None or self.high is None:
            return f"at least {self.lower_bound:.0f} samples, {self.at}"
        return f"{self.value:.0f} samples ({self.low:.0f} to {self.high:.0f}), {self.at}"


PilotKind = Literal["same", "worse", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pilot:
    """What training a while in a changed batch and in the user's own showed.

    same: it comes as far as its samples are counted for. worse: it does not. unknown: nothing that could be
    compared, or chance alone moves the loss by as much.
    """

    kind: PilotKind
    batch_size: int
    reference: int
    """The user's own."""
    reason: str
    """In words, without the batch size."""
    steps: int = 0
    """Of the changed batch; the user's own trained on as many samples."""
    warm_steps: int = 0
    """Steps of the user's own before both began."""
    samples: int = 0
    held_samples: int = 0
    """Samples that the losses are of and nobody trained on; 0 where they are training losses."""
    priced: float = 1.0
    """What a sample is counted for in the changed batch."""
    loss: float | None = None
    expected: float | None = None
    """Of the user's own batch after `priced` times as many samples."""
    reference_loss: float | None = None
    """Of the user's own batch after as many samples."""
    change: float | None = None
    """Of `loss` over `expected`, relative, signed."""
    limit: float | None = None
    wall_s: float = 0.0

    def in_words(self) -> str:
        """Such as `batches of 128: learns what its samples are counted for: ...`."""
        return f"batches of {self.batch_size}: {self.reason}"


Objective = Literal["goodput", "throughput", "time"]
"""goodput: learns fastest, with nearly as much from each sample. time: learns fastest, if epochs are added to
make up for what each teaches less. throughput: most samples a second, whatever they teach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """One line of the table."""

    batch_size: int
    samples_per_s: Interval
    peak_bytes: int | None
    efficiency: float | None
    """What a sample teaches, relative to the user's batch; None where no noise scale is known."""
    goodput: float | None
    """`samples_per_s` times `efficiency`."""
    epochs_to_match: float | None
    """Epochs that teach what the user's own epochs (one, where nobody said) teach at their batch."""
    samples_to_match: int | None
    """The same in samples; None where an epoch's length is unknown."""
    steps: int | None
    """Optimizer steps in the user's epochs; None where an epoch's length is unknown."""
    caps: tuple[str, ...] = ()
    """Why it is not recommended however fast it is, each in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchChoice:
    """The table with its marks."""

    rows: tuple[BatchRow, ...]
    """By batch size."""
    reference: int
    """The user's own batch."""
    recommended: int
    max_throughput: int
    objective: Objective
    gain: float
    """The objective at `recommended` over that at `reference`."""
    verified: bool
    """Whether a noise scale stands behind it."""
    limited_by: tuple[str, ...] = ()
    """The caps without which a larger gain would have been recommended."""

    def weight(self, batch_size: int) -> float:
        """What a sample counts for in the objective; 1 where it is not known, and for throughput alone."""
        if self.objective == "throughput":
            return 1.0
        taught = [row.efficiency for row in self.rows if row.batch_size == batch_size]
        return taught[0] if taught and taught[0] is not None else 1.0

    def row(self, batch_size: int) -> BatchRow:
        """The line of this batch size.

        Raises:
            KeyError: for one that was not measured.
        """
        for row in self.rows:
            if row.batch_size == batch_size:
                return row
        raise KeyError(batch_size)


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
    batch: BatchChoice | None = None
    """The batch sizes that ran, and what each is worth; None where only one did."""
    noise: NoiseScale | None = None
    """Of the user's own gradients; None where they were not looked at, or showed none."""
    pilots: tuple[Pilot, ...] = ()
    """Larger batches that were trained a while beside the user's own, in that order."""
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

    def weight(self, settings: Settings) -> float:
        """What a sample counts for under `settings` beside *yours*, as in the verdict's ratio."""
        size = settings.loader.batch_size
        if self.batch is None or size is None:
            return 1.0
        return self.batch.weight(size)

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
