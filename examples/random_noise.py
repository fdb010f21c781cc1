"""Random noise: the best of several uniform draws from the ε-ball. What any attack with a right to its name must beat.

Our own, as a yardstick: it looks at no gradient and learns nothing from its failures.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from trainables.ascent import frozen, image_noise, project, spread
from trainables.attack import Attack, Model
from trainables.config import AttackConfig
from trainables.worst_case import WorstCase


class RandomNoiseConfig(AttackConfig):
    """How often it tries."""

    tries: Annotated[int, Field(ge=1)] = 20
    """Draws per image; an image falls if any of them is misclassified."""


class RandomNoise(Attack[RandomNoiseConfig]):
    """Uniform in the ball, then clamped to [0, 1]; random numbers derive from (seed, image, try)."""

    Config = RandomNoiseConfig

    @classmethod
    def passes(cls, config: RandomNoiseConfig, num_classes: int) -> tuple[int, int]:
        return 1, config.tries

    def run(self, model: Model, worst: WorstCase, seed: int, image_ids: Tensor) -> None:
        with frozen(model), torch.no_grad():
            for draw in range(self.config.tries):
                rows = worst.standing  # who has fallen is not asked again
                if not len(rows):
                    return
                candidates = self._draw(worst.origin[rows], image_ids[rows.cpu()].tolist(), seed, draw)
                worst.offer(rows, candidates, model(candidates))

    def _draw(self, origin: Tensor, ids: list[int], seed: int, draw: int) -> Tensor:
        norm, epsilon = self.threat.norm, self.threat.epsilon
        noise, radius = image_noise(origin, ids, norm, seed, "random_noise", draw)
        change = spread(noise, radius, norm=norm, epsilon=epsilon)
        return project(origin + change, origin, norm=norm, epsilon=epsilon)
