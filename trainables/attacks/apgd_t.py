"""APGD-T: Auto-PGD on the targeted ratio of logits, class by class (Croce and Hein 2020, arXiv:2003.01690)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field
from torch import Tensor

from trainables.apgd import CLASSES_FOR_TARGETS, MOST_TARGETS, climb_to_targets
from trainables.ascent import frozen
from trainables.attack import Attack, Model, Threat
from trainables.config import AttackConfig
from trainables.worst_case import WorstCase


class ApgdTConfig(AttackConfig):
    """Length and number of the ascents."""

    steps: Annotated[int, Field(ge=1)] = 100
    """Gradient steps per target; the schedule of step sizes is computed for them."""
    targets: Annotated[int, Field(ge=1)] = MOST_TARGETS
    """Classes aimed at, those of the largest logits first; at most all but the true one."""
    first: Annotated[int, Field(ge=0)] = 0
    """Rank of the first class aimed at: 0 is the best wrong class, 3 leaves out the three best."""


class ApgdT(Attack[ApgdTConfig]):
    """Random numbers derive from (seed, image, rank of the target); see trainables/apgd.py.

    A rank alone, `{first: 3, targets: 1}`, starts where it starts among the others.
    """

    Config = ApgdTConfig

    @classmethod
    def check(cls, config: ApgdTConfig, threat: Threat, num_classes: int) -> Iterable[str]:
        yield from super().check(config, threat, num_classes)
        if num_classes < CLASSES_FOR_TARGETS:
            yield f"it needs at least {CLASSES_FOR_TARGETS} classes, the data set has {num_classes}; use apgd_ce"
        elif config.first >= num_classes - 1:
            yield (
                f"first must be below the {num_classes - 1} wrong classes that the data set has; found {config.first}"
            )

    @classmethod
    def passes(cls, config: ApgdTConfig, num_classes: int) -> tuple[int, int]:
        targets = min(config.targets, num_classes - 1 - config.first)
        return 4, 1 + targets * (3 * config.steps + 1)

    def run(self, model: Model, worst: WorstCase, seed: int, image_ids: Tensor) -> None:
        with frozen(model):
            climb_to_targets(
                model,
                worst,
                image_ids,
                seed=seed,
                threat=self.threat,
                steps=self.config.steps,
                targets=self.config.targets,
                first=self.config.first,
            )
