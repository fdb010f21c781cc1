"""What the report's tables say, row by row, as plain values; report.html and report.md share it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sweeps.columns import Cell, bounded, usual_threat
from sweeps.costs import Cost
from sweeps.parents import called, children_of
from sweeps.records import LAUNCHED, PlannedStage, StageRecord, State, TrialRecord
from sweeps.replicates import Replicates
from sweeps.snapshot import (
    ABSENT,
    Snapshot,
    accuracy,
    duration,
    exactness,
    last_line,
    searched,
    spread,
    without_passwords,
)
from sweeps.summary import robust_interval
from sweeps.trust import MEANING, count_mismatches

LONGEST_TRACEBACK = 6000
"""Characters of a failure's text that are shown, the last ones; the export has all of it."""


def trial_row(snapshot: Snapshot, trial: TrialRecord) -> dict[str, Any]:
    """One trial as the tables show it."""
    stages = snapshot.stages_of(trial)
    interval = robust_interval(stages, trial.number)
    attack_seconds, cost = snapshot.attack_seconds[trial.number], snapshot.costs[trial.number]
    return {
        "number": trial.number,
        "state": str(trial.state),
        "method": trial.label,
        "colour": snapshot.colours[trial.label],
        "searched": searched(trial, snapshot.short_names),
        "on_front": trial.number in snapshot.on_front,
        "clean": accuracy(trial.clean_acc),
        "cosine": accuracy(trial.feature_cosine),
        "robust": ABSENT if trial.robust_acc is None else bounded(trial.robust_acc, trial.exact),
        "robust_value": "" if trial.robust_acc is None else trial.robust_acc,
        "flags": len(snapshot.flags.get(trial.number, ())),
        "interval": ABSENT if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}",
        "exactness": exactness(trial),
        "cells": [cell_texts(cell) for cell in snapshot.cells(trial)],
        "test_clean": accuracy(trial.test_clean_acc),
        "test_robust": snapshot.test_robust(trial),
        "epochs": trial.epochs,
        "train_seconds": trial.train_seconds or "",
        "training": duration(trial.train_seconds),
        "attack_seconds": attack_seconds or "",
        "attacking": duration(attack_seconds) if stages else ABSENT,
        "passes": cost.passes or "",
        "passes_text": f"{cost.passes:,}" if stages else ABSENT,
        "saved": cost.saved or "",
        "saved_text": f"{'≤ ' if cost.saved_by_pruning else ''}{cost.saved:,}" if stages else ABSENT,
    }


def replicate_row(snapshot: Snapshot, replicates: Replicates) -> dict[str, Any]:
    """One configuration as the tables of replicates show it."""
    first = replicates.trials[0]
    return {
        "numbers": [trial.number for trial in replicates.trials],
        "method": first.label,
        "colour": snapshot.colours[first.label],
        "searched": searched(first, snapshot.short_names),
        "count": replicates.count,
        "clean": spread(replicates.spread("clean_acc")),
        "robust": spread(replicates.spread("robust_acc"), replicates.exact),
        "exactness": exactness(replicates),
    }


def method_rows(snapshot: Snapshot) -> list[dict[str, Any]]:
    """What each method came to and what it cost; empty if there is only one."""
    if len(snapshot.by_method) < 2:
        return []
    return [
        {
            "method": row.label,
            "colour": snapshot.colours[row.label],
            "trials": row.trials,
            "finished": row.finished,
            "failed": row.failed,
            "front": list(row.front),
            "on_front": row.on_front,
            "hypervolume": bounded(row.hypervolume, row.exact) if row.front else ABSENT,
            "epochs": f"{row.epochs:,}",
            "training": duration(row.train_seconds),
            "parents": duration(row.parent_seconds) if row.parent_seconds else ABSENT,
            "attacking": duration(row.attack_seconds),
            "passes": f"{row.passes:,}",
        }
        for row in snapshot.by_method
    ]


def titles(snapshot: Snapshot) -> list[str]:
    """Return the heads of the columns of attacks."""
    usual = usual_threat(snapshot.columns)
    return [column.title(usual) for column in snapshot.columns]


def cell_texts(cell: Cell) -> dict[str, Any]:
    """An attack's figure: ``≤ 0.412 [0.353, 0.473] 105/256, 3 of 12 parts``, and what it is sorted by."""
    if cell.interval is None:
        return {"text": cell.trouble or ABSENT, "value": "", "bound": False}
    low, high = cell.interval
    text = f"{cell.figure} [{low:.3f}, {high:.3f}] {cell.survivors}/{cell.images}"
    return {
        "text": ", ".join(filter(None, (text, cell.progress))),
        "value": f"{cell.accuracy:.6g}",
        "bound": not cell.exact,
    }


def parts_table(snapshot: Snapshot) -> dict[str, Any] | None:
    """How many images withstood each part, one row per trial; None if no attack has parts."""
    columns = [column for column in snapshot.columns if len(column.stages) > 1]
    parts = [part for column in columns for part in column.stages]
    rows = []
    for trial in snapshot.trials:
        found = {(s.split, s.position): s for s in snapshot.stages_of(trial)}
        cells = [_part_cell(found.get((part.split, part.position))) for part in parts]
        if any(cell != ABSENT for cell in cells):
            rows.append({"number": trial.number, "cells": cells})
    return {"names": [_part_name(part) for part in parts], "rows": rows} if rows else None


def _part_name(part: PlannedStage) -> str:
    plan = "" if part.plan == LAUNCHED else f"{part.plan}: "
    return f"{'test ' if part.split == 'test' else ''}{plan}{part.label}"


def _part_cell(stage: StageRecord | None) -> str:
    if stage is None:
        return ABSENT
    return str(stage.survivors) if stage.state == "done" else stage.state


def overfitting_rows(snapshot: Snapshot) -> list[dict[str, Any]]:
    """What the trials of each method lost to robust overfitting; empty if no monitor was on."""
    return [
        {
            "method": row.label,
            "colour": snapshot.colours[row.label],
            "trials": row.trials,
            "lost": f"{row.lost:.3f}",
            "worst": f"{row.worst:.3f}",
            "gap": f"{row.gap:.3f}",
            "best_epoch": f"{row.best_epoch:.1f}",
        }
        for row in snapshot.overfitting
    ]


def failure_groups(trials: Iterable[TrialRecord]) -> list[dict[str, Any]]:
    """Group the failures by their last line, which is what tells them apart; the first one's text stands for all."""
    groups: dict[str, list[TrialRecord]] = defaultdict(list)
    for trial in trials:
        if trial.error is not None:
            told = "" if trial.state is State.FAILED else f", trial is {trial.state} nevertheless"
            groups[f"{trial.error_kind}: {last_line(trial.error)[:200]}{told}"].append(trial)
    return [
        {
            "title": title,
            "numbers": [t.number for t in members],
            "text": without_passwords((members[0].error or "")[-LONGEST_TRACEBACK:]),
        }
        for title, members in groups.items()
    ]


def flag_groups(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Group the flags by what they say about a model."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number, flags in snapshot.flags.items():
        for flag in flags:
            groups[flag.code].append({"number": number, "text": flag.text})
    return [{"title": MEANING[code], "found": groups[code]} for code in MEANING if code in groups]


def warning_groups(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Group what the attacks themselves said, the parts of an attack as one."""
    groups: dict[str, dict[int, None]] = defaultdict(dict)
    for stage in _all(snapshot):
        plan = "" if stage.plan == LAUNCHED else f"{stage.plan}: "
        for text in stage.warnings:
            groups[f"{plan}{stage.column or stage.attack} on {stage.split} images: {text}"][stage.number] = None
    return [{"text": text, "numbers": list(numbers)} for text, numbers in groups.items()]


def cost_rows(snapshot: Snapshot) -> list[tuple[str, str]]:
    """Say what training and each attack took, what early exit and pruning spared, and how often verdicts differed."""
    trials = snapshot.trials
    costs = [
        ("epochs trained", f"{sum(t.epochs for t in trials):,}"),
        ("training", duration(sum(t.train_seconds or 0.0 for t in trials))),
        *_parent_costs(snapshot),
        ("attacks", duration(sum(snapshot.attack_seconds.values()))),
        ("ran on", _ran_on(snapshot)),
    ]
    for column, title in zip(snapshot.columns, titles(snapshot), strict=True):
        places = {(part.split, part.position) for part in column.stages}
        ran = [s for s in _all(snapshot) if (s.split, s.position) in places and s.state == "done"]
        spent, passes = sum(s.seconds or 0.0 for s in ran), sum(s.passes or 0 for s in ran)
        count = len({s.number for s in ran})
        text = f"{duration(spent)}, {count} trial{'s' * (count != 1)}, {passes:,} passes"
        costs.append((title if column.split == "test" else f"{title}, validation images", text))
    total = sum(snapshot.costs.values(), Cost())
    if total.share is None:
        return costs
    mismatches, attacked = count_mismatches(_all(snapshot))
    share = f" ({mismatches / attacked:.2%})" if attacked else ""
    still_open = "" if snapshot.is_settled() else ", some of it still to run"
    return [
        *costs,
        ("passes, all attacks", f"{total.passes:,}: forward passes of one image, a backward pass counted as two"),
        ("saved by early exit", f"{total.saved_by_exit:,}"),
        ("saved by pruning", f"at most {total.saved_by_pruning:,}{still_open}"),
        (
            "share",
            f"at least {total.share:.1%} of what the attacks, the cascade on every trial, would take without both",
        ),
        (
            "mismatches",
            f"{mismatches:,} of {attacked:,} attacked images{share}: the attack's pass and the judge differ",
        ),
    ]


def _ran_on(snapshot: Snapshot) -> str:
    """Say whose seconds these are. Drivers on different machines may have had different shares."""
    if not snapshot.resources:
        return "not recorded"
    kinds = dict.fromkeys((_trainings(snapshot, r), _share(r, "evaluation")) for r in snapshot.resources)
    told = "; ".join(f"each training {training}, each attack {attack}" for training, attack in kinds)
    if len(kinds) > 1:
        return f"{told}, by driver"
    (one,) = {tuple(sorted(r.items())) for r in snapshot.resources}
    amounts, attacking = dict(one), sum(snapshot.attack_seconds.values())
    spent = {}
    for unit, key in (("CPU", "cpus"), ("GPU", "gpus")):
        spent[unit] = attacking * amounts[f"evaluation_{key}"]
        for trained in (*snapshot.trials, *snapshot.parents):
            had = snapshot.granted.get(trained.number, {unit: amounts[f"trial_{key}"]})
            spent[unit] += (trained.train_seconds or 0.0) * had.get(unit, 0.0)
    return f"{told}: " + ", ".join(f"{duration(s)} of one {unit}" for unit, s in spent.items() if s)


def _trainings(snapshot: Snapshot, resources: Mapping[str, float]) -> str:
    """Say what one training got; a range where trials got different shares of GPUs."""
    gpus = {gets.get("GPU", 0.0) for gets in snapshot.granted.values()}
    if len(gpus) < 2:
        return _share(resources, "trial")
    return f"on {resources['trial_cpus']:g} CPU and {min(gpus):g} to {max(gpus):g} GPU"


def _share(resources: Mapping[str, float], kind: str) -> str:
    gpus = resources[f"{kind}_gpus"]
    return f"on {resources[f'{kind}_cpus']:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")


def _parent_costs(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    """Say what each parent took, and what of it each child bears."""
    for parent in snapshot.parents:
        children = children_of(parent, snapshot.trials)
        epochs, spent = f"{parent.epochs:,} epochs", duration(parent.train_seconds)
        each = ""
        if children and parent.train_seconds is not None:
            share = duration(snapshot.parent_seconds[children[0]])
            each = f"; {share} booked to each of its children ({len(children)})"
        yield called(parent), f"{epochs}, {spent}{each}"


def _all(snapshot: Snapshot) -> Iterable[StageRecord]:
    return (stage for stages in snapshot.stages.values() for stage in stages)
