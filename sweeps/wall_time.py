"""How long a sweep may take: the seconds of one that has run, scaled by images and epochs, on what fits at once. Pure.

Seconds belong to a model, a device and a share of it; what was measured with others is no measurement of these, which
`conditions` puts into words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster.resources import Shares
from sweeps.forecast import Plan, Range, StageFigures
from sweeps.measured_memory import Needs
from sweeps.records import LAUNCHED, PlannedStage, Split, StageRecord, TrialRecord


@dataclass(frozen=True)
class Measured:
    """What a sweep has taken."""

    name: str
    trials: int
    """Trained ones, on which this rests."""
    seconds_per_image: float
    """Of training, for one image in one epoch, its share of everything around it included."""
    attacks: Mapping[tuple[Split, str], float]
    """Split and label or column → seconds for one image of the plan, over all trained trials alike: what most of them
    were spared counts as nothing."""
    had: Mapping[str, float]
    """CPUs and GPUs of one training and one attack there (`Shares.public`); empty where that is not known."""
    model: str = ""
    needs: Needs = field(default_factory=Needs)
    """What of the GPUs' memory it has measured."""


@dataclass(frozen=True)
class WallTime:
    """Seconds of a sweep."""

    training: Range
    """All trainings, as many at once as fit, parents before them."""
    beside: float
    """First attacks of all trials, which run meanwhile."""
    later: float
    """All other attacks, when training is over."""
    unknown: tuple[str, ...]
    """Attacks that were not measured, and are in none of these."""

    @property
    def total(self) -> Range:
        """First attacks may outlast the trainings; all later ones come after both."""
        return Range(
            max(self.training.low, self.beside) + self.later, max(self.training.high, self.beside) + self.later
        )


def measure(
    name: str,
    trials: Sequence[TrialRecord],
    stages: Sequence[StageRecord],
    planned: Sequence[PlannedStage],
    train_images: int,
    had: Mapping[str, float],
    model: str = "",
) -> Measured | None:
    """Return what a sweep's trials took; None if none of them has been trained to its end.

    Args: train_images: of that sweep's training split.
    """
    trained = [(t.train_seconds, t.epochs) for t in trials if t.train_seconds is not None and t.epochs]
    if not trained:
        return None
    passes = train_images * sum(epochs for _, epochs in trained)
    return Measured(
        name=name,
        trials=len(trained),
        seconds_per_image=sum(seconds for seconds, _ in trained) / passes,
        attacks=_attack_seconds(stages, planned, len(trained)),
        had=had,
        model=model,
    )


def _attack_seconds(
    stages: Sequence[StageRecord], planned: Sequence[PlannedStage], trials: int
) -> dict[tuple[Split, str], float]:
    """Add up each attack's parts; the one that judges every trial stands for itself, as in the plan."""
    images = {(p.split, p.position): p.images for p in planned if p.plan == LAUNCHED}
    attacks: dict[tuple[Split, str], float] = {}
    for stage in stages:
        judged = images.get((stage.split, stage.position))
        if judged and stage.seconds is not None:
            is_first = (stage.split, stage.position) == ("validation", 0)
            key = (stage.split, stage.attack if is_first else stage.column or stage.attack)
            attacks[key] = attacks.get(key, 0.0) + stage.seconds / judged / trials
    return attacks


def estimate(plan: Plan, shares: Shares, measured: Measured) -> WallTime:
    """Return how long the plan may take with these shares. An attack that is not in `measured` adds nothing."""
    rounds = math.ceil(plan.config.trials / shares.concurrent)
    before = sum(parent.recipe.epochs for parent in plan.parents)
    per_epoch = measured.seconds_per_image * plan.data.train
    first, later = plan.stages[:1], plan.stages[1:]
    unknown = [s.label for s in plan.stages if ("validation", s.label) not in measured.attacks]
    unknown += [s.label for s in plan.test_stages if ("test", s.label) not in measured.attacks]
    trials = plan.config.trials
    after = _seconds("validation", later, measured) + _seconds("test", plan.test_stages, measured)
    return WallTime(
        training=plan.epochs.scaled(rounds * per_epoch).shifted(before * per_epoch),
        beside=trials * _seconds("validation", first, measured) / shares.evaluation_workers,
        later=trials * after / shares.draining_workers,
        unknown=tuple(dict.fromkeys(unknown)),
    )


def _seconds(split: Split, stages: Sequence[StageFigures], measured: Measured) -> float:
    """Return the seconds of some attacks for one trial."""
    return sum(measured.attacks.get((split, stage.label), 0.0) * stage.images for stage in stages)


def conditions(plan: Plan, shares: Shares, measured: Measured) -> list[str]:
    """Return what the estimate takes for equal though it differs, or is not known: one clause each."""
    said = []
    models = ", ".join(plan.model.names)
    if measured.model and measured.model != models:
        said.append(f"there the model was {measured.model}")
    names = {
        "trial_cpus": "CPU of a training",
        "trial_gpus": "GPU of a training",
        "evaluation_gpus": "GPU of an attack",
    }
    here = shares.public()
    for key, what in names.items():
        if key in measured.had and not math.isclose(measured.had[key], here[key]):
            said.append(f"there {measured.had[key]:g} {what}, here {here[key]:g}")
    return said


def in_words(seconds: float) -> str:
    """Write a time to two figures or so: 12 s, 3 min, 2.1 h, 3.4 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
