"""A sweep's birth: one rename, one ledger, whoever else is at it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from search_spaces.errors import SweepExists
from sweeps.config import SweepConfig, parse_sweep
from sweeps.creation import create_ledger
from sweeps.folder import SweepFolder
from sweeps.images import load_data
from sweeps.ledger import Ledger
from tests.conftest import TINY_DATA, TINY_MODEL

DOCUMENT: dict[str, Any] = {
    "model": TINY_MODEL,
    "data": {"name": "digits", **TINY_DATA},
    "methods": ["plain"],
    "attacks": None,
    "objectives": ["clean_acc"],
}


@pytest.fixture
def config() -> SweepConfig:
    return parse_sweep(DOCUMENT)


def id_of(folder: SweepFolder) -> str:
    ledger = Ledger.at(folder.ledger)
    try:
        return ledger.sweep().id
    finally:
        ledger.close()


def test_a_launch_that_died_at_birth_is_nothing_to_the_next_one_with_its_pid(
    config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container every launch may have the same process id, and meets the half-made ledger of the one before."""
    folder, splits = SweepFolder(tmp_path, "s"), load_data(config)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sweeps.creation.name_once", dies)
        with pytest.raises(KeyboardInterrupt):
            create_ledger(config, folder, splits)
    assert not folder.ledger.exists()
    assert list(folder.root.glob(".ledger.*"))
    create_ledger(config, folder, splits)
    assert id_of(folder)
    assert sorted(path.name for path in folder.root.iterdir()) == ["ledger.db", "sweep.yaml"]


def test_of_two_launches_at_once_the_second_is_refused_and_the_first_keeps_its_ledger(
    config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, splits = SweepFolder(tmp_path, "s"), load_data(config)
    born: list[str] = []

    def another_is_faster(_ledger: Ledger) -> None:
        with monkeypatch.context() as patch:
            mine = os.getpid()
            patch.setattr(os, "getpid", lambda: mine + 1)
            create_ledger(config, folder, splits)
        born.append(id_of(folder))

    with pytest.raises(SweepExists, match="another process"):
        create_ledger(config, folder, splits, another_is_faster)
    assert [id_of(folder)] == born
    assert not list(folder.root.glob(".ledger.*"))
