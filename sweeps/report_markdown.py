"""report.md: the report's tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from sweeps.advice import advice
from sweeps.confirmation_view import confirmation_sentences, markdown_rows, single_seed_note
from sweeps.confirmed import Confirming
from sweeps.published_tables import published_tables
from sweeps.records import TrialRecord
from sweeps.report_rows import (
    cell_texts,
    flag_groups,
    method_rows,
    overfitting_rows,
    replicate_row,
    titles,
    warning_groups,
)
from sweeps.snapshot import ABSENT, Snapshot, accuracy, exactness, searched
from sweeps.summary import headline


def render_markdown(snapshot: Snapshot, state: str) -> str:
    """Return the front, replicates if there are any, all trials and their attacks as tables, and the flags."""
    settled = "" if snapshot.is_settled() else "\nNot settled yet: attacks that are still to run may change it.\n"
    parts = [
        f"# {snapshot.sweep.name}\n",
        f"{headline(snapshot.sweep, snapshot.trials)} ({state}). All figures are of the validation images, robust with "
        "its 95 % interval; those of the test images are named so. ≤ marks an upper bound: attacks are still to run, "
        "or were spared because the trial is behind the front.\n",
        *(f"- **{name}**: {text}" for name, text in advice(snapshot)),
        f"\n## Pareto front\n{settled}",
        _markdown_table(snapshot, snapshot.front),
        *([f"\n{note}"] if (note := single_seed_note(snapshot)) else []),
        *(["\n## Confirmation\n", _markdown_confirmation(snapshot.confirming)] if snapshot.confirming else []),
        *(["\n## Methods\n", _markdown_methods(snapshot)] if method_rows(snapshot) else []),
        *_markdown_published(snapshot),
        *(["\n## Replicates\n", _markdown_replicates(snapshot)] if snapshot.replicates else []),
        "\n## All trials\n",
        _markdown_table(snapshot, snapshot.trials),
        *(["\n## Attacks\n", _markdown_attacks(snapshot)] if snapshot.columns else []),
        *(["\n## Robust overfitting\n", _markdown_overfitting(snapshot)] if snapshot.overfitting else []),
        *(
            ["\n## Warnings and flags\n", _markdown_flags(snapshot)]
            if snapshot.flags or warning_groups(snapshot)
            else []
        ),
    ]
    return "\n".join(parts) + "\n"


def _markdown_table(snapshot: Snapshot, trials: Iterable[TrialRecord]) -> str:
    cosine = ("cosine",) if snapshot.has_cosines else ()
    names = ("trial", "state", "method", "searched", "clean", *cosine, "robust", "attacks", "test clean", "test robust")
    short = snapshot.short_names
    rows = [names, ("---",) * len(names)]
    for t in trials:
        facts = (str(t.number), str(t.state), t.label, searched(t, short), accuracy(t.clean_acc))
        measured = (*((accuracy(t.feature_cosine),) if cosine else ()), snapshot.robust(t), exactness(t))
        rows.append((*facts, *measured, accuracy(t.test_clean_acc), snapshot.test_robust(t)))
    return _markdown(rows)


def _markdown_confirmation(confirming: Confirming) -> str:
    rows = markdown_rows(confirming)
    table = ["", _markdown(rows)] if len(rows) > 2 else []
    return "\n".join([*(f"- {text}" for text in confirmation_sentences(confirming)), *table])


def _markdown_methods(snapshot: Snapshot) -> str:
    names = {key: key for key in ("method", "trials", "finished", "failed")}
    names |= {"on_front": "on the front", "hypervolume": "hypervolume", "epochs": "epochs", "training": "training"}
    names |= {"parents": "parents", "attacking": "attacks", "passes": "passes"}
    rows = [[str(row[key]) for key in names] for row in method_rows(snapshot)]
    return _markdown([list(names.values()), ["---"] * len(names), *rows])


def _markdown_published(snapshot: Snapshot) -> list[str]:
    tables = published_tables(snapshot)
    if tables is None:
        return []
    parts = ["\n## Beside the published figures\n", f"{tables['source']}. {tables['caption']}\n"]
    kinds = {"rows": ("published", "ours", "difference"), "gains": ("published_gain", "gain")}
    for name, keys in kinds.items():
        if name == "gains" and tables["gains"]:
            parts.append(f"\n### Gains over plain fine-tuning, in the paper and here\n\n{tables['gains_caption']}\n")
        heads = [f"{title}, {key.replace('_', ' ')}" for title in tables["titles"] for key in keys]
        rows = [["trial", "method", "searched", *heads], ["---"] * (3 + len(heads))]
        for row in tables[name]:
            cells = [str(cell[key]) for cell in row["cells"] for key in keys]
            rows.append([str(row["number"]), row["method"], row["searched"], *cells])
        parts += [_markdown(rows)] if tables[name] else []
    return parts


def _markdown_attacks(snapshot: Snapshot) -> str:
    names = ("trial", *titles(snapshot))
    rows = [names, ("---",) * len(names)]
    for trial in snapshot.trials:
        cells = [cell_texts(cell)["text"] for cell in snapshot.cells(trial)]
        if any(cell != ABSENT for cell in cells):
            rows.append((str(trial.number), *cells))
    return _markdown(rows)


def _markdown_overfitting(snapshot: Snapshot) -> str:
    names = ("method", "trials", "lost", "most lost", "gap", "best epoch")
    rows: list[tuple[str, ...]] = [names, ("---",) * len(names)]
    for row in overfitting_rows(snapshot):
        figures = (row["lost"], row["worst"], row["gap"], row["best_epoch"])
        rows.append((row["method"], str(row["trials"]), *figures))
    return (
        "Accuracy under the monitor's attack, means over the trials of a method. Lost: best epoch minus last, on "
        "validation images; gap: training images minus validation images, after the last epoch.\n\n" + _markdown(rows)
    )


def _markdown_flags(snapshot: Snapshot) -> str:
    lines = []
    for group in flag_groups(snapshot):
        lines += [f"- {group['title']}", *(f"  - trial {found['number']}: {found['text']}" for found in group["found"])]
    for warning in warning_groups(snapshot):
        lines.append(f"- {warning['text']} (trials {', '.join(map(str, warning['numbers']))})")
    return "\n".join(lines)


def _markdown_replicates(snapshot: Snapshot) -> str:
    names = ("trials", "method", "searched", "n", "clean", "robust", "attacks")
    rows = [names, ("---",) * len(names)]
    for row in (replicate_row(snapshot, r) for r in snapshot.replicates):
        numbers = ", ".join(map(str, row["numbers"]))
        facts = (row["method"], row["searched"], str(row["count"]), row["clean"], row["robust"], row["exactness"])
        rows.append((numbers, *facts))
    return _markdown(rows)


def _markdown(rows: Iterable[Iterable[str]]) -> str:
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows)
