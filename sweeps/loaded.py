"""A sweep in a notebook: ``from sweeps import load``, then ``load("runs/NAME").trials`` is a table."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.export import table_rows
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.snapshot import Snapshot

if TYPE_CHECKING:
    from pandas import DataFrame


class LoadedSweep:
    """What the ledger held when a table was asked for; a running sweep's tables grow from one call to the next."""

    def __init__(self, folder: SweepFolder) -> None:
        self.folder = folder

    @property
    def trials(self) -> DataFrame:
        """One row per trial, by number: figures, searched parameters under their own names, the whole configuration.

        Columns are those of ``export --format csv``, and one for each searched parameter, ``training.learning_rate``.
        """
        return _table(self.snapshot())

    @property
    def front(self) -> DataFrame:
        """The rows of `trials` on the Pareto front, by falling first objective."""
        snapshot = self.snapshot()
        return _table(snapshot).loc[[trial.number for trial in snapshot.front]]

    @property
    def curves(self) -> DataFrame:
        """One row per trial and epoch (1-based): ``train/loss``, ``val/clean_acc``, and what else was measured."""
        from pandas import DataFrame

        with self._open() as ledger:
            rows = [
                {"number": trial.number, "epoch": epoch, **metrics}
                for trial in ledger.trials(bare=True)
                for epoch, metrics in enumerate(ledger.history(trial.number), start=1)
            ]
        return DataFrame(rows, columns=None if rows else ["number", "epoch"]).set_index(["number", "epoch"])

    @property
    def attacks(self) -> DataFrame:
        """One row per attack stage, without its verdicts: accuracy, survivors, passes, seconds, state."""
        from pandas import DataFrame

        stages = [stage for stages in self.snapshot().stages.values() for stage in stages]
        rows = [{**asdict(s), "verdicts": None, "accuracy": s.accuracy} for s in stages]
        return DataFrame(rows).drop(columns="verdicts", errors="ignore")

    def snapshot(self) -> Snapshot:
        """Return everything but curves as the report reads it."""
        with self._open() as ledger:
            return Snapshot.read(ledger)

    def _open(self) -> closing[Ledger]:
        return closing(Ledger.at(self.folder.ledger))


def _table(snapshot: Snapshot) -> DataFrame:
    from pandas import DataFrame

    rows = zip(table_rows(snapshot), snapshot.trials, strict=True)
    return DataFrame([{**row, **trial.params} for row, trial in rows]).set_index("number")


def load(path: str | Path) -> LoadedSweep:
    """Open a sweep's folder for reading. SweepNotFound, with what there is, if it holds no sweep."""
    place = Path(path)
    return LoadedSweep(SweepFolder.existing(place.resolve().parent, place.resolve().name))
