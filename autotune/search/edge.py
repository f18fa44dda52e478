"""The winner across the end of an epoch, where the last batch is smaller and the loader restarts. Pure."""

from __future__ import annotations

from autotune.search.cost import MARGIN, Costs
from autotune.search.finals import finals_of, judged
from autotune.search.knowledge import Knowledge
from autotune.search.parts import describe_change
from autotune.settings import Settings
from autotune.trial import Trial, TrialSpec


def next_edge(know: Knowledge, costs: Costs) -> TrialSpec | None:
    """The winner's run across the end of an epoch; None where it ran, has no loader, or has no time.

    Trials of the search and the finals end long before an epoch does. A failure here takes these settings
    out as any failure in the finals does.
    """
    verdict = judged(know, costs)
    if verdict.kind != "faster" or not know.ctx.space.workload.has_loader or _ran(know, verdict.winner):
        return None
    spec = costs.edge_spec(verdict.winner)
    return spec if MARGIN * costs.predicted_s(spec) <= know.ctx.remaining_s else None


def edge_notes(know: Knowledge, costs: Costs) -> tuple[str, ...]:
    """What the user should know: who failed there, and a winner that was not run there."""
    failed = ((t.settings, t.failure) for t in _edges(know) if t.failure is not None)
    notes = [
        f"{describe_change(know.yours, settings)} was faster, but failed across the end of an epoch:"
        f" {failure.message}"
        for settings, failure in failed
    ]
    verdict = judged(know, costs)
    if verdict.kind == "faster" and know.ctx.space.workload.has_loader and not _ran(know, verdict.winner):
        notes.append("the winner was not run across the end of an epoch: no time was left")
    return tuple(notes)


def _edges(know: Knowledge) -> tuple[Trial, ...]:
    return tuple(t for t in finals_of(know) if t.spec.epoch_edge)


def _ran(know: Knowledge, settings: Settings) -> bool:
    return any(t.settings == settings for t in _edges(know))
