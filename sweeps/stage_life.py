"""An attack stage in the ledger: begun, tried again, adopted or failed; for the sweep's driver and for `evaluate`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from sweeps.cascade import Target, is_through, stage_job
from sweeps.failures import after_stage_failure
from sweeps.failures_section import FailuresSection
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.records import PlannedStage, StageRecord
from sweeps.stage_job import StageJob, StageOutcome, started


def start(ledger: Ledger, target: Target, folder: SweepFolder, data_digest: str) -> StageJob:
    """Commit that a stage is about to run and return its job, with what an unfinished try has left: how many tries
    failed, and the batch size that they came to. A stage that has failed for good begins anew."""
    trial, stages = ledger.trial(target.number), ledger.stages(target.number)
    at = (target.stage.split, target.stage.position)
    before = next((s for s in stages if (s.split, s.position) == at and s.state == "running"), None)
    if before is not None and before.batch_size is not None:
        target = target._replace(stage=replace(target.stage, batch_size=before.batch_size))
    job = stage_job(target, trial, stages, folder, data_digest)
    record = started(job, time.time())
    if before is not None:
        record = replace(record, tries=before.tries, batch_size=before.batch_size)
    ledger.start_stage(record)
    return job


def try_again(ledger: Ledger, job: StageJob, error: str, section: FailuresSection, say: Callable[[str], None]) -> bool:
    """Count a failed try of a stage and leave it to begin again, if the policy allows; returns whether it does.

    Args: error: the traceback; say: takes a line for the user.
    """
    at = (job.stage.split, job.stage.position)
    record = next(s for s in ledger.stages(job.number) if (s.split, s.position) == at)
    again = after_stage_failure(error, record.tries, job.stage.batch_size, section)
    if again is None:
        return False
    ledger.note_stage_failure(record, error, again.batch_size)
    size = f" with batches of {again.batch_size}" if again.batch_size != job.stage.batch_size else ""
    say(f"trial {job.number}: {job.stage.label} on {job.stage.split} images is tried again{size}")
    return True


def adopt(
    ledger: Ledger, planned: Sequence[PlannedStage], job: StageJob, outcome: StageOutcome | str
) -> StageRecord | None:
    """Commit how a stage ended; returns its record, None if it failed. Args: planned: all stages of its plan."""
    if isinstance(outcome, str):
        ledger.fail_stage(started(job, time.time()), outcome)
        return None
    record = outcome.record
    chain = [s for s in planned if s.split == record.split and s.cumulative]
    had = [s for s in ledger.stages(record.number) if (s.plan, s.split) == (record.plan, record.split)]
    exact = record.cumulative and is_through(chain, [*had, record])
    ledger.finish_stage(record, exact=exact, split_clean_acc=outcome.split_clean_acc)
    return record


def is_last_of_column(planned: Sequence[PlannedStage], stage: PlannedStage) -> bool:
    """Return whether a stage is the last part of its attack. Args: planned: all stages of its plan."""
    return stage.position == max(s.position for s in planned if (s.split, s.column) == (stage.split, stage.column))
