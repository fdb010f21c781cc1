"""APGD-CE: Auto-PGD on the cross-entropy, AutoAttack's first stage (Croce and Hein 2020, arXiv:2003.01690)."""

from __future__ import annotations

from typing import Annotated

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

    @classmethod
    def passes(cls, config: ApgdCeConfig, num_classes: int) -> tuple[int, int]:
        return 3, config.restarts * (3 * config.steps + 1)

    def perturb(self, model: Model, images: Tensor, labels: Tensor, seed: int, image_ids: Tensor) -> Tensor:
        worst = WorstCase(images, labels)
        with frozen(model):
            climb_with_restarts(
                model,
                worst,
                image_ids,
                seed=seed,
                name="apgd_ce",
                loss=cross_entropy,
                threat=self.threat,
                steps=self.config.steps,
                restarts=self.config.restarts,
            )
        return worst.images
