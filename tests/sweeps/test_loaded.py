"""A sweep in a notebook."""

from __future__ import annotations

import pytest

from search_spaces.errors import SweepNotFound
from sweeps import load
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.snapshot import Snapshot


def test_the_tables_say_what_the_ledger_says(unfinished: Ledger, folder: SweepFolder) -> None:
    sweep, snapshot = load(folder.root), Snapshot.read(unfinished)
    trials = sweep.trials
    assert list(trials.index) == [t.number for t in snapshot.trials]
    for trial in snapshot.trials:
        row = trials.loc[trial.number]
        assert row["state"] == trial.state
        assert row["clean_acc"] == trial.clean_acc or trial.clean_acc is None
        assert {name: row[name] for name in trial.params} == dict(trial.params)
    assert list(sweep.front.index) == [t.number for t in snapshot.front]
    assert len(sweep.attacks) == sum(map(len, snapshot.stages.values()))
    epochs = sweep.curves.groupby("number").size().to_dict()
    assert epochs == {t.number: n for t in snapshot.trials if (n := len(unfinished.history(t.number)))}


def test_a_folder_without_a_sweep_is_refused_with_what_there_is(folder: SweepFolder, unfinished: Ledger) -> None:
    with pytest.raises(SweepNotFound, match=f"sweeps there: {folder.name}"):
        load(folder.storage / "other")
