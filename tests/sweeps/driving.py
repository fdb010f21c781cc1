"""A driver's decisions without Ray: a coordinator on a real ledger, with a pool that judges as it is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps import requests
from sweeps.attack_plan import planned_stages
from sweeps.config import parse_sweep
from sweeps.coordinator import Coordinator
from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.records import SweepRecord
from sweeps.requests import Request
from sweeps.stage_job import StageJob
from tests.sweeps.test_coordinator import DOCUMENT, SIZES, FakePool, settle, train_all, trained
from trainables.tune import TrainingJob

__all__ = ["DOCUMENT", "Driven", "create", "driving", "settle", "train_all", "trained"]


@dataclass
class Driven:
    """One driver's parts."""

    folder: SweepFolder
    ledger: Ledger
    coordinator: Coordinator
    said: list[str]

    def start(self) -> TrainingJob:
        """Start the next training; there must be one."""
        job = self.coordinator.next_training()
        assert job is not None
        return job

    def train(self, clean_acc: float = 0.8) -> int:
        """Run the next training to its end and judge it; returns its number."""
        job = self.start()
        self.coordinator.take_report(trained(job, clean_acc), job.token)
        while self.coordinator.evaluation_needed:
            self.coordinator.poll()
        return job.number

    def fail(self, kind: str) -> int:
        """Start the next training and let it fail; returns its number."""
        job = self.start()
        self.coordinator.training_failed(job.number, kind, f"a {kind}")
        return job.number

    def ask(self, kind: Any, **details: Any) -> Request:
        """Ask from another terminal, and let the driver look."""
        request = Request.make(kind, **details)
        requests.put(self.folder.requests, request)
        self.look()
        return request

    def look(self) -> None:
        """Let the driver look for requests now."""
        self.coordinator._asked_at = float("-inf")
        self.coordinator.take_requests()


def create(path: Path, name: str = "s", **sections: Any) -> SweepFolder:
    """Create a sweep of four random trials with two stages, a column and a test."""
    folder = SweepFolder(path, name)
    folder.root.mkdir(parents=True)
    config = parse_sweep({**DOCUMENT, **sections})
    stages = () if config.attacks is None else planned_stages(config.attacks, 10, SIZES)
    ledger = Ledger.at(folder.ledger)
    objectives = tuple(config.objectives)
    sweep = SweepRecord(
        "id", name, time.time(), config.trials, config.document, objectives, stages, {}, "data", 10, SIZES
    )
    ledger.create(sweep)
    ledger.close()
    return folder


@contextmanager
def driving(folder: SweepFolder, survivors: Callable[[StageJob], int] = lambda job: 5) -> Iterator[Driven]:
    """Drive a sweep as the next driver would, after what waits has been granted."""
    ledger = Ledger.at(folder.ledger)
    said: list[str] = []
    try:
        with Lease(ledger):
            requests.grant_waiting(ledger, folder.requests, said.append)
            coordinator = Coordinator(parse_sweep(ledger.sweep().document), ledger, folder, said.append)
            pool: Any = FakePool(survivors)
            coordinator.pool = pool
            yield Driven(folder, ledger, coordinator, said)
    finally:
        ledger.close()
