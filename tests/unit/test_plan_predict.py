"""What the step-time model adds to the order of work: proposals, and an end when they promise nothing."""

from __future__ import annotations

import dataclasses
import itertools

from search_worlds import (
    History,
    acceptable,
    context,
    fake_runner,
    random_rate,
    run_fake,
    space_of,
    steady_rate,
)

from autotune.search.decision import EndSearch, Move, Run, Sample
from autotune.search.knowledge import Knowledge
from autotune.search.plan import next_move
from autotune.space.candidates import Space, bundle

PLENTY = {"budget_s": 1e5, "remaining_s": 1e5}


def conv_space() -> Space:
    return space_of(has_conv2d=True, image_input=True, usable_cpus=2)


def played(space: Space, rate=steady_rate, *, most: int = 60, **changes: object) -> tuple[History, Move]:
    """The history when the plan asks for something else than a trial, in a world without noise."""
    history = History()
    move = next_move(context(space, **{**PLENTY, **changes}), history)
    while isinstance(move, Run) and len(history) < most:
        spec = move.spec
        history.ran(spec.settings, rate(spec.settings, spec.mode), spec.stage, spec.mode)
        history[-1] = type(history[-1])(
            number=len(history) - 1, spec=spec, measurement=history[-1].measurement
        )
        move = next_move(context(space, **{**PLENTY, **changes}), history)
    return history, move


def test_the_basic_round_comes_before_the_model() -> None:
    """*Yours*, the ceilings and the usual advice run before anything that the model expects."""
    space = conv_space()
    history, _ = played(space)
    first = next(i for i, t in enumerate(history) if t.spec.stage == "sampled")
    assert bundle(space) in [t.settings for t in history[:first]]
    assert {"yours", "ceiling"} <= {t.spec.stage for t in history[:first]}


def test_a_step_that_only_waits_gets_workers_first() -> None:
    """Nothing of the step is tried before the loader's moves stop promising a gain."""
    space = conv_space()
    for wait, first in ((0.9, "loader"), (0.3, "compute")):
        history = History().ran(space.yours, 100, "yours", wait=wait, wall_s=2.0)
        history.ran(space.yours, 110, "ceiling", "loader").ran(space.yours, 2000, "ceiling", "compute")
        history.ran(bundle(space), 120, wait=wait)
        move = next_move(context(space, **PLENTY), history)
        assert isinstance(move, Run)
        moved = move.spec.settings.changed_from(bundle(space))
        assert ("num_workers" in moved) == (first == "loader"), (wait, moved)


def test_proposals_and_moves_take_turns() -> None:
    """Both ways of looking on have their say, and a proposal says what the model expects."""
    history, _ = played(conv_space())
    stages = [t.spec.stage for t in history if t.spec.mode == "full"][2:8]
    assert {"joint", "sampled"} <= set(stages)
    reasons = [t.spec.reason for t in history if t.spec.stage == "sampled"]
    assert all("step-time model expects" in reason for reason in reasons)


def test_the_search_ends_when_little_is_expected_of_what_is_left() -> None:
    """The reason says in words what the most promising settings promise."""
    _, move = played(conv_space())
    assert isinstance(move, EndSearch)
    assert "promising settings left promise" in move.reason


def test_the_end_comes_with_nearly_the_best() -> None:
    """97 % of the best is found by then in six of seven worlds, and 80 % in every one.

    Each value of each knob has an effect of its own there, and the parts alone mislead.
    """
    space = conv_space()
    names = space.names
    every = {
        space.settings(**dict(zip(names, values)))
        for values in itertools.product(*(space.values(n) for n in names))
    }
    legal = [settings for settings in every if space.legal(settings)]
    shares = []
    for seed in range(60):
        rate = random_rate(seed, 0.3)
        history, _ = played(space, rate)
        best = max(rate(settings, "full") for settings in legal)
        shares.append(max(rate(trial.settings, "full") for trial in history) / best)
    assert sum(share >= 0.97 for share in shares) * 7 >= len(shares) * 6
    assert min(shares) >= 0.8


def test_a_short_training_ends_the_search_sooner() -> None:
    """Where the whole training takes seconds, looking on does not pay; in a long one it does."""
    space = conv_space()
    short, move = played(space, epochs=1)
    long, _ = played(space, epochs=1000)
    assert len(short) < len(long)
    assert isinstance(move, EndSearch)
    assert "less than the" in move.reason


def test_without_a_model_the_sampler_is_asked(monkeypatch) -> None:
    """Where nothing is predicted, moves and the sampler go on as they would."""
    monkeypatch.setattr("autotune.search.plan.predictions", lambda know: ())
    _, move = played(conv_space())
    assert isinstance(move, Sample)


def test_what_cannot_win_by_its_ceiling_is_not_run() -> None:
    """A loader whose upper end is surely under the incumbent's rate is no candidate; a near one still is."""
    space = conv_space()
    slow, near = space.settings(num_workers=1), space.settings(num_workers=2)
    history = History().opened(space).ran(bundle(space).replace(channels_last=False), 200)
    history.ran(slow, 150, "loader", "loader").ran(near, 196, "loader", "loader")
    ctx = context(space)
    other = [s.replace(channels_last=True) for s in (slow, near)]
    assert not acceptable(ctx, history, other[0])
    assert acceptable(ctx, history, other[1])


def test_a_bound_is_as_wide_as_its_trial_was_unsteady() -> None:
    """Blocks that differ leave room above the mean: the bound is their interval's upper end."""
    space = conv_space()
    history = History().opened(space)
    steady = Knowledge(context(space), history).bound(space.yours)
    ceiling = next(t for t in history if t.spec.mode == "loader")
    blocks = ceiling.measurement.blocks * 2
    uneven = tuple(
        dataclasses.replace(b, elapsed_s=b.elapsed_s * f) for b, f in zip(blocks, (0.8, 1.2, 0.9, 1.1))
    )
    compute = next(t for t in history if t.spec.mode == "compute")
    for trial in (ceiling, compute):
        measured = dataclasses.replace(trial.measurement, blocks=uneven)
        history[trial.number] = dataclasses.replace(trial, measurement=measured)
    assert Knowledge(context(space), history).bound(space.yours) > 1.05 * steady


def test_a_whole_run_finds_the_best_of_a_known_machine() -> None:
    """On a made-up machine with noise the run returns at least 97 % of its best, with the model's help."""
    runner = fake_runner(noise=0.01)
    outcome = run_fake(runner, 300.0)
    best = max(steady_rate(s.settings, "full") for s in runner.specs)
    assert steady_rate(outcome.best, "full") >= 0.97 * best
    assert outcome.verdict.kind == "faster"
