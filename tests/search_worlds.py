"""Histories and made-up worlds for tests of the search."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

from autotune.outcome import Outcome
from autotune.recipe.guard import Numerics
from autotune.search.context import PlanContext
from autotune.search.engine import TuneOptions, tune
from autotune.search.knowledge import Knowledge
from autotune.search.listener import SilentListener
from autotune.search.moves import worth_trying_now
from autotune.settings import Settings
from autotune.space.candidates import Space, build_space
from autotune.space.rules import PRECISION_RANK
from autotune.testing import FakeClock, FakeRunner, Rate, fake_description
from autotune.trial import Block, Failure, FailureKind, Measurement, Mode, Stage, Trial, TrialSpec


def space_of(*, allow: str = "numerics", fixed: dict | None = None, **facts: object) -> Space:
    """The space of a fake description with these facts changed."""
    told = fake_description(**facts)
    return build_space(told.machine, told.workload, told.yours, allow=allow, fixed=fixed)


def context(space: Space, **changes: object) -> PlanContext:
    """A context with five minutes, all of them left, where all arithmetic is known to train the same."""
    values: dict = {"budget_s": 300.0, "remaining_s": 290.0, "numerics": all_the_same(space), **changes}
    return PlanContext(space=space, **values)


def all_the_same(space: Space) -> tuple[Numerics, ...]:
    """That every precision trains as *yours* does, with the other switches the other way round as well."""
    yours = space.yours.compute
    switched = space.yours.replace(
        channels_last=not yours.channels_last, fused_optimizer=not yours.fused_optimizer
    )
    return tuple(
        Numerics(kind="same", reason="same", settings=switched.replace(precision=each), reference=space.yours)
        for each in PRECISION_RANK
    )


def acceptable(ctx: PlanContext, history: Sequence[Trial], settings: Settings) -> bool:
    """Whether `settings` are worth a full trial: legal, new, not bound to fail and not bound to lose."""
    return worth_trying_now(Knowledge(ctx, history), settings)


class History(list):
    """A history to write down line by line."""

    def ran(
        self,
        settings: Settings,
        rate: float,
        stage: Stage = "joint",
        mode: Mode = "full",
        *,
        wait: float = 0.0,
        wall_s: float = 3.0,
        pair: int | None = None,
        fresh: bool = False,
        warmup_s: float = 0.0,
        edge: bool = False,
    ) -> History:
        """`settings` ran at `rate` samples/s, two of the seconds timed."""
        samples = max(1, round(rate))
        block = Block(steps=8, samples=samples, elapsed_s=samples / rate, wait_s=wait * samples / rate)
        self.append(
            Trial(
                number=len(self),
                spec=TrialSpec(
                    settings=settings, stage=stage, mode=mode, pair=pair, fresh_process=fresh, epoch_edge=edge
                ),
                measurement=Measurement(blocks=(block, block), wall_s=wall_s, warmup_s=warmup_s),
            )
        )
        return self

    def failed(
        self,
        settings: Settings,
        kind: FailureKind,
        stage: Stage = "joint",
        mode: Mode = "full",
        pair: int | None = None,
    ) -> History:
        """`settings` failed."""
        self.append(
            Trial(
                number=len(self),
                spec=TrialSpec(settings=settings, stage=stage, mode=mode, pair=pair),
                failure=Failure(kind=kind, message="it failed", wall_s=3.0),
            )
        )
        return self

    def opened(self, space: Space, rate: float = 100.0, *, wait: float = 0.5) -> History:
        """*Yours* ran, with ceilings that leave both sides something to win; partial trials are dear."""
        self.ran(space.yours, rate, "yours", wait=wait)
        self.ran(space.yours, 3 * rate, "ceiling", "loader", wall_s=5.0)
        return self.ran(space.yours, 3 * rate, "ceiling", "compute", wall_s=5.0)


def steady_rate(settings: Settings, mode: Mode) -> float:
    """A CPU-only world: two workers feed the step, more of them take its cores; channels_last helps."""
    workers = settings.loader.num_workers
    compute = 800.0 * (1.3 if settings.compute.channels_last else 1.0)
    loader = 500.0 * max(workers, 1)
    if mode != "full":
        return loader if mode == "loader" else compute
    if workers == 0:
        return 1 / (1 / compute + 1 / loader)
    return min(loader, compute * max(0.3, 1 - 0.08 * workers))


def random_rate(seed: int, spread: float, base: float = 400.0) -> Rate:
    """Rates around `base` by chance, the same for the same seed: each value of each knob multiplies them."""

    def factor(*parts: object) -> float:
        digest = hashlib.sha256("|".join(map(str, (seed, *parts))).encode()).digest()
        return math.exp(spread * (int.from_bytes(digest[:4], "big") / 2**31 - 1))

    def rate(settings: Settings, mode: Mode) -> float:
        # Of what differs from torch's defaults, so that a knob that comes to be changes no other world.
        changed = settings.changed_from(Settings()).items()
        full = base * math.prod(factor(knob, value) for knob, value in changed)
        return full if mode == "full" else full * (1 + factor(mode, *changed))

    return rate


def random_failures(seed: int, share: float, yours: Settings) -> Callable[[Settings], Failure | None]:
    """Failures by chance, but none of *yours*."""
    kinds: Sequence[FailureKind] = (
        "oom_device",
        "shm",
        "worker_crash",
        "user_error",
        "non_finite",
        "timeout",
    )

    def fails(settings: Settings) -> Failure | None:
        digest = hashlib.sha256(f"{seed}|{settings.key()}".encode()).digest()
        if settings == yours or digest[0] >= 256 * share:
            return None
        return Failure(kind=kinds[digest[1] % len(kinds)], message="it failed")

    return fails


def run_fake(runner: FakeRunner, budget_s: float = 120.0, **options: object) -> Outcome:
    """`tune` on a fake runner's own clock, heard by nobody; the batch size stays unless a test says so."""
    values: dict = {"budget_s": budget_s, "allow": "numerics", **options}
    return tune(runner, TuneOptions(**values), SilentListener(), clock=runner.clock)


def fake_runner(rate: Rate = steady_rate, *, facts: dict | None = None, **options: object) -> FakeRunner:
    """A fake runner of a convolutional network on four CPUs."""
    told = fake_description(**{"has_conv2d": True, "image_input": True, **(facts or {})})
    values: dict = {"clock": FakeClock(), "description": told, **options}
    return FakeRunner(rate, **values)
