"""The Optuna study: one Optuna trial for every trial, in a storage that can be resumed. Optuna's only door.

The study that is stored is the record, and it is never asked for advice. The sampler has a study of its own,
in memory, that holds what it should learn from and nothing else: full trials of the search.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from autotune.codec import CodecError, decode, encode
from autotune.errors import AutotuneError, StudyError
from autotune.recipe.guard import NumericsRecord
from autotune.recipe.pilot import PilotRecord
from autotune.search.batch import GradientLook
from autotune.settings import KnobValue, Settings
from autotune.space.candidates import Option
from autotune.trial import Trial, TrialSpec

_Drawn = TypeVar("_Drawn")
_Record = TypeVar("_Record", NumericsRecord, PilotRecord)

CONSTRAINT = "failed"
"""Name of the constraint on every full trial: -1 when it ran, 1 when it failed."""
_IDENTITY = "autotune"
"""User attribute of the study that says what it belongs to."""
_LOOK = "noise scale"
"""User attribute of the study with what looking at the gradients gave."""
_COMPARED = "numerics "
"""User attributes of the study, one for each comparison of steps, are called this and a number."""
_PILOTED = "pilot "
"""The same for training a while in another batch size."""
_STARTUP_TRIALS = 5
_DRAWS = 50
"""Draws without something new after which the sampler counts as exhausted."""
_SEARCH = ("yours", "joint", "sampled")


class StudyStore:
    """One run's study. Make it with `open_study`."""

    def __init__(
        self, study: optuna.Study, options: Sequence[Option], seed: int, history: tuple[Trial, ...]
    ) -> None:
        self._study = study
        self._options = tuple(options)
        self._distributions: dict[str, BaseDistribution] = {
            o.knob: CategoricalDistribution(o.values) for o in options
        }
        self._running: dict[int, optuna.Trial] = {}
        self.history = history
        """Trials of earlier sessions that still count: all but finals and worth."""
        self._seed = seed
        self._taught: list[tuple[Trial, float | None]] = []
        """What the sampler learned from, with its values."""
        self._advice = _new_advice(seed)
        for trial, value in ((t, _stored_value(study, t)) for t in history):
            self._teach(trial, value)

    @property
    def name(self) -> str:
        """The study's name in its storage."""
        return self._study.study_name

    @property
    def look(self) -> GradientLook | None:
        """What an earlier session saw of the gradients, or this one."""
        text = self._study.user_attrs.get(_LOOK)
        with _storage_errors("read"):
            return None if text is None else decode(GradientLook, json.loads(text))

    def keep_look(self, look: GradientLook) -> None:
        """Store what was seen of the gradients: rates across batch sizes are compared by it."""
        with _quiet(), _storage_errors("written"):
            self._study.set_user_attr(_LOOK, json.dumps(encode(look)))

    @property
    def compared(self) -> tuple[NumericsRecord, ...]:
        """All comparisons of steps, those of earlier sessions included."""
        return self._records(_COMPARED, NumericsRecord)

    def keep_compared(self, record: NumericsRecord) -> None:
        """Store a comparison of steps: settings that fail in it are out for good."""
        with _quiet(), _storage_errors("written"):
            name = f"{_COMPARED}{len(self.compared)}"
            self._study.set_user_attr(name, json.dumps(encode(record)))

    @property
    def piloted(self) -> tuple[PilotRecord, ...]:
        """What training a while in other batch sizes gave, earlier sessions included."""
        return self._records(_PILOTED, PilotRecord)

    def keep_piloted(self, record: PilotRecord) -> None:
        """Store it: a batch size that fails is out for good."""
        with _quiet(), _storage_errors("written"):
            name = f"{_PILOTED}{len(self.piloted)}"
            self._study.set_user_attr(name, json.dumps(encode(record)))

    def _records(self, prefix: str, kind: type[_Record]) -> tuple[_Record, ...]:
        """What is stored under this prefix and the numbers from 0 on."""
        stored = self._study.user_attrs
        found: list[_Record] = []
        with _storage_errors("read"):
            while (text := stored.get(f"{prefix}{len(found)}")) is not None:
                found.append(decode(kind, json.loads(text)))
        return tuple(found)

    def start(self, spec: TrialSpec) -> int:
        """Note that `spec` is being run; its number in the study."""
        params = self._params(spec.settings)
        attrs = {"stage": spec.stage, "mode": spec.mode, "reason": spec.reason, "status": "running"}
        with _quiet(), _storage_errors("written"):
            self._study.enqueue_trial(params, user_attrs=attrs)
            trial = self._study.ask(self._distributions)
            while trial.params != params or trial.user_attrs != attrs:
                # Something enqueued from outside, or left behind by a session that ended in between.
                self._study.tell(trial, state=TrialState.FAIL)
                trial = self._study.ask(self._distributions)
        self._running[trial.number] = trial
        return trial.number

    def finish(self, trial: Trial, value: float | None) -> None:
        """Store the outcome of the trial that `start` numbered.

        Args:
            trial: what came of it.
            value: the objective, effective samples/s; None unless it is a full trial that measured.
        """
        live = self._running.pop(trial.number)
        attrs: dict[str, Any] = {
            "status": "ok" if trial.failure is None else trial.failure.kind,
            "trial": json.dumps(encode(trial)),
        }
        if trial.measurement is not None:
            attrs["samples_per_s"] = trial.measurement.samples_per_s
        with _quiet(), _storage_errors("written"):
            for key, item in attrs.items():
                live.set_user_attr(key, item)
            if trial.spec.mode == "full":
                live.set_constraint(CONSTRAINT, 1.0 if trial.failure else -1.0)
                self._study.tell(live, value or 0.0)
            else:
                self._study.tell(live, state=TrialState.FAIL)
        self._teach(trial, value)

    def abandon(self, status: str) -> None:
        """Mark what was running as ended without an outcome; `status` says by what."""
        with _quiet(), _storage_errors("written"):
            for live in self._running.values():
                live.set_user_attr("status", status)
                self._study.tell(live, state=TrialState.FAIL)
        self._running.clear()

    def draw(
        self,
        settings_of: Callable[[Mapping[str, KnobValue]], Settings],
        accept: Callable[[Settings], _Drawn | None],
    ) -> _Drawn | None:
        """What `accept` makes of settings that the sampler proposes; None when it has nothing new.

        Args:
            settings_of: from one value for each option to canonical settings.
            accept: the run of settings, or whatever else; None where they are not worth one.
        """
        with _quiet():
            for _ in range(_DRAWS):
                asked = self._advice.ask(self._distributions)
                settings = settings_of(asked.params)
                # What comes of it is added under its canonical parameters; the proposal itself is dropped.
                self._advice.tell(asked, state=TrialState.FAIL)
                if (accepted := accept(settings)) is not None:
                    return accepted
        return None

    def unteach(self, out: Callable[[Settings], bool]) -> None:
        """Let the sampler begin anew, with what is `out` taught as if it had failed.

        Settings that are fast and may not be chosen would else be what it proposes, again and again.
        """
        self._advice = _new_advice(self._seed)
        for trial, value in self._taught:
            self._advise(trial, value, failed=trial.failure is not None or out(trial.settings))

    def _teach(self, trial: Trial, value: float | None) -> None:
        if trial.spec.mode != "full" or trial.spec.stage not in _SEARCH:
            return
        self._taught.append((trial, value))
        self._advise(trial, value, failed=trial.failure is not None)

    def _advise(self, trial: Trial, value: float | None, *, failed: bool) -> None:
        with _quiet():
            self._advice.add_trial(
                optuna.trial.create_trial(
                    params=self._params(trial.settings),
                    distributions=dict(self._distributions),
                    value=value or 0.0,
                    constraints={CONSTRAINT: 1.0 if failed else -1.0},
                )
            )

    def _params(self, settings: Settings) -> dict[str, KnobValue]:
        """One value for each option: a knob that these settings leave unused takes its first one."""
        flat = settings.flat()
        return {o.knob: flat[o.knob] if flat[o.knob] in o.values else o.values[0] for o in self._options}


def _new_advice(seed: int) -> optuna.Study:
    """A study in memory that the sampler draws from."""
    with _quiet():
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP_TRIALS)
        return optuna.create_study(storage=InMemoryStorage(), sampler=sampler, direction="maximize")


def open_study(
    storage: str | None,
    name: str,
    *,
    options: Sequence[Option],
    identity: Mapping[str, Any],
    seed: int = 0,
    resume: bool = False,
) -> StudyStore:
    """A new study, or with `resume` the newest one of that name.

    Args:
        storage: None keeps it in memory; a database URL is handed to Optuna; anything else is the path of a
            journal file, created where it is missing.
        name: a new study takes `name`, or `name-2`, `name-3` ... where the storage holds it already.
        options: what is searched.
        identity: JSON-able facts that must be equal for a study to be resumed.
        seed: of the sampler.
        resume: continue; starts anew where there is nothing to continue.

    Raises:
        StudyError: a storage that cannot be opened, or a study of something else.
    """
    identity = json.loads(json.dumps(dict(identity)))
    with _quiet():
        with _storage_errors("opened", storage):
            backend = _backend(storage)
            taken = set(optuna.get_all_study_names(backend))
        names = [name]
        while names[-1] in taken:
            names.append(f"{name}-{len(names) + 1}")
        with _storage_errors("opened", storage):
            if not resume or len(names) == 1:
                study = _create(backend, names[-1], seed)
                study.set_user_attr(_IDENTITY, identity)
                return StudyStore(study, options, seed, ())
            study = optuna.load_study(study_name=names[-2], storage=backend, sampler=_recorder(seed))
            _check(study, identity)
            for trial in study.get_trials(states=(TrialState.RUNNING,)):
                study.tell(trial.number, state=TrialState.FAIL)
            return StudyStore(study, options, seed, _history(study))


def _create(backend: BaseStorage, name: str, seed: int) -> optuna.Study:
    return optuna.create_study(
        study_name=name, storage=backend, sampler=_recorder(seed), direction="maximize"
    )


def _recorder(seed: int) -> optuna.samplers.BaseSampler:
    """The stored study never samples: all parameters are given."""
    return optuna.samplers.RandomSampler(seed=seed)


def _backend(storage: str | None) -> BaseStorage:
    if storage is None:
        return InMemoryStorage()
    if "://" in storage:
        return optuna.storages.get_storage(storage)
    path = Path(storage).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Optuna's default lock is a symbolic link, which Windows lets only administrators make.
    lock = JournalFileOpenLock(str(path)) if sys.platform == "win32" else None
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _check(study: optuna.Study, identity: Mapping[str, Any]) -> None:
    stored = study.user_attrs.get(_IDENTITY)
    if not isinstance(stored, dict):
        raise StudyError(
            f"the study `{study.study_name}` cannot be resumed",
            why="it was not made by autotune",
            fix="give another study name, or leave `resume` out",
        )
    differ = [key for key in {**stored, **identity} if stored.get(key) != identity.get(key)]
    if differ:
        shown = "; ".join(
            f"{key} was {_brief(stored.get(key))}, is {_brief(identity.get(key))}" for key in differ
        )
        raise StudyError(
            f"the study `{study.study_name}` belongs to something else",
            why=shown,
            fix="leave `resume` out to start anew, or run what the study was made with",
        )


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _history(study: optuna.Study) -> tuple[Trial, ...]:
    found = []
    for stored in study.get_trials(deepcopy=False):
        text = stored.user_attrs.get("trial")
        if text is not None:
            trial = decode(Trial, json.loads(text))
            if trial.spec.stage not in ("final", "worth"):
                found.append(trial)
    return tuple(found)


def _stored_value(study: optuna.Study, trial: Trial) -> float | None:
    stored = study.get_trials(deepcopy=False)[trial.number]
    return stored.value if stored.state == TrialState.COMPLETE else None


@contextmanager
def _storage_errors(verb: str, storage: str | None = None) -> Iterator[None]:
    """Whatever a storage raises, as one of ours: each database, journal and codec has its own classes."""
    try:
        yield
    except AutotuneError:
        raise
    except CodecError as error:
        raise StudyError(
            "the study holds trials that this version cannot read",
            why=str(error),
            fix="leave `resume` out to start anew",
        ) from error
    except Exception as error:
        where = f" `{storage}`" if storage else ""
        raise StudyError(
            f"the study{where} cannot be {verb}",
            why=f"{type(error).__name__}: {error}",
            fix="check the path or URL and the free space, or name another storage",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's log lines are for its own users; the level they chose is put back."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
