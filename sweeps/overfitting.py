"""Robust overfitting: how much robust accuracy a training had and lost again, read off the monitor's curves.

A trial whose monitor was off has none. Rice et al. 2020 (arXiv:2002.11569) measure it so: best epoch against last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from sweeps.ledger import Ledger
from sweeps.records import TrialRecord


@dataclass(frozen=True)
class Overfitting:
    """Accuracies under the monitor's attack, in [0, 1]."""

    best: float
    """Of the best epoch, on validation images."""
    best_epoch: int
    """1-based; the earliest of equals."""
    last: float
    """Of the last epoch."""
    gap: float
    """On training images minus validation images, after the last epoch."""

    @property
    def lost(self) -> float:
        """Best epoch minus last epoch: what stopping in time would have kept."""
        return self.best - self.last


@dataclass(frozen=True)
class MethodOverfitting:
    """The means over the trials of one method."""

    label: str
    trials: int
    lost: float
    worst: float
    """The most that one of them lost."""
    gap: float
    best_epoch: float


def read_overfitting(history: Sequence[Mapping[str, float]]) -> Overfitting | None:
    """Return what a trial's curves say, one mapping per epoch; None if the monitor never looked.

    read_overfitting([{"val/robust_acc": 0.5, "val/robust_gap": 0}, {"val/robust_acc": 0.4, "val/robust_gap": 0.3}])
    # best 0.5 in epoch 1, last 0.4, gap 0.3
    """
    looks = [(epoch, metrics) for epoch, metrics in enumerate(history, 1) if "val/robust_acc" in metrics]
    if not looks:
        return None
    best_epoch, best = max(looks, key=lambda look: (look[1]["val/robust_acc"], -look[0]))
    last = looks[-1][1]
    return Overfitting(best["val/robust_acc"], best_epoch, last["val/robust_acc"], last["val/robust_gap"])


def overfitting_by_method(ledger: Ledger, trials: Iterable[TrialRecord]) -> list[MethodOverfitting]:
    """Return a row for each method with trained trials whose monitor was on; reads the curves of those alone."""
    found: dict[str, list[Overfitting]] = {}
    for trial in trials:
        is_on = trial.config.get("monitor", {}).get("images", 0) > 0
        if is_on and trial.clean_acc is not None and (read := read_overfitting(ledger.history(trial.number))):
            found.setdefault(trial.label, []).append(read)
    return [
        MethodOverfitting(
            label,
            len(rows),
            lost=mean(row.lost for row in rows),
            worst=max(row.lost for row in rows),
            gap=mean(row.gap for row in rows),
            best_epoch=mean(row.best_epoch for row in rows),
        )
        for label, rows in found.items()
    ]
