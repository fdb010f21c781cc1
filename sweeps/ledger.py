"""The ledger: the one truth about a sweep, in a small SQL database keyed by trial number.

Every transition is one transaction, committed before the act that it records; a proposal exists once number, full
configuration and seed are committed together. Only the driver that holds the lease writes. Optuna's study, MLflow and
the report are views that are rebuilt from here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from search_spaces.errors import IllegalTransition, LeaseLost, LedgerError
from sweeps.records import (
    CLOSED,
    LAUNCHED,
    OPEN,
    Event,
    LeaseRecord,
    PlannedStage,
    Split,
    StageRecord,
    State,
    SweepRecord,
    TrialRecord,
)

SCHEMA_VERSION = 2

_schema = sa.MetaData()

_sweep = sa.Table(
    "sweep",
    _schema,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("requested", sa.Integer, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("objectives", sa.Text, nullable=False),
    sa.Column("planned_stages", sa.Text, nullable=False),
    sa.Column("environment", sa.Text, nullable=False),
    sa.Column("data_digest", sa.Text, nullable=False),
    sa.Column("num_classes", sa.Integer, nullable=False),
    sa.Column("split_sizes", sa.Text, nullable=False),
    sa.Column("completed_at", sa.Float),
    sa.Column("mlflow_uri", sa.Text),
    sa.Column("mlflow_experiment_id", sa.Text),
    sa.Column("mlflow_run_id", sa.Text),
)

_lease = sa.Table(
    "lease",
    _schema,
    sa.Column("slot", sa.Integer, primary_key=True),
    sa.Column("owner", sa.String(36), nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("process_started", sa.Text, nullable=False),
    sa.Column("acquired_at", sa.Float, nullable=False),
    sa.Column("heartbeat_at", sa.Float, nullable=False),
)

_trials = sa.Table(
    "trials",
    _schema,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("config", sa.Text, nullable=False),
    sa.Column("params", sa.Text, nullable=False),
    sa.Column("distributions", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("failures", sa.Integer, nullable=False, default=0),
    sa.Column("epochs", sa.Integer, nullable=False, default=0),
    sa.Column("clean_acc", sa.Float),
    sa.Column("robust_acc", sa.Float),
    sa.Column("exact", sa.Boolean, nullable=False, default=False),
    sa.Column("test_clean_acc", sa.Float),
    sa.Column("test_robust_acc", sa.Float),
    sa.Column("weights_digest", sa.Text),
    sa.Column("train_seconds", sa.Float),
    sa.Column("error_kind", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("started_at", sa.Float),
    sa.Column("ended_at", sa.Float),
    sa.Column("mlflow_run_id", sa.Text),
    sa.Column("mlflow_revision", sa.Integer, nullable=False, default=0),
)

_curves = sa.Table(
    "curves",
    _schema,
    sa.Column("number", sa.Integer, sa.ForeignKey("trials.number"), primary_key=True),
    sa.Column("history", sa.Text, nullable=False),
)

_stages = sa.Table(
    "stages",
    _schema,
    sa.Column("number", sa.Integer, sa.ForeignKey("trials.number"), primary_key=True),
    sa.Column("split", sa.String(16), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("attack", sa.Text, nullable=False),
    sa.Column("config", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("images", sa.Integer),
    sa.Column("clean_correct", sa.Integer),
    sa.Column("survivors", sa.Integer),
    sa.Column("verdicts", sa.LargeBinary),
    sa.Column("warnings", sa.Text, nullable=False, default="[]"),
    sa.Column("forwards", sa.BigInteger),
    sa.Column("backwards", sa.BigInteger),
    sa.Column("seconds", sa.Float),
    sa.Column("error", sa.Text),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("column", sa.Text, nullable=False),
    sa.Column("cumulative", sa.Boolean, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
)

_events = sa.Table(
    "events",
    _schema,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("number", sa.Integer, index=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
)

_ALLOWED: Mapping[State, tuple[State, ...]] = {
    State.TRAINING: (State.PROPOSED, State.TRAINING),
    State.TRAINED: (State.TRAINING,),
    State.EVALUATING: (State.TRAINED, State.EVALUATING),
    State.FINISHED: (State.TRAINED, State.EVALUATING),
    State.STOPPED: (State.TRAINING,),
    State.FAILED: OPEN,
}
"""State → the states from which a trial may come into it."""


class Ledger:
    """Reads and, with a lease, writes the ledger. Safe to share between the threads of one process."""

    def __init__(self, url: str) -> None:
        """Args: url: SQLAlchemy URL, such as ``sqlite:////…/ledger.db``."""
        self._engine = _engine(url)
        self._writer = self._engine.execution_options(write=True)
        self.owner: str | None = None

    @classmethod
    def at(cls, path: Path) -> Ledger:
        """Open the sqlite ledger in a file."""
        return cls(f"sqlite:///{path}")

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    # -- the sweep ----------------------------------------------------------------------------------------------------

    def create(self, sweep: SweepRecord) -> None:
        """Create the tables and the sweep's row, in one transaction."""
        with self._writer.begin() as connection:
            _schema.create_all(connection)
            connection.execute(_sweep.insert().values(schema_version=SCHEMA_VERSION, **_pack(sweep)))
            _event(connection, None, "created", {"requested": sweep.requested})

    def sweep(self) -> SweepRecord:
        """Return the sweep's row; LedgerError if the database holds none or was written by another version."""
        with self._engine.connect() as connection:
            there = sa.inspect(connection).has_table(_sweep.name)
            row = connection.execute(sa.select(_sweep)).mappings().one_or_none() if there else None
        if row is None:
            raise LedgerError("the ledger holds no sweep.")
        if row["schema_version"] != SCHEMA_VERSION:
            raise LedgerError(f"the ledger has schema {row['schema_version']}, this version reads {SCHEMA_VERSION}.")
        values = {k: v for k, v in row.items() if k != "schema_version"}
        for key in ("document", "environment", "split_sizes", "objectives", "planned_stages"):
            values[key] = json.loads(values[key])
        values["objectives"] = tuple(values["objectives"])
        values["planned_stages"] = tuple(map(PlannedStage.from_plain, values["planned_stages"]))
        return SweepRecord(**values)

    def add_plan(self, name: str, stages: Sequence[PlannedStage]) -> None:
        """Add the stages of a further plan; IllegalTransition if a plan of that name is there already."""
        with self._write() as connection:
            before = json.loads(connection.scalar(sa.select(_sweep.c.planned_stages)) or "[]")
            if any(stage["plan"] == name for stage in before):
                raise IllegalTransition(f"the sweep has a plan {name!r} already.")
            planned = [*before, *map(asdict, stages)]
            connection.execute(_sweep.update().values(planned_stages=_json(planned)))
            _event(connection, None, "plan added", {"plan": name, "stages": [stage.label for stage in stages]})

    def raise_total(self, requested: int) -> None:
        """Ask for more trials; IllegalTransition if it would be fewer than before: the total can only grow."""
        with self._write() as connection:
            before = connection.scalar(sa.select(_sweep.c.requested)) or 0
            if requested < before:
                raise IllegalTransition(f"the sweep has {before} trials; the total can only grow, found {requested}.")
            connection.execute(_sweep.update().values(requested=requested, completed_at=None))
            _event(connection, None, "total", {"requested": requested})

    def complete(self) -> None:
        """Say that nothing is left to do; IllegalTransition if a trial is still open or was never proposed."""
        with self._write() as connection:
            still_open = connection.scalar(sa.select(sa.func.count()).where(_trials.c.state.in_(OPEN)))
            proposed = connection.scalar(sa.select(sa.func.count()).select_from(_trials))
            requested = connection.scalar(sa.select(_sweep.c.requested))
            if still_open or proposed != requested:
                raise IllegalTransition(f"{still_open} trials are open and {proposed} of {requested} proposed.")
            connection.execute(_sweep.update().values(completed_at=time.time()))
            _event(connection, None, "completed", {})

    def note_driver(self, kind: str, detail: Mapping[str, Any]) -> None:
        """Add an event of the driver itself: started, interrupted, crashed."""
        with self._write() as connection:
            _event(connection, None, kind, detail)

    # -- the lease ----------------------------------------------------------------------------------------------------

    def lease(self) -> LeaseRecord | None:
        """Return who holds the lease, dead or alive; None if nobody does."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(_lease)).mappings().one_or_none()
        return None if row is None else LeaseRecord(**{k: v for k, v in row.items() if k != "slot"})

    def take_lease(self, lease: LeaseRecord, replacing: LeaseRecord | None) -> bool:
        """Become the writer, if the lease is still held by `replacing` (None: by nobody). Returns whether it worked."""
        with self._writer.begin() as connection:
            row = connection.execute(sa.select(_lease)).mappings().one_or_none()
            held = None if row is None else (row["owner"], row["heartbeat_at"])
            if held != (None if replacing is None else (replacing.owner, replacing.heartbeat_at)):
                return False
            connection.execute(_lease.delete())
            connection.execute(_lease.insert().values(slot=1, **lease.__dict__))
        self.owner = lease.owner
        return True

    def heartbeat(self) -> None:
        """Say that this driver lives; LeaseLost if another one has taken over."""
        with self._write() as connection:
            connection.execute(_lease.update().values(heartbeat_at=time.time()))

    def release_lease(self) -> None:
        """Give the lease back, if it is still ours."""
        with self._writer.begin() as connection:
            connection.execute(_lease.delete().where(_lease.c.owner == self.owner))
        self.owner = None

    # -- a trial's life -----------------------------------------------------------------------------------------------

    def propose(
        self,
        number: int,
        label: str,
        config: Mapping[str, Any],
        params: Mapping[str, Any],
        distributions: Mapping[str, str],
        seed: int,
    ) -> None:
        """Commit a proposal; numbers are given without gaps."""
        now = time.time()
        with self._write() as connection:
            count = connection.scalar(sa.select(sa.func.count()).select_from(_trials))
            if number != count:
                raise IllegalTransition(f"the next proposal is number {count}, found {number}.")
            connection.execute(
                _trials.insert().values(
                    number=number,
                    state=State.PROPOSED,
                    label=label,
                    config=_json(config),
                    params=_json(params),
                    distributions=_json(distributions),
                    seed=seed,
                    created_at=now,
                    updated_at=now,
                    revision=0,
                )
            )
            self._touch(connection, number, "proposed", {"label": label})

    def start_training(self, number: int) -> int:
        """Commit that the training (re)starts; returns the number of this attempt, from 1."""
        with self._write() as connection:
            attempts = connection.scalar(sa.select(_trials.c.attempts).where(_trials.c.number == number))
            attempt = (attempts or 0) + 1
            started = sa.func.coalesce(_trials.c.started_at, time.time())
            self._move(connection, number, State.TRAINING, {"attempt": attempt}, attempts=attempt, started_at=started)
        return attempt

    def record_epochs(self, number: int, history: Sequence[Mapping[str, float]]) -> None:
        """Replace a trial's curves by `history`, one mapping of metrics per epoch; the checkpoint exists already."""
        with self._write() as connection:
            known = connection.scalar(sa.select(_trials.c.epochs).where(_trials.c.number == number))
            _put(connection, _curves, {"number": number}, {"history": _json(list(history))})
            self._touch(connection, number, "epochs", {"from": known, "to": len(history)}, epochs=len(history))

    def finish_training(self, number: int, clean_acc: float, weights_digest: str, seconds: float) -> None:
        """Commit the trained weights and their accuracy on the whole validation split."""
        detail = {"clean_acc": clean_acc, "weights": weights_digest}
        with self._write() as connection:
            self._move(
                connection,
                number,
                State.TRAINED,
                detail,
                clean_acc=clean_acc,
                weights_digest=weights_digest,
                train_seconds=seconds,
                error=None,
                error_kind=None,
            )

    def note_failure(self, number: int, kind: str, error: str) -> None:
        """Count a failed attempt of the training that will be tried again."""
        with self._write() as connection:
            failures = _trials.c.failures + 1
            self._touch(
                connection, number, "attempt failed", {"kind": kind}, failures=failures, error_kind=kind, error=error
            )

    def fail(self, number: int, kind: str, error: str) -> None:
        """Commit that the trial has failed for good."""
        with self._write() as connection:
            self._move(
                connection,
                number,
                State.FAILED,
                {"kind": kind},
                failures=_trials.c.failures + 1,
                error_kind=kind,
                error=error,
                ended_at=time.time(),
            )

    def finish_without_attack(self, number: int) -> None:
        """Commit the end of a trial whose plan has no attack."""
        with self._write() as connection:
            self._move(connection, number, State.FINISHED, {}, exact=True, ended_at=time.time())

    # -- attack stages ------------------------------------------------------------------------------------------------

    def start_stage(self, stage: StageRecord) -> None:
        """Commit that a stage is about to run. The first validation stage takes the trial to "evaluating"."""
        key = {"number": stage.number, "split": stage.split, "position": stage.position}
        detail = {"split": stage.split, "position": stage.position, "attack": stage.attack}
        with self._write() as connection:
            _put(connection, _stages, key, {k: v for k, v in _pack(stage).items() if k not in key})
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
        with self._write() as connection:
            done = connection.scalar(sa.select(_stages.c.state).where(where))
            if done != "running":
                found = done or "unknown"
                raise IllegalTransition(f"stage {stage.attack} of trial {stage.number} is {found}, not running.")
            connection.execute(_stages.update().where(where).values(**_pack(stage)))
            cleared = {"error_kind": None, "error": None}  # of an earlier try of this stage
            if stage.plan != LAUNCHED or not stage.cumulative:
                self._touch(connection, stage.number, "stage done", detail)
            elif stage.split == "test":
                values = {"test_robust_acc": stage.accuracy, **cleared}
                if split_clean_acc is not None:
                    values["test_clean_acc"] = split_clean_acc
                self._touch(connection, stage.number, "stage done", detail, **values)
            elif stage.position == 0:
                ended = {"ended_at": time.time(), "robust_acc": stage.accuracy, "exact": exact}
                self._move(connection, stage.number, State.FINISHED, detail, **ended)
            else:
                values = {"robust_acc": stage.accuracy, "exact": exact, **cleared}
                self._touch(connection, stage.number, "stage done", detail, **values)

    def fail_stage(self, stage: StageRecord, error: str) -> None:
        """Commit that a stage has failed. Without its first validation stage a trial has no objective: it failed."""
        detail = {"split": stage.split, "position": stage.position, "attack": stage.attack}
        with self._write() as connection:
            connection.execute(_stages.update().where(_stage_key(stage)).values(state="failed", error=error))
            if _is_objective(stage):
                values = {"error_kind": "attack", "error": error, "ended_at": time.time()}
                self._move(connection, stage.number, State.FAILED, detail | {"kind": "attack"}, **values)
            else:
                self._touch(connection, stage.number, "stage failed", detail, error_kind="attack", error=error)

    # -- MLflow -------------------------------------------------------------------------------------------------------

    def note_mlflow_sweep(self, uri: str, experiment_id: str, run_id: str) -> None:
        """Remember the sweep's parent run."""
        with self._write() as connection:
            connection.execute(
                _sweep.update().values(mlflow_uri=uri, mlflow_experiment_id=experiment_id, mlflow_run_id=run_id)
            )

    def note_mlflow_trial(self, number: int, run_id: str, revision: int) -> None:
        """Remember a trial's run and up to which revision it mirrors the ledger; no revision of its own."""
        with self._write() as connection:
            row = _trials.c.number == number
            connection.execute(_trials.update().where(row).values(mlflow_run_id=run_id, mlflow_revision=revision))

    # -- reading ------------------------------------------------------------------------------------------------------

    def counts(self) -> dict[State, int]:
        """Return how many trials are in each state, zeros included."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(_trials.c.state, sa.func.count()).group_by(_trials.c.state)).all()
        found = {State(state): count for state, count in rows}
        return {state: found.get(state, 0) for state in State}

    def trials(self, states: Sequence[State] | None = None) -> list[TrialRecord]:
        """Return the trials (in these states), by number."""
        query = sa.select(_trials).order_by(_trials.c.number)
        if states is not None:
            query = query.where(_trials.c.state.in_(states))
        with self._engine.connect() as connection:
            return [_trial(row) for row in connection.execute(query).mappings()]

    def trial(self, number: int) -> TrialRecord:
        """Return one trial; LedgerError if it was never proposed."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(_trials).where(_trials.c.number == number)).mappings().one_or_none()
        if row is None:
            raise LedgerError(f"there is no trial {number}.")
        return _trial(row)

    def history(self, number: int) -> list[dict[str, float]]:
        """Return a trial's metrics, one mapping per epoch."""
        with self._engine.connect() as connection:
            text = connection.scalar(sa.select(_curves.c.history).where(_curves.c.number == number))
        return json.loads(text) if text else []

    def stages(self, number: int | None = None) -> list[StageRecord]:
        """Return the attack stages of one trial, or of all, in the order trial, validation before test, position."""
        query = sa.select(_stages).order_by(_stages.c.number, _stages.c.split.desc(), _stages.c.position)
        if number is not None:
            query = query.where(_stages.c.number == number)
        with self._engine.connect() as connection:
            return [_stage(row) for row in connection.execute(query).mappings()]

    def events(self, number: int | None = None) -> list[Event]:
        """Return the audit log, of one trial or of everything."""
        query = sa.select(_events).order_by(_events.c.sequence)
        if number is not None:
            query = query.where(_events.c.number == number)
        with self._engine.connect() as connection:
            rows = connection.execute(query).mappings()
            return [Event(**{**row, "detail": json.loads(row["detail"])}) for row in rows]

    # -- inside a transaction -----------------------------------------------------------------------------------------

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        """One transaction of the lease's holder; LeaseLost, and nothing written, if that is no longer us."""
        with self._writer.begin() as connection:
            holder = connection.scalar(sa.select(_lease.c.owner))
            if self.owner is None or holder != self.owner:
                raise LeaseLost("this process does not hold the sweep's lease; it writes nothing more.")
            yield connection

    def _move(
        self, connection: sa.Connection, number: int, to: State, detail: Mapping[str, Any], **values: Any
    ) -> None:
        state = connection.scalar(sa.select(_trials.c.state).where(_trials.c.number == number))
        if state is None or State(state) not in _ALLOWED[to]:
            raise IllegalTransition(f"trial {number} is {state or 'unknown'}; it cannot become {to}.")
        self._touch(connection, number, str(to), detail, state=to, **values)

    def _touch(
        self, connection: sa.Connection, number: int, kind: str, detail: Mapping[str, Any], **values: Any
    ) -> None:
        sequence = _event(connection, number, kind, detail)
        change = _trials.update().where(_trials.c.number == number)
        connection.execute(change.values(updated_at=time.time(), revision=sequence, **values))


def _engine(url: str) -> sa.Engine:
    if not url.startswith("sqlite"):
        return sa.create_engine(url, pool_pre_ping=True)
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
    entry = _events.insert().values(at=time.time(), number=number, kind=kind, detail=_json(dict(detail)))
    key = connection.execute(entry).inserted_primary_key
    return int(key[0]) if key else 0


def _put(connection: sa.Connection, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Insert or replace a row; portable, and atomic because it runs inside the caller's transaction."""
    connection.execute(table.delete().where(*(table.c[name] == value for name, value in key.items())))
    connection.execute(table.insert().values(**key, **values))


def _is_objective(stage: StageRecord) -> bool:
    return stage.plan == LAUNCHED and stage.split == "validation" and stage.position == 0


def _stage_key(stage: StageRecord) -> sa.ColumnElement[bool]:
    key = (_stages.c.number == stage.number, _stages.c.split == stage.split, _stages.c.position == stage.position)
    return sa.and_(*key)


def _json(data: Any) -> str:
    """Write data as JSON, its keys in their order: that of a stack of methods matters."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def _pack(record: SweepRecord | StageRecord) -> dict[str, Any]:
    values: dict[str, Any] = dict(record.__dict__)
    for name, value in values.items():
        if name == "planned_stages":
            values[name] = _json([asdict(stage) for stage in value])
        elif isinstance(value, Mapping | tuple):
            values[name] = _json(dict(value) if isinstance(value, Mapping) else list(value))
        elif isinstance(value, np.ndarray):
            values[name] = np.packbits(value).tobytes()
    return values


def _trial(row: sa.RowMapping) -> TrialRecord:
    packed = ("config", "params", "distributions")
    return TrialRecord(**{**row, **{k: json.loads(row[k]) for k in packed}, "state": State(row["state"])})


def _stage(row: sa.RowMapping) -> StageRecord:
    values: dict[str, Any] = {
        **row,
        "config": json.loads(row["config"]),
        "facts": json.loads(row["facts"]),
        "warnings": tuple(json.loads(row["warnings"])),
    }
    if row["verdicts"] is not None:
        values["verdicts"] = _unpack(row["verdicts"], row["images"])
    return StageRecord(**values)


def _unpack(bits: bytes, count: int) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=count).astype(bool)


__all__ = ["CLOSED", "OPEN", "Ledger", "Split"]
