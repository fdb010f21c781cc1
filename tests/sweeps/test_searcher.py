"""Tune's hooks without Tune: what the searcher does about attempts that hang, die, or are no longer wanted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

from sweeps.halt import Halt
from sweeps.records import State
from sweeps.searcher import LedgerSearcher
from tests.sweeps.driving import Driven, create, driving, trained
from trainables.tune import TrainingJob


class Tune:
    """Tune as far as the searcher sees it: trials with actors, and a clock."""

    def __init__(self, driven: Driven, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.halt = Halt()
        self.searcher = LedgerSearcher(driven.coordinator, 2, self.halt, lambda: None, **options)
        self.trials: list[Any] = []
        self.killed: list[str] = []
        self.now = 0.0
        monkeypatch.setattr("sweeps.searcher.time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr("sweeps.searcher._kill", self.killed.append)

    def start(self, *, with_actor: bool = True) -> TrainingJob:
        name = f"t{len(self.trials)}"
        config = self.searcher.suggest(name)
        assert isinstance(config, dict), self.halt.error
        actor = f"actor of {name}" if with_actor else None
        state = SimpleNamespace(ray_actor=actor)
        self.trials.append(SimpleNamespace(trial_id=name, temporary_state=state, error_file=None))
        return TrainingJob(**json.loads(config["job"]))

    def report_an_epoch(self, name: str, job: TrainingJob) -> None:
        epoch = replace(trained(job, 0.5), status="training", clean_acc=None, weights_digest=None)
        self.searcher.on_trial_result(name, epoch.result())

    def look(self, at: float) -> None:
        self.now = at
        self.searcher.watch(self.trials)
        assert self.halt.error is None


def test_a_training_that_reports_nothing_is_ended_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driving(create(tmp_path, failures={"hang": {"retries": 1}})) as driven:
        tune = Tune(driven, monkeypatch, hang_after_s=200)
        first = tune.start()
        second = tune.start()
        tune.look(100)  # the first look at them: their clocks begin
        tune.now = 150
        tune.report_an_epoch("t1", second)
        tune.look(299)
        assert tune.killed == []
        tune.look(300)
        assert tune.killed == ["actor of t0"]
        assert driven.ledger.trial(first.number).failed_as == {"hang": 1}
        assert "no report for 200 s" in (driven.ledger.trial(first.number).error or "")
        tune.searcher.on_trial_complete("t0", error=True)  # what Tune says of an actor that was killed
        assert driven.ledger.trial(first.number).failures == 1
        tune.look(349)
        assert tune.killed == ["actor of t0"]
        again = tune.start()
        assert (again.number, again.token) != (first.number, first.token)
        assert again.number == first.number


def test_a_training_that_waits_for_its_share_of_the_machine_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driving(create(tmp_path)) as driven:
        tune = Tune(driven, monkeypatch, hang_after_s=200)
        tune.start(with_actor=False)
        tune.look(1000)
        tune.trials[0].temporary_state.ray_actor = "late"
        tune.look(2000)
        assert tune.killed == []
        tune.look(2200)
        assert tune.killed == ["late"]


def test_without_a_limit_nothing_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with driving(create(tmp_path)) as driven:
        tune = Tune(driven, monkeypatch)
        tune.start()
        tune.look(0)
        tune.look(1e9)
        assert tune.killed == []


def test_a_worker_that_starts_has_two_minutes_whatever_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driving(create(tmp_path)) as driven:
        tune = Tune(driven, monkeypatch, hang_after_s=10)
        tune.start()
        second = tune.start()
        tune.look(0)
        tune.now = 5
        tune.report_an_epoch("t1", second)
        tune.look(14)
        assert tune.killed == []
        tune.look(15)
        assert tune.killed == ["actor of t1"]
        tune.look(119)
        assert tune.killed == ["actor of t1"]
        tune.look(120)
        assert tune.killed == ["actor of t1", "actor of t0"]


def test_a_stopped_training_loses_its_actor_even_if_it_comes_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driving(create(tmp_path)) as driven:
        tune = Tune(driven, monkeypatch)
        running, late = tune.start(), tune.start(with_actor=False)
        driven.ask("stop", trials=(running.number, late.number))
        tune.look(1)
        assert tune.killed == ["actor of t0"]
        tune.trials[1].temporary_state.ray_actor = "late"
        tune.look(2)
        tune.look(3)
        assert tune.killed == ["actor of t0", "late"]
        tune.searcher.on_trial_complete("t0", error=True)
        tune.searcher.on_trial_result("t1", trained(late, 0.9).result())
        tune.searcher.on_trial_complete("t1", trained(late, 0.9).result())
        assert [t.state for t in driven.ledger.trials()] == [State.STOPPED, State.STOPPED]
        assert tune.halt.error is None


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.", "memory"),
        ("The actor died unexpectedly before finishing this task.", "crash"),
        ("The actor died because its node has died. Node Id: 1f00", "node"),
        ("ray.exceptions.ActorUnavailableError: The actor is temporarily unavailable: RpcError: Socket closed", "node"),
        (None, "crash"),
    ],
)
def test_a_dead_worker_is_a_crash_unless_ray_says_that_memory_was_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, kind: str
) -> None:
    with driving(create(tmp_path)) as driven:
        tune = Tune(driven, monkeypatch)
        job = tune.start()
        if said is not None:
            tune.trials[0].error_file = str(tmp_path / "error.txt")
            (tmp_path / "error.txt").write_text(said)
        tune.look(0)
        tune.searcher.on_trial_complete("t0", error=True)
        trial = driven.ledger.trial(job.number)
        assert trial.failed_as == {kind: 1}
        assert (said or "") in (trial.error or "")


def test_a_training_makes_room_for_the_attacks_after_an_epoch_and_goes_on_later_without_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driving(create(tmp_path)) as driven:
        wants = [True]
        tune = Tune(driven, monkeypatch, wants_room=lambda: wants.pop() if wants else False)
        first, second = tune.start(), tune.start()
        tune.report_an_epoch("t0", first)
        tune.report_an_epoch("t1", second)
        tune.look(1)
        assert tune.killed == ["actor of t0"]
        tune.searcher.on_trial_complete("t0", error=True)
        assert driven.ledger.trial(first.number).failures == 0
        tune.searcher.concurrent = 1
        assert tune.searcher.suggest("none") is None, "one trains, and no more have room"
        tune.searcher.concurrent = 2
        again = tune.start()
        assert (again.number, again.token) != (first.number, first.token)
        assert again.number == first.number
        assert driven.ledger.trial(first.number).epochs == len(trained(first, 0.5).history)


def test_each_fit_hands_out_one_share_and_ends_when_no_training_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driving(create(tmp_path, search={"trials": 1})) as driven:
        usual = Tune(driven, monkeypatch)
        job = usual.start()
        driven.coordinator.training_failed(job.number, "memory", "no room")
        assert usual.searcher.suggest("next") == Searcher.FINISHED
        larger = Tune(driven, monkeypatch, share=2.0)
        assert larger.start().number == job.number
