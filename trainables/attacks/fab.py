"""FAB: the nearest decision boundary, found by linearising it (Croce and Hein 2020, arXiv:1907.02044)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from trainables.ascent import frozen
from trainables.attack import Attack, Model
from trainables.config import AttackConfig
from trainables.fab import search_boundary
from trainables.worst_case import WorstCase


class FabConfig(AttackConfig):
    """Length of the walk."""

    steps: Annotated[int, Field(ge=1)] = 100
    """Iterations; each needs the gradients of all classes."""


class Fab(Attack[FabConfig]):
    """The authors' code, one run; draws no random numbers. See trainables/fab.py."""

    Config = FabConfig

    @classmethod
    def passes(cls, config: FabConfig, num_classes: int) -> tuple[int, int]:
        most = config.steps * (2 + 2 * num_classes) + 2
        return most - 1, most

    def run(self, model: Model, worst: WorstCase, seed: int, image_ids: Tensor) -> None:
        with frozen(model):
            search_boundary(model, worst, threat=self.threat, steps=self.config.steps)
