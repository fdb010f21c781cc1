"""The driver's phases without Ray: it goes back to training when more is asked for, and pauses when that is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.resources import Shares
from search_spaces.errors import DriverCrashed
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

        def fit(self: _Drive) -> None:
            happened.append("fit")
            while not halt and driven.coordinator.is_training_needed:
                job = driven.coordinator.next_training()
                assert job is not None
                if job.number == 0 and not driven.ledger.trial(0).failures:
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


def test_what_is_asked_for_at_the_end_is_trained_too_in_the_reserved_shares_beside_the_attacks(
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
        assert happened == ["share", "fit", "everything", "share", "fit", "everything"]
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
        assert work(driven).count("fit") == 2
        assert [t.state for t in driven.ledger.trials()] == [State.FINISHED] * 3


def test_a_paused_driver_leaves_the_rest_for_the_next_one(tmp_path: Path, work: Callable[[Driven], list[str]]) -> None:
    folder: SweepFolder = create(tmp_path, search={"trials": 6})

    def survivors(job: StageJob) -> int:
        if job.number == 1:
            requests.put(folder.requests, Request.make("pause"))
        return 5

    with driving(folder, survivors) as driven:
        work(driven)
        assert len(driven.ledger.trials([State.FINISHED])) < 6
        assert driven.ledger.sweep().completed_at is None
        assert "interrupted" not in {event.kind for event in driven.ledger.events()}
    assert sweep_state(driven.ledger) == "paused"


def test_a_driver_that_was_asked_to_stop_while_it_measured_waits_for_no_share_of_the_attacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("on a busy cluster it would wait here for ever")

    monkeypatch.setattr("sweeps.evaluation.EvaluationPool", never)
    with driving(create(tmp_path)) as driven:
        driven.coordinator.pool = None
        halt = Halt()
        halt.requested = True
        driver = _Drive(driven.folder, driven.ledger, driven.coordinator.config, Console(quiet=True), halt)
        driver.coordinator = driven.coordinator
        driver._work(SHARES)
        assert [event.kind for event in driven.ledger.driver_events("interrupted")] == ["interrupted"]


def test_what_breaks_while_it_measures_is_a_failure_of_the_driver_that_leaves_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: ended.append("Ray"))
    monkeypatch.setattr(_Drive, "_stage", lambda self: None)
    monkeypatch.setattr(_Drive, "_connect", lambda self, address: SHARES)
    monkeypatch.setattr("sweeps.probing.questions", lambda *_: 1 / 0)
    with driving(create(tmp_path)) as driven:
        driver = _Drive(driven.folder, driven.ledger, driven.coordinator.config, Console(quiet=True), Halt())
        driver._mps.callback(lambda: ended.append("MPS"))
        with pytest.raises(DriverCrashed, match="division by zero"):
            driver.run(None)
        assert ended == ["Ray", "MPS"]
        assert [event.kind for event in driven.ledger.driver_events("driver crashed")] == ["driver crashed"]
