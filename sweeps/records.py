"""What the ledger remembers, as frozen values: the sweep, its trials, their attack stages, and the events."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


class State(enum.StrEnum):
    """Where a trial is in its life.

    ::

        proposed → training → trained → evaluating → finished
             ├─────────┴─────────┴──────────┴──────→ failed    (`retry` opens it again: proposed, or trained)
             └─────────┴─────────┴──────────┴──────→ stopped   (by `stop`, or a rule for early stopping)
    """

    PROPOSED = "proposed"
    TRAINING = "training"
    TRAINED = "trained"
    EVALUATING = "evaluating"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


OPEN = (State.PROPOSED, State.TRAINING, State.TRAINED, State.EVALUATING)
CLOSED = (State.FINISHED, State.STOPPED, State.FAILED)

Split = Literal["validation", "test"]


LAUNCHED = "sweep"
"""Name of the plan that a sweep was launched with; `evaluate` adds others."""


IMPORTED = "checkpoint"
"""Label of a trial that was brought and not trained."""


@dataclass(frozen=True)
class PlannedStage:
    """One attack of a plan on one split, complete but for the weights; an attack made of parts is a stage for each."""

    split: Split
    position: int
    """0-based, unique in its split over all plans; position 0 on validation images is the search objective."""
    plan: str
    """LAUNCHED, or the name of a plan that was added."""
    column: str
    """The entry of the plan that it belongs to: autoattack. Reports show one figure for each."""
    label: str
    """Unique in its plan and split: autoattack.apgd_t_3, or the column's name if that has no parts."""
    attack: str
    """Key of the attack."""
    config: Mapping[str, Any]
    threat: Mapping[str, Any]
    """Norm and epsilon."""
    cumulative: bool
    """Whether it belongs to the cascade and attacks what the stages before it left standing, or stands for itself."""
    images: int
    """Images of the split that are judged, balanced over the classes."""
    batch_size: int
    seed: int
    keep_images: bool = False
    """Whether adversarial images are kept beside the verdicts."""
    passes: tuple[int, int] | None = None
    """Fewest and most forward passes for one image, a backward pass counted as two; None if the attack does not say."""
    surrogate: Literal["backbone"] | None = None
    """The model that the attack sees, to be transferred to the judged one; None is the judged one."""

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> PlannedStage:
        """Return the stage that ``dataclasses.asdict`` made plain, lists for tuples."""
        passes = data.get("passes")
        return cls(**{**data, "passes": None if passes is None else (passes[0], passes[1])})


@dataclass(frozen=True)
class SweepRecord:
    """The sweep itself."""

    id: str
    """Random, unique; the tag by which MLflow runs are found again."""
    name: str
    created_at: float
    """Seconds since the epoch, as all times here."""
    requested: int
    """Trials asked for in total."""
    document: Mapping[str, Any]
    """The configuration as the user gave it, overrides applied (SweepConfig.document)."""
    objectives: tuple[str, ...]
    """Some of clean_acc, robust_acc and feature_cosine; all are maximised."""
    planned_stages: tuple[PlannedStage, ...]
    """Every attack of the launched plan and of plans that were added later, validation before test."""
    environment: Mapping[str, Any]
    """Git revision, package versions, platform: what a rerun would need."""
    data_digest: str
    """Names the exact images of all splits."""
    num_classes: int = 10
    split_sizes: Mapping[str, int] = field(default_factory=dict)
    """Images of "validation" and "test"."""
    completed_at: float | None = None
    mlflow_uri: str | None = None
    mlflow_experiment_id: str | None = None
    mlflow_run_id: str | None = None


@dataclass(frozen=True)
class TrialRecord:
    """One proposal and everything that became of it. Accuracies are fractions in [0, 1]; None is "not measured"."""

    number: int
    state: State
    label: str
    """Name of the method stack: plain, jasmin, jasmin+adversarial."""
    config: Mapping[str, Any]
    """TrialConfig.plain()."""
    params: Mapping[str, Any]
    """What the sampler drew: Optuna parameter name → value."""
    distributions: Mapping[str, str]
    """Optuna's JSON of each parameter's distribution, to rebuild the study."""
    seed: int
    created_at: float
    updated_at: float
    revision: int
    """Grows with every change of this trial; what MLflow has not seen yet is newer than `mlflow_revision`."""
    attempts: int = 0
    """Starts of the training, interruptions and retries included."""
    failures: int = 0
    """Failed attempts of the training."""
    failed_as: Mapping[str, int] = field(default_factory=dict)
    """Failed attempts by kind since the last `retry`; only these use up retries."""
    share: float = 1.0
    """How many times the configured share of the machine the next attempt gets; grows when memory did not suffice."""
    epochs: int = 0
    """Epochs whose checkpoint or final weights exist."""
    clean_acc: float | None = None
    """On the whole validation split."""
    robust_acc: float | None = None
    """On the attacked validation images, after the stages that have run: an upper bound until `exact`."""
    exact: bool = False
    """Whether all planned validation stages have run."""
    test_clean_acc: float | None = None
    test_robust_acc: float | None = None
    feature_cosine: float | None = None
    """In [-1, 1], between features under attack and clean ones of the backbone; measured by Robustness Tokens."""
    weights_digest: str | None = None
    train_seconds: float | None = None
    error_kind: str | None = None
    """A kind of `sweeps.failures.KINDS`: what made the trial fail, or its last attempt."""
    error: str | None = None
    """Traceback or message."""
    started_at: float | None = None
    ended_at: float | None = None
    mlflow_run_id: str | None = None
    mlflow_revision: int = 0

    def value(self, objective: str) -> float | None:
        """Return clean_acc, robust_acc or feature_cosine."""
        found: float | None = getattr(self, objective)
        return found


@dataclass(frozen=True)
class StageRecord:
    """One attack on one trial's images: `survivors` of `images` are still classified correctly after it.

    A stage of a cascade attacks only what the stages before it left standing, and its figures are those after all of
    them; any other attacks every correctly classified image.
    """

    number: int
    split: Split
    position: int
    """0-based, unique in the split over all plans (PlannedStage.position)."""
    attack: str
    """Its label in the plan: pgd, autoattack.apgd_t_3."""
    config: Mapping[str, Any]
    """The attack's own configuration with norm and epsilon."""
    digest: str
    """Names what was asked: weights, images, attack, seed. Verdicts are stored under it."""
    state: Literal["running", "done", "failed"]
    started_at: float
    images: int | None = None
    clean_correct: int | None = None
    """Images classified correctly before any attack."""
    survivors: int | None = None
    verdicts: NDArray[np.bool_] | None = field(default=None, compare=False)
    """(images,) still correct after this stage, in the order of the plan's images."""
    warnings: tuple[str, ...] = ()
    forwards: int | None = None
    """Images passed forward through the model."""
    backwards: int | None = None
    seconds: float | None = None
    error: str | None = None
    tries: int = 0
    """Failed tries that were followed by another."""
    batch_size: int | None = None
    """Images that go through the model at once; None is the plan's. It halves when memory does not suffice."""
    plan: str = LAUNCHED
    column: str = ""
    """Entry of the plan that it belongs to (PlannedStage.column)."""
    cumulative: bool = True
    facts: Mapping[str, float] = field(default_factory=dict)
    """What else was counted: attacked (images), flat (zero gradients at a start), mismatches (between the attack's own
    pass and the canonical one), logit_scale (mean spread of the clean logits), budget (forward passes, a backward pass
    as two, that the attacked images would take without early exit)."""

    @property
    def passes(self) -> int | None:
        """Images passed forward, those passed backward counted as two."""
        return None if self.forwards is None or self.backwards is None else self.forwards + 2 * self.backwards

    @property
    def accuracy(self) -> float | None:
        """Share of the images that survive; None unless the stage is done."""
        return None if self.survivors is None or not self.images else self.survivors / self.images


@dataclass(frozen=True)
class Event:
    """One entry of the audit log; every transaction of the driver leaves at least one."""

    sequence: int
    at: float
    number: int | None
    kind: str
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class KnownRecord:
    """A known configuration that was added to a sweep under way."""

    position: int
    """From 1, in the order in which they are tried."""
    params: Mapping[str, Any]
    """Optuna's parameters as the domains spell them; the rest is drawn."""
    number: int | None
    """The trial that it became; None while it waits."""


@dataclass(frozen=True)
class PriorTrial:
    """A finished trial of another sweep that informs the sampler: never on the front, never counted."""

    sweep: str
    """Name of the other sweep."""
    number: int
    """Its number there."""
    label: str
    params: Mapping[str, Any]
    distributions: Mapping[str, str]
    """Optuna's JSON of this sweep's own distribution of each parameter."""
    values: tuple[float, ...]
    """The objectives as that search was told them: robust accuracy after the first attack."""


@dataclass(frozen=True)
class LeaseRecord:
    """Which driver runs the sweep."""

    owner: str
    host: str
    pid: int
    process_started: str
    """Start time of that process as its operating system tells it, so that a reused pid is not mistaken for it."""
    acquired_at: float
    heartbeat_at: float
