"""The trainable without Ray's processes: what a driver is told, and that an actor carries nothing over."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.ending import VARIABLE
from search_spaces.errors import LossDiverged
from trainables.training import Training
from trainables.tune import Report, TrainingJob, TrialTrainable, failure_kind, write_token


@pytest.fixture
def job(tiny_trial: Callable[..., Any], tmp_path: Path) -> Callable[..., TrainingJob]:
    def build(number: int = 0, seed: int = 1, token: str = "driver/1", **sections: Any) -> TrainingJob:
        folder = tmp_path / str(number)
        write_token(folder, token)
        return TrainingJob(number, tiny_trial(**sections).plain(), seed, str(folder), token)

    return build


def actor(first: TrainingJob) -> TrialTrainable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TrialTrainable(config=first.tune_config())


def run(trainable: TrialTrainable) -> list[Report]:
    reports = [Report.read(trainable.step())]
    while reports[-1].status == "training":
        reports.append(Report.read(trainable.step()))
    return reports


def test_every_epoch_is_reported_with_the_whole_history(job: Callable[..., TrainingJob]) -> None:
    reports = run(actor(job()))
    assert [(r.status, len(r.history)) for r in reports] == [("training", 1), ("trained", 2)]
    assert reports[-1].clean_acc == reports[-1].history[-1]["val/clean_acc"]
    assert reports[-1].weights_digest
    assert (Path(job().folder) / "log.txt").read_text().count("epoch ") == 2


def test_what_a_method_notes_is_in_the_log_once_and_of_the_trial_that_an_actor_trains(
    job: Callable[..., TrainingJob],
) -> None:
    first = job(number=1, methods={"safer": {"steps": 1, "score_batches": 1, "reselect_epochs": 1}})
    trainable = actor(first)
    run(trainable)
    log = (Path(first.folder) / "log.txt").read_text()
    assert [f"from epoch {epoch}: " in log for epoch in (1, 2, 3)] == [True, True, False]
    assert log.count("safer trains 1 of 13 layers") == 2
    trainable.reset_config(job(number=2, methods={"safer": {"steps": 1, "score_batches": 1}}).tune_config())
    run(trainable)
    assert (Path(job(number=2).folder) / "log.txt").read_text().count("safer trains") == 1


def test_nothing_is_built_or_written_before_the_first_step(tiny_trial: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "never"
    actor(TrainingJob(0, tiny_trial().plain(), 0, str(folder), "t"))
    assert not folder.exists()


def test_a_reused_actor_trains_as_a_fresh_one(job: Callable[..., TrainingJob]) -> None:
    alone = run(actor(job(number=1, seed=5)))[-1]
    reused = actor(job(number=2, seed=9, methods={"jasmin": {"k": 4}}))
    run(reused)
    assert reused.reset_config(job(number=3, seed=5).tune_config())
    assert run(reused)[-1].weights_digest == alone.weights_digest


def test_a_new_attempt_goes_on_after_the_last_checkpoint(job: Callable[..., TrainingJob]) -> None:
    straight = run(actor(job(number=1)))[-1]
    first = actor(job(number=2))
    first.step()
    again = run(actor(job(number=2, token="driver/2")))
    assert [len(r.history) for r in again] == [2]
    assert again[-1].weights_digest == straight.weights_digest


def test_a_replaced_attempt_stops_and_writes_nothing_more(job: Callable[..., TrainingJob]) -> None:
    stale = actor(job())
    stale.step()
    newer = job(token="driver/2")
    report = Report.read(stale.step())
    assert report.status == "superseded"
    assert "driver/2" in report.error
    assert sorted(p.name for p in (Path(newer.folder) / "checkpoints").iterdir()) == ["epoch-0001"]


def test_a_failure_is_a_report_with_its_traceback_and_the_actor_lives_on(
    job: Callable[..., TrainingJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(_self: Training) -> dict[str, float]:
        raise LossDiverged("the training loss is nan in epoch 1, step 3.")

    trainable = actor(job(number=1))
    with monkeypatch.context() as patch:
        patch.setattr(Training, "run_epoch", diverge)
        report = Report.read(trainable.step())
    assert (report.status, report.kind, report.clean_acc) == ("failed", "nan", None)
    assert "Traceback" in report.error
    assert "step 3" in report.error
    trainable.reset_config(job(number=2).tune_config())
    assert run(trainable)[-1].status == "trained"


def test_a_failure_brings_the_epochs_before_it_along(
    job: Callable[..., TrainingJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that died between an epoch's checkpoint and its commit hears of that epoch here or never."""
    actor(job()).step()
    monkeypatch.setattr(Training, "run_epoch", lambda _self: 1 / 0)
    report = Report.read(actor(job(token="driver/2")).step())
    assert (report.status, len(report.history)) == ("failed", 1)


def test_what_a_killed_driver_left_of_its_token_goes_with_the_next_one(tmp_path: Path) -> None:
    (tmp_path / ".attempt.4711.tmp").write_text("dri")
    write_token(tmp_path, "driver/2")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("attempt", "driver/2")]


def test_failures_have_kinds() -> None:
    assert failure_kind(LossDiverged("x")) == "nan"
    assert failure_kind(MemoryError()) == "memory"
    assert failure_kind(ValueError()) == "exception"


def test_on_a_node_that_ends_no_epoch_begins_that_would_not_fit_and_the_training_goes_on_elsewhere(
    job: Callable[..., TrainingJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainables.tune.LEAVING_S", 0.0)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "at"))
    (tmp_path / "at").write_text(f"{time.time() + 3600:.0f}")
    first = job()
    trainable = actor(first)
    assert Report.read(trainable.step()).status == "training"
    (tmp_path / "at").write_text(f"{time.time():.0f}")
    for _ in range(2):
        assert trainable.step() == Report(first.number, "leaving").result()
    assert (Path(first.folder) / "log.txt").read_text().count("no epoch is begun that could not end") == 1
    monkeypatch.delenv(VARIABLE)
    assert [(r.status, len(r.history)) for r in run(actor(first))] == [("trained", 2)]


def test_what_other_trainings_took_decides_whether_a_first_epoch_fits(
    job: Callable[..., TrainingJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "at"))
    (tmp_path / "at").write_text(f"{time.time() + 3600:.0f}")
    assert Report.read(actor(replace(job(), longest_epoch_s=4000.0)).step()).status == "leaving"
    assert Report.read(actor(replace(job(), longest_epoch_s=100.0)).step()).status == "training"
