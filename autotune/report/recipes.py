"""What learning takes with another batch size, in words: a line for each number that moves, with its rule.

What stays as it was has no line. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from autotune.outcome import Decay, LargeBatch, Recipe
from autotune.recipe.schedule import warmup_start
from autotune.report.rows import Row

_UNKNOWN = "-"
"""In the column of *yours*: what nobody but the user knows."""


def recipe_rows(recipe: Recipe | None) -> tuple[Row, ...]:
    """A line for each number of the recipe that differs from the user's own, with its rule and source."""
    if recipe is None:
        return ()
    return (
        *_pairs(
            "learning rate", recipe.reference_learning_rates, recipe.learning_rates, recipe.lr_rule, digits=3
        ),
        *_warmup(recipe),
        *_decay(recipe.decay),
        *_pairs(
            "weight decay",
            recipe.reference_weight_decays,
            recipe.weight_decays,
            recipe.weight_decay_rule,
            digits=3,
        ),
        *_pairs("beta2", recipe.reference_beta2s, recipe.beta2s, recipe.beta2_rule, digits=5),
        *_pairs(
            "BatchNorm momentum",
            recipe.reference_batch_norm_momenta,
            recipe.batch_norm_momenta,
            recipe.batch_norm_rule,
            digits=3,
        ),
        *_average(recipe),
        *_gathered(recipe),
    )


def recipe_notes(recipe: Recipe | None, *, has_rows: bool) -> tuple[str, ...]:
    """What is to know beside the lines: clipping, schedulers, what speaks against it, what else is offered.

    Args:
        recipe: None has none.
        has_rows: whether `recipe_rows` are shown; where they are not, as the batch stayed, each is a sentence
            here.
    """
    if recipe is None:
        return ()
    said = [] if has_rows else [_sentence(row) for row in recipe_rows(recipe)]
    said += recipe.notes
    if recipe.large_batch is not None:
        said.append(_offer(recipe.large_batch))
    return tuple(said)


def _pairs(
    name: str, yours: Sequence[float | None], best: Sequence[float | None], rule: str, *, digits: int
) -> list[Row]:
    """The different pairs of a number that each param group has, the rule beside the first."""
    pairs = dict.fromkeys(
        (old, new) for old, new in zip(yours, best) if old is not None and new is not None and old != new
    )
    return [
        Row(name=name, yours=f"{old:.{digits}g}", best=f"{new:.{digits}g}", note="" if number else rule)
        for number, (old, new) in enumerate(pairs)
    ]


def _warmup(recipe: Recipe) -> list[Row]:
    if not recipe.warmup_samples:
        return []
    start = f"samples, from {warmup_start(recipe):.2g} of the rate"
    note = f"{start}; {recipe.warmup_rule}" if recipe.warmup_rule else start
    return [Row(name="warmup", yours=_UNKNOWN, best=f"{recipe.warmup_samples:,}", note=note)]


def _decay(decay: Decay | None) -> list[Row]:
    if decay is None:
        return []
    note = f"over {decay.samples:,} samples in whole batches"
    return [
        Row(
            name="decay",
            yours=_UNKNOWN,
            best=decay.shape,
            note=f"{note}; {decay.rule}" if decay.rule else note,
        )
    ]


def _average(recipe: Recipe) -> list[Row]:
    """Nobody knows here whether the weights are averaged; the rate at which they would be has to move."""
    if recipe.ema_power == 1:
        return []
    note = f"if you average weights: kit.ema_decay(d); {recipe.ema_rule}"
    return [Row(name="EMA decay", yours="d", best=f"d ** {recipe.ema_power:.3g}", note=note)]


def _gathered(recipe: Recipe) -> list[Row]:
    own, now = recipe.reference_accumulation_steps, recipe.accumulation_steps
    if own == now:
        return []
    note = f"batches of {recipe.batch_size} in a step of {recipe.step_samples} samples, as yours"
    return [Row(name="gradient accumulation", yours=str(own), best=str(now), note=note)]


def _sentence(row: Row) -> str:
    return f"{row.name} {row.best}: {row.note}"


def _offer(offer: LargeBatch) -> str:
    clips = "; it clips gradients to a norm of 1 itself: leave yours out" if offer.optimizer == "LAMB" else ""
    return (
        f"kit(..., large_batch=True) trains with {offer.optimizer} in place of your optimizer, learning rate "
        f"{offer.learning_rate:.3g}: {offer.rule}{clips}"
    )
