"""APGD-CE: Auto-PGD on the cross-entropy, AutoAttack's first stage (Croce and Hein 2020, arXiv:2003.01690)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from trainables.apgd import climb_with_restarts
from trainables.ascent import frozen
from trainables.attack import Attack, Model
from trainables.attack_losses import cross_entropy
from trainables.config import AttackConfig
from trainables.worst_case import WorstCase


class ApgdCeConfig(AttackConfig):
    """Length and number of the ascents."""

    steps: Annotated[int, Field(ge=1)] = 100
    """Gradient steps per restart; the schedule of step sizes is computed for them."""
    restarts: Annotated[int, Field(ge=1)] = 1
    """Ascents per image, each on the images that withstood those before it."""


class ApgdCe(Attack[ApgdCeConfig]):
    """Random numbers derive from (seed, image, restart); see trainables/apgd.py."""

    Config = ApgdCeConfig
    name: ClassVar[str] = "apgd_ce"
    """What the random numbers are seeded with beside seed, image and restart."""

    @staticmethod
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        """Return what the ascent is on, image by image: (B, K), (B,) → (B,)."""
        return cross_entropy(logits, labels)

    @classmethod
    def passes(cls, config: ApgdCeConfig, num_classes: int) -> tuple[int, int]:
        return 3, config.restarts * (3 * config.steps + 1)

    def run(self, model: Model, worst: WorstCase, seed: int, image_ids: Tensor) -> None:
        with frozen(model):
            climb_with_restarts(
                model,
                worst,
                image_ids,
                seed=seed,
                name=self.name,
                loss=self.loss,
                threat=self.threat,
                steps=self.config.steps,
                restarts=self.config.restarts,
            )
