"""The Space: every Settings that may be tried on a machine, the first guess, and the moves between them."""

from __future__ import annotations

import difflib
import itertools
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from autotune.errors import UsageError
from autotune.facts import MachineFacts, WorkloadFacts
from autotune.outcome import Kept
from autotune.settings import GROUPS, CompileMode, KnobValue, Precision, Settings
from autotune.space import rules
from autotune.space.knobs import CLASS_RANK, KNOBS, Knob, KnobClass, MoveGroup, knob
from autotune.space.values import Ground, choice, native_precisions, stands_in_for

_DOUBLING = 2.5
"""Times as large a batch is at most still twice as large: sizes are rounded to multiples of 8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A knob that is searched."""

    knob: str
    values: tuple[KnobValue, ...]
    """In their order, *yours* among them."""
    kind: KnobClass


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What may be tried. Where there can be workers `persistent_workers` is not searched: it follows them."""

    machine: MachineFacts
    workload: WorkloadFacts
    yours: Settings
    """What the user runs, exactly as given."""
    start: Settings
    """Where candidates begin: *yours* with what the user fixed."""
    options: tuple[Option, ...]
    kept: tuple[Kept, ...]
    fixed: frozenset[str] = frozenset()
    """Knobs that the user fixed."""

    @property
    def names(self) -> tuple[str, ...]:
        """The knobs searched."""
        return tuple(option.knob for option in self.options)

    def values(self, name: str) -> tuple[KnobValue, ...]:
        """The values of a knob; the only one where it is not searched."""
        for option in self.options:
            if option.knob == name:
                return option.values
        return (self.start.flat()[name],)

    def canonical(self, settings: Settings) -> Settings:
        """The one spelling of `settings` here; `persistent_workers` stays where the user fixed it."""
        keep = "persistent_workers" in self.fixed
        return rules.canonical(settings, self.machine, self.workload, keep_persistent=keep)

    def settings(self, **changes: KnobValue) -> Settings:
        """`start` with these knobs changed, in canonical spelling; without a change exactly `start`.

        Raises:
            KeyError: for a name that is no knob.
        """
        changed = self.start.replace(**changes)
        return self.start if changed == self.start else self.canonical(changed)

    def legal(self, settings: Settings) -> bool:
        """Whether these settings are in the space: *yours*, or option values that go together here."""
        return _legal(self, settings)

    def stood_in_for(self, batch_size: KnobValue) -> int | None:
        """The doubling of the user's batch that this size lies below, where it may be tried; else None.

        None also where steps keep their samples: there are no doublings then, but parts of a step.
        """
        own = self.yours.loader.batch_size
        if own is None or self.workload.step_samples is not None or not isinstance(batch_size, int):
            return None
        double = stands_in_for(batch_size, own)
        return double if double in self.values("batch_size") else None

    def every(self) -> Iterator[Settings]:
        """All that the options can make and that is legal here, each once; lazily, as there may be many."""
        met: set[Settings] = set()
        for values in itertools.product(*(option.values for option in self.options)):
            made = self.settings(**dict(zip(self.names, values)))
            if made not in met and self.legal(made):
                met.add(made)
                yield made

    @property
    def size(self) -> int:
        """How many different settings the options can make."""
        loading = [o for o in self.options if o.knob not in GROUPS["compute"]]
        names = [option.knob for option in loading]
        drawn = (dict(zip(names, values)) for values in itertools.product(*(o.values for o in loading)))
        distinct = {made for made in (self.settings(**changes) for changes in drawn) if self.legal(made)}
        # No compute knob forbids a value of another, nor one of the loader's.
        return len(distinct) * math.prod(len(o.values) for o in self.options if o not in loading)


def build_space(
    machine: MachineFacts,
    workload: WorkloadFacts,
    yours: Settings,
    *,
    allow: KnobClass = "numerics",
    fixed: Mapping[str, KnobValue] | None = None,
    max_batch_size: int | None = None,
) -> Space:
    """The space of a workload on a machine.

    Args:
        machine: what bounds a run.
        workload: what is tuned.
        yours: what the user runs today; always in the space.
        allow: the highest class of knob that may change.
        fixed: values that every candidate must have; of any class.
        max_batch_size: how large batches may get where that is more than eight times the user's own.

    Raises:
        UsageError: for an unknown knob in `fixed`, or a value that it cannot have or that does not run here.
    """
    pinned = dict(fixed or {})
    for name, value in pinned.items():
        _check_value(knob(name), value)
    start = _start(machine, workload, yours, pinned)
    ground = Ground(
        machine=machine,
        workload=workload,
        yours=yours,
        start=start,
        fixed=frozenset(pinned),
        max_batch_size=max_batch_size,
    )
    options: list[Option] = []
    kept: list[Kept] = []
    for each in KNOBS:
        made = _option(each, ground, allow)
        if isinstance(made, Option):
            options.append(made)
        elif made is not None:
            kept.append(made)
    return Space(
        machine=machine,
        workload=workload,
        yours=yours,
        start=start,
        options=tuple(options),
        kept=tuple(kept),
        fixed=frozenset(pinned),
    )


def _option(each: Knob, ground: Ground, allow: KnobClass) -> Option | Kept | None:
    """The knob as searched or kept; None for one that follows others."""
    value = ground.start.flat()[each.name]
    if each.name in ground.fixed:
        return Kept(knob=each.name, value=value, why="you fixed it")
    found = choice(each.name, ground)
    if found.kept:
        return Kept(knob=each.name, value=value, why=found.kept)
    if CLASS_RANK[each.kind] > CLASS_RANK[allow]:
        change = "rounding" if each.kind == "numerics" else "what is learned"
        why = f'it changes {change}, which allow="{allow}" leaves alone'
        return Kept(knob=each.name, value=value, why=why)
    if each.name == "persistent_workers":
        return None
    # None is a choice of its own but for the prefetch factor, where it goes with having no workers.
    if len([v for v in found.values if v is not None or each.name in ("cpu_threads", "compile")]) < 2:
        return Kept(knob=each.name, value=value, why="no other value is possible here")
    return Option(knob=each.name, values=found.values, kind=each.kind)


def _start(
    machine: MachineFacts, workload: WorkloadFacts, yours: Settings, pinned: Mapping[str, KnobValue]
) -> Settings:
    """*Yours* with the pinned values, which must survive being made canonical and run here."""
    changed = yours.replace(**pinned)
    if changed == yours:
        return yours
    wants_workers = pinned.get("prefetch_factor") is not None or pinned.get("persistent_workers") is True
    if wants_workers and "num_workers" not in pinned and not changed.loader.num_workers:
        changed = changed.replace(num_workers=1)
    keep = "persistent_workers" in pinned
    start = rules.canonical(changed, machine, workload, keep_persistent=keep)
    lost = [name for name, value in pinned.items() if start.flat()[name] != value]
    reasons = rules.violations(changed if lost else start, machine, workload, yours=yours)
    if lost or reasons:
        text = ", ".join(f"{name}={value}" for name, value in pinned.items())
        raise UsageError(
            f"the fixed settings cannot be used here: {text}",
            why="; ".join(reasons)
            or f"{lost[0]} does not apply to {workload.device} with the other settings",
            fix="leave them out, or fix values that this machine and workload can run",
        )
    return start


def _check_value(which: Knob, value: KnobValue) -> None:
    """Whether the knob can have the value on any machine.

    Raises:
        UsageError: where it cannot.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    words = {"precision": typing.get_args(Precision), "compile": (None, *typing.get_args(CompileMode))}
    fix = ""
    if which.name in words:
        known = [str(word) for word in words[which.name]]
        good, wanted = value in words[which.name], f"one of {', '.join(known)}"
        close = difflib.get_close_matches(str(value), known, n=1)
        fix = f"did you mean `{close[0]}`?" if close else ""
    elif which.name == "num_workers":
        good, wanted = whole and int(value or 0) >= 0, "a whole number of at least 0"
    elif which.name in ("prefetch_factor", "cpu_threads", "batch_size"):
        none_too = which.name != "batch_size"
        good = (none_too and value is None) or (whole and int(value or 0) >= 1)
        wanted = "a whole number of at least 1" + (", or None" if none_too else "")
    else:
        good, wanted = isinstance(value, bool), "True or False"
    if not good:
        raise UsageError(f"`{which.name}` cannot be {value!r}", why=f"it must be {wanted}", fix=fix)


@lru_cache(maxsize=8192)  # the search asks for the same settings again and again
def _legal(space: Space, settings: Settings) -> bool:
    if settings == space.yours:
        return True
    flat = settings.flat()
    rebuilt = space.settings(**{name: flat[name] for name in space.names})
    return (
        settings in (rebuilt, space.canonical(rebuilt))
        and all(flat[name] in space.values(name) for name in space.names)
        and all(flat[name] == space.start.flat()[name] for name in space.fixed)
        and not rules.violations(settings, space.machine, space.workload, yours=space.yours)
    )


@lru_cache(maxsize=16)
def bundle(space: Space) -> Settings:
    """What an expert would try first, from the facts alone; legal, and *yours* where nothing applies.

    Without `cudnn_benchmark` and `compile`, which cost seconds to minutes in every process, and without
    `keep_host_memory`, after which nothing else shares the process: they are tried by themselves.

    Sources: the tuning guides of PyTorch and NVIDIA for the switches; one CPU left to the training loop.
    """
    guess = space.start
    for name, wanted in _guesses(space):
        changed = _changed(space, guess, {name: wanted})
        if space.legal(changed):
            guess = changed
    return guess


def _guesses(space: Space) -> list[tuple[str, KnobValue]]:
    """Knob and value in order of trust, those searched only; a later guess may refine an earlier one."""
    usable = space.machine.usable_cpus
    # On a CPU every worker takes a core from the model.
    workers = max(1, min(usable - 1, 8)) if space.workload.accelerated else max(1, min(usable // 4, 2))
    switches: list[tuple[str, KnobValue]] = [
        *((name, True) for name in ("pin_memory", "non_blocking", "channels_last", "fused_optimizer")),
        *(("precision", p) for p in reversed(native_precisions(space.machine, space.workload))),
    ]
    below = [n for n in space.values("num_workers") if isinstance(n, int) and 0 < n <= workers]
    counts: list[tuple[str, KnobValue]] = [("num_workers", n) for n in below]
    threads = [n for n in space.values("cpu_threads") if isinstance(n, int) and n <= usable - workers]
    if threads and below:
        counts.append(("cpu_threads", threads[-1]))
    return [(name, value) for name, value in (*counts, *switches) if name in space.names]


@lru_cache(maxsize=512)
def neighbours(space: Space, settings: Settings, group: MoveGroup) -> tuple[tuple[str, Settings], ...]:
    """Legal settings one step from `settings` on one side, each with the knob that moved; likely gains first.

    Numbers move one step up or down their ladder, batches as far as the next doubling; from no workers also
    to one for each usable CPU, and threads also to one. On a CPU a step of the workers is also offered with
    threads for the cores that it leaves, and for all of them. Switches and precisions move to every other
    value. `pin_memory` and `non_blocking` move as a pair, since a background copy needs pinned memory to pay.
    Where *yours* starts its workers anew in every epoch, letting them persist is one of the loader's moves.
    """
    flat = settings.flat()
    moves: list[tuple[str, dict[str, KnobValue]]] = []
    if group == "transfer":
        moves = _pair_moves(space, settings)
    else:
        for each in KNOBS:
            if each.group == group and each.name in space.names:
                moves += [(each.name, {each.name: v}) for v in _steps(space, each.name, flat[each.name])]
    if group == "loader":
        moves += _shared_moves(space, settings)
    made = [(name, _changed(space, settings, changes)) for name, changes in moves]
    if group == "loader":
        persisting = space.canonical(settings)
        if persisting.loader.persistent_workers != settings.loader.persistent_workers:
            made.append(("persistent_workers", persisting))
    first: dict[Settings, str] = {}
    for name, candidate in made:
        if candidate != settings and space.legal(candidate):
            first.setdefault(candidate, name)
    return tuple((name, candidate) for candidate, name in first.items())


def _changed(space: Space, settings: Settings, changes: Mapping[str, KnobValue]) -> Settings:
    """`settings` with changes, in the space's spelling."""
    flat = settings.flat()
    return space.settings(**{name: flat[name] for name in space.names} | dict(changes))


def _shared_moves(space: Space, settings: Settings) -> list[tuple[str, dict[str, KnobValue]]]:
    """On a CPU workers and threads share its cores, so a step of the workers may need other threads to pay.

    Either alone leaves cores idle or fought for: from one worker and one thread on two cores, no workers and
    two threads is two moves away, and each of them alone may lose.
    """
    if not {"num_workers", "cpu_threads"} <= set(space.names):
        return []
    cpus, now = space.machine.usable_cpus, settings.compute.cpu_threads
    counts = dict.fromkeys([*_steps(space, "num_workers", settings.loader.num_workers), 0])
    return [
        ("num_workers", {"num_workers": count, "cpu_threads": threads})
        for count in counts
        if isinstance(count, int) and count in space.values("num_workers")
        if count != settings.loader.num_workers
        for threads in dict.fromkeys((max(1, cpus - count), cpus))
        if threads in space.values("cpu_threads") and threads != now
    ]


def _pair_moves(space: Space, settings: Settings) -> list[tuple[str, dict[str, KnobValue]]]:
    now = (settings.loader.pin_memory, settings.transfer.non_blocking)
    # Copying in the background from memory that is not pinned is tried only where pinning cannot be.
    alone = "pin_memory" not in space.names
    pairs = [
        (pin, copy)
        for pin in reversed(space.values("pin_memory"))
        for copy in reversed(space.values("non_blocking"))
        if pin or not copy or alone
    ]
    return [
        ("non_blocking" if pin == now[0] else "pin_memory", {"pin_memory": pin, "non_blocking": copy})
        for pin, copy in pairs
        if (pin, copy) != now
    ]


def _steps(space: Space, name: str, now: KnobValue) -> list[KnobValue]:
    """The values to move to from `now`."""
    values = space.values(name)
    if isinstance(now, (bool, str)):
        return [v for v in values if v != now]
    numbers = [v for v in values if isinstance(v, int)]
    if now is None:
        # Torch's own number of threads is about one for each CPU. Without workers nothing is prefetched.
        return (
            [numbers[-1], numbers[0]] if name == "cpu_threads" else [v for v in values if isinstance(v, str)]
        )
    up, down = [v for v in numbers if v > now], [v for v in numbers if v < now]
    steps: list[KnobValue] = [*up[:1], *down[-1:]]
    if name == "batch_size":
        steps += [v for v in (*up[1:2], *down[-2:-1]) if max(v, now) <= _DOUBLING * min(v, now)]
    if name == "num_workers" and now == 0:
        steps += [v for v in up if v <= space.machine.usable_cpus][-1:]
    if name == "cpu_threads":
        steps += [*down[:1], *([None] if None in values else [])]
    return steps
