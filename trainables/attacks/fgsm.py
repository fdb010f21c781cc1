"""FGSM: one full step of steepest ascent, no random start (Goodfellow et al. 2015, arXiv:1412.6572)."""

from __future__ import annotations

from torch import Tensor

from trainables.ascent import ascend, frozen, loss_gradient
from trainables.attack import Attack, Model
from trainables.config import AttackConfig


class Fgsm(Attack[AttackConfig]):
    """x + ε sign(∇ cross-entropy) in L∞; ε along the normalised gradient in L2 (FGM). In pixels, clamped to [0, 1]."""

    @classmethod
    def passes(cls, config: AttackConfig, num_classes: int) -> tuple[int, int]:
        return 3, 3

    def perturb(self, model: Model, images: Tensor, labels: Tensor, seed: int, image_ids: Tensor) -> Tensor:
        epsilon = self.threat.epsilon
        with frozen(model):
            _, gradient = loss_gradient(model, images, labels)
        return ascend(images, gradient, images, norm=self.threat.norm, epsilon=epsilon, step_size=epsilon)
