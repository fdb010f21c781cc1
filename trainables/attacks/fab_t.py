"""FAB-T: FAB toward one class at a time, AutoAttack's third stage (Croce and Hein 2020, arXiv:1907.02044)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from trainables.apgd import MOST_TARGETS
from trainables.ascent import frozen
from trainables.attack import Attack, Model
from trainables.config import AttackConfig
from trainables.fab import search_boundaries
from trainables.worst_case import WorstCase


class FabTConfig(AttackConfig):
    """Length and number of the walks."""

    steps: Annotated[int, Field(ge=1)] = 100
    """Iterations per target."""
    targets: Annotated[int, Field(ge=1)] = MOST_TARGETS
    """Classes aimed at, those of the largest logits first; at most all but the true one."""


class FabT(Attack[FabTConfig]):
    """The authors' code, one run per target; draws no random numbers. See trainables/fab.py."""

    Config = FabTConfig

    @classmethod
    def passes(cls, config: FabTConfig, num_classes: int) -> tuple[int, int]:
        walk = 4 * config.steps + 3
        return 1 + walk, 1 + min(config.targets, num_classes - 1) * walk

    def run(self, model: Model, worst: WorstCase, seed: int, image_ids: Tensor) -> None:
        with frozen(model):
            search_boundaries(model, worst, threat=self.threat, steps=self.config.steps, targets=self.config.targets)
