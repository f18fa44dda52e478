"""Moves of one knob from the incumbent, and looks at what ran before. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace
from operator import itemgetter, ne

from autotune.search import batch_moves
from autotune.search.batch_moves import worth_trying
from autotune.search.compiling import too_dear
from autotune.search.cost import Costs
from autotune.search.finals import without_each
from autotune.search.knowledge import Knowledge
from autotune.search.parts import describe_change
from autotune.search.predict import Prediction
from autotune.settings import HALF_WIDTH, Settings
from autotune.space.candidates import neighbours
from autotune.space.knobs import MoveGroup, knob
from autotune.trial import TrialSpec

NEAR_CEILING = 0.97
"""A rate this near to what one side does alone leaves the other side nothing to win beyond noise."""
LOADER_IDLE = 0.02
"""Less waiting than this part of a step, and no loader or transfer move is worth its time."""
_UNHINDERED = 0.9
"""A step under this part of its rate alone is held up by the loader in other ways than by waiting."""
LOADER_BOUND = 0.10
"""More waiting than this, and no compute move shows."""
HOST_BOUND = 0.8
"""A step in half the width at this part of its rate in full waits for the host: the device is faster so."""

_LOADER_FIRST: tuple[MoveGroup, ...] = ("loader", "transfer", "recipe", "compute")
_COMPUTE_FIRST: tuple[MoveGroup, ...] = ("compute", "recipe", "transfer", "loader")


def next_single(
    know: Knowledge, costs: Costs, groups: Sequence[MoveGroup], expected: Sequence[Prediction]
) -> TrialSpec | None:
    """The move of one knob from the incumbent that the model expects most of, else the first in order."""
    moves = list(_moves(know, groups))
    if not moves:
        return None
    settings = next((p.settings for p in expected if p.settings in moves), moves[0])
    return costs.search_spec(settings, "joint", describe_change(know.incumbent, settings))


def next_compiled(know: Knowledge, costs: Costs, groups: Sequence[MoveGroup]) -> TrialSpec | None:
    """The incumbent compiled, once, on a device: small kernels wait for the host that launches them.

    In the mode that launches all of a step at once, where there is one, and in half the width where that
    was hardly slower. Other modes, and CPUs, where compiling brings less, are left to the moves of one knob.
    """
    yours = know.yours.compute.compile
    tried = any(trial.settings.compute.compile != yours for trial in know.history)
    if tried or "compute" not in groups or not know.ctx.space.workload.accelerated:
        return None
    found = {
        settings.compute.compile: settings
        for base in (know.incumbent, _narrowed(know))
        for name, settings in neighbours(know.ctx.space, base, "compute")
        if name == "compile" and worth_trying_now(know, settings)
    }
    settings = found.get("reduce-overhead", found.get("default"))
    if settings is None:
        return None
    return costs.search_spec(settings, "joint", describe_change(know.incumbent, settings))


def _narrowed(know: Knowledge) -> Settings:
    """The incumbent in half the width, where a step alone was not much slower so; else as it is.

    A host that launches kernels one by one hides what half the width gains, and casts are launches more.
    Both are gone in code that is compiled.
    """
    incumbent = know.incumbent
    if incumbent.compute.precision in HALF_WIDTH:
        return incumbent
    for precision in HALF_WIDTH:
        settings = incumbent.replace(precision=precision)
        share = _share_of_rate(know, settings)
        if share is not None and share >= HOST_BOUND and not know.trains_worse(settings):
            return settings
    return incumbent


def _share_of_rate(know: Knowledge, settings: Settings) -> float | None:
    """A step alone in the precision of `settings` over one in the incumbent's.

    Of the two steps that were measured and differ by it alone, the most like `settings` in all else: a
    change that two measured ones make up together is rarely measured itself. None where no two were.
    """
    wide, rates = know.incumbent.compute.precision, know.compute_rates
    found = []
    for (compute, batch_size), rate in rates.items():
        beside = rates.get((replace(compute, precision=wide), batch_size))
        if beside is not None and compute.precision == settings.compute.precision:
            unlike = [*map(ne, astuple(compute), astuple(settings.compute))]
            found.append((sum(unlike) + (batch_size != settings.loader.batch_size), rate / beside))
    return min(found, key=itemgetter(0))[1] if found else None


def _step_alone(know: Knowledge, settings: Settings) -> float | None:
    return know.compute_rates.get((settings.compute, settings.loader.batch_size))


def confirm(know: Knowledge, costs: Costs) -> TrialSpec | None:
    """A lead seen once may be luck, and then it keeps the finals from who is truly ahead."""
    if know.incumbent == know.yours or len(know.full[know.incumbent]) > 1:
        return None
    return costs.search_spec(know.incumbent, "joint", "the best so far, measured again")


def second_look(know: Knowledge, costs: Costs) -> TrialSpec | None:
    """Before the search ends, whoever may be ahead after all is measured once more."""
    if know.doubtful is None:
        return None
    return costs.search_spec(know.doubtful, "joint", "may be the best after all, measured again")


def untried(know: Knowledge, costs: Costs) -> TrialSpec | None:
    """The first settings of the space that are worth a trial, where neither model nor sampler names any."""
    left = next((s for s in know.ctx.space.every() if worth_trying_now(know, s)), None)
    return None if left is None else costs.search_spec(left, "sampled", "not tried yet")


def _moves(know: Knowledge, groups: Sequence[MoveGroup]) -> Iterator[Settings]:
    """Moves of one knob from the incumbent: values never tried first, then in the bottleneck's order."""
    seen = {(name, value) for s in know.full for name, value in s.flat().items()}
    found = [
        (name, settings)
        for group in groups
        for name, settings in neighbours(know.ctx.space, know.incumbent, group)
        if worth_trying_now(know, settings)
    ]
    # What one step does not reach, such as workers from 4 back to 0: each change must earn its place.
    found += [
        (name, settings)
        for name, settings in without_each(know, know.incumbent)
        if knob(name).group in groups and worth_trying_now(know, settings)
    ]
    for old in (False, True):
        for _, settings in found:
            changed = settings.changed_from(know.incumbent).items()
            if all(pair in seen for pair in changed) == old:
                yield settings


def open_groups(know: Knowledge) -> list[MoveGroup]:
    """The groups of knobs in which a gain is possible, the bottleneck's own first."""
    searched = {knob(option.knob).group for option in know.ctx.space.options}
    incumbent, latest = know.incumbent, know.latest(know.incumbent)
    waits = latest.wait_share >= LOADER_BOUND
    order = _LOADER_FIRST if waits else _COMPUTE_FIRST
    compute = _step_alone(know, incumbent)
    loader = know.loader_rates.get(incumbent.loader)
    closed: set[MoveGroup] = set()
    at_compute = compute is not None and latest.samples_per_s >= NEAR_CEILING * compute
    at_loader = loader is not None and latest.samples_per_s >= NEAR_CEILING * loader
    # Where both sides are equally near, only a change on both can win: neither is closed.
    if at_compute != at_loader:
        closed |= {"loader" if at_compute else "compute", "transfer"}
    if know.ctx.space.workload.accelerated:
        # On a CPU the workers take time from the step, so waiting alone says little there.
        closed |= {"compute"} if waits else set()
        # Copies, pinning and unpickling keep the host from launching kernels, and none of it is waiting.
        hindered = compute is not None and latest.samples_per_s < _UNHINDERED * compute
        # Nor is it where the rate is the loader's own: then some of the waits were taken for steps.
        idle = latest.wait_share < LOADER_IDLE and not hindered and not at_loader
        closed |= {"loader"} if idle else set()
    return [group for group in order if group in searched and group not in closed]


def worth_trying_now(know: Knowledge, settings: Settings) -> bool:
    """Whether they are worth a full trial now: other batches have to wait for their turn."""
    waits = batch_moves.changed(know.ctx, settings) and not batch_moves.begun(know)
    if waits or not worth_trying(know, settings) or too_dear(know, settings):
        return False
    return not Costs(know).crowds_out(settings)
