"""Advice: the lines at the top of a report, and what they say where there is little to say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sweeps.advice import advice
from sweeps.choosing import knee_of
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.report import render_html
from sweeps.snapshot import Snapshot
from tests.sweeps import ledgers


def test_the_lines_name_the_knee_both_ends_the_reason_and_how_sure(unfinished: Ledger) -> None:
    snapshot = Snapshot.read(unfinished)
    lines = dict(advice(snapshot))
    assert list(lines) == ["Take", "Or", "Why", "Gain", "How sure"]
    knee = knee_of(snapshot)
    assert knee is not None
    assert lines["Take"].startswith(f"trial {knee.number} (jasmin, ")
    assert "for clean accuracy alone: trial 0 (plain, " in lines["Or"]
    assert "for robust accuracy alone: trial 2 (adversarial, " in lines["Or"]
    assert "3 trials are on the front, 1 of plain, 1 of jasmin, 1 of adversarial" in lines["Why"]
    assert lines["Gain"].startswith("The gain of adversarial over plain exceeds")
    assert "each figure is of one seed" in lines["How sure"]
    assert "`confirm digits --seeds " in lines["How sure"]


def test_a_front_of_two_has_no_knee_and_one_of_one_is_best_in_both(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger()
    with Lease(ledger):
        ledgers.finish(ledger, 0, "plain", 0.90, 100, 90)
        assert dict(advice(Snapshot.read(ledger)))["Take"].endswith("It is best in both.")
        assert "Or" not in dict(advice(Snapshot.read(ledger)))
        ledgers.finish(ledger, 1, "plain", 0.80, 110, 100)
    assert "between them no trial stands out" in dict(advice(Snapshot.read(ledger)))["Take"]


def test_before_there_is_a_front_nothing_is_advised(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger()
    assert advice(Snapshot.read(ledger)) == []
    assert 'id="advice"' not in render_html(Snapshot.read(ledger), "running", "ui")


def test_an_open_front_and_flags_are_doubts(unfinished: Ledger) -> None:
    from tests.sweeps.test_report import planned_anew

    sure = dict(advice(planned_anew(unfinished)))["How sure"]
    assert "Attacks may have failed on trial 0: see the warnings." in sure
    snapshot = Snapshot.read(unfinished)
    higher = replace(snapshot.trials[3], robust_acc=0.9)
    trials = (*snapshot.trials[:3], higher, *snapshot.trials[4:])
    assert "not settled" in dict(advice(replace(snapshot, trials=trials)))["How sure"]


def test_the_page_makes_links_of_trials_and_code_of_commands(unfinished: Ledger) -> None:
    page = render_html(Snapshot.read(unfinished), "finished", "ui")
    top = page.partition('id="advice"')[2].partition("<h2")[0]
    assert '<a href="#trial-2">trial 2</a>' in top
    assert "<code>confirm digits --seeds" in top
