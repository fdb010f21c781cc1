"""The ledger: the one truth about a sweep, in a small SQL database keyed by trial number.

Every transition is one transaction, committed before the act that it records; a proposal exists once number, full
configuration and seed are committed together. Only the driver that holds the lease writes. Optuna's study, MLflow and
the report are views that are rebuilt from here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from search_spaces.errors import CheckpointCorrupt, IllegalTransition, LeaseLost, LedgerError, has_hung
from search_spaces.faults import durable
from sweeps.records import (
    CLOSED,
    LAUNCHED,
    OPEN,
    Event,
    KnownRecord,
    LeaseRecord,
    PlannedStage,
    PriorTrial,
    Split,
    StageRecord,
    State,
    SweepRecord,
    TrialRecord,
)
from sweeps.requests import Granted, Request
from sweeps.schema import (
    CURVES,
    EVENTS,
    KNOWN,
    LEASE,
    PACKED,
    PRIOR,
    REQUESTS,
    SCHEMA,
    SCHEMA_VERSION,
    STAGES,
    SWEEP,
    TRIALS,
    as_json,
    packed,
    prior_record,
    stage_record,
    trial_record,
)

SERVER = "postgresql"

_IS_TRIAL = TRIALS.c.number >= 0
"""Parents have negative numbers (`sweeps.parents`)."""

_ALLOWED: Mapping[State, tuple[State, ...]] = {
    State.TRAINING: (State.PROPOSED, State.TRAINING),
    State.TRAINED: (State.TRAINING,),
    State.EVALUATING: (State.TRAINED, State.EVALUATING),
    State.FINISHED: (State.TRAINED, State.EVALUATING),
    State.STOPPED: OPEN,
    State.FAILED: OPEN,
}
"""State → the states from which a trial may come into it; `Ledger.grant` alone opens a failed one again."""


class Ledger:
    """Reads and, with a lease, writes the ledger. Safe to share between the threads of one process."""

    def __init__(self, url: str, schema: str | None = None) -> None:
        """Args: url: SQLAlchemy URL, such as ``sqlite:////…/ledger.db``; schema: of a server that holds many sweeps."""
        self._engine = _engine(url, schema)
        self._name_space = schema
        self._writer = self._engine.execution_options(write=True)
        self.owner: str | None = None

    @classmethod
    def at(cls, path: Path) -> Ledger:
        """Open the ledger of a file: a sqlite database, or one line that names a server's (`pointer`)."""
        line = _first_line(path)
        if not line.startswith(SERVER):
            return cls(f"sqlite:///{path}")
        url, _, schema = line.partition(" ")
        return cls(url, schema)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    # -- the sweep ----------------------------------------------------------------------------------------------------

    def create(self, sweep: SweepRecord) -> None:
        """Create the tables and the sweep's row, in one transaction."""
        with self._transaction("ledger.create") as connection:
            if self._name_space is not None:
                connection.execute(sa.schema.CreateSchema(self._name_space))
            SCHEMA.create_all(connection)
            connection.execute(SWEEP.insert().values(schema_version=SCHEMA_VERSION, **packed(sweep)))
            _event(connection, None, "created", {"requested": sweep.requested})

    def sweep(self) -> SweepRecord:
        """Return the sweep's row; LedgerError if the database holds none or was written by another version."""
        with self._engine.connect() as connection:
            there = sa.inspect(connection).has_table(SWEEP.name, schema=self._name_space)
            row = connection.execute(sa.select(SWEEP)).mappings().one_or_none() if there else None
        if row is None:
            raise LedgerError("the ledger holds no sweep: the file is empty, or another program's. Launch anew.")
        if row["schema_version"] != SCHEMA_VERSION:
            raise LedgerError(
                f"the ledger has schema {row['schema_version']}, this version reads {SCHEMA_VERSION}. Go on with the "
                "version that launched the sweep, or launch it anew; its sweep.yaml is still good."
            )
        values = {k: v for k, v in row.items() if k != "schema_version"}
        for key in ("document", "environment", "split_sizes", "objectives", "planned_stages"):
            values[key] = json.loads(values[key])
        values["objectives"] = tuple(values["objectives"])
        values["planned_stages"] = tuple(map(PlannedStage.from_plain, values["planned_stages"]))
        return SweepRecord(**values)

    def add_plan(self, name: str, stages: Sequence[PlannedStage]) -> None:
        """Add the stages of a further plan; IllegalTransition if a plan of that name is there already."""
        with self._write("ledger.add_plan") as connection:
            before = json.loads(connection.scalar(sa.select(SWEEP.c.planned_stages)) or "[]")
            if any(stage["plan"] == name for stage in before):
                raise IllegalTransition(f"the sweep has a plan {name!r} already.")
            planned = [*before, *map(asdict, stages)]
            connection.execute(SWEEP.update().values(planned_stages=as_json(planned)))
            _event(connection, None, "plan added", {"plan": name, "stages": [stage.label for stage in stages]})

    def raise_total(self, requested: int) -> None:
        """Ask for more trials; IllegalTransition if it would be fewer than before: the total can only grow."""
        with self._write("ledger.raise_total") as connection:
            before = connection.scalar(sa.select(SWEEP.c.requested)) or 0
            if requested < before:
                raise IllegalTransition(f"the sweep has {before} trials; the total can only grow, found {requested}.")
            connection.execute(SWEEP.update().values(requested=requested, completed_at=None))
            _event(connection, None, "total", {"requested": requested})

    def complete(self) -> None:
        """Say that nothing is left to do; IllegalTransition if a trial is still open or was never proposed."""
        with self._write("ledger.complete") as connection:
            still_open = connection.scalar(sa.select(sa.func.count()).where(_IS_TRIAL, TRIALS.c.state.in_(OPEN)))
            proposed = connection.scalar(sa.select(sa.func.count()).where(_IS_TRIAL))
            requested = connection.scalar(sa.select(SWEEP.c.requested))
            if still_open or proposed != requested:
                raise IllegalTransition(f"{still_open} trials are open and {proposed} of {requested} proposed.")
            connection.execute(SWEEP.update().values(completed_at=time.time()))
            _event(connection, None, "completed", {})

    def note_driver(self, kind: str, detail: Mapping[str, Any]) -> None:
        """Add an event of the driver itself: driver started, resources, interrupted, driver crashed."""
        with self._write("ledger.note_driver") as connection:
            _event(connection, None, kind, detail)

    # -- the lease ----------------------------------------------------------------------------------------------------

    def lease(self) -> LeaseRecord | None:
        """Return who holds the lease, dead or alive; None if nobody does."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(LEASE)).mappings().one_or_none()
        return None if row is None else LeaseRecord(**{k: v for k, v in row.items() if k != "slot"})

    def take_lease(self, lease: LeaseRecord, replacing: LeaseRecord | None) -> bool:
        """Become the writer, if the lease is still held by `replacing` (None: by nobody). Returns whether it worked."""
        try:
            taken = self._take(lease, replacing)
        except sa.exc.IntegrityError:  # a server lets two insert at once, and one of them fail
            taken = False
        self.owner = lease.owner if taken else self.owner
        return taken

    def _take(self, lease: LeaseRecord, replacing: LeaseRecord | None) -> bool:
        with self._transaction("ledger.take_lease") as connection:
            row = connection.execute(sa.select(LEASE).with_for_update()).mappings().one_or_none()
            held = None if row is None else (row["owner"], row["heartbeat_at"])
            if held != (None if replacing is None else (replacing.owner, replacing.heartbeat_at)):
                return False
            if replacing is not None:  # and nobody else, whom a server may have let in since
                connection.execute(LEASE.delete().where(LEASE.c.owner == replacing.owner))
            connection.execute(LEASE.insert().values(slot=1, **lease.__dict__))
        return True

    def heartbeat(self) -> None:
        """Say that this driver lives; LeaseLost if another one has taken over."""
        with self._write("ledger.heartbeat") as connection:
            connection.execute(LEASE.update().values(heartbeat_at=time.time()))

    def release_lease(self) -> None:
        """Give the lease back, if it is still ours."""
        with self._transaction("ledger.release_lease") as connection:
            connection.execute(LEASE.delete().where(LEASE.c.owner == self.owner))
        self.owner = None

    def check_lease(self) -> None:
        """Raise LeaseLost if this process does not hold the lease; for writes that go elsewhere than here."""
        with self._engine.connect() as connection:
            self._require_lease(connection.scalar(sa.select(LEASE.c.owner)))

    # -- a trial's life -----------------------------------------------------------------------------------------------

    def propose(
        self,
        number: int,
        label: str,
        config: Mapping[str, Any],
        params: Mapping[str, Any],
        distributions: Mapping[str, str],
        seed: int,
        *,
        known: int | None = None,
    ) -> None:
        """Commit a proposal; numbers are given without gaps, those of parents downwards from −1.

        Args: known: position of the added configuration that it is.
        """
        now = time.time()
        with self._write("ledger.propose") as connection:
            is_trial = number >= 0
            count = connection.scalar(sa.select(sa.func.count()).where(_IS_TRIAL if is_trial else ~_IS_TRIAL)) or 0
            following = count if is_trial else -count - 1
            if number != following:
                raise IllegalTransition(f"the next proposal is number {following}, found {number}.")
            connection.execute(
                TRIALS.insert().values(
                    number=number,
                    state=State.PROPOSED,
                    label=label,
                    config=as_json(config),
                    params=as_json(params),
                    distributions=as_json(distributions),
                    seed=seed,
                    created_at=now,
                    updated_at=now,
                    revision=0,
                )
            )
            if known is not None:
                connection.execute(KNOWN.update().where(KNOWN.c.position == known).values(number=number))
            self._touch(connection, number, "proposed", {"label": label})

    def start_training(self, number: int, gets: Mapping[str, float] | None = None) -> int:
        """Commit that the training (re)starts; returns the number of this attempt, from 1.

        Args: gets: what Ray is asked for, by resource.
        """
        with self._write("ledger.start_training") as connection:
            attempts = connection.scalar(sa.select(TRIALS.c.attempts).where(TRIALS.c.number == number))
            attempt = (attempts or 0) + 1
            started = sa.func.coalesce(TRIALS.c.started_at, time.time())
            detail = {"attempt": attempt, **({} if gets is None else {"gets": dict(gets)})}
            self._move(connection, number, State.TRAINING, detail, attempts=attempt, started_at=started)
        return attempt

    def record_epochs(
        self, number: int, history: Sequence[Mapping[str, float]], first_step_at: float | None = None
    ) -> None:
        """Replace a trial's curves by `history`, one mapping of metrics per epoch; the checkpoint exists already.

        Args: first_step_at: when the attempt's first optimizer step was over, with the first of its epochs.
        """
        first = {} if first_step_at is None else {"first_step_at": first_step_at}
        with self._write("ledger.record_epochs") as connection:
            known = connection.scalar(sa.select(TRIALS.c.epochs).where(TRIALS.c.number == number))
            _put(connection, CURVES, {"number": number}, {"history": as_json(list(history))})
            detail = {"from": known, "to": len(history), **first}
            self._touch(connection, number, "epochs", detail, epochs=len(history))

    def finish_training(
        self,
        number: int,
        clean_acc: float,
        weights_digest: str,
        seconds: float,
        feature_cosine: float | None = None,
    ) -> None:
        """Commit the trained weights and their accuracy on the whole validation split."""
        detail = {"clean_acc": clean_acc, "weights": weights_digest}
        with self._write("ledger.finish_training") as connection:
            self._move(
                connection,
                number,
                State.TRAINED,
                detail,
                clean_acc=clean_acc,
                weights_digest=weights_digest,
                train_seconds=seconds,
                feature_cosine=feature_cosine,
                error=None,
                error_kind=None,
            )

    def note_failure(self, number: int, kind: str, error: str, share: float = 1.0) -> None:
        """Count a failed attempt of the training that will be tried again. Args: share: what the next one gets."""
        with self._write("ledger.note_failure") as connection:
            values = {**_one_more(connection, number, kind), "share": share, "error_kind": kind, "error": error}
            self._touch(connection, number, "attempt failed", {"kind": kind, "share": share}, **values)

    def fail(self, number: int, kind: str, error: str) -> None:
        """Commit that the trial has failed for good."""
        with self._write("ledger.fail") as connection:
            self._move(
                connection,
                number,
                State.FAILED,
                {"kind": kind},
                **_one_more(connection, number, kind),
                error_kind=kind,
                error=error,
                ended_at=time.time(),
            )

    def finish_without_attack(self, number: int) -> None:
        """Commit the end of a trial whose plan has no attack."""
        with self._write("ledger.finish_without_attack") as connection:
            self._move(connection, number, State.FINISHED, {}, exact=True, ended_at=time.time())

    # -- attack stages ------------------------------------------------------------------------------------------------

    def start_stage(self, stage: StageRecord) -> None:
        """Commit that a stage is about to run. The first validation stage takes the trial to "evaluating"."""
        key = {"number": stage.number, "split": stage.split, "position": stage.position}
        detail = {"split": stage.split, "position": stage.position, "attack": stage.attack}
        with self._write("ledger.start_stage") as connection:
            _put(connection, STAGES, key, {k: v for k, v in packed(stage).items() if k not in key})
            if _is_objective(stage):
                self._move(connection, stage.number, State.EVALUATING, detail)
            else:
                self._touch(connection, stage.number, "stage started", detail)

    def finish_stage(self, stage: StageRecord, *, exact: bool, split_clean_acc: float | None = None) -> None:
        """Adopt a stage's verdicts; the first validation stage finishes the trial, whose values are then told.

        Only the launched plan's cascade changes the trial's robust accuracies.

        Args:
            stage: done, with verdicts.
            exact: whether the cascade of the split is through.
            split_clean_acc: clean accuracy on the whole split, measured with the first stage on test images.
        """
        if stage.state != "done" or stage.accuracy is None:
            raise LedgerError(f"stage {stage.attack} of trial {stage.number} is not done; it has no verdicts to adopt.")
        where = _stage_key(stage)
        detail = {"split": stage.split, "position": stage.position, "accuracy": stage.accuracy, "digest": stage.digest}
        with self._write("ledger.finish_stage") as connection:
            done = connection.scalar(sa.select(STAGES.c.state).where(where))
            if done != "running":
                found = done or "unknown"
                raise IllegalTransition(f"stage {stage.attack} of trial {stage.number} is {found}, not running.")
            row = {name: value for name, value in packed(stage).items() if name not in ("tries", "batch_size")}
            connection.execute(STAGES.update().where(where).values(**row))
            cleared = {"error_kind": None, "error": None}  # of an earlier try of this stage
            if stage.plan != LAUNCHED or not stage.cumulative:
                self._touch(connection, stage.number, "stage done", detail)
            elif stage.split == "test":
                values = {"test_robust_acc": stage.accuracy, **cleared}
                if split_clean_acc is not None:
                    values["test_clean_acc"] = split_clean_acc
                self._touch(connection, stage.number, "stage done", detail, **values)
            elif stage.position == 0:
                ended = {"ended_at": time.time(), "robust_acc": stage.accuracy, "exact": exact, **cleared}
                self._move(connection, stage.number, State.FINISHED, detail, **ended)
            else:
                values = {"robust_acc": stage.accuracy, "exact": exact, **cleared}
                self._touch(connection, stage.number, "stage done", detail, **values)

    def note_stage_failure(self, stage: StageRecord, error: str, batch_size: int) -> None:
        """Count a failed try of a stage that will be tried again. Args: batch_size: of the next try."""
        detail = {"split": stage.split, "position": stage.position, "attack": stage.attack, "batch_size": batch_size}
        detail |= {"kind": _kind_of_stage_failure(error)}
        with self._write("ledger.note_stage_failure") as connection:
            values = {"tries": STAGES.c.tries + 1, "batch_size": batch_size, "error": error}
            connection.execute(STAGES.update().where(_stage_key(stage)).values(**values))
            self._touch(connection, stage.number, "stage try failed", detail)

    def fail_stage(self, stage: StageRecord, error: str) -> None:
        """Commit that a stage has failed. Without its first validation stage a trial has no objective: it failed."""
        kind = _kind_of_stage_failure(error)
        detail = {"split": stage.split, "position": stage.position, "attack": stage.attack}
        with self._write("ledger.fail_stage") as connection:
            connection.execute(STAGES.update().where(_stage_key(stage)).values(state="failed", error=error))
            if _is_objective(stage):
                values = {"error_kind": kind, "error": error, "ended_at": time.time()}
                self._move(connection, stage.number, State.FAILED, detail | {"kind": kind}, **values)
            else:
                self._touch(connection, stage.number, "stage failed", detail, error_kind=kind, error=error)

    # -- growing and changing -----------------------------------------------------------------------------------------

    def grant(self, request: Request) -> Granted | None:
        """Do what a request asks and note that it is done, in one transaction; None if that was done before."""
        with self._write("ledger.grant") as connection:
            if connection.scalar(sa.select(REQUESTS.c.kind).where(REQUESTS.c.id == request.id)):
                return None
            noted = REQUESTS.insert().values(id=request.id, granted_at=time.time(), kind=request.kind)
            connection.execute(noted)
            if request.kind == "pause":
                _event(connection, None, "paused", {"request": request.id})
                return Granted()
            if request.kind == "extend":
                self._extend(connection, request)
                return Granted()
            act = self._stop if request.kind == "stop" else self._open_again
            left = {number: found for number in request.trials if (found := act(connection, number, request.id))}
            changed = tuple(number for number in request.trials if number not in left)
            if changed and request.kind == "retry":
                connection.execute(SWEEP.update().values(completed_at=None))
            return Granted(changed, left)

    def _stop(self, connection: sa.Connection, number: int, request: str) -> str:
        """Stop an open trial with the stages that run; returns its state if there is nothing to stop."""
        state = connection.scalar(sa.select(TRIALS.c.state).where(TRIALS.c.number == number))
        if state is None or State(state) not in OPEN:
            return state or "unknown"
        running = sa.and_(STAGES.c.number == number, STAGES.c.state == "running")
        connection.execute(STAGES.update().where(running).values(state="failed", error="the trial was stopped."))
        self._move(connection, number, State.STOPPED, {"request": request}, ended_at=time.time())
        return ""

    def _open_again(self, connection: sa.Connection, number: int, request: str) -> str:
        """Open a failed trial, or forget a finished one's failed stages; returns its state if nothing has failed."""
        trial = connection.execute(sa.select(TRIALS).where(TRIALS.c.number == number)).mappings().one_or_none()
        if trial is None:
            return "unknown"
        failed = sa.and_(STAGES.c.number == number, STAGES.c.state == "failed")
        forgotten = connection.execute(STAGES.delete().where(failed)).rowcount
        detail = {"request": request, "kind": trial["error_kind"], "stages": forgotten}
        if trial["state"] == State.FAILED:
            has_weights = trial["weights_digest"] is not None and trial["error_kind"] != "checkpoint"
            to = State.TRAINED if has_weights else State.PROPOSED
            values = {"state": to, "failed_as": "{}", "ended_at": None}
            self._touch(connection, number, "retried", detail | {"state": str(to)}, **values)
        elif trial["state"] == State.FINISHED and forgotten:
            self._touch(connection, number, "retried", detail, error_kind=None, error=None)
        else:
            return str(trial["state"])
        return ""

    def _extend(self, connection: sa.Connection, request: Request) -> None:
        before = connection.scalar(sa.select(SWEEP.c.requested)) or 0
        requested = before + len(request.known) if request.requested is None else request.requested
        for params in request.known:
            connection.execute(KNOWN.insert().values(params=as_json(dict(params))))
        _add_prior(connection, request.prior)
        if requested > before:
            connection.execute(SWEEP.update().values(requested=requested, completed_at=None))
        detail = {"requested": max(before, requested), "known": len(request.known), "prior": len(request.prior)}
        _event(connection, None, "extended", {"request": request.id, **detail})

    def add_prior(self, trials: Sequence[PriorTrial]) -> None:
        """Remember finished trials of another sweep; those that are there already stay as they are."""
        with self._write("ledger.add_prior") as connection:
            _add_prior(connection, trials)
            _event(connection, None, "extended", {"prior": len(trials)})

    def change_document(
        self,
        document: Mapping[str, Any],
        stages: Sequence[PlannedStage],
        requested: int,
        changes: Sequence[str],
        *,
        forget_runs: bool,
    ) -> None:
        """Replace the configuration by a comparable one, and record what changed.

        Args: stages: all that are planned; requested: trials in total, never fewer than before; forget_runs: whether
            MLflow's runs are looked for anew, because they are kept elsewhere from now on.
        """
        with self._write("ledger.change_document") as connection:
            before = connection.scalar(sa.select(SWEEP.c.requested)) or 0
            values: dict[str, Any] = {
                "document": as_json(document),
                "planned_stages": as_json([asdict(stage) for stage in stages]),
                "requested": max(before, requested),
            }
            if requested > before:
                values["completed_at"] = None
            if forget_runs:
                values |= {"mlflow_uri": None, "mlflow_experiment_id": None, "mlflow_run_id": None}
                connection.execute(TRIALS.update().values(mlflow_run_id=None, mlflow_revision=0))
            connection.execute(SWEEP.update().values(**values))
            _event(connection, None, "configuration", {"changes": list(changes)})

    def next_known(self) -> KnownRecord | None:
        """Return the first added configuration that no trial has taken."""
        query = sa.select(KNOWN).where(KNOWN.c.number.is_(None)).order_by(KNOWN.c.position).limit(1)
        with self._engine.connect() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else KnownRecord(row["position"], json.loads(row["params"]), row["number"])

    def waiting_known(self) -> int:
        """Return how many added configurations no trial has taken."""
        query = sa.select(sa.func.count()).where(KNOWN.c.number.is_(None))
        with self._engine.connect() as connection:
            return connection.scalar(query) or 0

    def prior(self) -> list[PriorTrial]:
        """Return the trials of other sweeps that inform the sampler, always in the same order."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(PRIOR).order_by(PRIOR.c.sweep, PRIOR.c.number)).mappings().all()
        return [prior_record(row) for row in rows]

    def prior_counts(self) -> dict[str, int]:
        """Return how many trials of which other sweep inform the sampler."""
        query = sa.select(PRIOR.c.sweep, sa.func.count()).group_by(PRIOR.c.sweep).order_by(PRIOR.c.sweep)
        with self._engine.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def is_paused(self) -> bool:
        """Return whether the last driver was asked to pause."""
        of_drivers = sa.and_(EVENTS.c.number.is_(None), EVENTS.c.kind.in_(("driver started", "paused")))
        query = sa.select(EVENTS.c.kind).where(of_drivers).order_by(EVENTS.c.sequence.desc()).limit(1)
        with self._engine.connect() as connection:
            return connection.scalar(query) == "paused"

    # -- MLflow -------------------------------------------------------------------------------------------------------

    def note_mlflow_sweep(self, uri: str, experiment_id: str, run_id: str) -> None:
        """Remember the sweep's parent run."""
        with self._write("ledger.note_mlflow_sweep") as connection:
            connection.execute(
                SWEEP.update().values(mlflow_uri=uri, mlflow_experiment_id=experiment_id, mlflow_run_id=run_id)
            )

    def note_mlflow_trial(self, number: int, run_id: str, revision: int) -> None:
        """Remember a trial's run and up to which revision it mirrors the ledger; no revision of its own."""
        with self._write("ledger.note_mlflow_trial") as connection:
            row = TRIALS.c.number == number
            connection.execute(TRIALS.update().where(row).values(mlflow_run_id=run_id, mlflow_revision=revision))

    # -- reading ------------------------------------------------------------------------------------------------------

    def counts(self) -> dict[State, int]:
        """Return how many trials are in each state, zeros included."""
        with self._engine.connect() as connection:
            query = sa.select(TRIALS.c.state, sa.func.count()).where(_IS_TRIAL).group_by(TRIALS.c.state)
            rows = connection.execute(query).all()
        found = {State(state): count for state, count in rows}
        return {state: found.get(state, 0) for state in State}

    def trials(
        self, states: Sequence[State] | None = None, *, bare: bool = False, numbers: Collection[int] | None = None
    ) -> list[TrialRecord]:
        """Return the trials (in these states), by number.

        Args:
            bare: leave configuration, parameters and distributions empty, which is most of the work.
            numbers: only these; a few, because each is a word of the query.
        """
        columns = [column for column in TRIALS.c if not (bare and column.name in PACKED)]
        query = sa.select(*columns).where(_IS_TRIAL).order_by(TRIALS.c.number)
        if numbers is not None:
            query = query.where(TRIALS.c.number.in_(numbers))
        if states is not None:
            query = query.where(TRIALS.c.state.in_(states))
        with self._engine.connect() as connection:
            return [trial_record(row) for row in connection.execute(query).mappings()]

    def parents(self) -> list[TrialRecord]:
        """Return the models that trials start from and that the sweep trains, −1 first; `trials` leaves them out."""
        query = sa.select(TRIALS).where(~_IS_TRIAL).order_by(TRIALS.c.number.desc())
        with self._engine.connect() as connection:
            return [trial_record(row) for row in connection.execute(query).mappings()]

    def trial(self, number: int) -> TrialRecord:
        """Return one trial, or parent; LedgerError if it was never proposed."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(TRIALS).where(TRIALS.c.number == number)).mappings().one_or_none()
        if row is None:
            raise LedgerError(f"there is no trial {number}.")
        return trial_record(row)

    def history(self, number: int) -> list[dict[str, float]]:
        """Return a trial's metrics, one mapping per epoch."""
        with self._engine.connect() as connection:
            text = connection.scalar(sa.select(CURVES.c.history).where(CURVES.c.number == number))
        return json.loads(text) if text else []

    def stages(self, number: int | None = None) -> list[StageRecord]:
        """Return the attack stages of one trial, or of all, in the order trial, validation before test, position."""
        query = sa.select(STAGES).order_by(STAGES.c.number, STAGES.c.split.desc(), STAGES.c.position)
        if number is not None:
            query = query.where(STAGES.c.number == number)
        with self._engine.connect() as connection:
            return [stage_record(row) for row in connection.execute(query).mappings()]

    def failed_stages(self) -> set[int]:
        """Return the trials of which an attack stage has failed."""
        query = sa.select(STAGES.c.number).where(STAGES.c.state == "failed").distinct()
        with self._engine.connect() as connection:
            return set(connection.scalars(query))

    def running_stages(self, number: int | None = None) -> list[tuple[int, str, int]]:
        """Return (trial, split, position) of the attack stages that were started and have not ended, of one or all."""
        query = sa.select(STAGES.c.number, STAGES.c.split, STAGES.c.position).where(STAGES.c.state == "running")
        if number is not None:
            query = query.where(STAGES.c.number == number)
        with self._engine.connect() as connection:
            return [(row[0], row[1], row[2]) for row in connection.execute(query)]

    def stage_means(self) -> dict[tuple[str, int], float]:
        """Return the mean seconds of the attack stages that are done, by (split, position)."""
        key = (STAGES.c.split, STAGES.c.position)
        query = sa.select(*key, sa.func.avg(STAGES.c.seconds)).where(STAGES.c.state == "done").group_by(*key)
        with self._engine.connect() as connection:
            return {(row[0], row[1]): row[2] for row in connection.execute(query) if row[2] is not None}

    def driver_events(self, kind: str) -> list[Event]:
        """Return the drivers' own events of a kind, the oldest first: "driver started", "resources"."""
        query = sa.select(EVENTS).where(EVENTS.c.number.is_(None), EVENTS.c.kind == kind)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(EVENTS.c.sequence)).mappings()
            return [Event(**{**row, "detail": json.loads(row["detail"])}) for row in rows]

    def granted(self) -> dict[int, Mapping[str, float]]:
        """Return by trial, or parent, what Ray was asked for when its training started last: CPU, GPU."""
        query = sa.select(EVENTS.c.number, EVENTS.c.detail).where(EVENTS.c.kind == str(State.TRAINING))
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(EVENTS.c.sequence)).all()
        details = {number: json.loads(detail) for number, detail in rows}
        return {number: detail["gets"] for number, detail in details.items() if "gets" in detail}

    def last_sequence(self) -> int:
        """Return the number of the newest event; 0 before the first."""
        with self._engine.connect() as connection:
            return connection.scalar(sa.select(sa.func.max(EVENTS.c.sequence))) or 0

    def events(self, number: int | None = None, *, after: int = 0) -> list[Event]:
        """Return the audit log, of one trial or of everything. Args: after: only what is newer than this event."""
        query = sa.select(EVENTS).where(EVENTS.c.sequence > after).order_by(EVENTS.c.sequence)
        if number is not None:
            query = query.where(EVENTS.c.number == number)
        with self._engine.connect() as connection:
            rows = connection.execute(query).mappings()
            return [Event(**{**row, "detail": json.loads(row["detail"])}) for row in rows]

    # -- inside a transaction -----------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self, name: str) -> Iterator[sa.Connection]:
        """One transaction of whoever asks. Args: name: of this durable write, in search_spaces/faults.py."""
        with durable(name) as write, self._writer.begin() as connection:
            yield connection
            write.torn()

    @contextmanager
    def _write(self, name: str) -> Iterator[sa.Connection]:
        """One transaction of the lease's holder; LeaseLost, and nothing written, if that is no longer us."""
        with self._transaction(name) as connection:
            holder = connection.scalar(sa.select(LEASE.c.owner).with_for_update())  # sqlite locks as a whole already
            self._require_lease(holder)
            yield connection

    def _require_lease(self, holder: str | None) -> None:
        if self.owner is None or holder != self.owner:
            raise LeaseLost("this process does not hold the sweep's lease; it writes nothing more.")

    def _move(
        self, connection: sa.Connection, number: int, to: State, detail: Mapping[str, Any], **values: Any
    ) -> None:
        state = connection.scalar(sa.select(TRIALS.c.state).where(TRIALS.c.number == number))
        if state is None or State(state) not in _ALLOWED[to]:
            raise IllegalTransition(f"trial {number} is {state or 'unknown'}; it cannot become {to}.")
        self._touch(connection, number, str(to), detail, state=to, **values)

    def _touch(
        self, connection: sa.Connection, number: int, kind: str, detail: Mapping[str, Any], **values: Any
    ) -> None:
        sequence = _event(connection, number, kind, detail)
        change = TRIALS.update().where(TRIALS.c.number == number)
        connection.execute(change.values(updated_at=time.time(), revision=sequence, **values))


def pointer(url: str, sweep_id: str) -> str:
    """Return the line that stands where a sqlite ledger would be: the server's URL, and a schema of the sweep's own."""
    return f"{url} sweep_{sweep_id.replace('-', '')}"


def _first_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.readline(1000).decode("utf-8", errors="replace").strip()
    except OSError:
        return ""


def _engine(url: str, schema: str | None) -> sa.Engine:
    if not url.startswith("sqlite"):
        name_space = {"schema_translate_map": {None: schema}}
        return sa.create_engine(url, pool_pre_ping=True, execution_options=name_space)
    engine = sa.create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves; sqlite3's implicit one upgrades locks and deadlocks
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # a commit survives the loss of power, not only of the process
        connection.execute("PRAGMA foreign_keys=ON")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _event(connection: sa.Connection, number: int | None, kind: str, detail: Mapping[str, Any]) -> int:
    entry = EVENTS.insert().values(at=time.time(), number=number, kind=kind, detail=as_json(dict(detail)))
    key = connection.execute(entry).inserted_primary_key
    return int(key[0]) if key else 0


def _one_more(connection: sa.Connection, number: int, kind: str) -> dict[str, Any]:
    """Return a trial's counts of failures after one more of a kind."""
    text = connection.scalar(sa.select(TRIALS.c.failed_as).where(TRIALS.c.number == number))
    failed = json.loads(text or "{}")
    return {"failures": TRIALS.c.failures + 1, "failed_as": as_json({**failed, kind: failed.get(kind, 0) + 1})}


def _add_prior(connection: sa.Connection, trials: Sequence[PriorTrial]) -> None:
    known = {(row.sweep, row.number) for row in connection.execute(sa.select(PRIOR.c.sweep, PRIOR.c.number))}
    for trial in trials:
        if (trial.sweep, trial.number) not in known:
            texts = {n: as_json(v) for n, v in asdict(trial).items() if n in ("params", "distributions", "values")}
            connection.execute(PRIOR.insert().values(**{**asdict(trial), **texts}))


def _put(connection: sa.Connection, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Insert or replace a row; portable, and atomic because it runs inside the caller's transaction."""
    connection.execute(table.delete().where(*(table.c[name] == value for name, value in key.items())))
    connection.execute(table.insert().values(**key, **values))


def _is_objective(stage: StageRecord) -> bool:
    return stage.plan == LAUNCHED and stage.split == "validation" and stage.position == 0


def _kind_of_stage_failure(error: str) -> str:
    """Return a kind of `sweeps.failures.KINDS`."""
    if CheckpointCorrupt.__name__ in error:  # then there is nothing to attack
        return "checkpoint"
    return "hang" if has_hung(error) else "attack"


def _stage_key(stage: StageRecord) -> sa.ColumnElement[bool]:
    key = (STAGES.c.number == stage.number, STAGES.c.split == stage.split, STAGES.c.position == stage.position)
    return sa.and_(*key)


__all__ = ["CLOSED", "OPEN", "Ledger", "Split"]
