from __future__ import annotations

import json
import logging
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search_spaces.errors import ConfigError, LeaseLost, SweepError, TrackingAway
from sweeps.commands import see
from sweeps.config import parse_sweep
from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.requests import Request
from sweeps.snapshot import PALETTE
from sweeps.tracking import Mirror, MirrorThread
from tests.sweeps import ledgers


def mirror_of(ledger: Ledger, folder: SweepFolder) -> Mirror:
    return Mirror(ledger, folder, None, "paretune")


def everything(folder: SweepFolder) -> dict[str, list[Any]]:
    """Every row that a sync may write."""
    connection = sqlite3.connect(folder.storage / "mlflow.db")
    try:
        tables = ("experiments", "runs", "metrics", "params", "tags", "experiment_tags")
        tables += ("datasets", "inputs", "input_tags")
        return {table: sorted(connection.execute(f"SELECT * FROM {table}").fetchall(), key=repr) for table in tables}
    finally:
        connection.close()


def runs_of(folder: SweepFolder, query: str = "tags.`sweep.role` = 'trial'") -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=folder.default_tracking_uri)
    experiment = client.get_experiment_by_name("paretune")
    runs: list[Any] = client.search_runs([experiment.experiment_id], query)
    return sorted(runs, key=lambda run: int(run.data.tags.get("trial.number", -1)))


@pytest.mark.usefixtures("store")
def test_every_trial_has_one_child_run_with_its_figures(unfinished: Ledger, folder: SweepFolder) -> None:
    with Lease(unfinished):
        mirror_of(unfinished, folder).sync()
    (parent,) = runs_of(folder, "tags.`sweep.role` = 'sweep'")
    runs = runs_of(folder)
    sweep = unfinished.sweep()
    assert (sweep.mlflow_run_id, sweep.mlflow_uri) == (parent.info.run_id, folder.default_tracking_uri)
    assert [run.data.tags["trial.number"] for run in runs] == [str(n) for n in range(8)]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}
    assert [run.info.status for run in runs] == [*["FINISHED"] * 4, "FAILED", *["RUNNING"] * 3]
    assert [run.data.tags["trial.pareto"] for run in runs] == [*["true"] * 3, *["false"] * 5]
    assert [run.data.tags["mlflow.runColor"] for run in runs[:3]] == list(PALETTE[:3])
    best = runs[2].data
    assert best.metrics["robust_acc"] == best.metrics["autoattack_acc"] == 180 / 256
    assert (best.metrics["pgd_acc"], best.metrics["test_robust_acc"]) == (200 / 256, 170 / 256)
    assert (best.metrics["clean_acc"], best.metrics["test_clean_acc"]) == (0.80, 0.79)
    assert best.params["adversarial.steps"] in ("3", "7")
    assert "model.weights" not in best.params
    assert runs[4].data.tags["trial.error"].startswith("search_spaces.errors.LossDiverged")
    assert "robust_acc" not in runs[7].data.metrics
    for run in runs:
        place = folder.default_artifacts / run.info.run_id / "artifacts"
        assert {p.name for p in place.iterdir()} >= {"trial.json", "attacks.json"}
    assert json.loads((folder.default_artifacts / runs[2].info.run_id / "artifacts/attacks.json").read_text())


@pytest.mark.usefixtures("store")
def test_a_second_sync_changes_nothing(unfinished: Ledger, folder: SweepFolder) -> None:
    with Lease(unfinished):
        mirror = mirror_of(unfinished, folder)
        mirror.sync()
        before = everything(folder)
        mirror.sync()
        assert everything(folder) == before
        mirror_of(unfinished, folder).sync()  # another process
        assert everything(folder) == before


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("forgotten", ["note_mlflow_trial", "note_mlflow_sweep"])
def test_a_kill_between_creating_a_run_and_noting_it_never_doubles_it(
    unfinished: Ledger, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with Lease(unfinished):
        with monkeypatch.context() as patch:
            patch.setattr(unfinished, forgotten, killed)
            with pytest.raises(KeyboardInterrupt):
                mirror_of(unfinished, folder).sync()
        assert unfinished.trial(0).mlflow_run_id is None
        mirror_of(unfinished, folder).sync()
        whole = everything(folder)
    assert len(whole["runs"]) == 9
    assert unfinished.trial(0).mlflow_run_id is not None


@pytest.mark.usefixtures("store")
def test_a_kill_at_any_call_to_mlflow_is_made_good(
    unfinished: Ledger, folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lease(unfinished):
        mirror = mirror_of(unfinished, folder)
        mirror.sync()
        whole, client = everything(folder), type(mirror._client)
        counts = {table: len(rows) for table, rows in whole.items()}
    for call in ("create_run", "log_batch", "log_inputs", "set_terminated", "set_experiment_tag"):
        other = ledgers.folder_at(tmp_path / call)
        other.root.mkdir(parents=True)
        shutil.copy(folder.storage.parent / "runs" / "mlflow.db", other.storage / "mlflow.db")
        ledger = ledgers.empty(other)
        with Lease(ledger):
            for number in range(3):
                ledgers.finish(ledger, number, "jasmin", 0.9 - number / 10, 100, 90 + number * 10)
            with monkeypatch.context() as patch:
                _kill_after(patch, client, call)
                with pytest.raises(KeyboardInterrupt):
                    mirror_of(ledger, other).sync()
            mirror_of(ledger, other).sync()
            after = everything(other)
            mirror_of(ledger, other).sync()
            assert everything(other) == after
        mine = [run for run in runs_of(other) if run.data.tags["sweep.id"] == ledger.sweep().id]
        assert [run.data.tags["trial.number"] for run in mine] == ["0", "1", "2"]
        assert [run.info.status for run in mine] == ["FINISHED"] * 3
        assert len(after["runs"]) == counts["runs"] + 4
        ledger.close()


def _kill_after(patch: pytest.MonkeyPatch, client: type, call: str) -> None:
    """The second time that the call has been made, the process dies before it learns of it."""
    true, made = getattr(client, call), []

    def killed(*arguments: Any, **named: Any) -> Any:
        result = true(*arguments, **named)
        made.append(call)
        if len(made) == (1 if call == "set_experiment_tag" else 2):
            raise KeyboardInterrupt
        return result

    patch.setattr(client, call, killed)


@pytest.mark.usefixtures("store")
def test_runs_follow_the_driver_and_the_trials(open_ledger: Callable[..., Ledger], folder: SweepFolder) -> None:
    ledger = open_ledger(requested=2)

    def statuses() -> list[str]:
        return [run.info.status for run in runs_of(folder, "tags.`sweep.role` = 'sweep'") + runs_of(folder)]

    with Lease(ledger):
        ledgers.finish(ledger, 0, "plain", 0.9, 100, 90)
        ledgers.propose(ledger, 1)
        ledgers.start(ledger, 1)
        mirror = mirror_of(ledger, folder)
        mirror.sync()
        assert statuses() == ["RUNNING", "FINISHED", "RUNNING"]
        mirror.sync("KILLED")
        assert statuses() == ["KILLED", "FINISHED", "KILLED"]
    with Lease(ledger):  # resume
        mirror = mirror_of(ledger, folder)
        mirror.sync()
        assert statuses() == ["RUNNING", "FINISHED", "RUNNING"]
        ledger.fail(1, "nan", "boom")
        mirror.sync()
        assert statuses() == ["RUNNING", "FINISHED", "FAILED"]
        ledger.complete()
        mirror.sync("KILLED")  # a signal after the last trial takes nothing back
        assert statuses() == ["FINISHED", "FINISHED", "FAILED"]
        ledger.raise_total(3)
        mirror.sync()
        assert statuses() == ["RUNNING", "FINISHED", "FAILED"]


@pytest.mark.usefixtures("store")
def test_every_run_names_its_data_set_and_its_model(unfinished: Ledger, folder: SweepFolder) -> None:
    with Lease(unfinished):
        mirror_of(unfinished, folder).sync()
    parent, *runs = runs_of(folder, "tags.`sweep.id` != ''")
    for run in (parent, *runs):
        splits = {i.dataset.name: [(t.key, t.value) for t in i.tags] for i in run.inputs.dataset_inputs}
        names = ("training", "validation", "test")
        assert splits == {f"digits/{split}": [("mlflow.data.context", split)] for split in names}
        assert {i.dataset.digest for i in run.inputs.dataset_inputs} == {unfinished.sweep().data_digest}
    assert {run.data.tags["model.name"] for run in runs} == {"vit_tiny_patch16_224"}
    assert runs[2].data.tags["model.weights_digest"] == "weights-2"
    assert "model.weights_digest" not in runs[5].data.tags


@pytest.mark.usefixtures("store")
def test_a_loss_that_is_no_number_is_a_tag_and_no_metric(unfinished: Ledger, folder: SweepFolder) -> None:
    """The epoch with the NaN never reaches the ledger: the trial has failed."""
    with Lease(unfinished):
        mirror_of(unfinished, folder).sync()
        run = runs_of(folder)[4]
        assert (run.info.status, run.data.metrics) == ("FAILED", {"train/loss": 2.0, "val/accuracy": 0.5})
        assert run.data.tags["trial.error"].endswith("LossDiverged: the loss of step 12 is <nan>")
        unfinished.grant(Request.make("retry", trials=(4,)))
        ledgers.train(unfinished, 4, 0.9)
        mirror_of(unfinished, folder).sync()
    assert runs_of(folder)[4].data.tags["trial.error"] == "none"


@pytest.mark.usefixtures("store")
def test_only_what_changed_is_written(unfinished: Ledger, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lease(unfinished):
        mirror = mirror_of(unfinished, folder)
        mirror.sync()
        logged: list[tuple[str, list[Any]]] = []
        true = mirror._client.log_batch
        monkeypatch.setattr(
            mirror._client, "log_batch", lambda run, **rows: (logged.append((run, rows["metrics"])), true(run, **rows))
        )
        unfinished.start_training(6)
        unfinished.record_epochs(6, ledgers.history(3))
        mirror.sync()
        ((run, metrics),) = logged
        assert run == unfinished.trial(6).mlflow_run_id
        assert {(m.key, m.step) for m in metrics} == {("train/loss", 3), ("val/accuracy", 3)}
        assert all(t.mlflow_revision == t.revision for t in unfinished.trials())


@pytest.mark.usefixtures("store")
def test_a_trial_that_leaves_the_front_loses_its_tag(unfinished: Ledger, folder: SweepFolder) -> None:
    with Lease(unfinished):
        mirror = mirror_of(unfinished, folder)
        mirror.sync()
        ledgers.attack(unfinished, 7, 255)
        ledgers.attack(unfinished, 7, 250, position=1, exact=True)  # clean 0.85: dominates trial 2
        mirror.sync()
    assert [r.data.tags["trial.number"] for r in runs_of(folder, "tags.`trial.pareto` = 'true'")] == ["0", "1", "7"]


@pytest.mark.usefixtures("store")
def test_a_store_that_was_lost_is_written_again(unfinished: Ledger, folder: SweepFolder, store: str) -> None:
    empty = (folder.storage / "mlflow.db").read_bytes()
    with Lease(unfinished):
        mirror_of(unfinished, folder).sync()
        before = {table: len(rows) for table, rows in everything(folder).items()}
        (folder.storage / "mlflow.db").unlink()
        (folder.storage / "moved.db").write_bytes(empty)
        moved = Mirror(unfinished, folder, f"sqlite:///{folder.storage / 'moved.db'}", "paretune")
        moved.sync()
        (folder.storage / "moved.db").rename(folder.storage / "mlflow.db")
    assert {table: len(rows) for table, rows in everything(folder).items()} == before


@pytest.mark.usefixtures("store")
def test_a_run_deleted_by_hand_does_not_stop_the_others(unfinished: Ledger, folder: SweepFolder) -> None:
    with Lease(unfinished):
        mirror = mirror_of(unfinished, folder)
        mirror.sync()
        mirror._client.delete_run(unfinished.trial(5).mlflow_run_id)
        unfinished.start_training(5)
        unfinished.fail(5, "nan", "boom")
        unfinished.fail(6, "nan", "boom")
        with pytest.raises(Exception, match="active"):
            mirror.sync()
        assert runs_of(folder)[-2].info.status == "FAILED"
        mirror_of(unfinished, folder).sync()
    assert [run.data.tags["trial.number"] for run in runs_of(folder)] == [str(n) for n in range(8)]


@pytest.mark.usefixtures("store")
def test_a_deleted_experiment_is_named(unfinished: Ledger, folder: SweepFolder) -> None:
    with Lease(unfinished):
        mirror = mirror_of(unfinished, folder)
        mirror.sync()
        mirror._client.delete_experiment(unfinished.sweep().mlflow_experiment_id)
        with pytest.raises(SweepError, match="'paretune' is deleted"):
            mirror_of(unfinished, folder).sync()


# -- the thread -------------------------------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.usefixtures("store")
def test_the_thread_brings_everything_over_and_says_so(unfinished: Ledger, folder: SweepFolder) -> None:
    with Lease(unfinished):
        thread = MirrorThread(mirror_of(unfinished, folder), period_s=0.05)
        thread.start()
        unfinished.start_training(5)
        assert thread.stop("KILLED", timeout_s=30)
    assert thread.last_error is None
    assert [run.info.status for run in runs_of(folder)][5:] == ["KILLED"] * 3
    assert all(t.mlflow_revision == t.revision for t in unfinished.trials())


def test_a_dead_server_neither_raises_nor_blocks(
    unfinished: Ledger, folder: SweepFolder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"http://127.0.0.1:{closed_port()}"
    with Lease(unfinished), caplog.at_level(logging.WARNING, "paretune.tracking"):
        thread = MirrorThread(Mirror(unfinished, folder, uri, "paretune"), period_s=0.05)
        thread.start()
        deadline = time.monotonic() + 30
        while thread.last_error is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.5)
        unfinished.start_training(5)  # the sweep goes on
        started = time.monotonic()
        assert not thread.stop("KILLED", timeout_s=20)
        assert time.monotonic() - started < 20
    assert thread.last_error is not None
    told = [r.getMessage() for r in caplog.records if r.name == "paretune.tracking"]
    assert len(told) == 1
    assert "the sweep goes on" in told[0]


def test_a_hanging_server_is_left_behind(
    unfinished: Ledger, folder: SweepFolder, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with Lease(unfinished):
        thread = MirrorThread(Mirror(unfinished, folder, silent_server, "paretune"), period_s=0.01)
        thread.start()
        time.sleep(0.3)
        started = time.monotonic()
        assert not thread.stop("KILLED", timeout_s=0.5)
        assert time.monotonic() - started < 1.5
        thread._thread.join(timeout=30)
    assert not thread._thread.is_alive()


def test_a_thread_without_the_lease_ends(unfinished: Ledger, folder: SweepFolder, store: str) -> None:
    thread = MirrorThread(mirror_of(unfinished, folder), period_s=0.01)
    thread.start()
    thread._thread.join(timeout=30)
    assert isinstance(thread.last_error, LeaseLost)
    assert not thread.stop(timeout_s=1)


def test_errors_are_logged_once_each(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def __init__(self) -> None:
            self.passes = 0

        def sync(self, closing: str | None) -> None:
            self.passes += 1
            raise ValueError(f"no {min(self.passes, 2)}\nmore lines")

    broken = Broken()
    thread = MirrorThread(broken, period_s=0.001)  # type: ignore[arg-type]
    thread.start()
    while broken.passes < 4:
        time.sleep(0.005)
    assert not thread.stop(timeout_s=5)
    assert [r.getMessage().count("ValueError: no") for r in caplog.records] == [1, 1]
    assert threading.active_count() < 20


def test_sync_without_its_server_is_one_clear_sentence(
    open_ledger: Callable[..., Ledger], folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_ledger(document={"methods": ["plain"], "objectives": ["clean_acc"]})

    def refused(*_: object) -> None:
        raise ConnectionError("Connection refused\nand a long story")

    monkeypatch.setattr(Mirror, "sync", refused)
    with pytest.raises(TrackingAway, match=r"said 'Connection refused'\..*sync digits"):
        see.sync(folder.name, folder.storage)
    assert ledger.lease() is None


# -- processes --------------------------------------------------------------------------------------------------------


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    modules = "sweeps.tracking, sweeps.report, sweeps.export, sweeps.terminal, sweeps.summary"
    heavy = "{'mlflow', 'optuna', 'torch', 'ray', 'timm', 'plotly', 'pandas', 'matplotlib'}"
    code = f"import sys, {modules}; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.usefixtures("store")
def test_the_store_and_its_artifacts_lie_in_the_storage_folder(
    open_ledger: Callable[..., Ledger], folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    ledger = open_ledger()
    with Lease(ledger):
        ledgers.finish(ledger, 0, "plain", 0.9, 100, 90)
        mirror_of(ledger, folder).sync()
    assert sorted(p.name for p in folder.storage.iterdir()) == ["digits", "mlartifacts", "mlflow.db"]
    assert list(elsewhere.iterdir()) == []


def test_a_password_in_the_address_is_refused_and_a_place_for_it_named() -> None:
    document = {"methods": ["plain"], "tracking": {"uri": "http://ann:s3cret@host:5000"}}
    with pytest.raises(ConfigError, match=r"tracking\.uri: .*MLFLOW_TRACKING_PASSWORD") as refused:
        parse_sweep(document)
    assert "s3cret" not in str(refused.value)
