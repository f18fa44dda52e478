"""What a trial is expected to cost, and what is set aside for the finals."""

from __future__ import annotations

import pytest
from search_worlds import History, context, space_of

from autotune.search.cost import Costs, min_blocks, window_s
from autotune.search.knowledge import Knowledge


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
