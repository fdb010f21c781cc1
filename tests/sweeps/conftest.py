"""Ledgers in temporary folders, closed after the test, and an empty MLflow database that is set up once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.resources import Shares
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from tests.sweeps import ledgers


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """The folder of the sweep under test."""
    return ledgers.folder_at(tmp_path)


@pytest.fixture
def open_ledger(folder: SweepFolder) -> Iterator[Callable[..., Ledger]]:
    """Build a ledger with one of the builders of `ledgers`: ``open_ledger(ledgers.unfinished, requested=9)``."""
    opened: list[Ledger] = []

    def build(builder: Callable[..., Ledger] = ledgers.empty, *arguments: Any, **changes: Any) -> Ledger:
        opened.append(builder(folder, *arguments, **changes))
        return opened[-1]

    yield build
    for ledger in opened:
        ledger.close()


@pytest.fixture(scope="session")
def _built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The usual ledgers, built once: every commit waits for the disk."""
    paths = {}
    for builder in (ledgers.unfinished, ledgers.finished):
        folder = ledgers.folder_at(tmp_path_factory.mktemp(builder.__name__))
        builder(folder).close()
        paths[builder.__name__] = folder.ledger
    return paths


def _copy(built: Path, folder: SweepFolder) -> Ledger:
    folder.root.mkdir(parents=True)
    shutil.copy(built, folder.ledger)
    return Ledger.at(folder.ledger)


@pytest.fixture
def unfinished(_built: dict[str, Path], folder: SweepFolder) -> Iterator[Ledger]:
    """Trials in every state."""
    ledger = _copy(_built["unfinished"], folder)
    yield ledger
    ledger.close()


@pytest.fixture
def finished(_built: dict[str, Path], folder: SweepFolder) -> Iterator[Ledger]:
    """A complete sweep."""
    ledger = _copy(_built["finished"], folder)
    yield ledger
    ledger.close()


@pytest.fixture(scope="session")
def _mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without an experiment of ours; its set-up takes seconds, a copy does not."""
    from sweeps.tracking import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(_mlflow_template: Path, folder: SweepFolder) -> str:
    """The tracking URI of an empty MLflow store: the sweep folder's default one."""
    folder.storage.mkdir(parents=True, exist_ok=True)
    shutil.copy(_mlflow_template, folder.storage / "mlflow.db")
    return folder.default_tracking_uri


@pytest.fixture(scope="session")
def _made_template(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of eight models between a plain and a hardened one, some of them noisy; about five seconds."""
    from tests.sweeps.made import judge_all, make_sweep, mixed
    from tests.trainables.victims import hardened

    plain = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    robust = hardened(trained, 0.04, epochs=2).state_dict()
    shares = ((0, 0), (0.25, 0), (0.5, 0), (0.75, 0), (1, 0), (0.5, 0.1), (1, 0.15), (0, 0.2))
    folder = SweepFolder(tmp_path_factory.mktemp("made"), "made")
    config = make_sweep(trained, folder, [mixed(plain, robust, share, noise) for share, noise in shares])
    ledger = Ledger.at(folder.ledger)
    judge_all(config, ledger, folder)
    ledger.close()
    return folder.root


@pytest.fixture
def made(_made_template: Path, tmp_path: Path) -> SweepFolder:
    """A copy of the finished sweep, weights and verdicts included, as sweep "made"."""
    folder = SweepFolder(tmp_path / "runs", "made")
    shutil.copytree(_made_template, folder.root)
    return folder


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `evaluate` judge in this process."""
    from tests.sweeps.inline_pool import InlinePool

    monkeypatch.setattr("sweeps.evaluate.EvaluationPool", InlinePool)
    monkeypatch.setattr("sweeps.evaluate.connect", lambda *_: Shares(1, 1.0, 0.0, 1, 1.0, 0.0))
