from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
import sqlalchemy as sa
from rich.console import Console

from sweeps.conclude import conclude
from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.snapshot import Snapshot
from sweeps.terminal import choose_letters, front_scatter, front_table
from tests.sweeps import ledgers


def printed(what: object, width: int = 110) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(what)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_the_front_is_a_short_table(unfinished: Ledger) -> None:
    lines = printed(front_table(Snapshot.read(unfinished))).splitlines()
    assert lines[0].startswith("Pareto front: 3 trials (validation)")
    rows = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert [row[:2] for row in rows] == [["0", "plain"], ["1", "jasmin"], ["2", "adversarial"]]
    assert not any("!" in line for line in lines)
    assert rows[2][-7:] == ["0.800", "0.703", "[0.644,", "0.756]", "exact", "0.790", "0.664"]
    assert "weight=0.0133" in "".join(lines)


def test_flagged_trials_are_marked_and_told_where_to_read_why(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger(planned_stages=ledgers.cascade("pgd") + ledgers.parted("test"))
    pgd, *test = ledger.sweep().planned_stages
    facts = {"flat": 50.0, "attacked": 120.0}
    with Lease(ledger):
        for number in (0, 1):
            ledgers.propose(ledger, number, "plain")
            ledgers.train(ledger, number, 0.9 - number / 10)
            stages = [ledgers.judged(pgd, 100 + number, number, facts=facts if number else {})]
            stages += [ledgers.judged(stage, 90, number) for stage in test[: 7 if number else 3]]
            for stage in stages:
                ledger.start_stage(replace(stage, state="running"))
                ledger.finish_stage(stage, exact=stage.split == "validation")
    lines = printed(front_table(Snapshot.read(ledger))).splitlines()
    rows = [line.split() for line in lines if line.strip("! ")[:1].isdigit()]
    assert [row[:2] for row in rows] == [["0", "plain"], ["!", "1"]]
    assert (rows[0][-2:], rows[1][-1]) == (["≤", "0.352"], "0.352")  # three of seven parts on test images
    caption = " ".join(line.strip() for line in lines[-2:])
    assert caption.endswith("may be an attack's failure: see Warnings and flags in the report.")


def test_the_end_of_a_driver_says_how_many_trials_have_flags(unfinished: Ledger, folder: SweepFolder) -> None:
    def said() -> str:
        console = Console(width=110, file=io.StringIO())
        conclude(folder, console)
        return str(console.file.getvalue())  # type: ignore[attr-defined]

    assert "flags:" not in said()
    with unfinished._engine.begin() as connection:
        connection.execute(sa.text("UPDATE stages SET facts = :facts"), {"facts": '{"flat": 50, "attacked": 99}'})
    assert "4 trials have reasons not to trust the attacks: Warnings and flags in the report" in said()


def test_an_empty_front_says_so(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger()
    assert "The front is empty" in printed(front_table(Snapshot.read(ledger)))
    assert not front_scatter(Snapshot.read(ledger))


def test_the_picture_has_capitals_on_the_front_and_numbers_on_the_axes(unfinished: Ledger) -> None:
    lines = front_scatter(Snapshot.read(unfinished), width=50, height=11).plain.splitlines()
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
    assert front_scatter(Snapshot.read(ledger)).plain.count("P") == 2  # one cell, and the legend


def test_without_robust_accuracy_the_picture_is_over_the_trials(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger(objectives=("clean_acc",), planned_stages=())
    with Lease(ledger):
        for number, value in enumerate((0.8, 0.9, 0.7)):
            ledgers.propose(ledger, number, "plain")
            ledgers.train(ledger, number, value)
            ledger.finish_without_attack(number)
    plain = front_scatter(Snapshot.read(ledger)).plain
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
