"""Adversarial training: learn from PGD examples (Madry et al. 2018, arXiv:1706.06083)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from search_spaces.config import Number
from search_spaces.domains import LogUniform
from trainables.ascent import ascend, frozen, loss_gradient, project, spread
from trainables.config import MethodConfig
from trainables.method import Batch, Method


class AdversarialConfig(MethodConfig):
    """The inner maximisation; defaults are Madry's for CIFAR-10."""

    norm: Literal["linf", "l2"] = "linf"
    epsilon: Annotated[Number, Field(ge=0, le=1), LogUniform(1 / 255, 16 / 255)] = 8 / 255
    """Radius on the [0, 1] pixel scale; 0 is plain fine-tuning, bit by bit."""
    steps: Annotated[int, Field(ge=1)] = 10
    """Gradient steps of the inner attack."""
    step_size: Annotated[Number, Field(gt=0)] | None = None
    """Length of a step on the [0, 1] pixel scale, shrunk with ε during its warm-up; None is 2.5 ε / steps."""
    random_start: bool = True
    """Start from a uniformly drawn point of the ball instead of the image."""
    epsilon_warmup_epochs: Annotated[Number, Field(ge=0)] = 0.0
    """ε grows linearly from 0 in epoch 0 to its full value in this epoch (our choice; the paper has none)."""


class Adversarial(Method[AdversarialConfig]):
    """PGD-AT: each batch is replaced by its adversarial examples for the model in eval mode, whatever the targets.

    Random starts come from torch's global random numbers, which checkpoints save.
    """

    Config = AdversarialConfig
    strengths = ("epsilon",)

    def __init__(self, config: AdversarialConfig, total_epochs: int) -> None:
        super().__init__(config, total_epochs)
        self._ramp = self._ramp_at(0)

    def perturb(self, model: nn.Module, batch: Batch) -> Batch:
        epsilon = self.config.epsilon * self._ramp
        if epsilon == 0:
            return batch
        norm = self.config.norm
        full_step = self.config.step_size or 2.5 * self.config.epsilon / self.config.steps
        adversarial = self._start(batch.images, epsilon)
        with frozen(model):
            for _ in range(self.config.steps):
                _, gradient = loss_gradient(model, adversarial, batch.targets)
                adversarial = ascend(
                    adversarial, gradient, batch.images, norm=norm, epsilon=epsilon, step_size=full_step * self._ramp
                )
        return Batch(adversarial, batch.targets)

    def on_epoch_start(self, model: nn.Module, epoch: int) -> None:
        self._ramp = self._ramp_at(epoch)

    def _start(self, images: torch.Tensor, epsilon: float) -> torch.Tensor:
        if not self.config.random_start:
            return images
        noise = torch.rand_like(images) if self.config.norm == "linf" else torch.randn_like(images)
        change = spread(noise, torch.rand_like(images[:, 0, 0, 0]), norm=self.config.norm, epsilon=epsilon)
        return project(images + change, images, norm=self.config.norm, epsilon=epsilon)

    def _ramp_at(self, epoch: int) -> float:
        warmup = self.config.epsilon_warmup_epochs
        return min(1.0, epoch / warmup) if warmup else 1.0
