"""The driver's phases without Ray: it goes back to training when more is asked for, and pauses when that is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.resources import Shares
from sweeps import requests
from sweeps.folder import SweepFolder
from sweeps.halt import Halt
from sweeps.records import State
from sweeps.requests import Request
from sweeps.runner import _Drive
from sweeps.stage_job import StageJob
from sweeps.summary import sweep_state
from tests.sweeps.driving import Driven, create, driving, trained

SHARES = Shares(2, 1.0, 0.0, 1, 1.0, 0.0)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[[Driven], list[str]]:
    """Drive a sweep to its end, each fit() replaced by a loop over its trainings; returns what happened, in order."""

    def drive(driven: Driven) -> list[str]:
        happened: list[str] = []
        halt = Halt()
        pool: Any = driven.coordinator.pool
        if pool is not None:
            pool.use_everything = lambda: happened.append("everything")
            pool.keep_to_share = lambda: happened.append("share")

        def fit(self: _Drive, shares: Shares, share: float) -> None:
            happened.append(f"fit at {shares.concurrent} x {shares.trial_cpus:g}")
            while not halt and driven.coordinator.is_needed_at(share):
                job = driven.coordinator.next_training(share)
                assert job is not None
                if job.number == 0 and share == 1.0:
                    driven.coordinator.training_failed(0, "memory", "no room")
                else:
                    driven.coordinator.take_report(trained(job, 0.5), job.token)
                self._between()
            driven.said.append("end of fit")

        monkeypatch.setattr("sweeps.evaluation.EvaluationPool", lambda *_: pool)
        monkeypatch.setattr("sweeps.coordinator.REQUESTS_S", 0.0)
        monkeypatch.setattr(_Drive, "_train", fit)
        found = _Drive(driven.folder, driven.ledger, driven.coordinator.config, Console(quiet=True), halt)
        found.coordinator = driven.coordinator
        found._work(SHARES)
        assert halt.error is None
        return happened

    return drive


def test_larger_shares_come_last_and_what_is_asked_for_at_the_end_is_trained_too(
    tmp_path: Path, work: Callable[[Driven], list[str]]
) -> None:
    folder = create(tmp_path, search={"trials": 2})
    asked: list[Path] = []

    def survivors(job: StageJob) -> int:
        if job.stage.split == "test" and not asked:  # the last stages of all
            asked.append(requests.put(folder.requests, Request.make("extend", requested=3)))
        return 5

    with driving(folder, survivors) as driven:
        happened = work(driven)
        assert happened == [
            "share",
            "fit at 2 x 1",
            "fit at 1 x 2",
            "everything",
            "share",
            "fit at 2 x 1",
            "everything",
        ]
        assert [t.state for t in driven.ledger.trials()] == [State.FINISHED] * 3
        assert driven.ledger.sweep().completed_at is not None


def test_what_is_asked_for_when_nothing_runs_any_more_keeps_the_driver_going(
    tmp_path: Path, work: Callable[[Driven], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = create(tmp_path, search={"trials": 2}, attacks=None, objectives=["clean_acc"])
    with driving(folder) as driven:
        driven.coordinator.pool = None
        ended = driven.coordinator.poll

        def poll() -> bool:
            if driven.said[-1:] == ["end of fit"]:
                driven.said.append("asked")
                requests.put(folder.requests, Request.make("extend", requested=3))
                driven.coordinator.take_requests()
            return ended()

        monkeypatch.setattr(driven.coordinator, "poll", poll)
        assert [step for step in work(driven) if step.startswith("fit")][-1] == "fit at 2 x 1"
        assert [t.state for t in driven.ledger.trials()] == [State.FINISHED] * 3


def test_a_paused_driver_leaves_the_rest_for_the_next_one(tmp_path: Path, work: Callable[[Driven], list[str]]) -> None:
    folder: SweepFolder = create(tmp_path)

    def survivors(job: StageJob) -> int:
        if job.number == 1:
            requests.put(folder.requests, Request.make("pause"))
        return 5

    with driving(folder, survivors) as driven:
        work(driven)
        assert len(driven.ledger.trials([State.FINISHED])) < 4
        assert driven.ledger.sweep().completed_at is None
        assert "interrupted" not in {event.kind for event in driven.ledger.events()}
    assert sweep_state(driven.ledger) == "paused"
