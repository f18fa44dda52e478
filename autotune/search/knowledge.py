"""What a history of trials says: pooled rates, bounds, the incumbent, the race that is open. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

from autotune.outcome import Pilot
from autotune.recipe.goodput import LEAST_GAIN
from autotune.recipe.guard import Numerics, known_of
from autotune.recipe.pilot import pilot_of
from autotune.search.rates import Rates, is_disturbed
from autotune.settings import Settings
from autotune.space.rules import simplicity

MIN_GAIN = 0.005
"""A lead under this (log ratio) is no gain: it is smaller than what a machine drifts in a minute."""
TIE = 0.002
"""Simpler settings take over when they are at most this much behind."""
MAX_REPEATS = 3
"""Measurements of one settings during the search; more say little that the finals do not say better."""
RACE_AHEAD = 1.3
"""A lead of fewer standard errors above `MIN_GAIN` is measured again before it is believed."""
RACE_BEHIND = 0.7
"""The same below; less, because most moves bring nothing, and measuring that again finds nothing."""
LOOKS = 3
"""Runs, before the search ends, of settings that may be ahead of the incumbent after all."""
RACE_LEAD = 0.06
"""A lead beyond this is not measured again, however few the runs."""


class Knowledge(Rates):
    """A history, looked up in the ways that the plan needs."""

    def _least_lead(self, challenger: Settings, incumbent: Settings) -> float:
        """The lead (log ratio) under which nobody changes: a larger batch asks more of the user."""
        larger = (challenger.loader.batch_size or 0) > (incumbent.loader.batch_size or 0)
        return math.log(LEAST_GAIN) if larger and "batch_size" in self.ctx.space.names else MIN_GAIN

    def numerics(self, settings: Settings) -> Numerics | None:
        """How the steps of these settings compare with those of *yours*; None where that is not known."""
        return known_of(self.ctx.numerics, settings, self.yours)

    def pilot(self, settings: Settings) -> Pilot | None:
        """What training a while showed of their batch size; None where that is not known, or not asked."""
        size = settings.loader.batch_size
        return pilot_of(self.ctx.pilots, size) if size and self._batch_matters(settings) else None

    def unpiloted(self, settings: Settings) -> bool:
        """Whether their batch size is another than *yours* and nobody has trained in it yet."""
        return self._batch_matters(settings) and self.pilot(settings) is None

    def _batch_matters(self, settings: Settings) -> bool:
        """Whether it was changed by our choice, with the samples of a step, and what is learned counts."""
        sizes = {settings.loader.batch_size, self.yours.loader.batch_size}
        return (
            len(sizes) == 2
            and None not in sizes
            and "batch_size" in self.ctx.space.names
            and self.ctx.space.workload.step_samples is None  # else the optimizer's steps stay as they are
            and self.ctx.objective != "throughput"
        )

    def unchecked(self, settings: Settings) -> bool:
        """Whether their precision is another by our choice, and nobody compared its steps with *yours*."""
        own, start = self.yours.compute, self.ctx.space.start.compute
        if settings.compute.precision in (own.precision, start.precision):
            return False
        if self.numerics(settings) is not None:
            return False
        # Compiled code of a precision that is fine may go uncompared; of one that is not it may not.
        plain = self.numerics(settings.replace(compile=own.compile))
        return plain is None or plain.kind == "worse"

    def trains_worse(self, settings: Settings) -> bool:
        """Whether their arithmetic, or their batch size, was seen to harm training."""
        found, pilot = self.numerics(settings), self.pilot(settings)
        return any(each is not None and each.kind == "worse" for each in (found, pilot))

    def unfit(self, settings: Settings) -> bool:
        """Whether these settings are no good in any batch size."""
        found = self.numerics(settings)
        harmful = found is not None and found.kind == "worse"
        return harmful or self.gave_up(settings) or self.no_room(settings) or self.broken(settings)

    def ruled_out(self, settings: Settings) -> bool:
        """Whether these settings can be neither the incumbent nor a candidate.

        After the search a batch size that nobody trained in can be neither any more, nor a precision whose
        steps nobody compared.
        """
        unproven = self.unpiloted(settings) or self.unchecked(settings)
        too_late = bool(self.ctx.search_over) and unproven
        return too_late or self.barred(settings) or self.unfit(settings) or self.trains_worse(settings)

    def barred(self, settings: Settings) -> bool:
        """Whether their batch may not be, though it ran.

        In a session before this one, which was asked for less; or before it was known that no time is left to
        train in it.
        """
        size, own = settings.loader.batch_size, self.yours.loader.batch_size
        if size is None or size == own or "batch_size" not in self.ctx.space.names:
            return False
        most, look = self.ctx.max_batch_size, self.ctx.look
        refused = look is not None and bool(look.refused)
        return refused or (most is not None and size > most) or size in self.ctx.untrained

    def _climb(self, order: Sequence[Settings]) -> Settings:
        incumbent = order[0]
        for challenger in order[1:]:
            if self.ruled_out(challenger):
                continue
            lead, error = self.lead(challenger, incumbent)
            simpler = simplicity(challenger) < simplicity(incumbent)
            if lead > max(self._least_lead(challenger, incumbent), error) or (simpler and lead > -TIE):
                incumbent = challenger
        return incumbent

    @cached_property
    def incumbent(self) -> Settings:
        """The settings to beat: *yours*, or what beat it beyond noise, or ties with it and is simpler."""
        return self._climb(list(self.full))

    @cached_property
    def race(self) -> Settings | None:
        """What to measure again because the newest settings are too close to the incumbent to tell."""
        order = list(self.full)
        if len(order) < 2 or self.ruled_out(order[-1]):
            return None
        challenger, incumbent = order[-1], self._climb(order[:-1])
        lead, error = self.lead(challenger, incumbent)
        least = self._least_lead(challenger, incumbent)
        too_far = (least - RACE_BEHIND * error, min(least + RACE_AHEAD * error, RACE_LEAD))
        if not too_far[0] < lead < too_far[1]:
            return None
        # A challenger that ran twice and is still not ahead has had its chance.
        if lead < 0 and len(self.full[challenger]) >= 2:
            return None
        last = next(t.settings for t in reversed(self.history) if t.settings in (challenger, incumbent))
        pair = (incumbent, challenger) if last == challenger else (challenger, incumbent)
        return next((s for s in pair if len(self.full[s]) < MAX_REPEATS and not self.broken(s)), None)

    @cached_property
    def doubtful(self) -> Settings | None:
        """Whom to measure again because they may be ahead of the incumbent after all, the likeliest first.

        A lucky run of an incumbent makes those that meet it give up, and an unlucky one hides what is good:
        neither is undone by going on to what is new.
        """
        ahead: dict[Settings, float] = {}
        for settings in self.full:
            out = self.trains_worse(settings) or self.barred(settings) or self.broken(settings)
            out |= settings == self.incumbent or self.no_room(settings)
            if not out and len(self.full[settings]) < LOOKS:
                lead, error = self.lead(settings, self.incumbent)
                ahead[settings] = lead + error - self._least_lead(settings, self.incumbent)
        likeliest = max(ahead, key=lambda settings: ahead[settings], default=None)
        if likeliest is None or ahead[likeliest] <= 0:
            return None
        runs = len(self.full[self.incumbent])
        seldom = runs < LOOKS and runs <= len(self.full[likeliest])
        return self.incumbent if seldom and not self.broken(self.incumbent) else likeliest

    @property
    def again(self) -> Settings | None:
        """The newest settings, where their only run was disturbed and most runs are not.

        On a machine that is always busy a second run would be as disturbed as the first.
        """
        if not self.full:
            return None
        newest = list(self.full)[-1]
        trials = [trial for runs in self.full.values() for trial in runs]
        if len(self.full[newest]) > 1 or not is_disturbed(self.full[newest][0]) or self.broken(newest):
            return None
        disturbed = sum(map(is_disturbed, trials))
        return newest if 2 * disturbed <= len(trials) + 1 else None

    @property
    def sampled_in_vain(self) -> int:
        """How many different sampled settings came after the incumbent's first run."""
        since = next((i for i, t in enumerate(self.history) if t.settings == self.incumbent), 0)
        return len({t.settings for t in self.history[since + 1 :] if t.spec.stage == "sampled"})
