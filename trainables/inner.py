"""The inner maximisation of adversarial training: an ε-ball that may grow over the first epochs, and a climb."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from search_spaces.config import Number
from search_spaces.domains import LogUniform
from trainables.ascent import Loss, ascend, frozen, loss_gradient, project, spread, summed_cross_entropy
from trainables.config import MethodConfig


class InnerAttackConfig(MethodConfig):
    """The ball and the climb, which PGD-AT and TRADES share."""

    norm: Literal["linf", "l2"] = "linf"
    """Whether ε bounds each pixel's change or the length of the whole change."""
    epsilon: Annotated[Number, Field(ge=0, le=1), LogUniform(1 / 255, 16 / 255)] = 8 / 255
    """Radius on the [0, 1] pixel scale; at 0 nothing is attacked."""
    steps: Annotated[int, Field(ge=1)] = 10
    """Gradient steps of the inner attack."""
    step_size: Annotated[Number, Field(gt=0)] | None = None
    """Length of a step on the [0, 1] pixel scale, shrunk with ε during its warm-up; None is 2.5 ε / steps."""
    epsilon_warmup_epochs: Annotated[Number, Field(ge=0)] = 0.0
    """ε grows linearly from 0 in epoch 0 to its full value in this epoch (our choice; the papers have none)."""


class InnerAttack:
    """Climbs a loss within the ball of the current epoch."""

    def __init__(self, config: InnerAttackConfig) -> None:
        self.config = config
        self.start_epoch(0)

    @property
    def epsilon(self) -> float:
        """Radius in this epoch, its warm-up included."""
        return self.config.epsilon * self._ramp

    def start_epoch(self, epoch: int) -> None:
        """Take the radius of epoch `epoch` (0-based)."""
        warmup = self.config.epsilon_warmup_epochs
        self._ramp = min(1.0, epoch / warmup) if warmup else 1.0

    def uniform_start(self, images: Tensor) -> Tensor:
        """Return one point for each image, uniform in its ball and clamped to [0, 1]; draws torch's global numbers."""
        noise = torch.rand_like(images) if self.config.norm == "linf" else torch.randn_like(images)
        change = spread(noise, torch.rand_like(images[:, 0, 0, 0]), norm=self.config.norm, epsilon=self.epsilon)
        return self.projected(images + change, images)

    def projected(self, images: Tensor, origin: Tensor) -> Tensor:
        """Return the images moved into the balls around `origin` and into [0, 1]."""
        return project(images, origin, norm=self.config.norm, epsilon=self.epsilon)

    def climb(
        self, model: nn.Module, start: Tensor, origin: Tensor, targets: Tensor, loss: Loss = summed_cross_entropy
    ) -> Tensor:
        """Return where the ascent from `start` arrives: (B, C, H, W), in the balls around `origin` and in [0, 1].

        No parameter is in the graph meanwhile, and none has a gradient afterwards. Args: targets, loss: as in
        `loss_gradient`.
        """
        norm = self.config.norm
        full_step = self.config.step_size or 2.5 * self.config.epsilon / self.config.steps
        images = start
        with frozen(model):
            for _ in range(self.config.steps):
                _, gradient = loss_gradient(model, images, targets, loss)
                images = ascend(
                    images, gradient, origin, norm=norm, epsilon=self.epsilon, step_size=full_step * self._ramp
                )
        return images
