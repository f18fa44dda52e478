"""A simulated device on which larger batches pay, and what a tuning run finds there."""

from __future__ import annotations

from dataclasses import replace

from search_worlds import fake_runner, run_fake

from autotune.outcome import NoiseScale, Outcome
from autotune.recipe.noise_scale import GradientStats
from autotune.settings import Settings
from autotune.testing import fake_gradients
from autotune.trial import Mode

SGD = {"learning_rates": (0.1,), "weight_decays": (0.0,), "step_s": 0.06}
QUIET = {"has_conv2d": False, "image_input": False}


def noise(samples: float, **changes: object) -> NoiseScale:
    """A noise scale that is known exactly, but for the changes."""
    exact = NoiseScale(
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
    return replace(exact, **changes)


def growing(settings: Settings, mode: Mode) -> float:
    """A device whose every step costs 0.05 s beside its samples, so that large batches pay."""
    size = settings.loader.batch_size or 1
    return (1 if mode == "full" else 3) * size / (0.05 + size / 4000)


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
