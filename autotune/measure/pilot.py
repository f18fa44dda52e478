"""A changed batch trained beside the user's own for a while, on equal samples, for a judge to compare.

All runs begin at the same weights and the same state of the optimizer: those after a few steps of the user's
own. The changed batch trains as a kit trains with it: its recipe is applied by the same code. Both take the
samples in the same order, so that what differs is how they are put together; the user's own runs once more in
another order and with other random numbers, which shows what is chance.

Losses are taken on samples that nobody trains on, drawn once and held on the host, with the models in
evaluation. Where there are none, as with a stream or a whole training step of the user's, training losses are
averaged instead.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import RandomSampler, SequentialSampler

from autotune.errors import AutotuneError
from autotune.measure import batches, flags, loaders, timing
from autotune.measure.applying import apply_recipe, batch_norms_kept
from autotune.measure.models import is_expanded
from autotune.outcome import Recipe
from autotune.recipe import pilot as rules
from autotune.recipe.pilot import PilotRecord, PilotRun
from autotune.settings import LoaderSettings, Settings

if TYPE_CHECKING:
    from autotune.measure.seam import PilotSpec
    from autotune.measure.session import Session
    from autotune.measure.stepkit import StepKit

HELD_BYTES = 256 << 20
"""Held-out batches on the host; one at least, whatever it takes."""
_HELD_SHARE = 0.1
_WARM_ORDER, _ORDER, _OTHER_ORDER = 1, 2, 3
"""Added to the seed of the order in which samples come."""


def train_both(session: Session, spec: PilotSpec, started: float) -> PilotRecord:
    """Both batches, and the user's own once more where there is time. Weights and buffers are put back.

    Args:
        session: its models are used, and are at their initial weights afterwards.
        spec: what is asked.
        started: `time.perf_counter()` when it was asked.

    Raises:
        OutOfTimeError: at `spec.timeout_s`.
    """
    record = PilotRecord(
        settings=spec.settings, reference=spec.reference, priced=spec.priced, warm_steps=spec.warm_steps
    )
    if session.parts is None:
        return replace(record, refused="there is no DataLoader: the step makes its own batches")
    data = _Data(session, session.parts, spec)
    if data.too_few:
        return replace(record, refused=data.too_few)
    runs = _Runs(session, spec, data, deadline=started + spec.timeout_s)
    first_loss = runs.warm_up()
    own_s = time.perf_counter()
    reference = runs.run(spec.reference, None, spec.seed + _ORDER)
    own_s = time.perf_counter() - own_s
    record = replace(
        record,
        samples=runs.samples,
        held_samples=runs.held_samples,
        first_loss=_finite(first_loss),
        run=runs.run(spec.settings, spec.recipe, spec.seed + _ORDER),
        reference_run=reference,
    )
    if time.perf_counter() + own_s <= min(started + spec.window_s, started + spec.timeout_s):
        record = replace(record, again=runs.run(spec.reference, None, spec.seed + _OTHER_ORDER))
    session.restore()
    return replace(record, wall_s=time.perf_counter() - started)


class _Data:
    """Samples to train on in a given order, and those that are held out."""

    def __init__(self, session: Session, parts: loaders.LoaderParts, spec: PilotSpec) -> None:
        self._session, self._parts, self._spec = session, parts, spec
        self.held: list[Any] = []
        """Indices of samples that nobody trains on; none of a stream."""
        self.too_few = ""
        """Why there is nothing to train on; empty where there is."""
        self._pool: list[Any] = []
        if not parts.iterable:
            self._divide()

    def _divide(self) -> None:
        own, largest = (s.loader.batch_size or 1 for s in (self._spec.reference, self._spec.settings))
        drawn = self._drawn(self._spec.steps * largest)
        different = list(dict.fromkeys(drawn))
        count = min(rules.HELD_SAMPLES, int(_HELD_SHARE * len(different)))
        count -= count % own
        if count >= rules.LEAST_HELD:
            chosen = set(random.Random(self._spec.seed).sample(range(len(different)), count))
            self.held = [different[place] for place in sorted(chosen)]
        held = set(self.held)
        self._pool = [index for index in drawn if index not in held]
        if len(self._pool) < largest:
            self.too_few = f"{len(self._pool)} samples hold no batch of {largest}"

    def _drawn(self, wanted: int) -> list[Any]:
        """What the user's own sampler gives, as often as it does; every sample once where it is torch's."""
        sampler = loaders.private_copy(self._parts).sampler
        if sampler is None or type(sampler) in (RandomSampler, SequentialSampler):
            return list(range(len(self._parts.dataset)))
        # A dataset that its own sampler draws from need not have a length.
        count = len(self._parts.dataset) if hasattr(self._parts.dataset, "__len__") else 0
        return list(itertools.islice(sampler, max(count, wanted)))

    def training(self, loader: LoaderSettings, samples: int, seed: int) -> Iterator[Any]:
        """Batches of the loader's size, so many samples of them at least, in the order of this seed.

        A stream gives its own order each time.
        """
        size = loader.batch_size or 1
        count = math.ceil(samples / size)
        if self._parts.iterable:
            feed = self._session.open_feed(loaders.private_copy(self._parts), loader)
            return (feed.next()[0] for _ in range(count))
        order = list(itertools.islice(_shuffled(self._pool, seed), count * size))
        wanted = [order[first : first + size] for first in range(0, len(order), size)]
        return self._session.open_batches(self._parts, loader, wanted).epoch()

    def held_out(self, loader: LoaderSettings) -> list[Any]:
        """The batches that losses are taken on, as many as `HELD_BYTES` take."""
        size = loader.batch_size or 1
        wanted = [self.held[first : first + size] for first in range(0, len(self.held), size)]
        found: list[Any] = []
        taken = 0
        if wanted:
            for batch in self._session.open_batches(self._parts, loader, wanted).epoch():
                found.append(batches.copied(batch))  # what comes from a worker holds shared memory
                taken += batches.batch_bytes(batch)
                if taken >= HELD_BYTES:
                    break
        return found


def _shuffled(pool: Sequence[Any], seed: int) -> Iterator[Any]:
    draw = random.Random(seed)
    while True:
        yield from draw.sample(pool, len(pool))


@dataclass(frozen=True, slots=True)
class _Start:
    """Weights, buffers and optimizers that all runs begin with, on the host."""

    tensors: list[tuple[torch.Tensor, torch.Tensor]]
    optimizers: dict[str, dict[str, Any]]


class _Runs:
    """Runs of the same workload from the same start."""

    def __init__(self, session: Session, spec: PilotSpec, data: _Data, *, deadline: float) -> None:
        self._session, self._spec, self._data, self._deadline = session, spec, data, deadline
        self._own = spec.reference.loader.batch_size or 1
        size = spec.settings.loader.batch_size or 1
        self.samples = spec.steps * size
        self._marks = rules.marks(spec.steps, size)
        self._own_marks = rules.priced_marks(self._marks, 1.0, self._own)
        self._priced = rules.priced_marks(self._marks, spec.priced, self._own)
        self._held = data.held_out(spec.reference.loader) if self._can_evaluate() else []
        self._start: _Start | None = None
        if self._held and not self._evaluates():
            self._held = []

    @property
    def held_samples(self) -> int:
        """Samples that losses are taken on; 0 where training losses are averaged."""
        return sum(batches.count_samples(batch, self._own) for batch in self._held)

    def _can_evaluate(self) -> bool:
        return bool(self._data.held) and self._session.loss_plan() is not None

    def _evaluates(self) -> bool:
        """Whether the loss can be had in evaluation and without gradients: not every model gives it then."""
        kit = self._session.make_kit(self._spec.reference)
        try:
            return self._loss_of(kit, self._held[0]) is not None
        except (AutotuneError, timing.OutOfTimeError, torch.OutOfMemoryError):
            raise
        except Exception:  # the user's own model: then its training losses are compared
            return False

    def warm_up(self) -> float | None:
        """The user's own steps before all runs; the loss at the initial weights."""
        kit = self._session.make_kit(self._spec.reference)
        flags.seed_everything(self._spec.seed)
        trace: list[tuple[int, float]] = []
        samples = max(1, self._spec.warm_steps) * self._own
        loader = self._spec.reference.loader
        for number, batch in enumerate(self._data.training(loader, samples, self._spec.seed + _WARM_ORDER)):
            loss = self._step(kit, batch)
            if loss is not None:
                trace.append((number * self._own, loss))
            if not self._spec.warm_steps:
                break
        first = next(iter(rules.levels(trace, samples)), None)
        if not self._spec.warm_steps:
            return first  # the step was taken to see the loss, and every kit begins anew
        with torch.no_grad():
            tensors = [
                (tensor, tensor.detach().to("cpu", copy=True))
                for model in kit.models.values()
                for tensor in (*model.parameters(), *model.buffers())
                if not is_expanded(tensor)
            ]
        states = {name: _on_host(optimizer.state_dict()) for name, optimizer in kit.optimizers.items()}
        self._start = _Start(tensors, states)
        return first

    def _kit(self, settings: Settings) -> StepKit:
        """A kit at the common start."""
        kit = self._session.make_kit(settings)
        if self._start is not None:
            with torch.no_grad():
                for tensor, value in self._start.tensors:
                    tensor.copy_(value)
            for name, optimizer in kit.optimizers.items():
                optimizer.load_state_dict(self._start.optimizers[name])
        return kit

    def run(self, settings: Settings, recipe: Recipe | None, seed: int) -> PilotRun:
        """A run of the user's own without a recipe, of the changed batch with it.

        Raises:
            OutOfTimeError: after the deadline.
        """
        kit = self._kit(settings)
        with batch_norms_kept(kit.models.values()):
            if recipe is not None:
                size = settings.loader.batch_size
                apply_recipe(
                    recipe, kit.models, kit.optimizers, scheduler=None, interval="step", batch_size=size
                )
            flags.seed_everything(seed)
            reached = self._marks if recipe is not None else self._own_marks
            priced = () if recipe is not None else self._priced
            return self._trained(kit, seed, reached, priced)

    def _trained(self, kit: StepKit, seed: int, reached: Sequence[int], priced: Sequence[int]) -> PilotRun:
        loader = kit.settings.loader
        due, taken = sorted({*reached, *priced}), dict[int, float | None]()
        size = loader.batch_size or 1
        trace: list[tuple[int, float | None]] = []
        for number, batch in enumerate(self._data.training(loader, due[-1], seed), start=1):
            trace.append((number * size, self._step(kit, batch)))
            if trace[-1][1] is not None and _finite(trace[-1][1]) is None:
                break  # from here on every loss is
            while due and due[0] <= trace[-1][0]:
                mark = due.pop(0)
                taken[mark] = self._loss_at(kit, trace, mark)
        seen = [(after - size, loss) for after, loss in trace if loss is not None]
        known = [(before, loss) for before, loss in seen if math.isfinite(loss)]
        levels = rules.levels(known, self.samples)
        return PilotRun(
            losses=tuple(_finite(taken.get(mark)) for mark in reached),
            priced=tuple(_finite(taken.get(mark)) for mark in priced),
            first=next(iter(levels), None),
            most=max(levels, default=None),
            finite=len(known) == len(seen),
            steps=len(trace),
        )

    def _step(self, kit: StepKit, batch: Any) -> float | None:
        """One step; its loss, None where it returns none."""
        timing.in_time(self._deadline)
        returned = kit.step(batch)
        single = isinstance(returned, torch.Tensor) and returned.numel() == 1
        return float(returned) if single else None

    def _loss_at(self, kit: StepKit, trace: Sequence[tuple[int, float | None]], mark: int) -> float | None:
        """On held-out samples, else the mean of the training losses shortly before."""
        if not self._held:
            since = mark - self.samples / rules.SPANS
            recent = [loss for seen, loss in trace if seen > since and loss is not None]
            recent = recent or [loss for _, loss in trace[-1:] if loss is not None]
            return math.fsum(recent) / len(recent) if recent else None
        total = count = 0.0
        for batch in self._held:
            timing.in_time(self._deadline)
            loss = self._loss_of(kit, batch)
            if loss is None:
                return None
            samples = batches.count_samples(batch, self._own)
            total, count = total + samples * loss, count + samples
        return total / count

    def _loss_of(self, kit: StepKit, batch: Any) -> float | None:
        plan = self._session.loss_plan()
        assert plan is not None, "held-out samples are drawn where there is a loss"
        with flags.preserved(), _evaluating(kit.models.values()), torch.no_grad():
            flags.seed_everything(self._spec.seed)
            moved = kit.to_device(batches.copied(batch))
            with kit.autocast():
                loss = plan.loss_of(kit.model, moved)
        return float(loss) if isinstance(loss, torch.Tensor) and loss.numel() == 1 else None


@contextlib.contextmanager
def _evaluating(models: Any) -> Iterator[None]:
    """Models in evaluation; their flags and buffers are after the block what they were before it."""
    modules = [module for model in models for module in model.modules()]
    training = [module.training for module in modules]
    buffers = [(b, b.detach().clone()) for b in _buffers(modules) if not is_expanded(b)]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, flag in zip(modules, training):
            module.training = flag
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _buffers(modules: Sequence[nn.Module]) -> Iterator[torch.Tensor]:
    for module in modules:
        yield from module.buffers(recurse=False)


def _on_host(state: Any) -> Any:
    return batches.map_tensors(state, lambda tensor: tensor.detach().to("cpu", copy=True))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
