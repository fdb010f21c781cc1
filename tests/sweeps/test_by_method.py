"""Methods side by side: own fronts, hypervolumes, and what each of them cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.ledger import Ledger
from sweeps.pareto import dominates
from sweeps.report import render_html
from sweeps.report_markdown import render_markdown
from sweeps.report_rows import method_rows
from sweeps.snapshot import Snapshot
from sweeps.summary import objective_values
from tests.sweeps import ledgers


@pytest.fixture
def snapshot(open_ledger: Callable[..., Ledger]) -> Snapshot:
    ledger = open_ledger()
    with ledgers.Lease(ledger):
        ledgers.finish(ledger, 0, "plain", 0.9, 100, None)
        ledgers.finish(ledger, 1, "plain", 0.8, 120, 110)
        ledgers.finish(ledger, 2, "jasmin", 0.7, 150, 140)
        ledgers.finish(ledger, 3, "jasmin", 0.6, 130, 120)
    return Snapshot.read(ledger)


def test_each_method_has_its_own_front_and_the_sums_are_those_of_the_sweep(snapshot: Snapshot) -> None:
    objectives = snapshot.sweep.objectives
    for row in snapshot.by_method:
        mine = {t.number: objective_values(t, objectives) for t in snapshot.trials if t.label == row.label}
        slow = [n for n, v in mine.items() if v and not any(w and dominates(w, v) for w in mine.values())]
        assert sorted(row.front) == slow
        assert row.exact == all(t.exact for t in snapshot.trials if t.number in row.front)
    assert sum(row.trials for row in snapshot.by_method) == len(snapshot.trials)
    assert sum(row.passes for row in snapshot.by_method) == sum(cost.passes for cost in snapshot.costs.values())
    assert sum(row.on_front for row in snapshot.by_method) == len(snapshot.front)
    seconds = [s.seconds or 0.0 for stages in snapshot.stages.values() for s in stages]
    assert sum(row.attack_seconds for row in snapshot.by_method) == pytest.approx(sum(seconds))


def test_a_front_with_a_bound_on_it_has_a_hypervolume_that_is_a_bound(snapshot: Snapshot) -> None:
    found = {row["method"]: row["hypervolume"] for row in method_rows(snapshot)}
    assert found["plain"].startswith("≤ ")
    assert not found["jasmin"].startswith("≤ ")


def test_report_and_markdown_show_the_methods_if_there_are_several(snapshot: Snapshot, tmp_path: Path) -> None:
    page = render_html(snapshot, "finished", "ui")
    assert '<h2 id="methods">' in page
    assert "## Methods" in render_markdown(snapshot, "finished")
    assert method_rows(Snapshot(snapshot.sweep, snapshot.trials[:1], snapshot.stages, ())) == []
