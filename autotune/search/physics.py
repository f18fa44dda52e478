"""A model of the step time: what the loader takes, what the step takes, and how far the two overlap. Pure.

    a(x)  log seconds a sample of the step alone, from compute settings and batch size
    b(x)  log seconds a sample of the loader alone, from loader settings and batch size
    q(x)  log of the exponent p of the overlap: p = 1 is one after the other, large p the slower of the two
    r(x)  what a full step has beyond that
    log seconds a sample of a full step = log(exp(p a) + exp(p b)) / p + r

Each of the four is a Gaussian process: a mean from what is known of machines in general, one effect for every
value of every knob, shrunk to nothing, and a part for how knobs go together that decays with the number of
knobs in which settings differ. Loader trials see `b`, compute trials `a`, full trials all of it. They are
joined by linearising the overlap around the best estimate, a few times over (an extended Kalman update), with
weights that keep an outlier from bending the fit (Student's t with `_FREEDOM` degrees of freedom).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from autotune.settings import GROUPS, KnobValue, Settings
from autotune.space.candidates import Space
from autotune.space.values import ordered
from autotune.trial import Mode

Array = npt.NDArray[np.float64]

_STEP_KNOBS = (*GROUPS["compute"], "batch_size")
_LOAD_KNOBS = (*GROUPS["loader"],)
_ALL_KNOBS = tuple(name for names in GROUPS.values() for name in names)
_EFFECT = {
    "precision": 0.5,
    "compile": 0.3,
    "channels_last": 0.25,
    "cudnn_benchmark": 0.2,
    "fused_optimizer": 0.1,
}
"""Log sd of what one value of a knob does to the step; `_OTHER_EFFECT` for what is not named."""
_OTHER_EFFECT = 0.2
_ON_CPU = {**_EFFECT, "compile": 0.1}
"""The same where the model runs on a CPU: no kernels wait to be launched there."""
_LOAD_EFFECT = {"num_workers": 0.15, "prefetch_factor": 0.08, "batch_size": 0.1, "persistent_workers": 0.05}
_FULL_EFFECT = 0.04
"""Log sd of an effect of one value that shows beside the other side only."""
_TOGETHER = ((0.12, _STEP_KNOBS), (0.1, _LOAD_KNOBS), (0.0, _ALL_KNOBS), (0.08, _ALL_KNOBS))
"""For a, b, q and r: log sd of how knobs go together, and which."""
_LIKE = 0.6
"""How like two settings are that differ by one step of one knob."""
_UNKNOWN = 3.0
"""Log sd of the rates themselves before anything ran."""
_FREEDOM = 4.0
_ROUNDS = 12
_SETTLED = 1e-3
"""The fit has settled when no latent moves by more than this (log)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one choice of settings showed in a mode."""

    settings: Settings
    mode: Mode
    log_rate: float
    """Natural logarithm of steady samples/s."""
    noise: float
    """Its standard error, of run-to-run noise."""


@dataclass(frozen=True, slots=True)
class Coded:
    """Settings as numbers: rows of `codes` for each knob, and what the means are made of."""

    codes: dict[str, Array]
    workers: Array
    threads: Array
    doublings: Array
    """Log2 of the batch size over *yours*."""
    compiled: Array
    """1 where the model is compiled, else 0."""

    def take(self, chosen: npt.NDArray[np.int64]) -> Coded:
        """Some of the rows."""
        codes = {name: rows[chosen] for name, rows in self.codes.items()}
        rest = (self.workers, self.threads, self.doublings, self.compiled)
        return Coded(codes, *(each[chosen] for each in rest))


def code(space: Space, settings: Sequence[Settings]) -> Coded:
    """Settings of this space as numbers: of values in an order the steps count, words are alike or not."""
    flats = [each.flat() for each in settings]
    codes = {}
    for name, (index, table) in _tables(space).items():
        codes[name] = table[[index.get(flat[name], 0) for flat in flats]]
    base = space.yours.loader.batch_size or space.workload.batch_samples
    cpus = space.machine.usable_cpus
    return Coded(
        codes,
        _numbers([flat["num_workers"] for flat in flats], 0),
        _numbers([flat["cpu_threads"] for flat in flats], cpus),
        np.log2(_numbers([flat["batch_size"] for flat in flats], base) / base),
        np.array([flat["compile"] is not None for flat in flats], dtype=np.float64),
    )


@lru_cache(maxsize=8)
def _tables(space: Space) -> dict[str, tuple[dict[KnobValue, int], Array]]:
    """For every knob the row of each value that it can have here, and the rows."""
    follows: dict[str, tuple[KnobValue, ...]] = {
        "persistent_workers": (False, True),
        "prefetch_factor": (None,),
    }
    tables = {}
    for name in _ALL_KNOBS:
        theirs = (space.yours.flat()[name], space.start.flat()[name])
        values = ordered({*space.values(name), *theirs, *follows.get(name, ())})
        words = any(isinstance(value, str) for value in values)
        table = np.eye(len(values)) / np.sqrt(2) if words else np.tri(len(values), len(values) - 1, k=-1)
        tables[name] = ({value: i for i, value in enumerate(values)}, np.asarray(table, dtype=np.float64))
    return tables


def _numbers(values: Sequence[KnobValue], otherwise: float) -> Array:
    return np.array([otherwise if v is None else float(v) for v in values], dtype=np.float64)


def _effects(at: Coded, sds: dict[str, float], names: Sequence[str]) -> list[Array]:
    """The codes of single values, each in units of what it is expected to do."""
    return [sds.get(name, _OTHER_EFFECT) * at.codes[name] for name in names]


def _distance(left: Coded, right: Coded, names: Sequence[str]) -> Array:
    """In how many steps of knobs two settings differ."""
    u = np.hstack([left.codes[name] for name in names])
    v = np.hstack([right.codes[name] for name in names])
    return np.asarray((u**2).sum(1)[:, None] + (v**2).sum(1)[None, :] - 2 * u @ v.T)


def _alike(left: Coded, right: Coded, names: Sequence[str]) -> Array:
    """1 for equal settings, less by `_LIKE` with each step between them."""
    # Half the digits take a third of the time, and this is where the time goes.
    return np.asarray(
        np.exp((math.log(_LIKE) * _distance(left, right, names)).astype(np.float32)), np.float64
    )


@dataclass(frozen=True, slots=True)
class _Prior:
    """What is believed before anything ran: means and covariances of a, b, q and r."""

    space: Space
    level: float
    """Log seconds a sample around which the two sides are looked for."""

    def means(self, at: Coded) -> tuple[Array, Array, Array]:
        """Means of a, b and q."""
        cpus, accelerated = self.space.machine.usable_cpus, self.space.workload.accelerated
        worked = at.workers > 0
        parallel = np.log(np.clip(at.workers, 1, cpus))
        step = self.level - 0.1 * at.doublings
        load = self.level - 0.7 * parallel + 0.1 * worked
        if accelerated:
            return step, load, np.asarray(np.where(worked, np.log(6.0), np.log(1.5)))
        step = step - 0.6 * np.log(at.threads / cpus)
        crowd = np.log((at.workers + at.threads) / cpus)
        return step, load, np.asarray(np.where(worked, np.log(3.0) - crowd, 0.0))

    def effects(self, at: Coded) -> tuple[Array, Array, Array, Array]:
        """What moves a, b, q and r by itself: columns of independent effects with a deviation of 1."""
        cpus, accelerated = self.space.machine.usable_cpus, self.space.workload.accelerated
        some = (at.workers > 0).astype(np.float64)
        anywhere = np.full_like(some, _UNKNOWN)
        shared = 0.3 * np.log(np.clip(at.workers, 1, cpus))
        crowded = 0.3 * np.log(np.maximum(1.0, at.workers / cpus))
        crowd = some * np.log((at.workers + at.threads) / cpus)
        step = [anywhere, 0.15 * at.doublings]
        load = [anywhere, 0.3 * some, shared, crowded]
        # On a CPU the training process loads and computes in turn, and that is all there is to it.
        overlap = [
            0.7 * some,
            (0.4 if accelerated else 0.02) * (1 - some),
            (0.2 if accelerated else 0.5) * crowd,
        ]
        return (
            np.column_stack([*step, *_effects(at, _EFFECT if accelerated else _ON_CPU, _STEP_KNOBS)]),
            np.column_stack([*load, *_effects(at, _LOAD_EFFECT, _LOAD_KNOBS)]),
            np.column_stack(overlap),
            np.column_stack(_effects(at, dict.fromkeys(_ALL_KNOBS, _FULL_EFFECT), _ALL_KNOBS)),
        )

    def covariances(self, left: Coded, right: Coded) -> tuple[Array, ...]:
        """Covariances of a, b, q and r between settings."""
        alone = [u @ v.T for u, v in zip(self.effects(left), self.effects(right))]
        return tuple(
            each + sd**2 * _alike(left, right, names) if sd else each
            for each, (sd, names) in zip(alone, _TOGETHER)
        )

    def variances(self, at: Coded) -> list[Array]:
        """The same of each settings with itself."""
        return [(u**2).sum(1) + sd**2 for u, (sd, _) in zip(self.effects(at), _TOGETHER)]


@dataclass(frozen=True, slots=True)
class _Link:
    """The full step from both sides, and how it moves with each."""

    value: Array
    by_step: Array
    by_load: Array
    by_overlap: Array


def _link(step: Array, load: Array, overlap: Array) -> _Link:
    p = np.exp(np.clip(overlap, -1.0, 4.0))
    value = np.logaddexp(p * step, p * load) / p
    share = 1 / (1 + np.exp(np.clip(p * (load - step), -60, 60)))
    return _Link(value, share, 1 - share, share * step + (1 - share) * load - value)


@dataclass(frozen=True, slots=True)
class StepModel:
    """The model after what was seen; made by `fit`."""

    prior: _Prior
    seen: Coded
    gains: tuple[Array, Array, Array, Array]
    """How each observation moves with a, b, q and r."""
    weights: Array
    """What each observation adds to the means."""
    factor: Array
    """Inverse of the Cholesky factor of the observations' covariance."""
    surprise: float
    """How many times its own deviation the model errs on full steps that it is not shown, at least 1."""

    def means(self, at: Coded) -> Array:
        """Log seconds a sample of the full step."""
        return self._means(at, self.prior.covariances(at, self.seen))[0]

    def predict(self, at: Coded) -> tuple[Array, Array]:
        """Log seconds a sample of the full step and its standard deviation."""
        covariances = self.prior.covariances(at, self.seen)
        means, link = self._means(at, covariances)
        slopes = (link.by_step, link.by_load, link.by_overlap, np.ones_like(means))
        cross = np.zeros_like(covariances[0])
        for slope, covariance, gain in zip(slopes, covariances, self.gains):
            cross += slope[:, None] * covariance * gain[None, :]
        own = sum(slope**2 * each for slope, each in zip(slopes, self.prior.variances(at)))
        explained = ((cross @ self.factor.T) ** 2).sum(1)
        return means, np.asarray(self.surprise * np.sqrt(np.maximum(own - explained, 1e-8)))

    def _means(self, at: Coded, covariances: Sequence[Array]) -> tuple[Array, _Link]:
        step, load, overlap, rest = (c @ (g * self.weights) for c, g in zip(covariances, self.gains))
        before = self.prior.means(at)
        link = _joined(self.prior.space, before[0] + step, before[1] + load, before[2] + overlap)
        return np.asarray(link.value + rest), link


def _joined(space: Space, step: Array, load: Array, overlap: Array) -> _Link:
    """The full step; without a loader it is the step alone."""
    if space.workload.has_loader:
        return _link(step, load, overlap)
    nothing = np.zeros_like(step)
    return _Link(step, np.ones_like(step), nothing, nothing)


def fit(space: Space, seen: Sequence[Seen]) -> StepModel:
    """The model that what was seen makes most likely.

    Args:
        space: machine and workload, for what is believed beforehand.
        seen: at least one observation; one for each settings and mode.
    """
    coded = code(space, [each.settings for each in seen])
    modes = np.array([each.mode for each in seen])
    target = np.array([-each.log_rate for each in seen])
    noise = np.array([each.noise for each in seen]) ** 2
    full, load_only, step_only = (modes == mode for mode in ("full", "loader", "compute"))
    prior = _Prior(space, float(np.median(target)))
    means, covariances = prior.means(coded), prior.covariances(coded, coded)
    latent, trust = list(means), np.ones_like(target)
    for _ in range(_ROUNDS):
        link = _joined(space, *latent)
        gains = (
            np.where(full, link.by_step, step_only),
            np.where(full, link.by_load, load_only),
            np.where(full, link.by_overlap, 0.0),
            full.astype(np.float64),
        )
        fitted = np.where(full, link.value, np.where(load_only, latent[1], latent[0]))
        moved = sum(g * (m - now) for g, m, now in zip(gains, means, latent))
        covariance = np.diag(noise / trust + 1e-9)
        for gain, each in zip(gains, covariances):
            covariance += np.outer(gain, gain) * each
        weights = np.linalg.solve(covariance, target - fitted - moved)
        before, latent = latent, [m + c @ (g * weights) for m, c, g in zip(means, covariances, gains)]
        unexplained = noise / trust * weights
        trust = (_FREEDOM + 1) / (_FREEDOM + unexplained**2 / noise)
        if max(float(np.abs(now - then).max()) for now, then in zip(latent, before)) < _SETTLED:
            break
    factor = np.asarray(np.linalg.inv(np.linalg.cholesky(covariance)), dtype=np.float64)
    return StepModel(prior, coded, gains, weights, factor, _surprise(weights[full], (factor**2).sum(0)[full]))


def _surprise(weights: Array, precisions: Array) -> float:
    """Root mean square of the errors of leaving one out, in their deviations, shrunk to 1.

    Where a machine does not go by this model, its small deviations must not end a search.
    """
    squares = float((weights**2 / precisions).sum())
    return max(1.0, math.sqrt((_FREEDOM + squares) / (_FREEDOM + len(weights))))
