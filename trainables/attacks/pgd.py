"""PGD: projected gradient ascent on the cross-entropy from random starts (Madry et al. 2018, arXiv:1706.06083)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from search_spaces.config import Number
from search_spaces.seeds import derive_seed
from trainables.ascent import ascend, frozen, loss_gradient, project, spread
from trainables.attack import Attack, Model
from trainables.config import AttackConfig

SURE_MARGIN = 1e-4
"""Lead of a wrong class at which an image counts as fooled inside the attack. An image's logits differ by about 2e-6
between batch shapes, so that whoever leaves early is misclassified in the evaluator's own pass too."""


class PgdConfig(AttackConfig):
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
    """Random numbers derive from (seed, image, restart); images that are fooled leave the working batch at once."""

    Config = PgdConfig

    @classmethod
    def passes(cls, config: PgdConfig, num_classes: int) -> tuple[int, int]:
        return 3, config.restarts * (3 * config.steps + 1)

    def perturb(self, model: Model, images: Tensor, labels: Tensor, seed: int, image_ids: Tensor) -> Tensor:
        attacked = images.clone()
        left = torch.arange(len(images), device=images.device)
        with frozen(model):
            for restart in range(self.config.restarts):
                if not len(left):
                    break
                origin = images[left]
                start = self._start(origin, image_ids[left.cpu()].tolist(), seed, restart)
                attacked[left], fooled = self._climb(model, origin, start, labels[left])
                left = left[~fooled]
        return attacked

    def _climb(self, model: Model, origin: Tensor, start: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return where each image arrived (B, C, H, W) and whether it was fooled on the way (B,)."""
        threat = self.threat
        step_size = self.config.step_size or 2.5 * threat.epsilon / self.config.steps
        images = start.clone()
        left = torch.arange(len(images), device=images.device)
        for _ in range(self.config.steps):
            logits, gradient = loss_gradient(model, images[left], labels[left])
            kept = ~_is_fooled(logits, labels[left])
            left = left[kept]
            if not len(left):
                break
            images[left] = ascend(
                images[left],
                gradient[kept],
                origin[left],
                norm=threat.norm,
                epsilon=threat.epsilon,
                step_size=step_size,
            )
        fooled = torch.ones(len(images), dtype=torch.bool, device=images.device)
        if len(left):
            with torch.no_grad():
                fooled[left] = _is_fooled(model(images[left]), labels[left])
        return images, fooled

    def _start(self, origin: Tensor, ids: Iterable[int], seed: int, restart: int) -> Tensor:
        if not self.config.random_start:
            return origin
        noises, radii = [], []
        for image_id in ids:
            generator = torch.Generator().manual_seed(derive_seed(seed, "pgd", image_id, restart))
            draw = torch.rand if self.threat.norm == "linf" else torch.randn
            noises.append(draw(origin.shape[1:], generator=generator))
            radii.append(torch.rand((), generator=generator))
        noise, radius = torch.stack(noises).to(origin), torch.stack(radii).to(origin)
        change = spread(noise, radius, norm=self.threat.norm, epsilon=self.threat.epsilon)
        return project(origin + change, origin, norm=self.threat.norm, epsilon=self.threat.epsilon)


def _is_fooled(logits: Tensor, labels: Tensor) -> Tensor:
    """Say for each image whether some wrong class leads by the sure margin: (B, K), (B,) → (B,)."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(1) - own > SURE_MARGIN
