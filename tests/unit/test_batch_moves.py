"""When gradients are looked at, which batch sizes are tried, and how they are compared."""

from __future__ import annotations

import pytest
from batch_worlds import QUIET, SGD, growing, noise, tuned
from search_worlds import History, acceptable, context, fake_runner, run_fake, space_of

from autotune.facts import GpuFacts
from autotune.outcome import Pilot
from autotune.recipe.goodput import efficiency
from autotune.search.batch import GradientLook, teaches
from autotune.search.batch_moves import batch_choice, batch_kept, caps, in_turn, next_batch, worth_trying
from autotune.search.cost import Costs
from autotune.search.knowledge import Knowledge
from autotune.search.predict import _in_doublings
from autotune.settings import Settings
from autotune.space.values import stands_in_for
from autotune.testing import fake_gradients
from autotune.trial import Failure, Mode

GPU = GpuFacts(index=0, name="H100", memory_bytes=80 << 30, capability=(9, 0), native_bf16=True)


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
    assert size in (128, 192)
    assert outcome.noise is not None
    assert outcome.verdict.ratio is not None
    plain = growing(outcome.best, "full") / growing(outcome.yours, "full")
    taught = efficiency(size, 64, outcome.noise.lower_bound)
    assert outcome.verdict.ratio.value == pytest.approx(plain * taught, rel=0.02)
    assert f"{taught:.2f} of yours in batches of {size}" in outcome.verdict.sentence


def test_half_as_much_again_stands_in_for_twice_the_batch() -> None:
    """Twice as large would teach too little, half as much again enough: the climb ends there."""
    outcome = tuned(160.0)
    sizes = {t.settings.loader.batch_size for t in outcome.trials}
    assert sizes == {64, 96}
    assert outcome.best.loader.batch_size == 96
    assert outcome.batch is not None
    assert outcome.batch.limited_by[0].startswith("in batches of 128 a sample likely teaches 0.77")


@pytest.mark.parametrize(
    ("samples", "tried"), [(1e6, {128: True, 96: False}), (160.0, {128: False, 96: True})]
)
def test_sizes_between_doublings_wait_until_the_larger_one_is_out(
    samples: float, tried: dict[int, bool]
) -> None:
    """Both would cost twice the trials and pilots, and where twice as much is open it tells more."""
    space = space_of(allow="recipe", **SGD)
    know = Knowledge(context(space, look=GradientLook(noise=noise(samples))), History().opened(space, 2000.0))
    assert {size: worth_trying(know, space.settings(batch_size=size)) for size in tried} == tried


def test_what_ran_between_doublings_stays_when_the_larger_one_opens() -> None:
    """As in half the width, or with more time for pilots: the search has built on it, and goes on to."""
    space = space_of(allow="recipe", **SGD)
    between = space.settings(batch_size=96)
    history = History().opened(space, 2000.0).ran(between, 2500.0)
    know = Knowledge(context(space, look=GradientLook(noise=noise(1e6))), history)
    assert know.incumbent == between
    assert worth_trying(know, between.replace(num_workers=2, prefetch_factor=2, persistent_workers=True))


def test_a_larger_batch_that_was_slower_is_not_stood_in_for() -> None:
    """Less of what brought nothing; also once there is no time for its pilot any more."""
    space = space_of(allow="recipe", **SGD)
    history = History().opened(space, 2000.0).ran(space.settings(batch_size=128), 1500.0)
    for budget_s in (300.0, 60.0):
        ctx = context(space, look=GradientLook(noise=noise(1e6)), budget_s=budget_s)
        assert not in_turn(Knowledge(ctx, history), 96)


def test_a_larger_batch_that_learned_too_little_is_stood_in_for() -> None:
    """A pilot is better evidence of that than any noise scale."""
    space = space_of(allow="recipe", **SGD)
    worse = Pilot(kind="worse", batch_size=128, reference=64, reason="so it was")
    history = History().opened(space, 2000.0).ran(space.settings(batch_size=128), 2500.0)
    know = Knowledge(context(space, look=GradientLook(noise=noise(1e6)), pilots=(worse,)), history)
    assert in_turn(know, 96)
    assert not in_turn(know, 192), "256 stays open to it, though no pilot is left to pass"


@pytest.mark.parametrize("own", [9, 50, 64, 100])
def test_the_users_own_batch_stands_in_for_none(own: int) -> None:
    """Nor do its doublings; and what the model looks at holds it, whatever the incumbent."""
    space = space_of(allow="recipe", batch_samples=own, batch_size=own, **SGD)
    sizes = [size for size in space.values("batch_size") if isinstance(size, int)]
    doublings = [size for size in sizes if stands_in_for(size, own) is None]
    assert doublings[0] == own
    assert len(doublings) == 4
    for size in set(sizes) - set(doublings):
        assert stands_in_for(size, own) == min(double for double in doublings if double > size)
    assert _in_doublings(space, doublings[1]).values("batch_size") == tuple(doublings)
    between = next(size for size in sizes if size not in doublings)
    assert _in_doublings(space, between).values("batch_size") == tuple(sorted([*doublings, between]))


def test_what_fills_the_memory_is_stood_in_for() -> None:
    """Twice the batch did not fit on the device: half as much again may."""
    space = space_of(device="cuda:0", gpus=(GPU,), allow="recipe", **SGD)
    history = History().opened(space, 2000.0).failed(space.settings(batch_size=128), "oom_device")
    know = Knowledge(context(space, look=GradientLook(noise=noise(1e6))), history)
    spec = next_batch(know, Costs(know))
    assert spec is not None
    assert spec.settings.loader.batch_size == 96


def test_throughput_alone_can_be_asked_for() -> None:
    """The largest batch then wins whatever it teaches, and the words say so."""
    outcome = tuned(5.0, objective="throughput")
    assert outcome.best.loader.batch_size == 512
    assert "whatever they teach" in outcome.verdict.sentence


def test_the_largest_batch_can_be_bounded() -> None:
    """No trial has a larger one, and the table says that this was why."""
    outcome = tuned(1e6, max_batch_size=200)
    assert max(t.settings.loader.batch_size for t in outcome.trials) == 192
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


@pytest.mark.parametrize(
    ("samples", "options", "why"),
    [
        (5.0, {}, "in batches of 96 a sample likely teaches 0.68"),
        (1e6, {"epochs": 1, "facts": {"dataset_samples": 40_000}}, "96 leaves 417 steps in 1 epoch, fewer"),
        (1e6, {"max_batch_size": 90}, "96 is over max_batch_size=90"),
        (1e6, {"budget_s": 30.0}, "to train a while in batches of 96 beside yours takes"),
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


def test_a_batch_that_the_user_fixed_is_counted_in_samples() -> None:
    """What they teach was not looked at, and the verdict says so."""
    outcome = tuned(600.0, fixed={"batch_size": 256})
    assert outcome.best.loader.batch_size == 256
    assert outcome.noise is None
    assert "what they teach in batches of 256, which you fixed, was not measured" in outcome.verdict.sentence


def test_batches_grow_beyond_eight_times_where_the_user_names_more() -> None:
    """With a noise scale that bears it, and time for a pilot."""
    long = {"dataset_samples": 1_000_000}
    for most, size in ((None, 512), (1000, 768), (1024, 1024)):
        assert tuned(1e7, budget_s=1200.0, facts=long, max_batch_size=most).best.loader.batch_size == size


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
