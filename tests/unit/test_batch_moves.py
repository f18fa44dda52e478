"""When gradients are looked at, which batch sizes are tried, and how they are compared."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from search_worlds import History, context, fake_runner, run_fake, space_of

from autotune.codec import decode, encode
from autotune.errors import StudyError
from autotune.outcome import NoiseScale, Outcome
from autotune.recipe.goodput import efficiency
from autotune.recipe.noise_scale import GradientStats
from autotune.search.batch import GradientLook, look_of, teaches
from autotune.search.batch_moves import batch_choice, batch_kept, caps, next_look
from autotune.search.cost import Costs
from autotune.search.knowledge import Knowledge
from autotune.search.plan import LookAtGradients, acceptable, next_move
from autotune.settings import Settings
from autotune.testing import fake_gradients
from autotune.trial import Failure, Mode


def noise(samples: float) -> NoiseScale:
    """A noise scale that is known exactly."""
    return NoiseScale(
        value=samples,
        low=samples,
        high=samples,
        lower_bound=samples,
        micro_samples=64,
        micro_batches=4,
        steps=32,
        skipped=0,
        at="after 100 warm steps",
    )


def growing(settings: Settings, mode: Mode) -> float:
    """A device whose every step costs 0.05 s beside its samples, so that large batches pay."""
    size = settings.loader.batch_size or 1
    return (1 if mode == "full" else 3) * size / (0.05 + size / 4000)


SGD = {"learning_rates": (0.1,), "weight_decays": (0.0,), "step_s": 0.06}
QUIET = {"has_conv2d": False, "image_input": False}


def tuned(samples: float | None, *, budget_s: float = 300.0, facts: dict | None = None, **options) -> Outcome:
    """A run where throughput grows with the batch; `samples` is the noise scale, None is a refusal."""
    gradients = None
    if samples is not None:
        gradients = fake_gradients(samples, 64)
    runner = fake_runner(growing, facts={**SGD, **QUIET, **(facts or {})}, gradients=gradients)
    if samples is None:
        runner.gradients = lambda spec: GradientStats(
            micro_samples=64, micro_batches=4, refused="the loss is summed over the batch"
        )
    return run_fake(runner, budget_s, allow="recipe", **options)


def test_a_large_noise_scale_takes_a_larger_batch() -> None:
    """Samples that still teach as much in larger batches: the fastest of these wins, with its recipe."""
    outcome = tuned(1e6)
    assert outcome.verdict.kind == "faster"
    assert outcome.best.loader.batch_size == 512
    assert outcome.recipe is not None
    assert outcome.recipe.learning_rates[0] == pytest.approx(0.1 * 8, rel=0.01)
    assert outcome.batch is not None
    assert outcome.batch.recommended == outcome.batch.max_throughput == 512
    assert outcome.noise is not None
    assert outcome.noise.at == "after 76 to 138 warm steps"  # 40 % of all that the look had time for


@pytest.mark.parametrize(("epochs", "warm"), [(None, 400), (40, 400), (4, 312)])
def test_gradients_are_looked_at_within_the_users_own_run(epochs: int | None, warm: int) -> None:
    """Later ones are noisier, and most of a run is late: but no later than a quarter of it."""
    space = space_of(allow="recipe", **{**SGD, **QUIET, "dataset_samples": 20_000})
    ctx = context(space, budget_s=3000.0, remaining_s=2900.0, epochs=epochs)
    spec = next_look(Knowledge(ctx, History().opened(space)), 2500.0)
    assert spec is not None
    assert spec.warm_steps + spec.apart * (spec.steps - 1) == warm


def test_gradients_are_looked_at_over_the_second_half_of_the_training() -> None:
    """At one point they say little: as many training steps as fit lie between two that are looked at."""
    space = space_of(allow="recipe", **{**SGD, **QUIET, "dataset_samples": 20_000})
    ctx = context(space, budget_s=3000.0, remaining_s=2900.0)
    spec = next_look(Knowledge(ctx, History().opened(space)), 2500.0)
    assert spec is not None
    assert (spec.warm_steps, spec.apart, spec.steps) == (214, 6, 32)


@pytest.mark.parametrize(
    ("warm", "budget_s", "lengths"),
    [
        (0, 3000.0, (0, 6, 32)),
        (1000, 3000.0, (1000, 6, 32)),
        (1000, 300.0, None),
        (150, 1500.0, (150, 5, 32)),
    ],
)
def test_warm_steps_are_as_many_as_asked_for(warm: int, budget_s: float, lengths: tuple | None) -> None:
    """0 looks from the weights as they are, as of a checkpoint; without time for them there is no look."""
    space = space_of(allow="recipe", **{**SGD, **QUIET})
    ctx = context(space, budget_s=budget_s, remaining_s=budget_s, warm=warm)
    spec = next_look(Knowledge(ctx, History().opened(space)), budget_s)
    assert (None if spec is None else (spec.warm_steps, spec.apart, spec.steps)) == lengths


def test_a_look_that_comes_too_late_is_told() -> None:
    """The report says why there is no noise scale, and that the batch went no further for that."""
    runner = fake_runner(growing, facts={**SGD, **QUIET})
    runner.gradients = fake_gradients(1e6, 64)
    outcome = run_fake(runner, 300.0, allow="recipe", warm=100_000)
    assert outcome.noise is None
    assert outcome.best.loader.batch_size == 256
    assert any("no time to look at the gradients after 100,000 warm steps" in note for note in outcome.notes)


def test_a_small_noise_scale_keeps_the_batch() -> None:
    """However many samples a second a larger batch takes: hardly anything is learned from them."""
    outcome = tuned(5.0)
    assert outcome.best.loader.batch_size == 64
    assert outcome.recipe is None
    assert all(t.settings.loader.batch_size == 64 for t in outcome.trials)


def test_a_noise_scale_between_sets_a_batch_between() -> None:
    """The ratio shown is in what samples teach: throughput times efficiency."""
    outcome = tuned(600.0)
    size = outcome.best.loader.batch_size
    assert size in (128, 256)
    assert outcome.noise is not None
    assert outcome.verdict.ratio is not None
    plain = growing(outcome.best, "full") / growing(outcome.yours, "full")
    taught = efficiency(size, 64, outcome.noise.lower_bound)
    assert outcome.verdict.ratio.value == pytest.approx(plain * taught, rel=0.02)
    assert f"{taught:.2f} of yours in batches of {size}" in outcome.verdict.sentence


def test_throughput_alone_can_be_asked_for() -> None:
    """The largest batch then wins whatever it teaches, and the words say so."""
    outcome = tuned(5.0, objective="throughput")
    assert outcome.best.loader.batch_size == 512
    assert "whatever they teach" in outcome.verdict.sentence


def test_the_largest_batch_can_be_bounded() -> None:
    """No trial has a larger one, and the table says that this was why."""
    outcome = tuned(1e6, max_batch_size=200)
    assert max(t.settings.loader.batch_size for t in outcome.trials) == 128
    assert outcome.batch is not None
    assert any("max_batch_size=200" in cap for cap in outcome.batch.limited_by)


def test_a_refusal_keeps_the_batch_and_says_why() -> None:
    """A loss that is summed scales its own gradient: no learning rate goes with another batch."""
    outcome = tuned(None)
    assert all(t.settings.loader.batch_size == 64 for t in outcome.trials)
    assert [k.why for k in outcome.kept if k.knob == "batch_size"] == ["the loss is summed over the batch"]


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"optimizer_class": None, "optimizer_family": "other"}, "no optimizer was given"),
        (
            {"optimizer_class": "Lion", "optimizer_family": "other"},
            "no rule scales the learning rate of Lion",
        ),
        ({"learning_rates": (0.0, 0.0)}, "every learning rate is 0"),
    ],
)
def test_without_a_rule_for_the_learning_rate_the_batch_stays(facts: dict, why: str) -> None:
    """Nobody looks at gradients then, and the report says why."""
    outcome = tuned(1e6, facts=facts)
    assert all(t.settings.loader.batch_size == 64 for t in outcome.trials)
    assert outcome.noise is None
    assert [k.why.startswith(why) for k in outcome.kept if k.knob == "batch_size"] == [True]


@pytest.mark.parametrize("own", [6, 10, 50, 150])
def test_adam_looks_at_gradients_whatever_its_batch(own: int) -> None:
    """Without a noise scale Adam's batch at most doubles, and sizes that are rounded stay within that."""
    facts = {"optimizer_class": "AdamW", "optimizer_family": "adam", "batch_samples": own, "batch_size": own}
    space = space_of(allow="recipe", **facts)
    know = Knowledge(context(space), History().opened(space, 100.0 * own))
    assert next_look(know, 200.0) is not None


@pytest.mark.parametrize(
    ("samples", "options", "why"),
    [
        (5.0, {}, "in batches of 128 a sample likely teaches 0.5"),
        (1e6, {"epochs": 1}, "128 leaves 391 steps in 1 epoch, fewer than 500"),
        (1e6, {"max_batch_size": 100}, "128 is over max_batch_size=100"),
        (1e6, {"budget_s": 30.0}, "to train a while in batches of 128 beside yours takes"),
    ],
)
def test_a_batch_that_stays_says_what_kept_it(samples: float, options: dict, why: str) -> None:
    """One reason, the first that holds for the next larger batch, and no trial with another."""
    outcome = tuned(samples, **options)
    assert all(t.settings.loader.batch_size == 64 for t in outcome.trials)
    assert [k.why.startswith(why) for k in outcome.kept if k.knob == "batch_size"] == [True]


def test_a_larger_batch_that_met_in_the_finals_and_lost_is_named() -> None:
    """The table's rates are the search's: a larger batch may be ahead there, and not where it counts."""
    space = space_of(allow="recipe", **SGD)
    larger = space.yours.replace(batch_size=128)
    history = History().ran(space.yours, 1000.0, "yours").ran(larger, 1500.0)
    for pair in range(4):
        history.ran(space.yours, 1000.0, "final", pair=pair).ran(larger, 1000.0, "final", pair=pair)
    choice = batch_choice(Knowledge(context(space), history), space.yours)
    assert choice is not None
    assert choice.recommended == 64
    assert "in the finals batches of 128 were not surely ahead" in choice.limited_by


def test_a_search_that_ends_early_says_that_larger_batches_had_no_turn() -> None:
    """Nothing speaks against them but that the search was over."""
    space = space_of(allow="recipe", **SGD)
    know = Knowledge(context(space), History().ran(space.yours, 10_000.0, "yours"))
    assert [kept.why for kept in batch_kept(know)] == [
        "the search ended before larger batches had their turn"
    ]


def test_without_a_noise_scale_the_batch_grows_a_little() -> None:
    """Up to four times for SGD, twice for Adam; it is noted that nothing supports more."""
    for family, name, largest in (("sgd", "SGD", 256), ("adam", "Adam", 128)):
        runner = fake_runner(
            growing,
            facts={**SGD, **QUIET, "optimizer_family": family, "optimizer_class": name},
            gradients=lambda spec: Failure(kind="timeout", message="it did not end"),
        )
        outcome = run_fake(runner, 300.0, allow="recipe")
        assert outcome.best.loader.batch_size == largest
        assert any("without a noise scale" in note for note in outcome.notes)
        assert outcome.batch is not None
        assert not outcome.batch.verified
        assert "which was not measured" in outcome.verdict.sentence


def test_the_finals_hold_the_best_with_the_users_batch_as_well() -> None:
    """They differ in what they ask of the user, so both meet *yours*."""

    def rate(settings: Settings, mode: Mode) -> float:
        return growing(settings, mode) * (1.3 if settings.loader.num_workers else 1.0)

    runner = fake_runner(rate, facts={**SGD, **QUIET}, gradients=fake_gradients(1e6, 64))
    outcome = run_fake(runner, 400.0, allow="recipe")
    finals = {t.settings.loader.batch_size for t in outcome.trials if t.spec.stage == "final"}
    others = {t.settings for t in outcome.trials if t.spec.stage == "final"} - {outcome.yours}
    assert outcome.best.loader.batch_size == 512
    assert finals == {64, 512}
    assert any(s.loader.batch_size == 64 for s in others)


def test_a_batch_that_brings_under_three_percent_is_not_taken() -> None:
    """The user would have to change more than settings for it."""

    def rate(settings: Settings, mode: Mode) -> float:
        size, full = settings.loader.batch_size or 64, 1 if mode == "full" else 3
        return full * 1000 * (1.02 if size > 64 else 1.0) * (1.2 if settings.loader.num_workers else 1.0)

    runner = fake_runner(rate, facts={**SGD, **QUIET}, gradients=fake_gradients(1e9, 64))
    outcome = run_fake(runner, 300.0, allow="recipe")
    assert outcome.verdict.kind == "faster"
    assert outcome.best.loader.batch_size == 64


def test_gradients_are_looked_at_once_and_within_their_share() -> None:
    """In a run of five minutes no longer than 12 % of it, and never again."""
    asked = []
    inner = fake_gradients(1e6, 64)
    runner = fake_runner(growing, facts={**SGD, **QUIET})
    runner.gradients = lambda spec: (asked.append(spec), inner(spec))[1]
    outcome = run_fake(runner, 300.0, allow="recipe")
    assert len(asked) == 1
    assert asked[0].window_s <= 0.12 * 300.0
    assert (asked[0].warm_steps, asked[0].apart, asked[0].steps) == (76, 2, 32)
    assert asked[0].settings.loader.batch_size == 64
    assert outcome.elapsed_s <= 300.0


def test_slow_steps_get_fewer_or_no_look() -> None:
    """Few steps are taken where the budget holds few, and none where not even those fit."""
    space = space_of(allow="recipe", **SGD)

    def look(budget_s: float):
        history = History().opened(space, 1000.0)
        return next_look(Knowledge(context(space, budget_s=budget_s), history), 200.0)

    long, short, hopeless = look(300.0), look(120.0), look(60.0)
    assert long is not None
    assert short is not None
    assert long.steps > short.steps >= 8
    assert long.warm_steps > short.warm_steps
    assert hopeless is None


def test_other_batches_wait_for_their_turn() -> None:
    """Neither the sampler nor anybody else tries one before the gradients were looked at."""
    space = space_of(allow="recipe", **SGD)
    history = History().opened(space, 2000.0)
    larger = space.settings(batch_size=128)
    before = context(space)
    after = context(space, look=GradientLook(noise=noise(1e6)))
    assert not acceptable(before, history, larger)
    assert acceptable(after, history, larger)
    assert not acceptable(context(space, look=GradientLook(refused="so")), history, larger)


def test_a_run_without_leave_to_change_learning_looks_at_nothing() -> None:
    """With `allow="numerics"` no gradients are asked for."""
    runner = fake_runner(growing, facts={**SGD, **QUIET})
    runner.gradients = lambda spec: pytest.fail("gradients were asked for")
    assert run_fake(runner, 120.0).noise is None


def test_rates_to_beat_are_in_samples_of_the_batch_that_runs() -> None:
    """A larger batch is given up on, and held behind, by what its own samples teach."""
    space = space_of(allow="recipe", **SGD)
    know = Knowledge(context(space, look=GradientLook(noise=noise(448.0))), History().opened(space))
    costs = Costs(know)
    larger = space.settings(batch_size=512)
    plain = costs.search_spec(space.settings(num_workers=1), "joint", "")
    weighed = costs.search_spec(larger, "joint", "")
    half = efficiency(512, 64, 448.0)
    assert plain.compare_with is not None
    assert weighed.compare_with is not None
    assert weighed.compare_with == pytest.approx(plain.compare_with / half)
    assert weighed.give_up_below == pytest.approx(plain.give_up_below / half)  # type: ignore[operator]


def test_the_table_holds_plain_rates_and_the_winners_mark() -> None:
    """Each batch by its fastest settings; what is recommended is what won the finals."""
    space = space_of(allow="recipe", **SGD)
    history = History().opened(space, 100.0)
    history.ran(space.settings(batch_size=128), 180.0).ran(space.settings(batch_size=256), 220.0)
    know = Knowledge(context(space, look=GradientLook(noise=noise(1000.0))), history)
    table = batch_choice(know, space.settings(batch_size=128))
    assert table is not None
    assert [row.batch_size for row in table.rows] == [64, 128, 256]
    assert table.row(128).samples_per_s.value == pytest.approx(180.0, rel=0.01)
    assert (table.recommended, table.max_throughput) == (128, 256)
    assert table.gain == pytest.approx(1.8 * efficiency(128, 64, 1000.0), rel=0.02)
    assert batch_choice(Knowledge(context(space), History().opened(space)), space.yours) is None


def test_what_could_not_be_seen_of_the_gradients_is_told() -> None:
    """Where another batch ran on the strength of the figure; an old study has no such notes."""
    gradients = fake_gradients(1e6, 64)
    runner = fake_runner(growing, facts={**SGD, **QUIET}, gradients=gradients)
    seen = runner.gradients
    runner.gradients = lambda spec: replace(seen(spec), notes=("the mean was not seen",))
    outcome = run_fake(runner, 300.0, allow="recipe")
    assert "gradients: the mean was not seen" in outcome.notes
    assert decode(GradientLook, {"noise": None, "refused": "", "missing": ""}).notes == ()


def test_what_looking_gave_is_kept_in_the_study(tmp_path) -> None:
    """A resumed run compares batches by the same noise scale, and does not look again."""
    storage = str(tmp_path / "run.journal")
    runner = fake_runner(growing, facts={**SGD, **QUIET}, gradients=fake_gradients(600.0, 64))
    first = run_fake(runner, 120.0, allow="recipe", storage=storage)
    again = fake_runner(growing, facts={**SGD, **QUIET})
    again.gradients = lambda spec: pytest.fail("gradients were asked for again")
    second = run_fake(again, 120.0, allow="recipe", storage=storage, resume=True)
    assert first.noise is not None
    assert second.noise == first.noise


def test_a_look_that_there_was_no_time_for_is_taken_when_the_study_goes_on(tmp_path) -> None:
    """Else a short first session would bound the batch for good."""
    storage = str(tmp_path / "run.journal")
    runner = fake_runner(growing, facts={**SGD, **QUIET})
    runner.gradients = lambda spec: Failure(kind="timeout", message="no end after 9 s")
    first = run_fake(runner, 120.0, allow="recipe", storage=storage)
    runner = fake_runner(growing, facts={**SGD, **QUIET}, gradients=fake_gradients(600.0, 64))
    second = run_fake(runner, 120.0, allow="recipe", storage=storage, resume=True)
    assert first.noise is None
    assert second.noise is not None


def test_another_look_at_the_gradients_is_another_study(tmp_path) -> None:
    """After other warm steps; where nobody looks at them it is the same."""
    storage = str(tmp_path / "run.journal")
    runner = fake_runner(growing, facts={**SGD, **QUIET}, gradients=fake_gradients(600.0, 64))
    run_fake(runner, 60.0, allow="recipe", storage=storage, warm=0)
    with pytest.raises(StudyError, match="warm was 0"):
        run_fake(runner, 60.0, allow="recipe", storage=storage, resume=True)
    storage = str(tmp_path / "kept.journal")
    run_fake(runner, 60.0, allow="numerics", storage=storage, warm=0)
    run_fake(runner, 60.0, allow="numerics", storage=storage, resume=True)


def test_a_batch_that_the_user_fixed_is_counted_in_samples() -> None:
    """What they teach was not looked at, and the verdict says so."""
    outcome = tuned(600.0, fixed={"batch_size": 256})
    assert outcome.best.loader.batch_size == 256
    assert outcome.noise is None
    assert "what they teach in batches of 256, which you fixed, was not measured" in outcome.verdict.sentence


def test_batches_grow_beyond_eight_times_where_the_user_names_more() -> None:
    """With a noise scale that bears it, and time for a pilot."""
    long = {"dataset_samples": 1_000_000}
    for most, size in ((None, 512), (1000, 512), (1024, 1024)):
        assert tuned(1e7, budget_s=1200.0, facts=long, max_batch_size=most).best.loader.batch_size == size


def test_answers_of_a_runner_become_a_look() -> None:
    """A refusal or diverged gradients keep the batch; no time or memory leaves the trusted rules."""
    refused = look_of(GradientStats(micro_samples=64, micro_batches=4, refused="so"))
    diverged = look_of(Failure(kind="non_finite", message="NaN"))
    late = look_of(Failure(kind="timeout", message="late"))
    few = look_of(GradientStats(micro_samples=64, micro_batches=4))
    assert refused == GradientLook(refused="so")
    assert "NaN" in diverged.refused
    assert late == GradientLook(missing="late")
    assert few.missing
    assert not few.refused
    look = GradientLook(noise=noise(100.0))
    assert decode(GradientLook, json.loads(json.dumps(encode(look)))) == look


def test_a_sample_counts_as_one_where_nothing_else_is_known() -> None:
    """The user's own batch, an unknown noise scale, and throughput alone."""
    yours = Settings().replace(batch_size=64)
    larger, look = yours.replace(batch_size=256), GradientLook(noise=noise(64.0))
    assert teaches(larger, yours, look, "goodput") == pytest.approx(128 / 320)
    assert teaches(larger, yours, look, "time") == pytest.approx(128 / 320)
    assert teaches(yours, yours, look, "goodput") == 1.0
    assert teaches(larger, yours, look, "throughput") == 1.0
    assert teaches(larger, yours, None, "goodput") == 1.0
    assert teaches(larger, yours, GradientLook(missing="late"), "goodput") == 1.0


def test_caps_are_those_of_the_table() -> None:
    """A size that would not be recommended is not tried."""
    space = space_of(allow="recipe", dataset_samples=8000, **SGD)
    ctx = context(space, look=GradientLook(noise=noise(1e6)))
    assert caps(ctx, 128) == ()
    assert any("batches in an epoch" in cap for cap in caps(ctx, 256))


def test_the_first_move_after_the_usual_advice_is_a_look() -> None:
    """The plan asks for it itself, and says how."""
    space = space_of(allow="recipe", usable_cpus=1, **SGD)
    history = History().opened(space, 2000.0)
    seen = []
    for _ in range(20):
        move = next_move(context(space), history)
        seen.append(move)
        if isinstance(move, LookAtGradients):
            break
        history.ran(move.spec.settings, 1800.0, move.spec.stage, move.spec.mode, wall_s=3.0)  # type: ignore[union-attr]
    assert isinstance(seen[-1], LookAtGradients)
