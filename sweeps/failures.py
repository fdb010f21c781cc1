"""What a failure is answered with: another attempt, when and with how much of the machine, or the end. Pure functions.

=============  ====================================================================================================
kind           what happened
=============  ====================================================================================================
crash          the worker process died
node           the machine that it ran on was lost, or could no longer be reached
memory         a device or the machine had no memory left
hang           no report, or of an attack no unit, for `failures.hang_after_s`; the driver ended the worker
nan            a loss was NaN or infinite
exception      the training raised something else
checkpoint     the trial's folder holds another trial's checkpoint
attack         an attack stage failed
=============  ====================================================================================================

A kind that says how often it is tried again has an allowance of its own, the others share `failures.retries`. All of
it is counted in the ledger; interruptions of the driver use up nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from search_spaces.errors import has_hung, ran_out_of_memory
from sweeps.failures_section import FailurePolicy, FailuresSection, MemoryPolicy

TrainingFailure = Literal["crash", "node", "memory", "hang", "nan", "exception", "checkpoint"]
KINDS = (*get_args(TrainingFailure), "attack")
LONGEST_BACKOFF_S = 600.0
"""No pause before another attempt is longer (our choice)."""
LARGEST_SHARE = 1024.0
"""A share grows no further; what a trial really gets ends at a whole device, whatever it asks for."""


@dataclass(frozen=True)
class Again:
    """Another attempt of a training, from its last good checkpoint."""

    pause_s: float
    share: float
    """How many times the configured share it gets."""


@dataclass(frozen=True)
class StageAgain:
    """Another try of an attack stage; what it has judged is in the store."""

    batch_size: int


def after_failure(kind: str, failed_as: Mapping[str, int], share: float, section: FailuresSection) -> Again | None:
    """Return the next attempt of a training that has failed; None if the trial has failed for good.

    Args:
        kind: of this failure.
        failed_as: failed attempts before this one, by kind.
        share: of the attempt that failed.
    """
    policy = policy_of(kind, section)
    if policy.retries is None:
        allowed = section.retries
        used = sum(n for name, n in failed_as.items() if policy_of(name, section).retries is None)
    else:
        allowed, used = policy.retries, failed_as.get(kind, 0)
    if used >= allowed:
        return None
    growth = policy.grow_share if isinstance(policy, MemoryPolicy) else 1.0
    return Again(backoff(policy.backoff_s, failed_as.get(kind, 0)), min(share * growth, max(share, LARGEST_SHARE)))


def policy_of(kind: str, section: FailuresSection) -> FailurePolicy:
    """Return the policy of a training's kind of failure; an unknown kind is treated as an exception."""
    found = getattr(section, kind, None)
    return found if isinstance(found, FailurePolicy) else section.exception


def backoff(first_s: float, before: int) -> float:
    """Return the pause after `before` earlier failures: doubled each time. backoff(5, 2)  # 20.0"""
    return min(first_s * 2.0 ** min(before, 64), LONGEST_BACKOFF_S)


def after_stage_failure(error: str, tries: int, batch_size: int, section: FailuresSection) -> StageAgain | None:
    """Return the next try of an attack stage that has failed; None if it stays failed.

    Args: error: the traceback; tries: failed ones before this one; batch_size: of the one that failed.
    """
    policy = section.attack
    if has_hung(error):
        return StageAgain(batch_size) if tries < policy.hangs else None
    if ran_out_of_memory(error):
        return StageAgain(batch_size // 2) if tries < policy.halvings and batch_size > 1 else None
    return StageAgain(batch_size) if tries < policy.retries else None
