"""The winner's run across the end of an epoch, and what follows when it fails there."""

from __future__ import annotations

from dataclasses import replace

from finals_trials import YOURS, failed, finals, workers
from search_worlds import History, context, fake_runner, run_fake, space_of

from autotune.outcome import Outcome
from autotune.search.context import PlanContext
from autotune.search.cost import Costs
from autotune.search.decision import Finish, Run
from autotune.search.edge import edge_notes, next_edge
from autotune.search.knowledge import Knowledge
from autotune.search.plan import next_move
from autotune.search.verdict import disturbed_finals, judge
from autotune.settings import Settings
from autotune.trial import Failure, Trial, TrialSpec

LAST_BATCH = Failure(kind="user_error", message="in the last batch of an epoch (1 sample): too few values")
SPACE = space_of()
FAST = SPACE.settings(num_workers=2)


def edges(outcome: Outcome) -> list[Trial]:
    return [trial for trial in outcome.trials if trial.spec.epoch_edge]


def won(pairs: int = 5) -> History:
    """A search and finals in which `FAST` wins."""
    history = History().opened(SPACE).ran(FAST, 200).ran(FAST, 200)
    for pair in range(pairs):
        history.ran(SPACE.yours, 100, "final", pair=pair)
        history.ran(FAST, 200 + pair % 2, "final", pair=pair)
    return history


def after_search(remaining_s: float = 280.0, **changes: object) -> PlanContext:
    return context(SPACE, search_over="done", remaining_s=remaining_s, **changes)


def test_the_winner_runs_across_the_end_of_an_epoch() -> None:
    """Once, right after the pairs, outside of them, and the figures stay those of the pairs."""
    outcome = run_fake(fake_runner(noise=0.01), 300.0)
    (edge,) = edges(outcome)
    assert (edge.settings, edge.spec.stage, edge.spec.pair) == (outcome.best, "final", None)
    pairs = [t for t in outcome.trials if t.spec.stage == "final" and not t.spec.epoch_edge]
    assert edge.number == pairs[-1].number + 1
    assert disturbed_finals(outcome.trials)[1] == len(pairs)
    assert not any("end of an epoch" in note for note in outcome.notes)


def test_a_winner_that_fails_there_leaves_its_place_to_the_next() -> None:
    """The next best wins in pairs of its own, is run there too, and a note says why."""
    first = run_fake(fake_runner(noise=0.01), 400.0).best
    fails = fake_runner(noise=0.01, edge_failures=lambda s: LAST_BATCH if s == first else None)
    outcome = run_fake(fails, 400.0)
    assert [t.settings for t in edges(outcome)] == [first, outcome.best]
    assert outcome.verdict.kind == "faster"
    assert outcome.best != first
    (note,) = (note for note in outcome.notes if "end of an epoch" in note)
    assert note.endswith(f"was faster, but failed across the end of an epoch: {LAST_BATCH.message}")


def test_yours_stays_where_all_that_is_faster_fails_there() -> None:
    """The sentence says why, and not that nothing was faster."""
    rates = {YOURS: (100.0, 101.0, 99.0, 100.0, 100.0), workers(2): (150.0, 151.0, 149.0, 150.0, 150.0)}
    spec = TrialSpec(settings=workers(2), stage="final", epoch_edge=True)
    edge = Trial(number=0, spec=spec, failure=LAST_BATCH)

    def judged(trials: tuple[Trial, ...]):
        return judge(YOURS, (workers(2),), trials, samples=None, epochs=None, simpler=Settings.key)

    assert judged(finals(rates)).winner == workers(2)
    verdict = judged((*finals(rates), edge))
    assert (verdict.kind, verdict.winner) == ("kept", YOURS)
    assert verdict.sentence.endswith(f"failed across the end of an epoch: {LAST_BATCH.message}")
    plain = judged((*finals(rates), failed(workers(2), pair=5)))
    assert plain.sentence == "yours stays: each of the others failed in the finals"


def test_it_runs_once_and_before_the_worth() -> None:
    """Where it passed, the plan goes on."""
    history = won()
    move = next_move(after_search(), history)
    assert isinstance(move, Run)
    assert (move.spec.epoch_edge, move.spec.settings) == (True, FAST)
    history.ran(FAST, 200, "final", edge=True)
    know = Knowledge(after_search(), history)
    assert next_edge(know, Costs(know)) is None
    assert edge_notes(know, Costs(know)) == ()


def test_without_the_time_for_it_a_note_says_so() -> None:
    """The winner stays, and the user knows what is not known of it."""
    history = won()
    assert isinstance(next_move(after_search(0.5), history), Finish)
    know = Knowledge(after_search(0.5), history)
    assert edge_notes(know, Costs(know)) == (
        "the winner was not run across the end of an epoch: no time was left",
    )


def test_a_loop_without_a_loader_has_no_end_of_an_epoch() -> None:
    """Nothing is run for it, nothing is set aside for it, and nothing is said of it."""
    facts = {"dataset_class": None, "dataset_samples": None, "batch_size": None}
    outcome = run_fake(fake_runner(facts=facts), 120.0)
    assert outcome.verdict.kind == "faster"
    assert edges(outcome) == []
    assert not any("end of an epoch" in note for note in outcome.notes)


def test_time_is_set_aside_for_it() -> None:
    """From the start, and beyond the fewest pairs before one pair more."""
    know = Knowledge(after_search(), won(4))
    costs = Costs(know)
    assert 0 < costs.edge_s < costs.round_s()
    needed_s = costs.round_s()
    tight = next_move(after_search(needed_s + 0.5 * costs.edge_s), won(4))
    assert isinstance(tight, Run)
    assert tight.spec.epoch_edge
    roomy = next_move(after_search(needed_s + 1.5 * costs.edge_s), won(4))
    assert isinstance(roomy, Run)
    assert roomy.spec.pair == 4


def test_what_it_costs_does_not_make_the_finals_dear() -> None:
    """It starts two loaders more: that is no overhead of other runs."""
    before = Costs(Knowledge(after_search(), won())).round_s()
    history = won().ran(FAST, 200, "final", edge=True, wall_s=60.0)
    assert Costs(Knowledge(after_search(), history)).round_s() == before


def test_a_failure_there_is_not_the_runs_failure() -> None:
    """It disqualifies the settings, and the plan goes on without an error."""
    history = won()
    spec = replace(history[-1].spec, pair=None, epoch_edge=True)
    history.append(Trial(number=len(history), spec=spec, failure=LAST_BATCH))
    know = Knowledge(after_search(), history)
    assert next_edge(know, Costs(know)) is None
    assert "was faster, but failed" in edge_notes(know, Costs(know))[0]
