"""What the attacks cost, in forward passes of one image (a backward pass counts as two), and what was spared. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sweeps.columns import is_done
from sweeps.records import LAUNCHED, PlannedStage, StageRecord, State, TrialRecord


@dataclass(frozen=True)
class Cost:
    """Passes of one trial, or of many."""

    passes: int = 0
    """Spent, on all splits and plans."""
    saved_by_exit: int = 0
    """Spared because images left the attacks as soon as they had fallen."""
    saved_by_pruning: int = 0
    """Spared, at most, because attacks on trials behind the front did not run: their images might have fallen early."""

    def __add__(self, other: Cost) -> Cost:
        mine, theirs = ((cost.passes, cost.saved_by_exit, cost.saved_by_pruning) for cost in (self, other))
        return Cost(*map(sum, zip(mine, theirs, strict=True)))

    @property
    def saved(self) -> int:
        """All that was spared."""
        return self.saved_by_exit + self.saved_by_pruning

    @property
    def share(self) -> float | None:
        """What was spent, as a fraction of running every attack to its end on every trial; None before any attack."""
        everything = self.passes + self.saved
        return self.passes / everything if everything else None

    def public(self) -> dict[str, int]:
        """Return what the export shows."""
        return {
            "passes": self.passes,
            "saved_by_early_exit": self.saved_by_exit,
            "saved_by_pruning": self.saved_by_pruning,
        }


def cost_of(trial: TrialRecord, stages: Sequence[StageRecord], planned: Iterable[PlannedStage]) -> Cost:
    """Return a trial's cost. Args: stages: of that trial; planned: of the sweep."""
    done = [stage for stage in stages if stage.state == "done"]
    exits = sum(max(0, round(s.facts["budget"]) - (s.passes or 0)) for s in done if "budget" in s.facts)
    return Cost(sum(stage.passes or 0 for stage in done), exits, _pruned(trial, stages, planned))


def _pruned(trial: TrialRecord, stages: Sequence[StageRecord], planned: Iterable[PlannedStage]) -> int:
    """Most passes that the cascade's missing stages would take; 0 where a stage failed: that one was not spared.

    A stage whose attack does not say how many passes it takes counts as none.
    """
    cascade = [p for p in planned if p.split == "validation" and p.plan == LAUNCHED and p.cumulative]
    begun = {s.position: s for s in stages if s.split == "validation"}
    ran = [begun[p.position] for p in cascade if p.position in begun]
    standing = [s.survivors or 0 for s in ran if is_done(s)]
    if trial.state is not State.FINISHED or trial.exact or not standing or any(s.state == "failed" for s in ran):
        return 0
    return standing[-1] * sum(p.passes[1] for p in cascade if p.position not in begun and p.passes is not None)
