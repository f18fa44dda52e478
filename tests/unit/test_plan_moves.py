"""The order of work: what the plan asks for, given what is known."""

from __future__ import annotations

import itertools

import pytest
from search_worlds import History, acceptable, context, space_of

from autotune.search.decision import EndSearch, Finish, Run, Sample
from autotune.search.knowledge import Knowledge
from autotune.search.plan import needed_s, next_move
from autotune.space.candidates import bundle
from autotune.testing import fake_description
from autotune.trial import Trial

GPU = {"device": "cuda", "gpus": (), "has_conv2d": True, "image_input": True}


@pytest.fixture(autouse=True)
def _no_model(monkeypatch):
    """The order of work without the step-time model: what it adds is specified in `test_plan_predict.py`."""
    monkeypatch.setattr("autotune.search.plan.predictions", lambda know: ())


def move_of(space, history, **changes):
    """The plan's next move."""
    return next_move(context(space, **changes), history)


def test_yours_comes_first_with_all_the_time():
    """Nothing is compared before *yours* ran, and it is never cut short but by the budget."""
    space = space_of()
    move = move_of(space, [], remaining_s=100.0)
    assert isinstance(move, Run)
    assert (move.spec.settings, move.spec.stage, move.spec.mode) == (space.yours, "yours", "full")
    assert move.spec.timeout_s == 100.0
    assert move.capped
    assert move.spec.give_up_below is None


def test_ceilings_come_second():
    """Both sides of *yours* alone, the loader first."""
    space = space_of()
    history = History().ran(space.yours, 100, "yours")
    first = move_of(space, history).spec
    assert (first.stage, first.mode, first.settings) == ("ceiling", "loader", space.yours)
    history.ran(space.yours, 100, "ceiling", "loader")
    assert move_of(space, history).spec.mode == "compute"


def test_a_failed_ceiling_is_not_asked_for_again():
    """A ceiling is good to know, not worth a second failure."""
    space = space_of()
    history = History().ran(space.yours, 100, "yours").failed(space.yours, "user_error", "ceiling", "loader")
    assert move_of(space, history).spec.mode == "compute"


def test_a_short_budget_goes_to_full_trials():
    """Where only a trial or two fit before the finals, they are not spent on ceilings."""
    space = space_of()
    history = History().ran(space.yours, 100, "yours", wall_s=3.0)
    assert move_of(space, history, remaining_s=40.0).spec.settings == bundle(space)


def test_without_a_loader_there_are_no_ceilings():
    """A loop without a DataLoader has one side only."""
    space = space_of(dataset_class=None, batch_size=None)
    history = History().ran(space.yours, 100, "yours")
    assert move_of(space, history).spec.stage == "joint"


def test_the_usual_advice_is_tried_before_single_moves():
    """One trial with everything that usually helps finds most of the gain."""
    space = space_of()
    move = move_of(space, History().opened(space))
    assert move.spec.settings == bundle(space)
    assert move.spec.give_up_below == pytest.approx(70.0)


def test_what_the_user_fixed_is_tried_even_with_nothing_to_search():
    """Fixed values that differ from *yours* are compared with it."""
    knobs = ("num_workers", "prefetch_factor", "persistent_workers")
    space = space_of(allow="exact", fixed=dict(zip(knobs, (2, 2, True))))
    assert not space.options
    move = move_of(space, History().opened(space))
    assert move.spec.settings == space.start != space.yours


def test_a_near_tie_is_measured_again_in_turn():
    """A small lead is raced: the incumbent again, then the challenger, three runs of each at most."""
    space = space_of()
    rival = bundle(space)
    history = History().opened(space).ran(rival, 101)
    turns = []
    for _ in range(4):
        spec = move_of(space, history).spec
        turns.append(spec.settings)
        history.ran(spec.settings, 101 if spec.settings == rival else 100)
    assert turns == [space.yours, rival, space.yours, rival]
    assert Knowledge(context(space), history).race is None


def test_a_clear_lead_is_believed():
    """Ten percent in one run needs no second one."""
    space = space_of()
    history = History().opened(space).ran(bundle(space), 110)
    know = Knowledge(context(space), history)
    assert know.race is None
    assert know.incumbent == bundle(space)


def test_among_ties_the_simpler_stays():
    """Settings that are no faster than simpler ones do not become the incumbent; the reverse does happen."""
    space = space_of()
    one, two = space.settings(num_workers=1), space.settings(num_workers=2)
    up = History().opened(space).ran(one, 200).ran(two, 200.2)
    assert Knowledge(context(space), up).incumbent == one
    down = History().opened(space).ran(two, 200.2).ran(one, 200)
    assert Knowledge(context(space), down).incumbent == one


def test_a_gain_beyond_one_run_is_kept_by_the_pooled_rate():
    """A lucky first run does not win once its repeats are in."""
    space = space_of()
    lucky = space.settings(num_workers=1)
    history = History().opened(space, 100).ran(lucky, 104).ran(space.yours, 100).ran(lucky, 98).ran(lucky, 98)
    assert Knowledge(context(space), history).incumbent == space.yours


def test_moves_change_one_knob_of_the_incumbent():
    """After the advice the plan climbs from the incumbent, a knob at a time, and names the move."""
    space = space_of(usable_cpus=2)
    best = bundle(space)
    history = History().opened(space).ran(best, 200, wait=0.5)
    spec = move_of(space, history).spec
    moved = set(spec.settings.changed_from(best)) - {"prefetch_factor", "persistent_workers"}
    assert len(moved) == 1
    assert next(iter(moved)) in spec.reason


def accelerated(**changes):
    """A space on a CUDA device."""
    from strategies import plain_gpu

    facts = {**GPU, "gpus": (plain_gpu(),), "usable_cpus": 8, **changes}
    return space_of(**facts)


def groups_moved(space, history):
    """Which knobs the plan moves in the next trials, were they all to bring nothing."""
    history, moved = History(history), set()
    for _ in range(25):
        move = move_of(space, history, remaining_s=100_000.0, budget_s=100_000.0)
        if not isinstance(move, Run) or move.spec.stage != "joint":
            break
        incumbent = Knowledge(context(space), history).incumbent
        if move.spec.settings == incumbent:
            break  # all moves are made: the best so far is only seen again
        if move.spec.settings == space.yours:
            history.ran(space.yours, 100, wait=0.5)  # seen again for its own sake, which is no move
            continue
        moved |= set(move.spec.settings.changed_from(incumbent))
        history.ran(move.spec.settings, 50, wait=0.5)
    return moved


def quiet(space, *, wait):
    """The advice won clearly, and its step waits so much."""
    history = History().ran(space.yours, 100, "yours", wait=0.5, wall_s=2.1)
    history.ran(space.yours, 900, "ceiling", "loader").ran(space.yours, 900, "ceiling", "compute")
    return history.ran(bundle(space), 200, wait=wait)


def test_a_step_that_does_not_wait_gets_no_loader_moves():
    """Under 2 % of waiting on an accelerator nothing of the loader's is moved."""
    moved = groups_moved(accelerated(), quiet(accelerated(), wait=0.01))
    assert "precision" in moved
    assert "num_workers" not in moved


def test_a_step_that_is_held_up_without_waiting_gets_loader_moves():
    """Far under what the step does alone, copies or busy workers are in the way, though no batch is late."""
    space = accelerated()
    history = quiet(space, wait=0.01).ran(bundle(space), 300, "compute", "compute")
    assert "num_workers" in groups_moved(space, history)


def test_a_step_that_waits_gets_no_compute_moves():
    """Over 10 % of waiting on an accelerator a faster step would only wait longer."""
    moved = groups_moved(accelerated(), quiet(accelerated(), wait=0.4))
    assert "num_workers" in moved
    assert not moved & {"precision", "channels_last", "cudnn_benchmark"}


def test_a_rate_at_the_compute_ceiling_closes_the_loader_side():
    """On a CPU too: where the step alone is no faster, no loader setting can be."""
    space = space_of(usable_cpus=2, has_conv2d=True, image_input=True)
    history = History().ran(space.yours, 100, "yours", wait=0.0)
    history.ran(space.yours, 900, "ceiling", "loader", wall_s=5.0)
    history.ran(space.yours, 101, "ceiling", "compute", wall_s=5.0)
    history.ran(bundle(space), 60)
    moved = groups_moved(space, history)
    assert moved
    assert not moved & {"num_workers", "prefetch_factor"}


def test_a_gpu_at_its_loaders_rate_gets_more_workers():
    """Few waits say nothing there: the search does not end before a faster loader was tried."""
    space = accelerated()
    eight = space.settings(num_workers=8, precision="bfloat16")  # whose step alone nobody has seen
    history = History().ran(space.yours, 100, "yours", wait=0.6)
    history.ran(space.yours, 120, "ceiling", "loader", wall_s=5.0)
    history.ran(space.yours, 900, "ceiling", "compute", wall_s=5.0)
    history.ran(eight, 500, "loader", "loader").ran(eight, 500, wait=0.01)
    assert "num_workers" in groups_moved(space, history)


def test_nothing_to_gain_is_said_at_once():
    """Where only the loader may change and it costs nothing, the search ends before its first move."""
    space = space_of(allow="exact")
    history = History().ran(space.yours, 100, "yours", wait=0.0)
    history.ran(space.yours, 900, "ceiling", "loader", wall_s=5.0)
    history.ran(space.yours, 101, "ceiling", "compute", wall_s=5.0)
    move = move_of(space, history)
    assert move == EndSearch(reason="the ceilings leave nothing to gain")


def test_a_bound_below_the_incumbent_is_not_run():
    """What its loader alone did not reach, the whole will not."""
    space = space_of()
    slow = space.settings(num_workers=3)
    history = History().opened(space).ran(slow, 80, "loader", "loader")
    assert not acceptable(context(space), history, slow)
    assert acceptable(context(space), history, space.settings(num_workers=2))


def test_measured_settings_are_not_acceptable_again():
    """The sampler may not propose what is known."""
    space = space_of()
    history = History().opened(space).ran(bundle(space), 50)
    assert not acceptable(context(space), history, bundle(space))
    assert not acceptable(context(space), history, space.yours)


def exhausted_moves(space):
    """A history in which every move from the incumbent was tried in vain."""
    history = History().opened(space)
    while isinstance(move := move_of(space, history, budget_s=1e5, remaining_s=1e5), Run):
        rate = 100 if move.spec.settings == space.yours else 60
        history.ran(move.spec.settings, rate, move.spec.stage, move.spec.mode)
    return history, move


def test_the_sampler_takes_over_after_a_round_without_a_gain():
    """Sampling starts when no single move is left, and ends after six in vain."""
    space = space_of(usable_cpus=2, has_conv2d=True, image_input=True)
    history, move = exhausted_moves(space)
    assert isinstance(move, Sample)
    plenty = {"budget_s": 1e5, "remaining_s": 1e5}
    history.ran(space.yours, 100)  # seen now, so that it is not asked for in between
    for count in range(6):
        assert isinstance(move_of(space, history, **plenty), Sample)
        drawn = space.settings(num_workers=1 + count % 2, prefetch_factor=16 + count)
        history.ran(drawn, 60, "sampled")
    assert "no gain in 6" in move_of(space, history, **plenty).reason


def test_nothing_new_is_left_only_when_all_was_tried(monkeypatch):
    """A sampler that repeats itself does not end the search while untried settings may still win."""
    monkeypatch.setattr("autotune.search.plan.predictions", lambda know: ())
    space = space_of(usable_cpus=2, allow="exact")
    plenty = {"budget_s": 1e5, "remaining_s": 1e5, "exhausted": True}
    history = History().ran(space.yours, 100, "yours")
    for mode in ("loader", "compute"):
        history.ran(space.yours, 1e9, "ceiling", mode)
    # A step forward now and then, or six in vain would end the search before.
    for count in itertools.count():
        move = move_of(space, history, **plenty)
        if not isinstance(move, Run):
            break
        rate = 200 + 20 * count if move.spec.stage == "sampled" else 100
        history.ran(move.spec.settings, rate, move.spec.stage, move.spec.mode)
    assert move == EndSearch(reason="nothing new was left to try")
    ran = {t.settings for t in history if t.spec.mode == "full"}
    assert not [s for s in space.every() if acceptable(context(space, **plenty), history, s)]
    assert len(ran) > 4


def test_the_search_ends_when_only_the_reserve_is_left():
    """A trial that would eat into the finals is not begun."""
    space = space_of()
    history = History().opened(space)
    move = move_of(space, history, remaining_s=30.0)
    assert move == EndSearch(reason="the time for the search was used up")


def test_every_search_trial_fits_before_the_reserve():
    """The timeout of a search trial leaves the finals their time, and says that the budget set it."""
    space = space_of()
    move = move_of(space, History().opened(space), remaining_s=60.0)
    assert isinstance(move, Run)
    assert move.capped
    assert move.spec.timeout_s < 0.5 * 60.0


def test_need_is_known_after_yours():
    """A comparison needs a trial and four pairs; nothing to search needs nothing."""
    space = space_of()
    history = History().ran(space.yours, 100, "yours", wall_s=3.0)
    assert needed_s(context(space), history) > 8 * 3.0
    empty = space_of(allow="exact", workers_fixed="so", dataset_class=None, batch_size=None)
    assert needed_s(context(empty), History().ran(empty.yours, 100, "yours")) == 0.0


def test_nothing_to_search_ends_the_search():
    """A space without options goes straight to the end."""
    space = space_of(allow="exact", dataset_class=None, batch_size=None)
    history = History().ran(space.yours, 100, "yours")
    assert move_of(space, history) == EndSearch(reason="there was nothing to search")
    assert move_of(space, history, search_over="there was nothing to search") == Finish()


def test_the_plan_can_be_replayed():
    """The same history and time give the same move."""
    space = space_of(has_conv2d=True, image_input=True)
    history = History().opened(space).ran(bundle(space), 150)
    assert move_of(space, history) == move_of(space, [Trial(**_fields(t)) for t in history])


def _fields(trial):
    return {name: getattr(trial, name) for name in ("number", "spec", "measurement", "failure")}


def test_fake_description_knows_its_names():
    """A name that is no fact and no knob is an error, so that a test cannot vary nothing."""
    with pytest.raises(TypeError, match="num_wokers"):
        fake_description(num_wokers=2)
