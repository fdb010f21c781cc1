"""The path of the hypervolume against its slow definition."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sweeps.convergence import hypervolume_steps
from sweeps.figures import hypervolume_figure
from sweeps.ledger import Ledger
from sweeps.pareto import hypervolume
from sweeps.records import CLOSED
from sweeps.snapshot import Snapshot
from sweeps.summary import objective_values


def test_each_step_has_the_hypervolume_and_the_cost_of_all_trials_that_had_ended(unfinished: Ledger) -> None:
    snapshot = Snapshot.read(unfinished)
    objectives = snapshot.sweep.objectives
    ended = [t for t in snapshot.trials if t.state in CLOSED]
    shuffled = [replace(t, ended_at=1000.0 - 7 * t.number) for t in ended]  # the last was the first to end
    steps = hypervolume_steps(shuffled, objectives, snapshot.seconds)
    assert [step.trials for step in steps] == list(range(1, len(ended) + 1))
    for step, trial in zip(steps, reversed(shuffled), strict=True):
        before = [t for t in shuffled if (t.ended_at or 0) <= (trial.ended_at or 0)]
        points = [v for t in before if t.exact and (v := objective_values(t, objectives)) is not None]
        assert step.hypervolume == pytest.approx(hypervolume(points))
        assert step.seconds == pytest.approx(sum(snapshot.seconds[t.number] for t in before))
    reported = [v for t in snapshot.front if (v := objective_values(t, objectives)) is not None]
    assert steps[-1].hypervolume == pytest.approx(hypervolume(reported))


def test_open_trials_and_too_few_have_no_path(unfinished: Ledger) -> None:
    snapshot = Snapshot.read(unfinished)
    assert hypervolume_figure(snapshot) is not None
    assert hypervolume_figure(replace(snapshot, trials=snapshot.trials[:2])) is None
    assert hypervolume_figure(replace(snapshot, sweep=replace(snapshot.sweep, objectives=("clean_acc",)))) is None
