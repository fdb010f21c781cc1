"""A confirmation as its ledger has it, finished or not, and where the one of a sweep is found."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy.exc import SQLAlchemyError

from search_spaces.errors import SweepError
from sweeps.columns import Cell, last_of_cascade
from sweeps.confirmation import DRAWS, FIGURES, SPLITS, Confirmation, Confirmed, Repeated, confirm
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.records import Split, State, TrialRecord
from sweeps.snapshot import Snapshot, searched
from sweeps.summary import sweep_state


@dataclass(frozen=True)
class Confirming:
    """The sweep that trains a front again, and what it has come to."""

    name: str
    """Of the confirming sweep."""
    sweep: str
    """Whose front it is."""
    state: str
    """As `sweep_state`, or why it cannot be read."""
    frozen: tuple[int, ...] = ()
    """The front's trials, by their numbers in the search."""
    seeds: int = 0
    """Trainings of each that are asked for."""
    finished: int = 0
    """Trainings that have all their figures."""
    failed: int = 0
    methods: Mapping[int, tuple[str, str]] | None = None
    """By number in the search: method, and what was searched."""
    images: Mapping[Split, int] | None = None
    """How many images are attacked."""
    parents: int = 0
    """Models that they start from and that are trained again too."""
    sizes: Mapping[str, int] | None = None
    """Images of the splits, on all of which clean accuracy is measured."""
    result: Confirmation | None = None
    """Of the configurations with a finished training; None before the first."""

    @property
    def expected(self) -> int:
        """Trainings that are asked for."""
        return self.seeds * len(self.frozen)

    @property
    def is_whole(self) -> bool:
        """Whether every training that was asked for has all its figures."""
        return self.state == "finished" and self.finished == self.expected

    def public(self) -> dict[str, Any]:
        """Return it as the export shows it; its keys are stable."""
        result = self.result
        return {
            "name": self.name,
            "sweep": self.sweep,
            "state": self.state,
            "frozen": list(self.frozen),
            "seeds": self.seeds,
            "finished": self.finished,
            "failed": self.failed,
            "draws": DRAWS,
            "configurations": [_public_row(row) for row in result.rows] if result else [],
            "optimism": {name: found.public() for name, found in result.optimism.items()} if result else None,
            "shift": {name: found.public() for name, found in result.shift.items()} if result else None,
        }


def _public_row(row: Confirmed) -> dict[str, Any]:
    figures: dict[str, Any] = {
        split: {name: row.estimates[name, split].public() for name in FIGURES if (name, split) in row.estimates}
        for split in SPLITS
    }
    return {
        "trial": row.number,
        "seeds": row.seeds,
        "selected": dict(row.selected),
        **figures,
        "on_front": row.on_front,
        "keeps": row.keeps,
    }


def read_confirmation(snapshot: Snapshot, state: str) -> Confirming | None:
    """Return what a confirming sweep has come to; None if it is a search. Args: state: as `sweep_state`."""
    section = snapshot.sweep.document.get("confirms")
    if section is None:
        return None
    frozen = tuple(int(number) for number in section["trials"])
    groups: dict[int, list[TrialRecord]] = defaultdict(list)
    for trial in snapshot.trials:
        groups[trial.number % len(frozen)].append(trial)  # as a grid numbers its trials
    repeated = []
    for place, number in enumerate(frozen):
        whole = [trial for trial in groups[place] if _is_whole(snapshot, trial)]
        if whole:
            selected = {name: section[name][place] for name in FIGURES if section.get(name)}
            repeated.append(_repeated(snapshot, number, selected, whole))
    sizes = snapshot.sweep.split_sizes
    lasts = {split: last_of_cascade(snapshot.columns, split) for split in SPLITS}
    return Confirming(
        name=snapshot.sweep.name,
        sweep=section["sweep"],
        state=state,
        frozen=frozen,
        seeds=snapshot.sweep.requested // len(frozen),
        finished=sum(row.seeds for row in repeated),
        failed=len(snapshot.in_state(State.FAILED)),
        methods={
            frozen[place]: (trials[0].label, searched(trials[0], snapshot.short_names))
            for place, trials in groups.items()
            if trials
        },
        images={split: last.stages[-1].images for split, last in lasts.items() if last is not None},
        parents=len(snapshot.parents),
        sizes=sizes,
        result=confirm(repeated, sizes, snapshot.sweep.objectives) if repeated else None,
    )


def confirmation_of(snapshot: Snapshot, state: str, folder: SweepFolder) -> Confirming | None:
    """Return what a confirming sweep has come to, or of a search its newest confirmation; None if it has none."""
    return read_confirmation(snapshot, state) or find_confirmation(folder, snapshot.sweep.id)


def find_confirmation(folder: SweepFolder, sweep_id: str) -> Confirming | None:
    """Return the newest confirmation of a sweep that is in the same storage; None if there is none.

    The copies of the configurations are looked through for the sweep's id, so that other ledgers stay closed.
    """
    found = [made for path in sorted(folder.storage.glob("*/sweep.yaml")) if (made := _read(path, sweep_id))]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _read(path: Path, sweep_id: str) -> tuple[float, Confirming] | None:
    """Return when a confirmation of that sweep was made, and what it has come to; None if it is something else."""
    if sweep_id not in path.read_text(encoding="utf-8", errors="replace"):
        return None
    there = SweepFolder(path.parent.parent, path.parent.name)
    if not there.ledger.exists():  # its launch was killed before the sweep existed
        return None
    try:
        ledger = Ledger.at(there.ledger)
        try:
            snapshot = Snapshot.read(ledger)
            if (snapshot.sweep.document.get("confirms") or {}).get("id") != sweep_id:
                return None
            made = read_confirmation(snapshot, sweep_state(ledger))
        finally:
            ledger.close()
    except (SQLAlchemyError, SweepError, OSError) as error:  # another sweep's trouble must not keep this one's report
        return time.time(), Confirming(there.name, "", f"not readable: {str(error).splitlines()[0]}")
    return None if made is None else (snapshot.sweep.created_at, made)


def _is_whole(snapshot: Snapshot, trial: TrialRecord) -> bool:
    """Return whether a training has every figure, final, on both splits."""
    has_clean = trial.clean_acc is not None and trial.test_clean_acc is not None
    return trial.state is State.FINISHED and has_clean and all(_cell(snapshot, trial, split) for split in SPLITS)


def _cell(snapshot: Snapshot, trial: TrialRecord, split: Split) -> Cell | None:
    """Return what the launched plan's cascade came to on a split; None unless it is through and has verdicts."""
    last = last_of_cascade(snapshot.columns, split)
    cell = None if last is None else snapshot.cells(trial)[snapshot.columns.index(last)]
    return cell if cell is not None and cell.exact and cell.verdicts is not None else None


def _repeated(snapshot: Snapshot, number: int, selected: Mapping[str, float], trials: list[TrialRecord]) -> Repeated:
    clean = {"validation": [t.clean_acc for t in trials], "test": [t.test_clean_acc for t in trials]}
    cells = {split: [cell for t in trials if (cell := _cell(snapshot, t, split))] for split in SPLITS}
    return Repeated(
        number,
        selected,
        {split: np.array(clean[split], dtype=float) for split in SPLITS},
        {split: np.stack([c.verdicts for c in cells[split] if c.verdicts is not None]) for split in SPLITS},
    )
