"""The recipe that goes with what a run chose, as the user asked for it. Pure."""

from __future__ import annotations

from autotune.errors import UsageError
from autotune.outcome import DecayShape, NoiseScale, Recipe
from autotune.recipe.scaling import scale_recipe
from autotune.settings import Settings
from autotune.space.candidates import Space


def recipe_of(
    space: Space,
    winner: Settings,
    *,
    epochs: int | None,
    noise: NoiseScale | None,
    decay: DecayShape | None = None,
) -> Recipe | None:
    """How to learn under `winner`; None where the user's own numbers stay.

    Args:
        space: gives the user's batch, and the samples that a step of the optimizer keeps.
        winner: the settings to train with.
        epochs: the length of the run to come.
        noise: the noise scale of the user's gradients; None where it is unknown.
        decay: how the user wants the learning rate to come down, whatever the batch.
    """
    chosen, own = winner.loader.batch_size, space.yours.loader.batch_size
    if chosen is None or own is None:
        return None
    recipe = scale_recipe(
        space.workload,
        chosen,
        own,
        epochs=epochs,
        noise=noise,
        decay=decay,
        keep_effective=space.workload.step_samples is not None,
    )
    moves = chosen != own or decay is not None or recipe.accumulation_steps > 1
    return recipe if moves else None


def check_recipe(space: Space, *, epochs: int | None, decay: DecayShape | None) -> None:
    """Whether there can be such a recipe, before anything is measured.

    Raises:
        UsageError: for a decay over a run of unknown length, or where nobody knows how large a batch is; for
            a batch size that the user fixed and that does not make up the step to keep.
    """
    if decay is not None and space.yours.loader.batch_size is None:
        raise UsageError(
            f"a {decay} decay cannot count samples here",
            why="the dataset, a batch sampler or your own loop makes the batches: their size is not known",
            fix="leave decay= out, or pass a batch_size",
        )
    recipe_of(space, space.start, epochs=epochs, noise=None, decay=decay)
