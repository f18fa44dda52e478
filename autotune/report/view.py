"""What a report says, before it is laid out: `Outcome -> View` and `Profile -> View`. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from autotune.facts import MachineFacts
from autotune.outcome import Interval, Kept, Outcome, VerdictKind
from autotune.profile import schema
from autotune.report.batches import BatchTable, batch_table
from autotune.report.figures import Failures, break_even_s, failures, rival, sides
from autotune.report.recipes import recipe_notes, recipe_rows
from autotune.report.rows import Comparison, Row, Side, settings_rows, summary_rows
from autotune.report.words import count_text, failure_text, rate_text, value_text
from autotune.settings import Settings
from autotune.space.cautions import cautions
from autotune.units import format_bytes, format_duration, format_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """A sentence and, where there is one, its second half: a reason, or a way out."""

    text: str
    more: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Everything a report says, in words and in order."""

    head: tuple[str, ...]
    """Short facts: version, name, device, rate of *yours*."""
    headline: str
    """The verdict in one or two sentences."""
    good: bool
    """Whether the answer is sure: a win, or *yours* shown to be as good."""
    best_label: str = ""
    """What the second column holds: best, best so far, tried; empty without one."""
    settings: tuple[Row, ...] = ()
    summary: tuple[Row, ...] = ()
    batches: BatchTable = field(default_factory=BatchTable)
    """The batch sizes that ran; empty where only one did."""
    remarks: tuple[str, ...] = ()
    """Ceilings and what else explains the table."""
    kept: tuple[Remark, ...] = ()
    failures: tuple[Remark, ...] = ()
    notes: tuple[str, ...] = ()
    stopped: str = ""
    """How many trials, how long, and why it ended."""
    next: tuple[str, ...] = ()
    """What to type now."""


def view_of(outcome: Outcome, *, version: str = "", saved: str = "") -> View:
    """The report of a run.

    Args:
        outcome: what the run found; every figure is computed from its trials.
        version: of autotune, for the first line.
        saved: where the profile was saved; empty where it was not.
    """
    verdict, changed = outcome.verdict, outcome.best != outcome.yours
    shown = outcome.best if changed else rival(outcome)
    yours, other = sides(outcome, shown or outcome.yours)
    workload = outcome.workload
    summary: tuple[Row, ...] = ()
    if yours is not None:
        both = Comparison(
            yours=yours, other=other if shown else None, verdict=verdict.kind, ratio=verdict.ratio
        )
        summary = summary_rows(
            both, samples=workload.dataset_samples, epochs=outcome.epochs, has_loader=workload.has_loader
        )
    failed = failures(outcome.trials)
    return View(
        head=_head(version, outcome.name, _machine_text(outcome.machine, workload.device), yours),
        headline=_headline(
            verdict.kind,
            verdict.sentence,
            len(outcome.trials),
            changed=changed,
            ratio=verdict.ratio,
        ),
        good=verdict.kind in ("faster", "kept"),
        best_label=_best_label(verdict.kind, changed=changed, shown=shown),
        settings=(
            *settings_rows(
                outcome.yours,
                shown,
                outcome.worth if changed else (),
                has_loader=workload.has_loader,
                step_kept=outcome.recipe is not None and outcome.recipe.growth == 1,
            ),
            *(recipe_rows(outcome.recipe) if changed else ()),
        ),
        summary=summary,
        batches=batch_table(outcome.batch, outcome.noise, outcome.epochs),
        remarks=(*_weighed(yours, other, outcome.weight(shown or outcome.yours)), *_remarks(outcome)),
        kept=_kept(outcome.kept),
        failures=tuple(_failure_remark(group) for group in failed),
        notes=(
            *outcome.notes,
            *recipe_notes(outcome.recipe, has_rows=changed),
            *cautions(outcome.best, workload.optimizer_class, outcome.recipe),
        ),
        stopped=_stopped(
            len(outcome.trials),
            sum(group.count for group in failed),
            outcome.elapsed_s,
            outcome.budget_s,
            outcome.stop_reason,
        ),
        next=_next(outcome, saved),
    )


def view_of_profile(profile: schema.Profile) -> View:
    """The report of a saved profile: the table again, from the figures that the file holds."""
    measured, workload = profile.measured, profile.workload
    changed = profile.settings != measured.yours_settings
    accelerated = not workload.device.startswith("cpu")
    yours, best = (_saved_side(side, accelerated=accelerated) for side in (measured.yours, measured.best))
    has_loader = workload.dataset_class is not None
    summary: tuple[Row, ...] = ()
    if yours is not None:
        both = Comparison(
            yours=yours, other=best if changed else None, verdict=measured.verdict, ratio=measured.ratio
        )
        summary = summary_rows(
            both, samples=workload.dataset_samples, epochs=measured.epochs, has_loader=has_loader
        )
    failed = sum(measured.failures.values())
    return View(
        head=_head(profile.autotune_version, profile.name, _saved_machine_text(profile), yours),
        headline=_headline(
            measured.verdict,
            measured.sentence,
            measured.trials,
            changed=changed,
            ratio=measured.ratio,
        ),
        good=measured.verdict in ("faster", "kept"),
        best_label=_best_label(measured.verdict, changed=changed, shown=None),
        settings=(
            *settings_rows(
                measured.yours_settings,
                profile.settings if changed else None,
                measured.worth,
                has_loader=has_loader,
                step_kept=profile.recipe is not None and profile.recipe.growth == 1,
            ),
            *(recipe_rows(profile.recipe) if changed else ()),
        ),
        summary=summary,
        batches=batch_table(measured.batch, measured.noise, measured.epochs),
        remarks=(
            *_weighed(yours, best, measured.weight(profile.settings)),
            f"Measured {profile.created}: {workload.model_class}, {workload.dataset_class or 'no dataset'}.",
        ),
        kept=_kept(measured.kept),
        failures=tuple(
            Remark(text=f"{count} x {failure_text(kind)}") for kind, count in measured.failures.items()
        ),
        notes=(
            *measured.notes,
            *recipe_notes(profile.recipe, has_rows=changed),
            *cautions(profile.settings, workload.optimizer_class, profile.recipe),
        ),
        stopped=_stopped(
            measured.trials, failed, measured.elapsed_s, measured.budget_s, measured.stop_reason
        ),
    )


def device_text(machine: MachineFacts, device: str) -> str:
    """What `device` is on this machine: the accelerator with its memory, or the processor."""
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return machine.cpu_name or "CPU"
    for gpu in machine.gpus:
        if gpu.index == int(index or 0):
            return f"{gpu.name} {format_bytes(gpu.memory_bytes)}"
    return device


def _machine_text(machine: MachineFacts, device: str) -> str:
    cpus = count_text(machine.logical_cpus, "CPU")
    if machine.usable_cpus < machine.logical_cpus:
        cpus = f"{machine.usable_cpus} of {cpus}"
    return f"{device_text(machine, device)}, {cpus}, torch {_short(machine.torch_version)}"


def _saved_machine_text(profile: schema.Profile) -> str:
    machine, (kind, _, index) = profile.machine, profile.workload.device.partition(":")
    name = machine.cpu_name or "CPU"
    if kind != "cpu":
        wanted = int(index) if index.isdecimal() else 0
        named = [gpu.name for gpu in machine.gpus if gpu.index == wanted]
        name = named[0] if named else profile.workload.device
    return f"{name}, {count_text(machine.usable_cpus, 'CPU')}, torch {_short(machine.torch_version)}"


def _short(version: str) -> str:
    return version.partition("+")[0]


def _saved_side(side: schema.Side, *, accelerated: bool) -> Side | None:
    if side.samples_per_s is None:
        return None
    return Side(
        samples_per_s=side.samples_per_s,
        wait_share=side.wait_share,
        peak_bytes=side.peak_device_bytes if accelerated else side.peak_host_bytes,
        trials=side.runs,
        final=True,
    )


def _head(version: str, name: str, machine: str, yours: Side | None) -> tuple[str, ...]:
    rate = "" if yours is None else f"yours {format_rate(yours.samples_per_s)} samples/s"
    return tuple(part for part in (f"autotune {version}".rstrip(), name, machine, rate) if part)


def _headline(kind: VerdictKind, sentence: str, count: int, *, changed: bool, ratio: Interval | None) -> str:
    """One or two sentences; without a comparison in the finals nothing is claimed about the best."""
    trials = count_text(count, "trial")
    tied = ratio is not None and ratio.low <= 1 <= ratio.high  # else what is next says which was faster
    kept = "are already within noise of the best" if tied else "stay"
    so_far = "the best so far, not confirmed" if changed else "cut short before anything beat your settings"
    openings = {
        "faster": "" if sentence else "Faster than yours.",
        "kept": f"Your settings {kept} ({trials}).",
        "unsure": f"Not sure: no gain could be told from noise, so yours stay ({trials}).",
        "incomplete": f"Incomplete: {so_far} ({trials}).",
    }
    # The verdict's own sentence opens with who stays, which has just been said.
    return f"{openings[kind]} {_sentence(sentence.removeprefix('yours stays: '))}".strip()


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "." if text else ""


def _best_label(kind: VerdictKind, *, changed: bool, shown: Settings | None) -> str:
    if changed:
        return "best so far" if kind == "incomplete" else "best"
    return "tried" if shown is not None else ""


def _remarks(outcome: Outcome) -> tuple[str, ...]:
    remarks = []
    ceilings = [
        f"{label} reaches {format_rate(rate)} samples/s"
        for label, rate in (
            ("the loader alone", outcome.ceiling("loader")),
            ("the step alone", outcome.ceiling("compute")),
        )
        if rate is not None
    ]
    if ceilings:
        remarks.append(f"With your settings {' and '.join(ceilings)}.")
    if outcome.workload.has_loader:
        remarks.append(rate_text(outcome.workload.dataset_samples, outcome.epochs))
    else:
        remarks.append("There is no DataLoader here: only the compute side was tuned.")
    after_s = break_even_s(outcome)
    if after_s is not None:
        remarks.append(f"Tuning pays back after {format_duration(after_s)} of training.")
    return tuple(remarks)


def _weighed(yours: Side | None, other: Side | None, weight: float) -> tuple[str, ...]:
    """Why the ratio is not the quotient of the two rates, where samples teach less in larger batches."""
    if yours is None or other is None or weight == 1:
        return ()
    plain = other.samples_per_s / yours.samples_per_s
    teaching = f"times {weight:.2f}, what a sample teaches beside one of yours"
    return (f"In samples/s alone it is {plain:.2f}x; {teaching}, it is {plain * weight:.2f}x.",)


def _kept(kept: tuple[Kept, ...]) -> tuple[Remark, ...]:
    return tuple(
        Remark(text=f"{item.knob} {value_text(item.knob, item.value)}", more=item.why) for item in kept
    )


def _failure_remark(group: Failures) -> Remark:
    message = group.first.message.rstrip(".")
    return Remark(text=f"{group.count} x {failure_text(group.kind)}: {message}", more=group.first.hint)


def _stopped(trials: int, failed: int, elapsed_s: float, budget_s: float, reason: str) -> str:
    text = count_text(trials, "trial")
    if failed:
        text += f" ({failed} failed, not counted)"
    if elapsed_s:
        text += f" in {format_duration(elapsed_s)}"
    if budget_s:
        text += f" of {format_duration(budget_s)}"
    return f"{text}; stopped: {reason.rstrip('.')}." if reason else f"{text}."


def _next(outcome: Outcome, saved: str) -> tuple[str, ...]:
    lines = []
    if saved:
        lines.append(f"autotune show {saved}")
    if outcome.study:
        if outcome.verdict.kind in ("unsure", "incomplete"):
            lines.append("resume=True, or --resume, goes on from here")
        lines.append(f"optuna-dashboard {outcome.study}")
    return tuple(lines)
