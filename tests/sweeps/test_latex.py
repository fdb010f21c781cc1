r"""The LaTeX table: whole and balanced, bounds unranked, the best bold; that pdflatex takes it is tried where it is."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import run_sweep
from sweeps.columns import columns_of
from sweeps.latex import SPECIAL, escape, heading, number, render_latex
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.snapshot import Snapshot
from tests.sweeps import ledgers


def rows_of(table: str) -> list[list[str]]:
    """The cells of every line between \\toprule and \\bottomrule, each rule as a row of itself."""
    body = table.partition(r"\toprule")[2].partition(r"\bottomrule")[0]
    lines = [line.strip() for line in body.strip().splitlines()]
    return [
        ["---"] if line == r"\midrule" else [c.strip() for c in line.removesuffix(r"\\").split(" & ")] for line in lines
    ]


def check_whole(table: str) -> None:
    """Every environment and brace is closed in order, and each row has as many cells as the table has columns."""
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", table):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", table):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    assert table.count("$") % 2 == 0
    (columns,) = re.findall(r"\\begin\{tabular\}\{(l[lr]+)\}", table)
    rows = rows_of(table)
    assert {len(row) for row in rows if row != ["---"]} == {len(columns)}
    assert rows[0][0] == "Method"
    assert rows[1] == ["---"]
    assert rows[-1] != ["---"]


@pytest.fixture
def snapshot(open_ledger: Callable[..., Ledger]) -> Snapshot:
    """Front: a plain, a jasmin, an adversarial trial; behind it a jasmin bound and a plain trial; one has failed."""
    ledger = open_ledger()
    with Lease(ledger):
        ledgers.finish(ledger, 0, "jasmin", 0.90, 120, 100)
        ledgers.finish(ledger, 1, "adversarial", 0.80, 200, 180)
        ledgers.finish(ledger, 2, "jasmin", 0.78, 150, None)
        ledgers.finish(ledger, 3, "plain", 0.95, 60, 20)
        ledgers.propose(ledger, 4, "jasmin")
        ledger.fail(4, "nan", "the loss is nan")
        ledgers.finish(ledger, 5, "plain", 0.94, 60, 15)
        ledgers.test_stages(ledger, 1, 190, 170, 0.79)
    return Snapshot.read(ledger)


def test_plain_comes_first_and_a_rule_stands_between_methods(snapshot: Snapshot) -> None:
    table = render_latex(snapshot, "all")
    check_whole(table)
    rows = rows_of(table)
    named = replace(snapshot, sweep=replace(snapshot.sweep, name="a_b"))
    assert r"All configurations of a\_b: accuracy in \% on validation images." in render_latex(named, "all")
    assert [row[0] for row in rows[2:]] == ["plain", "plain", "---", "jasmin", "jasmin", "---", "adversarial"]
    assert rows[0] == ["Method", "$k$", r"$\lambda$", "aggr.", r"$\varepsilon$", "lr", "steps", "Clean", "PGD8", "AA8"]
    assert rows[2][1:5] == ["--"] * 4
    assert rows[2][-3:] == [r"\textbf{95.00}", "23.44", "7.81"]


def test_the_best_is_bold_the_second_underlined_and_a_bound_neither(snapshot: Snapshot) -> None:
    rows = [row for row in rows_of(render_latex(snapshot, "all"))[1:] if row != ["---"]]
    columns = list(zip(*rows, strict=True))[-3:]
    assert [[c for c in column if c.startswith(r"\textbf")] for column in columns] == [
        [r"\textbf{95.00}"],
        [r"\textbf{78.12}"],
        [r"\textbf{70.31}"],
    ]
    assert [[c for c in column if c.startswith(r"\underline")] for column in columns] == [
        [r"\underline{94.00}"],
        [r"\underline{58.59}"],
        [r"\underline{39.06}"],
    ]
    assert columns[2][3] == "--"  # the dear attack on trial 2 was spared


def test_a_bound_is_marked_and_has_no_rank_however_high_it_is(snapshot: Snapshot) -> None:
    plan = ledgers.parted()
    stages = {
        n: tuple(ledgers.judged(s, 250 if n == 2 else 90 + n, n) for s in plan[: 3 if n == 2 else 7])
        for n in (0, 1, 2, 3, 5)
    }
    anew = replace(snapshot, sweep=replace(snapshot.sweep, planned_stages=plan), stages=stages)
    table = render_latex(anew, "all")
    check_whole(table)
    last = [row[-1] for row in rows_of(table)[1:] if row != ["---"]]
    assert last == [r"\underline{36.33}", r"\textbf{37.11}", "35.16", r"$\le$ 97.66", "35.55"]
    assert "upper bound" in table


def test_the_front_stands_alone_or_with_one_plain_trial(snapshot: Snapshot) -> None:
    rows = rows_of(render_latex(snapshot))
    assert [row[0] for row in rows[2:]] == ["plain", "---", "jasmin", "---", "adversarial"]
    without = replace(snapshot, front=tuple(t for t in snapshot.front if t.label != "plain"))
    table = render_latex(without)
    assert rows_of(table)[2][-3] == r"\textbf{95.00}"
    assert "and what stands beside it" in table


def test_replicates_are_one_row_with_mean_and_spread(snapshot: Snapshot) -> None:
    twins = [t if t.number != 5 else replace(t, config=snapshot.trials[3].config) for t in snapshot.trials]
    table = render_latex(replace(snapshot, trials=tuple(twins)), "all")
    check_whole(table)
    row = rows_of(table)[2]
    for place, values in ((-3, (95.0, 94.0)), (-1, (100 * 20 / 256, 100 * 15 / 256))):
        text = rf"{statistics.mean(values):.2f} $\pm$ {statistics.stdev(values):.2f}"
        assert text in row[place]
    assert [r[0] for r in rows_of(table)].count("plain") == 1
    assert "over seeds" in table
    assert "One seed each" in render_latex(snapshot, "all")


def test_test_images_are_a_table_of_their_own(snapshot: Snapshot) -> None:
    rows = rows_of(render_latex(snapshot, "front", "test"))
    assert rows[2:] == [["adversarial", *rows[2][1:-3], "79.00", "74.22", "66.41"]]
    check_whole(render_latex(snapshot, "front", "test"))


def test_an_attack_carries_its_budget_as_the_papers_write_it() -> None:
    def named(label: str, epsilon: float, **changes: Any) -> str:
        stage = ledgers.planned(label, 0, threat={"norm": "linf", "epsilon": epsilon}, **changes)
        return heading(columns_of([stage])[0])

    assert [named("autoattack", 2 / 255), named("PGD4", 4 / 255), named("pgd", 0.5 / 255)] == ["AA2", "PGD4", "PGD0.5"]
    assert named("PGD20", 8 / 255) == "PGD20-8"
    assert named("pgd", 0.04) == "PGD10.2"
    assert named("pgd", 0.0123456) == r"PGD ($\varepsilon = 0.0123$)"
    assert named("a_b", 2 / 255, plan="x_y") == r"x\_y: a\_b2"
    stage = ledgers.planned("pgd", 0, threat={"norm": "l2", "epsilon": 0.5})
    assert heading(columns_of([stage])[0]) == r"PGD ($\ell_2$, $\varepsilon = 0.5$)"


def test_text_is_escaped_character_by_character() -> None:
    assert escape("a_b & 50 % {x}") == r"a\_b \& 50 \% \{x\}"
    assert escape("\\") == r"\textbackslash{}"
    assert not set("&%$#_^~") & set(re.sub(r"\\[&%$#_]", "", escape("".join(s for s in SPECIAL if s not in "ελ"))))


def test_numbers_are_written_as_in_papers() -> None:
    written = {0.001: "$10^{-3}$", 0.0123: "0.0123", 0.00123: r"$1.23 \cdot 10^{-3}$", 4: "4", 0: "0", None: "--"}
    assert {value: number(value) for value in written} == written
    assert (number("max_pool"), number(True), number(0.0)) == (r"max\_pool", "True", "0")


def test_a_sweep_without_a_finished_trial_says_so_in_an_empty_table(open_ledger: Callable[..., Ledger]) -> None:
    table = render_latex(Snapshot.read(open_ledger()))
    assert rows_of(table)[0] == ["Method", "Clean"]


def test_the_command_prints_the_table(snapshot: Snapshot, folder: Any) -> None:
    arguments = ["export", folder.name, "--storage", str(folder.storage), "--format", "latex", "--trials", "all"]
    found = CliRunner().invoke(run_sweep.app, arguments)
    assert found.exit_code == 0, found.output
    assert found.stdout == render_latex(snapshot, "all")


def test_pdflatex_takes_it(snapshot: Snapshot, tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex")
    tables = [render_latex(snapshot, "all"), render_latex(snapshot, "front", "test")]
    head = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
    (tmp_path / "table.tex").write_text(head + "\n".join(tables) + "\\end{document}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if "booktabs.sty' not found" in done.stdout:
        pytest.skip("needs the package booktabs")
    assert done.returncode == 0, done.stdout
