"""What a trial is expected to cost, and what is set aside for the finals."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from search_worlds import History, context, space_of
from strategies import plain_gpu

from autotune.search.cost import Costs, min_blocks, window_s
from autotune.search.decision import Run
from autotune.search.knowledge import Knowledge
from autotune.search.plan import next_move


@pytest.mark.parametrize(
    ("budget", "step", "expected"),
    [(60, 0.01, 0.6), (300, 0.01, 2.0), (3600, 0.01, 3.0), (60, 0.5, 1.5), (300, 0.5, 4.0), (300, 60, 7.5)],
)
def test_window_follows_budget_and_step(budget, step, expected):
    """A minute gives 0.6 s, five give 2 s, three at most; slow steps get eight if the budget allows."""
    assert window_s(budget, step) == pytest.approx(expected)


def test_few_blocks_where_blocks_are_long():
    """Blocks hold a step for each worker: with slow steps and many workers two of them have to do."""
    assert min_blocks(2.0, 0.05, 2) == 4
    assert min_blocks(2.0, 0.5, 8) == 2


def costs_of(history, space, **changes):
    """Costs of a history."""
    return Costs(Knowledge(context(space, **changes), history))


def test_overhead_is_learned_from_trials_of_the_same_mode():
    """A loader trial that took long to start does not make compute trials look dear."""
    space = space_of()
    history = History().ran(space.yours, 100, "yours", wall_s=3.0)
    history.ran(space.yours, 100, "ceiling", "loader", wall_s=12.0)
    history.ran(space.yours, 100, "ceiling", "compute", wall_s=2.5)
    costs = costs_of(history, space)
    assert costs.overhead_s(space.yours, "full") == pytest.approx(1.0)
    assert costs.overhead_s(space.yours, "loader") == pytest.approx(10.0)
    assert costs.overhead_s(space.yours, "compute") == pytest.approx(0.5)


def test_a_slow_neighbour_does_not_make_other_settings_dear():
    """One setting that takes long to warm up says so of itself alone: the finals keep their price."""
    space = space_of()
    slow, usual = space.settings(num_workers=3), space.settings(num_workers=2)
    history = History().opened(space).ran(space.settings(num_workers=1), 100, wall_s=3.0)
    before = costs_of(history, space).reserve_s
    costs = costs_of(history.ran(slow, 50, wall_s=30.0), space)
    assert costs.overhead_s(slow, "full") == pytest.approx(28.0)
    assert costs.overhead_s(usual, "full") == pytest.approx(1.0)
    assert costs.reserve_s == pytest.approx(before)


def test_a_dead_process_costs_its_start_again():
    """After a crash the next trial pays for a new process; after an error of the user's code it does not."""
    space = space_of(setup_s=7.0)
    other = space.settings(num_workers=1)
    history = History().opened(space)
    spec = costs_of(history, space).search_spec(other, "joint", "")
    alive = costs_of(history, space).predicted_s(spec)
    history.failed(other, "process_crash")
    assert costs_of(history, space).predicted_s(spec) == pytest.approx(alive + 7.0)
    history.failed(other, "user_error")
    assert costs_of(history, space).predicted_s(spec) == pytest.approx(alive)


def test_reserve_holds_nine_pairs_with_room_and_four_without():
    """Nine pairs are set aside from the start, fewer where they would take more than half, four at least."""
    space = space_of()
    history = History().opened(space)
    wide, some, tight = (costs_of(history, space, remaining_s=left) for left in (290.0, 120.0, 31.0))
    assert wide.reserve_s == pytest.approx(9 * wide.round_s() + wide.edge_s)
    assert (some.reserve_s - some.edge_s) / some.round_s() == pytest.approx(int(0.5 * 130.0 / some.round_s()))
    assert 4 < (some.reserve_s - some.edge_s) / some.round_s() < 9
    assert tight.reserve_s == pytest.approx(4 * tight.round_s() + tight.edge_s)


def test_finals_share_a_process_where_new_ones_would_eat_the_search():
    """Ten new processes of 20 s do not fit five minutes; the finals are run all the same."""
    assert costs_of(History().opened(space_of(setup_s=1.0)), space_of(setup_s=1.0)).fresh_finals
    slow = space_of(setup_s=20.0)
    assert not costs_of(History().opened(slow), slow).fresh_finals


def test_finals_stay_as_they_began():
    """Once the first of the finals ran in a process of its own, all do, whatever that cost."""
    space = space_of(setup_s=20.0)
    history = History().opened(space).ran(space.yours, 100, "final", pair=0, fresh=True, wall_s=40)
    assert costs_of(history, space).fresh_finals


def test_trials_of_an_earlier_session_are_not_on_this_budget():
    """What an earlier session spent does not make this one look longer than it is."""
    space = space_of(setup_s=8.0)
    history = History().opened(space)
    for _ in range(100):
        history.ran(space.yours, 100, wall_s=3.0)
    assert costs_of(history, space, remaining_s=100.0).fresh_finals
    assert not costs_of(history, space, remaining_s=100.0, earlier=len(history)).fresh_finals


def challenge(space, history, **changes):
    """The costs and the spec of a new settings' trial."""
    costs = costs_of(history, space, **changes)
    return costs, costs.search_spec(space.settings(num_workers=3), "joint", "")


def test_a_challenger_is_compared_with_the_incumbent():
    """It ends once it is surely behind, and goes on for two and a half windows while that is open."""
    space = space_of()
    history = History().opened(space).ran(space.settings(num_workers=1), 200)
    costs, spec = challenge(space, history)
    assert spec.compare_with == pytest.approx(200 * math.exp(-costs.know.noise * math.sqrt(2)), rel=1e-3)
    assert spec.give_up_below == pytest.approx(140, rel=1e-3)
    assert spec.window_cap_s == pytest.approx(2.5 * spec.window_s)
    assert costs.search_spec(space.yours, "sampled", "").compare_with == spec.compare_with


def test_what_is_no_challenge_is_timed_for_its_window():
    """The incumbent measured again, one side alone, finals and worth: nothing is given up there."""
    space = space_of()
    best = space.settings(num_workers=1)
    costs = costs_of(History().opened(space).ran(best, 200), space)
    specs = [
        costs.search_spec(best, "joint", "again"),
        costs.search_spec(space.yours, "loader", "", "loader"),
        costs.final_spec(best, 0),
        costs.worth_spec(space.yours, 0, ""),
    ]
    assert {(s.compare_with, s.window_cap_s, s.give_up_below) for s in specs} == {(None, None, None)}


def test_a_challenger_with_short_starts_is_not_given_up_for_its_steady_rate():
    """Where the incumbent's starts eat half of the run, half of its steady rate is what must be beaten."""
    space = space_of(dataset_samples=200)
    history = History().opened(space).ran(space.settings(num_workers=1), 200)
    slow_start = replace(history[-1].measurement, restart_s=1.0)
    history[-1] = replace(history[-1], measurement=slow_start)
    _, spec = challenge(space, history)
    assert 95 < spec.compare_with < 100
    assert spec.give_up_below == pytest.approx(70, rel=1e-2)


def test_the_time_left_bounds_how_long_a_challenger_may_go_on():
    """The last trial of a search ends in time rather than be cut off, and patience covers the cap."""
    space = space_of()
    history = History().opened(space)
    costs, spec = challenge(space, history)
    assert costs.patience_s(spec) > costs.predicted_s(spec) + spec.window_cap_s
    caps = []
    for spare_s in (0.5, 500.0):
        left_s = costs.predicted_s(spec) + costs_of(history, space).least_s + spare_s
        move = next_move(context(space, remaining_s=left_s), history)
        if isinstance(move, Run) and move.spec.compare_with is not None:
            caps.append(move.spec.window_cap_s / move.spec.window_s)
    assert caps[-1] == pytest.approx(2.5)
    assert all(1.0 <= cap <= 2.5 for cap in caps)


def on_gpu(**changes):
    """The space of a workload on a GPU, and a history in which its steps warm up in 0.2 s."""
    space = space_of(device="cuda", gpus=(plain_gpu(),), **changes)
    history = History().ran(space.yours, 100, "yours", warmup_s=0.2, wall_s=3.0)
    return space, history.ran(space.settings(num_workers=1), 150, warmup_s=0.2, wall_s=3.0)


def test_finals_warm_an_accelerator_for_a_second():
    """Its clocks rise with load; a CPU is not kept waiting, and neither are the trials of the search."""
    space, history = on_gpu()
    costs = costs_of(history, space)
    assert costs.final_spec(space.yours, 0).least_warm_s == 1.0
    assert costs.search_spec(space.settings(num_workers=2), "joint", "").least_warm_s == 0.0
    plain = space_of()
    assert costs_of(History().opened(plain), plain).final_spec(plain.yours, 0).least_warm_s == 0.0


def test_that_second_is_in_what_a_final_is_expected_to_cost():
    """Less what steps warm up for anyway, and not twice once a final of these settings has run."""
    space, history = on_gpu()
    costs = costs_of(history, space)
    spec = costs.final_spec(space.yours, 0)
    without = replace(spec, least_warm_s=0.0)
    assert costs.predicted_s(spec) - costs.predicted_s(without) == pytest.approx(0.8)
    known = costs_of(history.ran(space.yours, 100, "final", pair=0, fresh=True, warmup_s=1.0), space)
    assert known.predicted_s(spec) == pytest.approx(known.predicted_s(without))
