"""What a sweep looks like from outside, read from the ledger alone: `status`, the front, the public trial objects."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sweeps.lease import is_alive
from sweeps.ledger import Ledger
from sweeps.parents import names_of
from sweeps.pareto import front
from sweeps.records import CLOSED, LAUNCHED, OPEN, StageRecord, State, SweepRecord, TrialRecord
from sweeps.requests import Request


def sweep_state(ledger: Ledger) -> str:
    """Return running (a driver lives), finished (nothing is left to do), paused (as it was asked) or interrupted."""
    lease = ledger.lease()
    if lease is not None and is_alive(lease, time.time()):
        return "running"
    if ledger.sweep().completed_at is not None:
        return "finished"
    return "paused" if ledger.is_paused() else "interrupted"


def objective_values(trial: TrialRecord, objectives: Sequence[str]) -> tuple[float, ...] | None:
    """Return a finished trial's objectives, bounds included; None if one is missing."""
    values = tuple(v for v in (trial.value(o) for o in objectives) if v is not None)
    return values if trial.state is State.FINISHED and len(values) == len(objectives) else None


def front_of(trials: Sequence[TrialRecord], objectives: Sequence[str]) -> list[TrialRecord]:
    """Return the Pareto front of the exact trials, by falling first objective."""
    settled = [(t, v) for t in trials if t.exact and (v := objective_values(t, objectives)) is not None]
    chosen = front([v for _, v in settled])
    return [
        t for t, _ in sorted((settled[i] for i in chosen), key=lambda item: ([-v for v in item[1]], item[0].number))
    ]


def status(ledger: Ledger, requests: Sequence[Request] = ()) -> dict[str, Any]:
    """Return the object that ``status --json`` prints; its keys are stable. Args: requests: those that wait."""
    sweep, counts, trials = ledger.sweep(), ledger.counts(), ledger.trials(bare=True)
    proposed = sum(counts.values())
    return {
        "name": sweep.name,
        "state": sweep_state(ledger),
        "trials": {
            "requested": sweep.requested,
            **{str(state): count for state, count in counts.items()},
            "to_go": sweep.requested - proposed,
        },
        "parents": [
            {"name": name, "state": str(p.state), "epochs": p.epochs} for p in ledger.parents() for name in names_of(p)
        ],
        "open": [{"trial": t.number, "state": str(t.state), "epochs": t.epochs} for t in trials if t.state in OPEN],
        "waiting": [
            {"request": r.kind, "trials": list(r.trials), "requested": r.requested, "known": len(r.known)}
            for r in requests
        ],
        "prior": ledger.prior_counts(),
        "objectives": list(sweep.objectives),
        "front": [
            {
                "trial": t.number,
                "clean_acc": t.clean_acc,
                "robust_acc": t.robust_acc,
                "feature_cosine": t.feature_cosine,
                "exact": t.exact,
                "test_clean_acc": t.test_clean_acc,
                "test_robust_acc": t.test_robust_acc,
            }
            for t in front_of(trials, sweep.objectives)
        ],
    }


def public_trial(trial: TrialRecord, stages: Sequence[StageRecord]) -> dict[str, Any]:
    """Return a trial as ``export --format json`` prints it; its keys are stable."""
    return {
        "number": trial.number,
        "state": str(trial.state),
        "method": trial.label,
        "config": dict(trial.config),
        "params": dict(trial.params),
        "seed": trial.seed,
        "clean_acc": trial.clean_acc,
        "robust_acc": trial.robust_acc,
        "feature_cosine": trial.feature_cosine,
        "exact": trial.exact,
        "test_clean_acc": trial.test_clean_acc,
        "test_robust_acc": trial.test_robust_acc,
        "attacks": [public_stage(s) for s in stages if s.number == trial.number],
        "epochs": trial.epochs,
        "error": None if trial.error is None else {"kind": trial.error_kind, "text": trial.error},
        "mlflow_run_id": trial.mlflow_run_id,
    }


def public_stage(stage: StageRecord) -> dict[str, Any]:
    """Return an attack stage as the export and the tracking artifacts show it."""
    return {
        "split": stage.split,
        "plan": stage.plan,
        "column": stage.column,
        "attack": stage.attack,
        "cumulative": stage.cumulative,
        "config": dict(stage.config),
        "state": stage.state,
        "images": stage.images,
        "clean_correct": stage.clean_correct,
        "survivors": stage.survivors,
        "accuracy": stage.accuracy,
        "warnings": list(stage.warnings),
        "forwards": stage.forwards,
        "backwards": stage.backwards,
        "passes": stage.passes,
        "facts": dict(stage.facts),
        "seconds": stage.seconds,
        "error": stage.error,
        "digest": stage.digest,
    }


def wilson(successes: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson score interval (95 % by default) of a proportion; count >= 1.

    Source: Wilson 1927. wilson(128, 256)  # (0.439, 0.561)
    """
    share = successes / count
    centre = share + z * z / (2 * count)
    half = z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    scale = 1 + z * z / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def robust_interval(
    stages: Sequence[StageRecord], number: int, split: str = "validation"
) -> tuple[float, float] | None:
    """Return the interval of a trial's robust accuracy on a split, after the last stage of the launched plan's cascade
    that ran there; None before that."""
    mine = [s for s in stages if s.number == number and s.split == split and s.plan == LAUNCHED and s.cumulative]
    done = [s for s in mine if s.state == "done"]
    if not done or done[-1].survivors is None or not done[-1].images:
        return None
    return wilson(done[-1].survivors, done[-1].images)


def headline(sweep: SweepRecord, trials: Sequence[TrialRecord]) -> str:
    """Return one line: how many of the requested trials are finished, stopped and failed."""
    counts = {state: sum(t.state is state for t in trials) for state in CLOSED}
    others = [f", {counts[state]} {state}" for state in (State.STOPPED, State.FAILED) if counts[state]]
    return f"{counts[State.FINISHED]} of {sweep.requested} trials finished" + "".join(others)
