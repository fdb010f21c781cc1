"""The ledger's tables, and how records become rows and rows become records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from sweeps.records import PriorTrial, StageRecord, State, SweepRecord, TrialRecord

SCHEMA_VERSION = 4

SCHEMA = sa.MetaData()

SWEEP = sa.Table(
    "sweep",
    SCHEMA,
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

LEASE = sa.Table(
    "lease",
    SCHEMA,
    sa.Column("slot", sa.Integer, primary_key=True),
    sa.Column("owner", sa.String(36), nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("process_started", sa.Text, nullable=False),
    sa.Column("acquired_at", sa.Float, nullable=False),
    sa.Column("heartbeat_at", sa.Float, nullable=False),
)

TRIALS = sa.Table(
    "trials",
    SCHEMA,
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
    sa.Column("failed_as", sa.Text, nullable=False, default="{}"),
    sa.Column("share", sa.Float, nullable=False, default=1.0),
    sa.Column("epochs", sa.Integer, nullable=False, default=0),
    sa.Column("clean_acc", sa.Float),
    sa.Column("robust_acc", sa.Float),
    sa.Column("exact", sa.Boolean, nullable=False, default=False),
    sa.Column("test_clean_acc", sa.Float),
    sa.Column("test_robust_acc", sa.Float),
    sa.Column("feature_cosine", sa.Float),
    sa.Column("weights_digest", sa.Text),
    sa.Column("train_seconds", sa.Float),
    sa.Column("error_kind", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("started_at", sa.Float),
    sa.Column("ended_at", sa.Float),
    sa.Column("mlflow_run_id", sa.Text),
    sa.Column("mlflow_revision", sa.Integer, nullable=False, default=0),
)

CURVES = sa.Table(
    "curves",
    SCHEMA,
    sa.Column("number", sa.Integer, sa.ForeignKey("trials.number"), primary_key=True),
    sa.Column("history", sa.Text, nullable=False),
)

STAGES = sa.Table(
    "stages",
    SCHEMA,
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
    sa.Column("tries", sa.Integer, nullable=False, default=0),
    sa.Column("batch_size", sa.Integer),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("column", sa.Text, nullable=False),
    sa.Column("cumulative", sa.Boolean, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
)

KNOWN = sa.Table(
    "known",
    SCHEMA,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("params", sa.Text, nullable=False),
    sa.Column("number", sa.Integer, sa.ForeignKey("trials.number")),
)

PRIOR = sa.Table(
    "prior",
    SCHEMA,
    sa.Column("sweep", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("params", sa.Text, nullable=False),
    sa.Column("distributions", sa.Text, nullable=False),
    sa.Column("values", sa.Text, nullable=False),
)

REQUESTS = sa.Table(
    "requests",
    SCHEMA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("granted_at", sa.Float, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
)

EVENTS = sa.Table(
    "events",
    SCHEMA,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("number", sa.Integer, index=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
)

PACKED = ("config", "params", "distributions", "failed_as")
"""Columns of a trial that hold JSON."""


def as_json(data: Any) -> str:
    """Write data as JSON, its keys in their order: that of a stack of methods matters."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def packed(record: SweepRecord | StageRecord) -> dict[str, Any]:
    """Return a record's columns: lists and mappings as JSON, verdicts as bits."""
    values: dict[str, Any] = dict(record.__dict__)
    for name, value in values.items():
        if name == "planned_stages":
            values[name] = as_json([asdict(stage) for stage in value])
        elif isinstance(value, Mapping | tuple):
            values[name] = as_json(dict(value) if isinstance(value, Mapping) else list(value))
        elif isinstance(value, np.ndarray):
            values[name] = np.packbits(value).tobytes()
    return values


def trial_record(row: sa.RowMapping) -> TrialRecord:
    """Return the record of a row of TRIALS; what was not read is empty."""
    unpacked = {name: json.loads(row[name]) if name in row else {} for name in PACKED}
    return TrialRecord(**{**row, **unpacked, "state": State(row["state"])})


def prior_record(row: sa.RowMapping) -> PriorTrial:
    """Return the record of a row of PRIOR."""
    unpacked = {name: json.loads(row[name]) for name in ("params", "distributions", "values")}
    return PriorTrial(**{**row, **unpacked, "values": tuple(unpacked["values"])})


def stage_record(row: sa.RowMapping) -> StageRecord:
    """Return the record of a row of STAGES."""
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
