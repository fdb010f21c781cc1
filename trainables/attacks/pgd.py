"""PGD: projected gradient ascent on the cross-entropy from random starts (Madry et al. 2018, arXiv:1706.06083)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from search_spaces.config import Number
from trainables.ascent import ascend, frozen, image_noise, loss_gradient, project, spread
from trainables.attack import Attack, Model, Threat
from trainables.attack_losses import cross_entropy
from trainables.normalized_budget import NormalizedBudgetConfig, budget_scale, reasons_against
from trainables.worst_case import WorstCase


class PgdConfig(NormalizedBudgetConfig):
    """Length and number of the ascents."""

    steps: Annotated[int, Field(ge=1)] = 20
    """Gradient steps per restart."""
    step_size: Annotated[Number, Field(gt=0)] | None = None
    """Length of a step on the [0, 1] pixel scale; None is 2.5 ε / steps."""
    restarts: Annotated[int, Field(ge=1)] = 1
    """Ascents per image; an image falls if any of them succeeds."""
    random_start: bool = True
    """Start uniformly in the ball instead of at the image."""

    @model_validator(mode="after")
    def _restarts_differ(self) -> PgdConfig:
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"without random_start every restart is the same; found restarts {self.restarts}")
        return self


class Pgd(Attack[PgdConfig]):
    """Random numbers derive from (seed, image, restart); images that are fooled leave the working batch at once.

    Differs: every iterate counts, not the last alone; who is not surely fooled is handed back as its most misclassified
    iterate, so that the evaluator decides.
    """

    Config = PgdConfig
    name: ClassVar[str] = "pgd"
    """What the random numbers are seeded with beside seed, image and restart."""

    @staticmethod
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        """Return what the ascent is on, image by image: (B, K), (B,) → (B,)."""
        return cross_entropy(logits, labels)

    @classmethod
    def check(cls, config: PgdConfig, threat: Threat, num_classes: int) -> Iterable[str]:
        yield from super().check(config, threat, num_classes)
        yield from reasons_against(config, threat)

    @classmethod
    def passes(cls, config: PgdConfig, num_classes: int) -> tuple[int, int]:
        return 3, config.restarts * (3 * config.steps + 1)

    def run(self, model: Model, worst: WorstCase, seed: int, image_ids: Tensor) -> None:
        scale = budget_scale(self.config, model)
        epsilon = self.threat.epsilon * scale
        step_size = (self.config.step_size or 2.5 * self.threat.epsilon / self.config.steps) * scale
        with frozen(model):
            for restart in range(self.config.restarts):
                rows = worst.standing
                if not len(rows):
                    return
                start = self._start(worst.origin[rows], image_ids[rows.cpu()].tolist(), seed, restart, epsilon)
                self._climb(model, worst, rows, start, epsilon, step_size)

    def _climb(
        self,
        model: Model,
        worst: WorstCase,
        rows: Tensor,
        start: Tensor,
        epsilon: float | Tensor,
        step_size: float | Tensor,
    ) -> None:
        """Ascend with the images `rows` (n,) from `start` (n, C, H, W) and offer every iterate to `worst`."""
        images = start
        for step in range(self.config.steps):
            labels = worst.labels[rows]
            logits, gradient = loss_gradient(model, images, labels, lambda z, t: self.loss(z, t).sum())
            if step == 0:
                worst.note_gradient(rows, gradient)
            stands = worst.offer(rows, images, logits)
            rows = rows[stands]
            if not len(rows):
                return
            images = ascend(
                images[stands],
                gradient[stands],
                worst.origin[rows],
                norm=self.threat.norm,
                epsilon=epsilon,
                step_size=step_size,
            )
        with torch.no_grad():
            worst.offer(rows, images, model(images))

    def _start(self, origin: Tensor, ids: Iterable[int], seed: int, restart: int, epsilon: float | Tensor) -> Tensor:
        if not self.config.random_start:
            return origin
        noise, radius = image_noise(origin, ids, self.threat.norm, seed, self.name, restart)
        change = spread(noise, radius, norm=self.threat.norm, epsilon=epsilon)
        return project(origin + change, origin, norm=self.threat.norm, epsilon=epsilon)
