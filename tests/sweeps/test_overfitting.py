"""Robust overfitting: read off the curves, mirrored to MLflow, and summed up in the report."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.mirrored import overfitting_finals
from sweeps.overfitting import overfitting_by_method, read_overfitting
from sweeps.report import build_report
from sweeps.snapshot import Snapshot


def curve(*robust: float | None, gap: float = 0.25) -> list[dict[str, float]]:
    """One epoch each; None where the monitor did not look."""
    return [
        {"train/loss": 1.0} | ({} if value is None else {"val/robust_acc": value, "val/robust_gap": gap})
        for value in robust
    ]


@pytest.mark.parametrize(
    ("robust", "best_epoch", "lost"),
    [((0.25, 0.5, 0.375), 2, 0.125), ((0.25, 0.5), 2, 0.0), ((None, 0.5, None, 0.5, 0.0), 2, 0.5), ((0.75,), 1, 0.0)],
)
def test_the_best_epoch_is_compared_with_the_last_that_was_looked_at(
    robust: tuple[float | None, ...], best_epoch: int, lost: float
) -> None:
    found = read_overfitting(curve(*robust))
    assert found is not None
    assert (found.best_epoch, found.lost, found.gap) == (best_epoch, lost, 0.25)
    assert found.best - found.last == lost


def test_a_trial_that_was_not_monitored_has_none() -> None:
    assert read_overfitting(curve(None, None)) is None
    assert read_overfitting([]) is None


def test_means_are_over_the_trained_trials_of_a_method_whose_monitor_was_on(
    open_ledger: Callable[..., Ledger], folder: SweepFolder
) -> None:
    ledger = open_ledger()
    curves = {0: curve(0.5, 0.25), 1: curve(0.5, 0.375, gap=0.75), 2: curve(0.0, 0.5), 3: curve(0.5, 0.0)}
    with Lease(ledger):
        for number, label in enumerate(("adversarial", "adversarial", "jasmin", "jasmin")):
            config = {"methods": {label: {}}, "monitor": {"images": 0 if number == 3 else 8}}
            ledger.propose(number, label, config, {}, {}, seed=number)
            ledger.start_training(number)
            ledger.record_epochs(number, curves[number])
            if number != 2:
                ledger.finish_training(number, 0.9, f"weights-{number}", 1.0)
    (row,) = overfitting_by_method(ledger, ledger.trials())
    assert (row.label, row.trials, row.best_epoch) == ("adversarial", 2, 1)
    assert (row.lost, row.worst, row.gap) == (0.1875, 0.25, 0.5)

    page, markdown = (path.read_text() for path in build_report(ledger, folder))
    assert '<h2 id="overfitting">' in page
    assert "| adversarial | 2 | 0.188 | 0.250 | 0.500 | 1.0 |" in markdown
    assert Snapshot.read(ledger).overfitting == ()  # the curves are read for the report alone

    rows = overfitting_finals(ledger.history(1), ledger.events(1))
    assert [(row.key, row.value) for row in rows] == [("best_robust_epoch", 1.0), ("robust_overfitting", 0.125)]
    assert overfitting_finals(ledger.history(2), ledger.events(2)) == []  # not over yet


def test_a_sweep_without_a_monitor_does_not_mention_it(finished: Ledger, folder: SweepFolder) -> None:
    page, markdown = (path.read_text() for path in build_report(finished, folder))
    assert "overfitting" not in page + markdown
