from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.terminal import choose_letters, front_scatter, front_table
from tests.sweeps import ledgers


def printed(what: object, width: int = 110) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(what)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_the_front_is_a_short_table(unfinished: Ledger) -> None:
    lines = printed(front_table(unfinished)).splitlines()
    assert lines[0].startswith("Pareto front: 3 trials (validation)")
    rows = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert [row[:2] for row in rows] == [["0", "plain"], ["1", "jasmin"], ["2", "adversarial"]]
    assert rows[2][-7:] == ["0.800", "0.703", "[0.644,", "0.756]", "exact", "0.790", "0.664"]
    assert "weight=0.0133" in "".join(lines)


def test_an_empty_front_says_so(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger()
    assert "The front is empty" in printed(front_table(ledger))
    assert not front_scatter(ledger)


def test_the_picture_has_capitals_on_the_front_and_numbers_on_the_axes(unfinished: Ledger) -> None:
    lines = front_scatter(unfinished, width=50, height=11).plain.splitlines()
    assert lines[0] == "robust"
    assert lines[1].startswith(" 0.703 ┤")
    assert lines[11].startswith(" 0.078 ┤")
    picture = "".join(line[8:] for line in lines[1:12])
    assert sorted(picture.replace(" ", "")) == ["A", "J", "P", "j"]
    assert lines[11].endswith("P")
    assert lines[13].split() == ["0.78", "0.865", "0.95"]
    assert "P plain   J jasmin   A adversarial   capital: on the front" in lines[14]
    assert max(map(len, lines[:14])) <= 58


@pytest.mark.parametrize("clean", [(0.9,), (0.9, 0.9)])
def test_points_without_a_spread_can_be_drawn(open_ledger: Callable[..., Ledger], clean: tuple[float, ...]) -> None:
    ledger = open_ledger()
    with Lease(ledger):
        for number, value in enumerate(clean):
            ledgers.finish(ledger, number, "plain", value, 100, 90)
    assert front_scatter(ledger).plain.count("P") == 2  # one cell, and the legend


def test_without_robust_accuracy_the_picture_is_over_the_trials(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger(objectives=("clean_acc",), planned_stages=())
    with Lease(ledger):
        for number, value in enumerate((0.8, 0.9, 0.7)):
            ledgers.propose(ledger, number, "plain")
            ledgers.train(ledger, number, value)
            ledger.finish_without_attack(number)
    plain = front_scatter(ledger).plain
    assert plain.startswith("clean\n")
    assert "trial →" in plain


def test_letters_differ_as_long_as_there_are_any() -> None:
    assert choose_letters(["msvp", "max", "m", "jasmin+msvp"]) == {
        "msvp": "m",
        "max": "a",
        "m": "b",
        "jasmin+msvp": "j",
    }
    many = choose_letters([f"m{i}" for i in range(30)])
    assert len(set(many.values())) == 27
