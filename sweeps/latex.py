r"""The figures of trials as a LaTeX table in the layout of JaSMin's tables; it needs the package booktabs alone.

One row for each configuration, plain fine-tuning first and a rule between methods; columns for the parameters that were
searched, the clean accuracy and every attack, in per cent. Source: Yudin et al. 2025, arXiv:2507.07814, tables 1 to 4.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sweeps.columns import Column, pixels
from sweeps.published import BASELINE
from sweeps.records import LAUNCHED, Split, State, TrialRecord
from sweeps.replicates import find_replicates
from sweeps.snapshot import Snapshot

Which = Literal["front", "all"]

SYMBOLS: Mapping[str, str] = {
    "k": "$k$",
    "weight": r"$\lambda$",
    "weight_q": r"$\lambda_q$",
    "weight_k": r"$\lambda_k$",
    "weight_v": r"$\lambda_v$",
    "aggregation": "aggr.",
    "epsilon": r"$\varepsilon$",
    "rho": r"$\rho$",
    "beta": r"$\beta$",
    "learning_rate": "lr",
}
"""Parameters as papers write them; others have their own names."""
ATTACKS: Mapping[str, str] = {
    "autoattack": "AA",
    "apgd_ce": "APGD-CE",
    "apgd_dlr": "APGD-DLR",
    "apgd_t": "APGD-T",
    "fab": "FAB",
    "fab_t": "FAB-T",
    "fgsm": "FGSM",
    "pgd": "PGD",
    "cw": "CW",
    "square": "Square",
}
SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "ε": r"$\varepsilon$",
    "λ": r"$\lambda$",
}
NOTHING = "--"


@dataclass(frozen=True)
class Figure:
    """One cell: accuracy in per cent over the trials of a configuration."""

    mean: float
    std: float | None
    """Sample standard deviation; None of a single trial."""
    exact: bool

    @property
    def rounded(self) -> float:
        """The mean as it is printed; figures that look equal rank equally."""
        return round(self.mean, 2)


Row = tuple[TrialRecord, ...]
"""Trials of one configuration, which differ in their seeds alone."""


def render_latex(snapshot: Snapshot, which: Which = "front", split: Split = "validation") -> str:
    """Return a table environment and, as a comment, what it needs.

    Args: which: the front (with one plain trial beside it), or every finished trial; split: whose images.
    """
    rows = _rows(snapshot, which, split)
    columns = [c for c in snapshot.columns if c.split == split and _judged(snapshot, rows, c)]
    names = _parameters(rows)
    figures = [_figures(snapshot, row, columns, split) for row in rows]
    ranks = [_ranked(column) for column in zip(*figures, strict=True)]
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{_caption(snapshot, which, split, rows, columns)}}}",
        rf"  \label{{tab:{re.sub(r'[^A-Za-z0-9-]', '-', snapshot.sweep.name)}}}",
        rf"  \begin{{tabular}}{{l{'r' * len(names)}{'r' * (1 + len(columns))}}}",
        r"    \toprule",
        _line(["Method", *names.values(), "Clean", *map(heading, columns)]),
        r"    \midrule",
    ]
    for place, row in enumerate(rows):
        if place and rows[place - 1][0].label != row[0].label:
            lines.append(r"    \midrule")
        drawn = [_drawn(row[0], name) for name in names]
        lines.append(_line([escape(row[0].label), *drawn, *(_cell(figures[place][i], r) for i, r in enumerate(ranks))]))
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]) + "\n"


def escape(text: str) -> str:
    """Return text that LaTeX prints as it is: ``a_b`` → ``a\\_b``."""
    return "".join(SPECIAL.get(character, character) for character in text)


def heading(column: Column) -> str:
    """Return an attack with its budget as the tables have it: ``PGD4`` is 4/255, ``AA2`` AutoAttack at 2/255."""
    epsilon = float(column.threat["epsilon"])
    plan = "" if column.plan == LAUNCHED else f"{escape(column.plan)}: "
    scaled = f"{epsilon * 255:.4g}"
    if abs(epsilon * 255 - float(scaled)) > 1e-6:
        scaled = ""
    if scaled and column.threat["norm"] == "linf" and len(column.threat) == 2:
        name = ATTACKS.get(column.name, escape(column.name))
        return plan + (name if name.endswith(scaled) else f"{name}{'-' if name[-1].isdigit() else ''}{scaled}")
    notes = [] if column.threat["norm"] == "linf" else [rf"$\ell_{column.threat['norm'].removeprefix('l')}$"]
    notes.append(rf"$\varepsilon = {pixels(epsilon)}$")
    return f"{plan}{ATTACKS.get(column.name, escape(column.name))} ({', '.join(notes)})"


def _rows(snapshot: Snapshot, which: Which, split: Split) -> list[Row]:
    """Return the configurations, plain ones first, then method by method in the order of their first trials."""
    finished = [t for t in snapshot.trials if t.state is State.FINISHED and _clean(t, split) is not None]
    shown = (
        finished if which == "all" else _with_baseline([t for t in finished if t.number in snapshot.on_front], finished)
    )
    siblings = {t.number: r.trials for r in find_replicates(finished) for t in r.trials}
    rows = list({row[0].number: row for t in shown for row in [siblings.get(t.number, (t,))]}.values())
    labels = list(dict.fromkeys(t.label for t in snapshot.trials))
    return sorted(rows, key=lambda row: (row[0].label != BASELINE, labels.index(row[0].label), row[0].number))


def _with_baseline(front: list[TrialRecord], finished: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the front with the plain trial of the highest clean accuracy, unless it has a plain one."""
    plain = [t for t in finished if t.label == BASELINE]
    if not plain or any(t.label == BASELINE for t in front):
        return front
    return [max(plain, key=lambda t: (t.clean_acc or 0.0, -t.number)), *front]


def _clean(trial: TrialRecord, split: Split) -> float | None:
    return trial.clean_acc if split == "validation" else trial.test_clean_acc


def _judged(snapshot: Snapshot, rows: Iterable[Row], column: Column) -> bool:
    place = snapshot.columns.index(column)
    return any(snapshot.cells(trial)[place].survivors is not None for row in rows for trial in row)


def _parameters(rows: Iterable[Row]) -> dict[str, str]:
    """Return what was searched, by the last part of its name, and its head: weights of two methods share a column."""
    names = dict.fromkeys(_short(name) for row in rows for name in row[0].params if name != "method")
    return {name: SYMBOLS.get(name, escape(name)) for name in sorted(names, key=_order)}


def _order(name: str) -> tuple[int, str]:
    known = list(SYMBOLS)
    return (known.index(name) if name in known else len(known), name)


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _drawn(trial: TrialRecord, name: str) -> str:
    """Return a trial's value of a parameter; of a stack that has it twice both, as the methods are named."""
    found = [number(value) for full, value in trial.params.items() if full != "method" and _short(full) == name]
    return ", ".join(found) or NOTHING


def number(value: Any) -> str:
    """Return a value as papers write it: 0.0123 → 0.0123, 0.001 → ``$10^{-3}$``, 0.0012 → ``$1.2 \\cdot 10^{-3}$``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NOTHING if value is None else escape(str(value))
    if isinstance(value, int) or value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.3g}" if isinstance(value, float) else str(value)
    digits, exponent = f"{value:.2e}".split("e")
    digits = digits.rstrip("0").rstrip(".")
    power = f"10^{{{int(exponent)}}}"
    return f"${power}$" if digits == "1" else rf"${digits} \cdot {power}$"


def _figures(snapshot: Snapshot, row: Row, columns: Sequence[Column], split: Split) -> list[Figure | None]:
    clean = _figure([(_clean(trial, split), True) for trial in row])
    places = [snapshot.columns.index(column) for column in columns]
    cells = [[snapshot.cells(trial)[place] for trial in row] for place in places]
    return [clean, *(_figure([(cell.accuracy, cell.exact) for cell in found]) for found in cells)]


def _figure(values: Sequence[tuple[float | None, bool]]) -> Figure | None:
    """Return mean and spread; None if a trial was not measured."""
    measured = [100 * value for value, _ in values if value is not None]
    if len(measured) < len(values):
        return None
    std = statistics.stdev(measured) if len(measured) > 1 else None
    return Figure(statistics.fmean(measured), std, all(exact for _, exact in values))


def _ranked(figures: Iterable[Figure | None]) -> tuple[float | None, float | None]:
    """Return the best and the second best exact figure of a column; a bound may be anything below: it has no rank."""
    values = sorted({f.rounded for f in figures if f is not None and f.exact}, reverse=True)
    best, second = (*values[:2], None, None)[:2]
    return (best, second) if len(values) > 1 else (None, None)


def _cell(figure: Figure | None, ranks: tuple[float | None, float | None]) -> str:
    if figure is None:
        return NOTHING
    text = f"{figure.rounded:.2f}" + ("" if figure.std is None else rf" $\pm$ {figure.std:.2f}")
    if not figure.exact:
        return rf"$\le$ {text}"
    if figure.rounded == ranks[0]:
        return rf"\textbf{{{text}}}"
    return rf"\underline{{{text}}}" if figure.rounded == ranks[1] else text


def _line(cells: Sequence[str]) -> str:
    return f"    {' & '.join(cells)} \\\\"


def _caption(snapshot: Snapshot, which: Which, split: Split, rows: Sequence[Row], columns: Sequence[Column]) -> str:
    return " ".join(_sentences(snapshot, which, split, rows, columns))


def _sentences(
    snapshot: Snapshot, which: Which, split: Split, rows: Sequence[Row], columns: Sequence[Column]
) -> Iterator[str]:
    behind = which == "front" and any(t.number not in snapshot.on_front for row in rows for t in row)
    shown = "Pareto front" if which == "front" else "All configurations"
    beside = ", and what stands beside it" if behind else ""
    yield f"{shown} of {escape(snapshot.sweep.name)}{beside}: accuracy in \\% on {split} images."
    if columns:
        counts = sorted({column.stages[0].images for column in columns})
        yield f"Attacks on {' or '.join(map(str, counts))} of them; the number after an attack is $255\\,\\varepsilon$."
    if any(len(row) > 1 for row in rows):
        yield "Mean $\\pm$ standard deviation over seeds; the others have one seed."
    else:
        yield "One seed each."
    if any(f is not None and not f.exact for row in rows for f in _figures(snapshot, row, columns, split)):
        yield "$\\le$ marks an upper bound, which has no rank."
    yield "Best in bold, second underlined."
