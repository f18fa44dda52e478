"""The loop: asks the plan, runs what it says, stores what came of it, and sums up. Effects live here."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autotune.measure.seam import Description, NumericsSpec, PilotSpec, Runner
from autotune.outcome import DecayShape, Objective, Outcome, Verdict
from autotune.recipe.guard import judge_numerics, label
from autotune.recipe.pilot import judge_pilot
from autotune.search.batch import look_of
from autotune.search.batch_moves import batch_choice, batch_kept, batch_notes
from autotune.search.checking import checkable, precision_kept
from autotune.search.compiling import affordable, compile_kept, compile_notes
from autotune.search.context import PlanContext
from autotune.search.cost import TIME_USED_UP, Costs
from autotune.search.decision import CheckNumerics, EndSearch, Finish, LookAtGradients, Run, Sample, TrainBoth
from autotune.search.edge import edge_notes
from autotune.search.faults import baseline_error, disturbances, short_budget, unmeasured, used_up
from autotune.search.finals import candidates, judged, ratio_beside, worths
from autotune.search.guard import guard_notes, record_of
from autotune.search.headroom import headroom_notes
from autotune.search.identity import identity
from autotune.search.knowledge import Knowledge
from autotune.search.learning import check_recipe, recipe_of
from autotune.search.listener import Listener
from autotune.search.pilot import pilot_notes, pilot_record_of, settled
from autotune.search.plan import needed_s, next_move, sampled
from autotune.search.verdict import disturbed_finals
from autotune.search.warm import first_guesses
from autotune.settings import KnobValue, Settings
from autotune.space.candidates import build_space
from autotune.space.knobs import KnobClass
from autotune.trial import Failure, Trial, TrialSpec

if TYPE_CHECKING:
    from autotune.search.study import StudyStore

_STAGES = {
    "yours": "what you run today",
    "ceiling": "the ceilings: each side of the step alone",
    "compute": "compute settings, without the loader",
    "loader": "loader settings, without the model",
    "joint": "settings together",
    "sampled": "what the sampler proposes",
    "final": "finals: the best against yours",
    "worth": "what each setting is worth",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions:
    """How to tune."""

    budget_s: float
    """Wall seconds for everything, from the first look at the workload to the last trial."""
    allow: KnobClass = "numerics"
    """The highest class of knob that may change."""
    objective: Objective = "goodput"
    """What is best across batch sizes, where they may change."""
    max_batch_size: int | None = None
    """The largest batch that may be tried."""
    warm: int | None = None
    """Training steps before the gradients are looked at; None leaves that to the budget."""
    decay: DecayShape | None = None
    """How the learning rate is to come down; None leaves that to the user."""
    epochs: int | None = None
    """Epochs the user will train, over which starts are spread; None judges one epoch of a long run."""
    fixed: Mapping[str, KnobValue] = field(default_factory=dict)
    """Values that every candidate must have."""
    seed: int = 0
    storage: str | None = None
    """An Optuna storage URL, the path of a journal file, or None to keep the study in memory."""
    study_name: str = "autotune"
    resume: bool = False
    """Continue the newest study of that name."""
    name: str = ""
    """What to call the workload in reports, where it does not say so itself."""
    max_candidates: int = 2
    """Settings that may meet *yours* in the finals."""
    first: Callable[[Description], Sequence[Settings]] = lambda description: ()
    """What won before on the like of a machine and workload, the likeliest first; measured again like all."""


def tune(
    runner: Runner,
    options: TuneOptions,
    listener: Listener,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Search within the budget and say what was found.

    A trial that fails costs only itself. An interrupt (Ctrl-C) ends the run and still gives an Outcome, once
    the workload is described. The runner is left open.

    Args:
        runner: what runs the trials.
        options: how to tune.
        listener: told of each event.
        clock: seconds, monotonic.

    Raises:
        AutotuneError: BudgetError when the budget does not hold *yours* and one comparison; BaselineError,
            DatasetError, NonFiniteLossError or NotPicklableError when *yours* fails; StudyError for a storage
            that cannot be used; and what the runner's `describe` raises.
    """
    started_s = clock()
    description = runner.describe()
    session = _Session(runner, options, listener, description, lambda: clock() - started_s)
    return session.run()


class _Session:
    def __init__(
        self,
        runner: Runner,
        options: TuneOptions,
        listener: Listener,
        description: Description,
        elapsed_s: Callable[[], float],
    ) -> None:
        self.runner, self.options, self.listener = runner, options, listener
        self.description, self.elapsed_s = description, elapsed_s
        self.space = build_space(
            description.machine,
            description.workload,
            description.yours,
            allow=options.allow,
            fixed=options.fixed,
            max_batch_size=options.max_batch_size,
        )
        check_recipe(self.space, epochs=options.epochs, decay=options.decay)
        self.first = first_guesses(self.space, options.first(description))
        self.store = self._open()
        self.history = list(self.store.history)
        self.earlier = len(self.history)
        self.search_over = ""
        self.exhausted = False
        self.look = self.store.look
        self.numerics = [judge_numerics(record) for record in self.store.compared]
        self.pilots = [judge_pilot(record) for record in self.store.piloted]
        self.piloted_s = 0.0
        self.stage = ""
        self.untaught: frozenset[Settings] = frozenset()
        """What ran and may not win: the sampler does not aim at it."""

    def _open(self) -> StudyStore:
        from autotune.search.study import open_study

        return open_study(
            self.options.storage,
            self.options.study_name,
            options=self.space.options,
            identity=identity(
                self.space,
                epochs=self.options.epochs,
                objective=self.options.objective,
                warm=self.options.warm,
            ),
            seed=self.options.seed,
            resume=self.options.resume,
        )

    def run(self) -> Outcome:
        """The whole run."""
        if self.context.remaining_s <= 0:
            raise used_up(self.options.budget_s, self.elapsed_s())
        self.listener.started(self.description, self.space.kept, self.options.budget_s)
        interrupted = False
        try:
            self._loop()
        except KeyboardInterrupt:
            interrupted = True
            self.store.abandon("interrupted")
        outcome = self._outcome(interrupted)
        self.listener.finished(outcome)
        return outcome

    @property
    def context(self) -> PlanContext:
        """What the plan may know beside the history, as of now."""
        return PlanContext(
            space=self.space,
            budget_s=self.options.budget_s,
            remaining_s=self.options.budget_s - self.elapsed_s(),
            epochs=self.options.epochs,
            seed=self.options.seed,
            max_candidates=self.options.max_candidates,
            search_over=self.search_over,
            exhausted=self.exhausted,
            first=self.first,
            earlier=self.earlier,
            objective=self.options.objective,
            max_batch_size=self.options.max_batch_size,
            warm=self.options.warm,
            look=self.look,
            numerics=tuple(self.numerics),
            pilots=tuple(self.pilots),
            piloted_s=self.piloted_s,
        )

    def _loop(self) -> None:
        while not isinstance(move := next_move(self.context, self.history), Finish):
            if isinstance(move, EndSearch):
                self.search_over = move.reason
            elif isinstance(move, Sample):
                self._sample(move)
            elif isinstance(move, LookAtGradients):
                self._look(move)
            elif isinstance(move, CheckNumerics):
                self._compare(move.spec)
            elif isinstance(move, TrainBoth):
                self._pilot(move.spec)
            else:
                self._run(move)

    def _look(self, move: LookAtGradients) -> None:
        self.stage = "gradients"
        self.listener.stage("your gradients: how large a batch they bear")
        self.look = look_of(self.runner.probe_gradients(move.spec))
        if not self.look.missing:  # what there was no time for may be seen when the study goes on
            self.store.keep_look(self.look)

    def _compare(self, spec: NumericsSpec) -> None:
        self.listener.stage(f"numerics: the same steps with {label(spec.settings, spec.reference)}")
        record = record_of(spec, self.runner.compare_numerics(spec))
        self.store.keep_compared(record)
        self.numerics.append(judge_numerics(record))
        self.exhausted = False  # the sampler will look elsewhere where these settings are out

    def _pilot(self, spec: PilotSpec) -> None:
        self.stage = "pilot"
        sizes = f"{spec.settings.loader.batch_size} beside {spec.reference.loader.batch_size}"
        self.listener.stage(f"pilot: training a while in batches of {sizes}")
        before_s = self.elapsed_s()
        record = pilot_record_of(spec, self.runner.pilot(spec))
        self.piloted_s += self.elapsed_s() - before_s
        self.store.keep_piloted(record)
        self.pilots.append(judge_pilot(record))
        self.exhausted = False  # the sampler will look elsewhere where this batch is out

    def _sample(self, move: Sample) -> None:
        know = self._know()
        costs = Costs(know)
        out = frozenset(s for s in know.full if know.trains_worse(s) or know.barred(s))
        if out != self.untaught:
            self.untaught = out
            self.store.unteach(out.__contains__)
        drawn = self.store.draw(
            lambda values: self.space.settings(**checkable(know, affordable(know, values))),
            lambda settings: sampled(know, costs, move.room_s, settings),
        )
        if drawn is None:
            self.exhausted = True
        else:
            self._run(drawn)

    def _run(self, move: Run) -> None:
        spec = move.spec
        if spec.stage != self.stage:
            self.stage = spec.stage
            self.listener.stage(_STAGES[spec.stage])
        number = self.store.start(spec)
        self.listener.trial_started(number, spec, self.context.remaining_s)
        before_s = self.elapsed_s()
        found = self.runner.run(spec)
        # What it cost the budget; a runner may not see the whole of it, such as the end of a process.
        found = dataclasses.replace(found, wall_s=max(found.wall_s, self.elapsed_s() - before_s))
        if not isinstance(found, Failure):
            self._take(Trial(number=number, spec=spec, measurement=found))
        elif found.kind == "timeout" and move.capped:
            self._out_of_time(spec)
        else:
            self._take(Trial(number=number, spec=spec, failure=found))

    def _out_of_time(self, spec: TrialSpec) -> None:
        """The budget cut this trial short: it is no failure of the settings, and tells nothing about them."""
        self.store.abandon("out of time")
        if spec.stage == "yours":
            raise unmeasured(self.options.budget_s, spec.timeout_s)
        # What it took is gone with nothing to show, its process as well: the finals need what is left.
        self.search_over = self.search_over or TIME_USED_UP

    def _take(self, trial: Trial) -> None:
        before = self._know()
        self.history.append(trial)
        know = self._know()
        full = trial.measurement is not None and trial.spec.mode == "full"
        self.store.finish(trial, know.effective(trial) if full else None)
        ratio = ratio_beside(know, trial) if full else None
        best = bool(know.full) and know.incumbent != know.yours and know.incumbent == trial.settings
        rises = best and bool(before.full) and before.incumbent != know.incumbent
        self.listener.trial_finished(trial, ratio, rises, self.context.remaining_s)
        if trial.spec.stage == "yours":
            self._check_baseline(trial)

    def _check_baseline(self, trial: Trial) -> None:
        budget_s = self.options.budget_s
        if trial.failure is not None:
            raise baseline_error(trial.failure)
        assert trial.measurement is not None
        needed = needed_s(self.context, self.history)
        if needed > self.context.remaining_s:
            whole_s = math.ceil(1.1 * (self.elapsed_s() + needed))
            raise short_budget(budget_s, whole_s, trial.measurement.wall_s, self.elapsed_s())

    def _know(self) -> Knowledge:
        return Knowledge(settled(self.context, self.history), self.history)

    def _outcome(self, interrupted: bool) -> Outcome:
        know = self._know()
        cut_short = interrupted and self.stage != "worth"
        verdict = _incomplete(know) if cut_short else judged(know, Costs(know))
        reason = f"interrupted {_during(self.stage)}" if interrupted else self.search_over
        return Outcome(
            machine=self.space.machine,
            workload=self.space.workload,
            name=self.description.name or self.options.name,
            yours=self.space.yours,
            verdict=verdict,
            worth=worths(know, verdict),
            kept=(*self.space.kept, *batch_kept(know), *compile_kept(know), *precision_kept(know)),
            trials=tuple(self.history),
            recipe=recipe_of(
                self.space,
                verdict.winner,
                epochs=self.options.epochs,
                noise=None if self.look is None else self.look.noise,
                decay=self.options.decay,
            ),
            batch=batch_choice(know, verdict.winner) if know.full else None,
            noise=None if self.look is None else self.look.noise,
            pilots=tuple(self.pilots),
            stop_reason=reason,
            notes=(*self.description.notes, *self._notes(know, verdict)),
            epochs=self.options.epochs,
            elapsed_s=self.elapsed_s(),
            budget_s=self.options.budget_s,
            study=self.options.storage or "",
        )

    def _notes(self, know: Knowledge, verdict: Verdict) -> tuple[str, ...]:
        notes = []
        if self.options.resume and self.earlier:
            notes.append(f"resumed the study `{self.store.name}` with {self.earlier} trials")
        elif self.options.resume:
            notes.append(f"there was no study `{self.options.study_name}` to resume: started anew")
        finals = [t for t in self.history if t.spec.stage == "final"]
        if finals and not finals[0].spec.fresh_process:
            notes.append("the budget left no time for a new process in each of the finals: they shared one")
        disturbed, count = disturbed_finals(finals)
        if 2 * disturbed > count:
            why = ", ".join(disturbances(finals))
            notes.append(f"{disturbed} of {count} finals were disturbed: {why}")
        if know.yours in know.full:
            notes.extend(edge_notes(know, Costs(know)))
            notes.extend(headroom_notes(know, verdict.winner))
            notes.extend(batch_notes(know))
            notes.extend(compile_notes(know, verdict.winner))
            notes.extend(guard_notes(know, verdict.winner))
            notes.extend(pilot_notes(know, verdict.winner))
        return tuple(notes)


def _incomplete(know: Knowledge) -> Verdict:
    """The best so far, said to be unconfirmed; never a batch size that nobody has trained in."""
    know = Knowledge(dataclasses.replace(know.ctx, search_over="interrupted"), know.history)
    best = candidates(know, Costs(know))[:1] if know.full else ()
    if best:
        sentence = "stopped early: the best so far, not confirmed against yours"
        return Verdict(kind="incomplete", winner=best[0], sentence=sentence)
    sentence = "stopped early: nothing was seen to be faster than yours"
    return Verdict(kind="incomplete", winner=know.yours, sentence=sentence)


def _during(stage: str) -> str:
    return {"": "before the first trial", "final": "during the finals", "worth": "after the finals"}.get(
        stage, "during the search"
    )
