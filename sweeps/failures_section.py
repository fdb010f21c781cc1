"""The section failures: what follows each kind of failure."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from search_spaces.config import Config, Number


class FailurePolicy(Config):
    """What follows one kind of failure of a training: so many attempts more, each from the last good checkpoint."""

    retries: Annotated[int, Field(ge=0)] | None = None
    """How often it is tried again after a failure of this kind; without it, it shares `failures.retries`."""
    backoff_s: Annotated[Number, Field(ge=0)] = 0
    """Seconds before the second attempt, doubled for each further one, 600 at most; other trials go on meanwhile."""


class RepeatedPolicy(FailurePolicy):
    """A failure that another attempt of the same configuration and seed would only repeat."""

    retries: Annotated[int, Field(ge=0)] | None = 0
    """How often it is tried again all the same."""


class NodePolicy(FailurePolicy):
    """A machine was lost with the trainings on it, which is not their fault; a training that brings its machine down is
    to end some day all the same, hence an allowance of its own."""

    retries: Annotated[int, Field(ge=0)] | None = 100
    """How often it goes on elsewhere after that; None: it shares `failures.retries`."""


class MemoryPolicy(FailurePolicy):
    """A device or the machine had no memory left."""

    grow_share: Annotated[Number, Field(ge=1)] = 2
    """Each further attempt gets so many times the share of a GPU (without GPUs: of the cores), up to a whole device, so
    that fewer trials run beside it; such attempts come when the other trainings are over."""


class AttackPolicy(Config):
    """An attack stage failed. What it has judged is kept; its failed tries count together, whatever they failed of. A
    lost worker's part is judged again without being asked."""

    halvings: Annotated[int, Field(ge=0)] = 3
    """How often a stage without memory is tried again, each time with half the batch size."""
    hangs: Annotated[int, Field(ge=0)] = 1
    """How often a stage that judged nothing for `failures.hang_after_s` is tried again."""
    retries: Annotated[int, Field(ge=0)] = 0
    """How often a stage that failed otherwise is tried again."""


class FailuresSection(Config):
    """What happens when a training or an attack fails. Interruptions of the driver never count."""

    retries: Annotated[int, Field(ge=0)] = 1
    """How often a failed training is tried again, over all kinds that say nothing else."""
    hang_after_s: Annotated[Number, Field(gt=0)] | None = None
    """A training that reports nothing for so long is ended and has failed as a hang, and so is an attack stage of which
    a worker judges no further unit for so long; to start, both have two minutes at least. A unit is up to four batches
    of an attack, and up to 64 without one. Give several times what the longest epoch or unit takes; None
    waits for ever."""
    crash: FailurePolicy = FailurePolicy()
    """The worker process died."""
    node: NodePolicy = NodePolicy()
    """The machine was lost that a training ran on. Attacks that lose theirs are judged again without being asked."""
    memory: MemoryPolicy = MemoryPolicy()
    """A device or the machine had no memory left."""
    hang: FailurePolicy = FailurePolicy()
    """A training's silence for `hang_after_s`; for stages see `attack`."""
    exception: FailurePolicy = FailurePolicy()
    """The training raised anything else."""
    nan: RepeatedPolicy = RepeatedPolicy()
    """A loss was NaN or infinite."""
    checkpoint: RepeatedPolicy = RepeatedPolicy()
    """The trial's folder holds another trial's checkpoint."""
    attack: AttackPolicy = AttackPolicy()
    """A stage of the attack failed."""
