"""Trials of finals from bare rates, for tests of the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autotune.settings import LoaderSettings, Settings
from autotune.trial import Block, Failure, Measurement, Stage, Trial, TrialSpec

YOURS = Settings()


def workers(count: int) -> Settings:
    """Settings with so many workers; 0 is *yours*."""
    return Settings(loader=LoaderSettings(num_workers=count))


def measured(
    settings: Settings,
    rate: float,
    *,
    pair: int | None = None,
    stage: Stage = "final",
    time_unit: float = 1.0,
) -> Trial:
    """A trial that ran at `rate` samples/s, told in a clock whose second is `time_unit` long."""
    block = Block(steps=8, samples=256, elapsed_s=256 / rate * time_unit, wait_s=0.0)
    spec = TrialSpec(settings=settings, stage=stage, pair=pair)
    measurement = Measurement(blocks=(block,), startup_s=0.5 * time_unit, restart_s=0.25 * time_unit)
    return Trial(number=0, spec=spec, measurement=measurement)


def failed(settings: Settings, *, pair: int | None = None, stage: Stage = "final") -> Trial:
    """A trial that gave nothing."""
    spec = TrialSpec(settings=settings, stage=stage, pair=pair)
    return Trial(number=0, spec=spec, failure=Failure(kind="worker_crash", message="a worker died"))


def finals(
    rates: Mapping[Settings, Sequence[float]], *, stage: Stage = "final", time_unit: float = 1.0
) -> tuple[Trial, ...]:
    """One trial for each rate; the place in its sequence is the pair number."""
    return tuple(
        measured(settings, rate, pair=pair, stage=stage, time_unit=time_unit)
        for settings, found in rates.items()
        for pair, rate in enumerate(found)
    )
