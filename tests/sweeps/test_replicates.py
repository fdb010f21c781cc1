"""Replicates: what belongs together, its mean and spread, and where that is shown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.conclude import replicates_table
from sweeps.export import export_json
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.replicates import Spread, find_replicates
from sweeps.report import render_html
from sweeps.report_markdown import render_markdown
from sweeps.snapshot import Snapshot
from tests.sweeps import ledgers
from tests.sweeps.test_terminal import printed

CLEAN = (0.90, 0.94, 0.95)


def repeated(open_ledger: Callable[..., Ledger], *, exact: bool = True) -> Ledger:
    """Three finished trials of one configuration, a failed one, and two others; trial 2 may be a bound."""
    ledger = open_ledger(requested=6)
    config = {"model": {"depth": 3}, "methods": {"jasmin": {"k": 4}}}
    with Lease(ledger):
        for number in range(6):
            mine = config if number < 4 else {**config, "training": {"epochs": number}}
            ledger.propose(number, "jasmin", mine, {"jasmin.k": 4}, {"jasmin.k": ledgers._choice([0, 4])}, number)
            if number == 3:
                ledger.fail(3, "nan", "boom")
                continue
            ledgers.train(ledger, number, (*CLEAN, 0.0, 0.5, 0.6)[number])
            ledgers.attack(ledger, number, 128)
            if exact or number != 2:
                ledgers.attack(ledger, number, 64 * (number % 3), position=1, exact=True)
    return ledger


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_mean_and_spread_are_those_of_the_sample(values: list[float]) -> None:
    found = Spread.of(values)
    assert found.mean == pytest.approx(statistics.mean(values), abs=1e-12)
    assert found.std == pytest.approx(statistics.stdev(values), abs=1e-9)


def test_finished_trials_of_one_configuration_belong_together(open_ledger: Callable[..., Ledger]) -> None:
    (found,) = find_replicates(repeated(open_ledger).trials())
    assert [trial.number for trial in found.trials] == [0, 1, 2]
    assert found.spread("clean_acc") == Spread(pytest.approx(0.93), pytest.approx(statistics.stdev(CLEAN)))
    assert found.spread("robust_acc") == Spread(pytest.approx(0.25), pytest.approx(0.25))
    assert found.exact


def test_a_bound_makes_the_mean_a_bound(open_ledger: Callable[..., Ledger]) -> None:
    ledger = repeated(open_ledger, exact=False)
    (found,) = find_replicates(ledger.trials())
    assert not found.exact
    assert "| 3 | 0.930 ± 0.026 | ≤ 0.250 ± 0.250 | bound |" in render_markdown(Snapshot.read(ledger), "finished")
    assert "≤ 0.250 ± 0.250 bound" in printed(replicates_table(Snapshot.read(ledger)))


def test_the_table_is_in_the_report_the_terminal_and_the_export(open_ledger: Callable[..., Ledger]) -> None:
    ledger = repeated(open_ledger)
    snapshot = Snapshot.read(ledger)
    page, markdown = render_html(snapshot, "finished", "ui"), render_markdown(snapshot, "finished")
    assert '<h2 id="replicates">' in page
    assert "0.930 ± 0.026" in page
    assert "| 0, 1, 2 | jasmin | k=4 | 3 | 0.930 ± 0.026 | 0.250 ± 0.250 | exact |" in markdown
    table = replicates_table(Snapshot.read(ledger))
    assert table is not None
    assert "0.930 ± 0.026" in printed(table)
    (shown,) = export_json(ledger)["replicates"]
    assert (shown["trials"], shown["n"], shown["params"]) == ([0, 1, 2], 3, {"jasmin.k": 4})
    assert shown["clean_acc"] == {"mean": pytest.approx(0.93), "std": pytest.approx(statistics.stdev(CLEAN))}
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown


def test_a_sweep_without_repeats_shows_no_such_table(unfinished: Ledger) -> None:
    snapshot = Snapshot.read(unfinished)
    assert 'id="replicates"' not in render_html(snapshot, "interrupted", "ui")
    assert "Replicates" not in render_markdown(snapshot, "interrupted")
    assert replicates_table(Snapshot.read(unfinished)) is None
    assert export_json(unfinished)["replicates"] == []


def test_without_attacks_there_is_a_spread_of_clean_accuracy_alone(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger(objectives=("clean_acc",), planned_stages=())
    with Lease(ledger):
        for number in (0, 1):
            ledger.propose(number, "plain", {"training": {}}, {}, {}, number)
            ledgers.train(ledger, number, 0.8)
            ledger.finish_without_attack(number)
    (found,) = find_replicates(ledger.trials())
    assert found.spread("robust_acc") is None
    assert "| 0, 1 | plain | – | 2 | 0.800 ± 0.000 | – | – |" in render_markdown(Snapshot.read(ledger), "finished")
