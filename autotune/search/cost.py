"""What a trial will cost, how long to time it, and what is set aside for the finals. Pure."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from functools import cached_property

from autotune.facts import WorkloadFacts
from autotune.search import compiling
from autotune.search.knowledge import Knowledge
from autotune.settings import ComputeSettings, Settings
from autotune.space.rules import needs_own_process
from autotune.trial import Mode, Stage, TrialSpec

FINAL_PAIRS = 9
"""Pairs set aside for from the start: with 2 % run noise they show a gain of 5 % nine times in ten."""
_FINALS_SHARE = 0.5
"""What is set aside is at most this part of what is left after *yours* has run, but for the fewest pairs."""
_FRESH_PAIRS = 5
MIN_PAIRS = 4
"""Pairs without which no win is declared."""
MAX_PAIRS = 15
"""Pairs that are run at most, where it is not decided and time is left: outliers take some of them."""
MIN_BLOCKS = 4
_FRESH_SHARE = 0.5
"""`_FRESH_PAIRS` in fresh processes may take this part of what is left after *yours* has run."""
_GIVE_UP = 0.7
"""A trial that is this far behind the incumbent after two blocks is not measured to the end."""
_SHORT = 0.5
"""Partial trials only order the full ones, so they are timed for this part of a window."""
MARGIN = 1.15
"""A round of the finals is begun only when this many times its predicted seconds are left."""
WINDOW_CAP = 2.5
"""A challenger that cannot be told from the incumbent is timed for at most this many windows."""
LEAST_WARM_S = 1.0
"""Seconds of steps before the timed ones in the finals, on an accelerator: its clocks rise with load."""
_EDGE_STEPS = 4
"""Batches of a short epoch: whole ones, and the last one that is smaller."""
_FINAL_WINDOW = 1.5
"""Finals are timed for this many windows of the search."""
TIME_USED_UP = "the time for the search was used up"
"""Why a search ended, in words."""
_SURVIVED = ("user_error", "non_finite", "pickle")
"""Failures after which the bench process goes on; after others it is replaced."""


def window_s(budget_s: float, step_s: float) -> float:
    """Timed seconds of a search trial: 0.6 s of a minute's budget, 2 s of five minutes, 3 s at most.

    Slow steps get a window of eight, as far as a fortieth of the budget allows.
    """
    base = min(max(budget_s / 150, 0.6), 3.0)
    return max(base, min(8 * step_s, budget_s / 40))


def min_blocks(window_s: float, step_s: float, workers: int) -> int:
    """Blocks to record at least: four, or two where a block of one step for each worker is long."""
    return MIN_BLOCKS if MIN_BLOCKS * max(1, workers) * step_s <= 2 * window_s else 2


def least_warm_s(workload: WorkloadFacts) -> float:
    """Seconds of steps before the timed ones of a final."""
    return LEAST_WARM_S if workload.accelerated else 0.0


class Costs:
    """Costs in wall seconds, learned from the trials so far."""

    def __init__(self, know: Knowledge) -> None:
        self.know = know
        facts = know.ctx.space.workload
        self.setup_s = facts.setup_s
        self.step_s = know.latest(know.incumbent).step_s if know.full else facts.step_s
        self.window_s = window_s(know.ctx.budget_s, self.step_s)
        self._overheads: dict[tuple[Settings, Mode, bool], float] = {}

    def overhead_s(self, settings: Settings, mode: Mode, *, fresh: bool = False) -> float:
        """What such a trial costs beside its timed blocks: warming up, starting workers and processes.

        The most that these settings took, else what is usual: a slow neighbour says little about them.
        """
        asked = (settings, mode, fresh)
        if asked not in self._overheads:
            self._overheads[asked] = self._overhead_s(settings, mode, fresh=fresh)
        return self._overheads[asked]

    def _overhead_s(self, settings: Settings, mode: Mode, *, fresh: bool) -> float:
        trials = [
            t
            for t in self.know.history
            if t.spec.mode == mode and t.spec.fresh_process == fresh and not t.spec.epoch_edge
        ]
        measured = [(t.settings, t.measurement) for t in trials if t.measurement is not None]
        own = [m for theirs, m in measured if theirs == settings]
        if fresh:
            known = [m.wall_s - m.elapsed_s for m in own]
            again_s = self.overhead_s(settings, mode) - self._warmup_s(settings, mode)
            return max(known, default=self.setup_s + again_s + self._first_warmup_s(settings, mode))
        starts = [m.wall_s - m.elapsed_s - m.warmup_s for _, m in measured]
        if own:
            start_s = max(m.wall_s - m.elapsed_s - m.warmup_s for m in own)
        elif starts:
            start_s = statistics.median_high(starts)
        elif mode != "full":
            return self.overhead_s(settings, "full")
        else:
            start_s = self.setup_s
        return start_s + self._warmup_s(settings, mode)

    def _warmups(self, settings: Settings, *, own: bool) -> list[float]:
        """Seconds of warm-up, for each compute settings the longest: of `settings`' own, or of all like them.

        Alike are those that choose kernels in the same way: by search, or by guess; none that are compiled.
        """
        longest: dict[tuple[ComputeSettings, int | None], float] = {}
        wanted = (settings.compute, settings.loader.batch_size)
        for trial in self.know.history:
            if trial.measurement is None or trial.spec.mode == "loader":
                continue
            which = (trial.settings.compute, trial.settings.loader.batch_size)
            alike = not needs_own_process(trial.settings, settings) and trial.settings.compute.compile is None
            if which == wanted or (alike and not own):
                longest[which] = max(longest.get(which, 0.0), trial.measurement.warmup_s)
        return list(longest.values())

    def _first_warmup_s(self, settings: Settings, mode: Mode) -> float:
        """Seconds of warm-up in a process that has not run such a step: kernels are loaded and chosen."""
        if mode == "loader":
            return 0.0
        if settings.compute.compile is not None:
            return compiling.next_s(self.know, settings)
        known = self._warmups(settings, own=True) or self._warmups(settings, own=False)
        return statistics.median_high(known) if known else 0.0

    def _warmup_s(self, settings: Settings, mode: Mode) -> float:
        """Seconds of warm-up in the process as it is: little where such a step has run."""
        if mode == "loader":
            return 0.0
        if settings.compute.compile is not None or not self._warmups(settings, own=True):
            return self._first_warmup_s(settings, mode)
        return min(
            t.measurement.warmup_s
            for t in self.know.history
            if t.measurement is not None and t.spec.mode != "loader"
        )

    def predicted_s(self, spec: TrialSpec) -> float:
        """Wall seconds that `spec` is expected to take."""
        timed = self._timed_s(spec.settings, spec.window_s, spec.min_blocks)
        return (
            timed
            + self._revival_s(spec)
            + self.overhead_s(spec.settings, spec.mode, fresh=spec.fresh_process)
            + self._warming_s(spec.settings, spec.least_warm_s, fresh=spec.fresh_process)
            + (self._crossing_s(spec.settings) if spec.epoch_edge else 0.0)
        )

    def _warming_s(self, settings: Settings, least_s: float, *, fresh: bool) -> float:
        """Seconds of steps beyond the usual warm-up, so that it takes `least_s`."""
        if fresh and any(t.spec.fresh_process and t.settings == settings for t in self.know.history):
            return 0.0  # it is in what that run took
        usual_s = self._first_warmup_s(settings, "full") if fresh else self._warmup_s(settings, "full")
        return max(0.0, least_s - usual_s)

    def _crossing_s(self, settings: Settings) -> float:
        """Seconds of two short epochs: the workers start for each, and take a batch or two."""
        known = self.know.latest(settings if settings in self.know.full else self.know.incumbent)
        steps = _EDGE_STEPS + settings.loader.num_workers
        return 2 * (known.startup_s + steps * known.step_s)

    def _timed_s(self, settings: Settings, window: float, blocks: int) -> float:
        """Seconds of the blocks, which are whole: each a step for every worker at least."""
        step_s = self.know.latest(settings).step_s if settings in self.know.full else self.step_s
        least_s = max(blocks * max(1, settings.loader.num_workers) * step_s, 1e-6)
        return least_s * math.ceil(window / least_s)

    def _revival_s(self, spec: TrialSpec) -> float:
        """Seconds to bring the bench process up again after a failure, or for another choice of kernels."""
        if spec.fresh_process or not self.know.history:
            return 0.0
        failure = self.know.history[-1].failure
        if failure is not None and failure.kind not in _SURVIVED:
            return self.setup_s
        steps = [t.settings for t in self.know.history if t.spec.mode != "loader"]
        if spec.mode == "loader" or not steps or not needs_own_process(steps[-1], spec.settings):
            return 0.0
        return self.setup_s + self._first_warmup_s(spec.settings, spec.mode)

    def search_spec(self, settings: Settings, stage: Stage, reason: str, mode: Mode = "full") -> TrialSpec:
        """The spec of a search trial; the plan gives it its timeout."""
        window = self.window_s if mode == "full" else self.window_s * _SHORT
        workers = 0 if mode == "compute" else settings.loader.num_workers
        rival = self._rival(settings, stage) if mode == "full" else None
        weight = self.know.ctx.weight(settings)  # a trial counts plain samples, a rival's rate their worth
        return TrialSpec(
            settings=settings,
            stage=stage,
            mode=mode,
            reason=reason,
            window_s=window,
            min_blocks=min_blocks(window, self.step_s, workers),
            give_up_below=None if rival is None else _GIVE_UP * self.know.pace(rival) / weight,
            compare_with=None if rival is None else self.know.surely_behind(rival) / weight,
            window_cap_s=None if rival is None else WINDOW_CAP * window,
            seed=self.know.ctx.seed,
        )

    def reference_spec(self) -> TrialSpec:
        """*Yours* once more, to see the machine's speed: nothing is to be beaten, and nothing given up."""
        spec = self.search_spec(self.know.yours, "joint", "yours again: has the machine's speed changed?")
        return replace(spec, give_up_below=None, compare_with=None, window_cap_s=None)

    def _rival(self, settings: Settings, stage: Stage) -> Settings | None:
        """Whom the trial challenges; None where it is run to learn more of its own settings.

        A trial's steady rate is held against the incumbent's effective one: no run has a steady rate under
        its own effective one, so whoever is below cannot win by a shorter start either. What the sampler
        proposes takes the place of `settings`, so it always challenges.
        """
        challenges = stage == "sampled" or (stage == "joint" and settings != self.know.incumbent)
        return self.know.incumbent if challenges else None

    def final_spec(self, settings: Settings, pair: int) -> TrialSpec:
        """One side of a pair of the finals: a longer window, nothing given up, in a process of its own."""
        window = _FINAL_WINDOW * self.window_s
        return TrialSpec(
            settings=settings,
            stage="final",
            reason=f"pair {pair + 1} of the finals",
            window_s=window,
            least_warm_s=least_warm_s(self.know.ctx.space.workload),
            min_blocks=min_blocks(window, self.step_s, settings.loader.num_workers),
            seed=self.know.ctx.seed,
            fresh_process=self.fresh_finals,
            pair=pair,
        )

    def edge_spec(self, settings: Settings) -> TrialSpec:
        """The winner across the end of an epoch: what it times on the way is not what it is run for."""
        window = _SHORT * self.window_s
        return TrialSpec(
            settings=settings,
            stage="final",
            reason="the winner across the end of an epoch",
            window_s=window,
            min_blocks=min_blocks(window, self.step_s, settings.loader.num_workers),
            epoch_edge=True,
            seed=self.know.ctx.seed,
        )

    @cached_property
    def edge_s(self) -> float:
        """Seconds to set aside for the run across the end of an epoch."""
        if not self.know.ctx.space.workload.has_loader:
            return 0.0
        return MARGIN * self.predicted_s(self.edge_spec(self.know.incumbent))

    def worth_spec(self, settings: Settings, pair: int, reason: str) -> TrialSpec:
        """A run of the winner, or of the winner without one setting."""
        return TrialSpec(
            settings=settings,
            stage="worth",
            reason=reason,
            window_s=self.window_s,
            min_blocks=min_blocks(self.window_s, self.step_s, settings.loader.num_workers),
            seed=self.know.ctx.seed,
            pair=pair,
        )

    def _final_s(self, settings: Settings, *, fresh: bool) -> float:
        """Seconds of one final: fresh processes cost their start."""
        window = _FINAL_WINDOW * self.window_s
        blocks = min_blocks(window, self.step_s, settings.loader.num_workers)
        return (
            self._timed_s(settings, window, blocks)
            + self.overhead_s(settings, "full", fresh=fresh)
            + self._warming_s(settings, least_warm_s(self.know.ctx.space.workload), fresh=fresh)
        )

    @cached_property
    def fresh_finals(self) -> bool:
        """Whether finals run in processes of their own: unless starting those would eat the search's time.

        Judged by what was known when *yours* had run, so that all finals are alike.
        """
        first = next((t for t in self.know.history if t.spec.stage == "final"), None)
        if first is not None:
            return first.spec.fresh_process
        sides = (self.know.yours, self.know.incumbent)
        if needs_own_process(*sides) or needs_own_process(*sides[::-1]):
            return True  # each final, or every other one, would start one anyway
        return _FRESH_PAIRS * self._round_s(1, fresh=True) <= _FRESH_SHARE * self._after_baseline_s

    def crowds_out(self, settings: Settings) -> bool:
        """Whether finals of these settings would start a process each, and no time is left for the fewest.

        Where finals share one, time was set aside for such alone.
        """
        sides = (self.know.yours, settings)
        alone = needs_own_process(*sides) or needs_own_process(*sides[::-1])
        if not alone or self.fresh_finals:
            return False
        trial_s = self.predicted_s(self.search_spec(settings, "joint", ""))
        finals_s = MIN_PAIRS * self._round_s(1, fresh=True) + self.edge_s
        return trial_s + finals_s > self.know.ctx.remaining_s

    @cached_property
    def _after_baseline_s(self) -> float:
        """Seconds that this session had left when *yours* had run."""
        since = self.know.history[self.know.ctx.earlier :]
        return self.know.ctx.remaining_s + sum(t.wall_s for t in since if t.spec.stage != "yours")

    def round_s(self, candidates: int = 1) -> float:
        """Seconds to set aside for one round of the finals: *yours* and each candidate once."""
        return self._round_s(candidates, fresh=self.fresh_finals)

    def _round_s(self, candidates: int, *, fresh: bool) -> float:
        theirs = candidates * self._final_s(self.know.incumbent, fresh=fresh)
        return MARGIN * (self._final_s(self.know.yours, fresh=fresh) + theirs)

    @property
    def least_s(self) -> float:
        """Seconds without which nothing can be found: a search trial and the fewest pairs that show a win."""
        trial = self.predicted_s(self.search_spec(self.know.incumbent, "joint", ""))
        return trial + MIN_PAIRS * self.round_s()

    @cached_property
    def reserve_s(self) -> float:
        """Seconds that the search must leave to the finals."""
        affordable = int(_FINALS_SHARE * self._after_baseline_s / self.round_s())
        return self.round_s() * min(max(affordable, MIN_PAIRS), FINAL_PAIRS) + self.edge_s

    @property
    def short_reserve_s(self) -> float:
        """The same where few pairs show who is faster."""
        return min(self.reserve_s, _FRESH_PAIRS * self.round_s() + self.edge_s)

    def patience_s(self, spec: TrialSpec) -> float:
        """Seconds after which `spec` counts as hung.

        A tenth of the budget, for a hang to cost no more, but never less than workers may need to start.
        *Yours* gets more: nothing is known of it yet, and nothing can be done without it.
        """
        least_s = 120.0 if spec.stage == "yours" else min(max(self.know.ctx.budget_s / 10, 15.0), 60.0)
        least_s = max(least_s, compiling.patience_s(self.know, spec.settings))
        return max(least_s, 4 * self.predicted_s(spec) + 8.0)
