"""Mirror: MLflow's copy of a sweep, written from the ledger alone by one process, in passes that can be repeated.

The sweep is a parent run and every trial a child run. A run is looked up by its tags (`sweep.id`, `trial.number`)
before it is created, so that a kill between creating it and noting it in the ledger never doubles it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from search_spaces.errors import LeaseLost, SweepError
from search_spaces.faults import durable, reach
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.mirrored import (
    Metric,
    birth_tags,
    curves,
    finals,
    overfitting_finals,
    params_of,
    pareto_tag,
    plain_json,
    run_status,
    sweep_note,
    tags_of,
)
from sweeps.mirrored_inputs import data_inputs, model_tags
from sweeps.records import TrialRecord
from sweeps.snapshot import Snapshot, without_passwords
from sweeps.summary import public_stage, public_trial
from sweeps.tracking_ui import links, pareto_view, start_ui, stop_ui

log = logging.getLogger("paretune.tracking")

ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # with MLflow's own 7, one call to a dead server blocks for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # its messages go where ours go
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""What MLflow's client reads, unless the user has set it."""

LONGEST_PAUSE_S = 30.0
"""Between two passes, after failures."""

OF_ONE_RUN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "BAD_REQUEST")
"""MLflow's codes for what is wrong with one run (deleted by hand, say); the others' passes go on."""


@dataclass
class _Run:
    """What MLflow has of one run, as far as this process knows."""

    id: str
    status: str
    params: Mapping[str, str] = field(default_factory=dict)
    pareto: str = ""
    parent_s: float | None = None
    """The last value of cost/parent_s."""
    epochs: list[list[Metric]] = field(default_factory=list)
    artifacts: dict[str, str] = field(default_factory=dict)
    """Digest of the text by file."""
    note: str = ""
    data: frozenset[str] = frozenset()
    """Names of the data sets."""


class Mirror:
    """Brings MLflow up to date with the ledger. Use it from one thread; its ledger must hold the lease."""

    def __init__(self, ledger: Ledger, folder: SweepFolder, uri: str | None, experiment: str) -> None:
        """Args: uri: MLflow's tracking URI; None is the database in the storage folder."""
        self.uri = uri or folder.default_tracking_uri
        self._ledger = ledger
        self._folder = folder
        self._experiment = experiment
        self._experiment_id = ""
        self._client: Any = None
        self._sweep_run: _Run | None = None
        self._runs: dict[int, _Run] = {}
        self._view = ""

    def sync(self, closing: str | None = None) -> None:
        """Make one pass; only what has changed is written, and what fails is written by a later pass.

        Args:   closing: "KILLED" when the driver leaves before the sweep's end: open runs are marked so.
        Raises: whatever MLflow raises; LeaseLost when another driver has taken over.
        """
        try:
            self._pass(closing)
        except Exception:
            self._sweep_run = None  # what was on its way may have arrived: the next pass looks again
            self._runs.clear()
            raise

    def _pass(self, closing: str | None) -> None:
        if self._sweep_run is None:
            self._connect()
        snapshot = Snapshot.read(self._ledger)
        problem = None
        for trial in snapshot.trials:
            try:
                self._sync_trial(snapshot, trial, run_status(trial, closing))
            except Exception as error:
                if getattr(error, "error_code", None) not in OF_ONE_RUN:
                    raise
                problem = error
        self._sync_sweep(snapshot, closing)
        if problem is not None:
            raise problem

    @property
    def _writer(self) -> Any:
        """MLflow's client for one call that writes; LeaseLost once another driver has taken over."""
        self._ledger.check_lease()
        return self._client

    # -- finding or creating ------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Open the store (a new database is set up here, by this process alone) and find the sweep's runs."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        if self.uri == self._folder.default_tracking_uri:
            self._folder.storage.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=self.uri)
        self._experiment_id = self._find_experiment()
        sweep = self._ledger.sweep()
        for run in self._search(f"tags.`sweep.id` = '{sweep.id}'"):
            number = run.data.tags.get("trial.number")
            pareto, parent_s = run.data.tags.get("trial.pareto", ""), run.data.metrics.get("cost/parent_s")
            known = _Run(run.info.run_id, run.info.status, run.data.params, pareto, parent_s)
            known.data = frozenset(found.dataset.name for found in run.inputs.dataset_inputs)
            if number is not None:
                self._runs.setdefault(int(number), known)
            elif run.data.tags.get("sweep.role") == "sweep":
                self._sweep_run = self._sweep_run or known
        if self._sweep_run is None:
            tags = {"sweep.id": sweep.id, "sweep.name": sweep.name, "sweep.role": "sweep"}
            self._sweep_run = self._create(sweep.name, sweep.created_at, tags)
        if (sweep.mlflow_experiment_id, sweep.mlflow_run_id) != (self._experiment_id, self._sweep_run.id):
            self._ledger.note_mlflow_sweep(without_passwords(self.uri), self._experiment_id, self._sweep_run.id)

    def _find_experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            # without a server MLflow would put artifacts under the current folder
            root = None if self.uri.startswith("http") else self._folder.default_artifacts.as_uri()
            with durable("mlflow.create_experiment") as write:
                created = str(self._writer.create_experiment(self._experiment, artifact_location=root))
                write.torn()
            return created
        if found.lifecycle_stage == "deleted":
            raise SweepError(f"MLflow's experiment {self._experiment!r} is deleted; restore it or name another one.")
        return str(found.experiment_id)

    def _search(self, query: str) -> list[Any]:
        runs: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], query, max_results=1000, order_by=["attributes.start_time ASC"], page_token=token
            )
            runs += page
            if not (token := page.token):
                return runs

    def _create(self, name: str, started_at: float, tags: Mapping[str, str]) -> _Run:
        with durable("mlflow.create_run") as write:
            run = self._writer.create_run(self._experiment_id, int(started_at * 1000), dict(tags), run_name=name)
            write.torn()
            return _Run(run.info.run_id, run.info.status)

    # -- one trial ----------------------------------------------------------------------------------------------------

    def _sync_trial(self, snapshot: Snapshot, trial: TrialRecord, status: str) -> None:
        run = self._runs.get(trial.number)
        if run is None:
            assert self._sweep_run is not None
            tags = birth_tags(snapshot, trial, self._sweep_run.id)
            run = self._create(f"{trial.number:04d}-{trial.label}", trial.created_at, tags)
            self._runs[trial.number] = run
            reach("mlflow.note")
        pareto = pareto_tag(snapshot, trial)
        ended_at = None if trial.ended_at is None else max(trial.ended_at, trial.created_at)  # a clock may go back
        shared_again = snapshot.sweep.completed_at is not None and run.parent_s != _parent_seconds(snapshot, trial)
        if run.id != trial.mlflow_run_id or trial.revision > trial.mlflow_revision or shared_again:
            self._log(snapshot, trial, run)
            self._set_status(run, status, ended_at)
            self._ledger.note_mlflow_trial(trial.number, run.id, trial.revision)
        elif run.pareto != pareto:
            self._set_tag(run, "trial.pareto", pareto)
        run.pareto = pareto
        self._set_status(run, status, ended_at)

    def _log(self, snapshot: Snapshot, trial: TrialRecord, run: _Run) -> None:
        from mlflow import entities

        events = self._ledger.events(trial.number)
        history = self._ledger.history(trial.number)
        epochs = curves(history, events)
        fresh = [rows for i, rows in enumerate(epochs) if i >= len(run.epochs) or run.epochs[i] != rows]
        metrics = finals(snapshot, trial, events) + overfitting_finals(history, events)
        metrics += [row for rows in fresh for row in rows]
        params = params_of(trial)
        tags = tags_of(snapshot, trial) | model_tags(trial, self._folder)
        self._log_data(snapshot, trial, run)
        with durable("mlflow.log_batch") as write:
            self._writer.log_batch(
                run.id,
                metrics=[entities.Metric(*row) for row in metrics],
                params=[entities.Param(k, v) for k, v in params.items() if k not in run.params],
                tags=[entities.RunTag(k, v) for k, v in tags.items()],
            )
            write.torn()
            run.epochs, run.params, run.parent_s = epochs, params, _parent_seconds(snapshot, trial)
        stages = snapshot.stages_of(trial)
        facts = {k: v for k, v in public_trial(trial, ()).items() if k not in ("attacks", "epochs", "mlflow_run_id")}
        self._attach(run, "trial.json", plain_json(facts))
        self._attach(run, "attacks.json", plain_json([public_stage(s) for s in stages]))
        if trial.error is not None:
            self._attach(run, "error.txt", trial.error)

    def _log_data(self, snapshot: Snapshot, trial: TrialRecord, run: _Run) -> None:
        """Record a trial's data set with a run, which keeps it for good."""
        from mlflow import entities

        missing = [data for data in data_inputs(snapshot.sweep, trial.config) if data.name not in run.data]
        if not missing:
            return
        inputs = [
            entities.DatasetInput(
                entities.Dataset(*data[:-1]), [entities.InputTag("mlflow.data.context", data.context)]
            )
            for data in missing
        ]
        with durable("mlflow.log_inputs") as write:
            self._writer.log_inputs(run.id, datasets=inputs)
            write.torn()
            run.data |= {data.name for data in missing}

    def _attach(self, run: _Run, file: str, text: str) -> None:
        digest = hashlib.sha256(text.encode()).hexdigest()
        if run.artifacts.get(file) != digest:
            with durable("mlflow.log_text") as write:
                self._writer.log_text(run.id, text, file)
                write.torn()
                run.artifacts[file] = digest

    def _set_tag(self, run: _Run, name: str, value: str) -> None:
        with durable("mlflow.set_tag") as write:
            self._writer.set_tag(run.id, name, value)
            write.torn()

    def _set_status(self, run: _Run, status: str, ended_at: float | None) -> None:
        if run.status == status:
            return
        if status == "RUNNING":
            with durable("mlflow.update_run") as write:
                self._writer.update_run(run.id, status=status)
                write.torn()
        else:
            with durable("mlflow.set_terminated") as write:
                self._writer.set_terminated(run.id, status, None if ended_at is None else int(ended_at * 1000))
                write.torn()
        run.status = status

    # -- the sweep ----------------------------------------------------------------------------------------------------

    def _sync_sweep(self, snapshot: Snapshot, closing: str | None) -> None:
        run, sweep = self._sweep_run, snapshot.sweep
        assert run is not None
        tag, view = pareto_view(snapshot)
        if view != self._view:
            with durable("mlflow.set_experiment_tag") as write:
                self._writer.set_experiment_tag(self._experiment_id, tag, view)
                write.torn()
            self._view = view
        if snapshot.trials:
            self._log_data(snapshot, snapshot.trials[0], run)
        pages = links(sweep, "", [self._runs[t.number].id for t in snapshot.front])
        note = sweep_note(snapshot, {name: page for name, page in pages.items() if name != "sweep"})
        if note != run.note:
            self._set_tag(run, "mlflow.note.content", note)
            run.note = note
        self._attach(run, "sweep.json", plain_json({"document": sweep.document, "environment": sweep.environment}))
        status = (closing or "RUNNING") if sweep.completed_at is None else "FINISHED"
        ended_at = None if sweep.completed_at is None else max(sweep.completed_at, sweep.created_at)
        self._set_status(run, status, ended_at)


def _parent_seconds(snapshot: Snapshot, trial: TrialRecord) -> float | None:
    """Return what a trained trial bears of its parent's training, which is less with every further child."""
    return None if trial.train_seconds is None else snapshot.parent_seconds.get(trial.number)


class MirrorThread:
    """Makes a pass now and then, in a daemon thread. Nothing that MLflow does reaches or delays the sweep."""

    def __init__(self, mirror: Mirror, period_s: float = 2.0) -> None:
        self.last_error: Exception | None = None
        """Of the latest pass; None when it went well."""
        self._mirror = mirror
        self._period_s = period_s
        self._closing: str | None = None
        self._stop = threading.Event()
        self._logged: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="mlflow-mirror", daemon=True)

    def start(self) -> None:
        """Start; MLflow is imported in the thread."""
        self._thread.start()

    def stop(self, closing: str | None = None, timeout_s: float = 60.0) -> bool:
        """Make a last pass; return whether MLflow now has everything. A pass that takes longer is left behind."""
        self._closing = closing
        self._stop.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and self.last_error is None

    def _run(self) -> None:
        pause = self._period_s
        while not self._stop.wait(pause):
            self._pass(None)
            if isinstance(self.last_error, LeaseLost):
                return
            pause = self._period_s if self.last_error is None else min(2 * pause, LONGEST_PAUSE_S)
        self._pass(self._closing)

    def _pass(self, closing: str | None) -> None:
        try:
            self._mirror.sync(closing)
            self.last_error = None
        except Exception as error:  # the mirror's boundary: a sweep does not depend on MLflow
            self.last_error = error
            text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            if text not in self._logged:
                self._logged.add(text)
                log.warning("MLflow is not up to date (%s); the sweep goes on.", text)


__all__ = ["Mirror", "MirrorThread", "links", "start_ui", "stop_ui"]
