"""PGD-AT: adversarial training, learning from PGD examples alone (Madry et al. 2018, arXiv:1706.06083).

min E max_{‖δ‖ ≤ ε} CE(f(x + δ), y), equation 2.1 there.
"""

from __future__ import annotations

from torch import nn

from trainables.inner import InnerAttack, InnerAttackConfig
from trainables.method import Batch, Draw, Method


class AdversarialConfig(InnerAttackConfig):
    """The inner maximisation; the defaults are the published code's for CIFAR-10: ε 8/255 in 10 steps of 2/255.

    Differs: the paper's text has 7 steps.
    """

    random_start: bool = True
    """Start from a uniformly drawn point of the ball instead of the image."""


class Adversarial(Method[AdversarialConfig]):
    """Each batch is replaced by its adversarial examples for the model in eval mode, whatever the targets.

    Random starts come from torch's global random numbers, which checkpoints save.
    """

    Config = AdversarialConfig
    strengths = ("epsilon",)

    def __init__(self, config: AdversarialConfig, total_epochs: int) -> None:
        super().__init__(config, total_epochs)
        self._inner = InnerAttack(config)

    def perturb(self, model: nn.Module, batch: Batch) -> Batch:
        if self._inner.epsilon == 0:
            return batch
        images, targets = batch
        start = self._inner.uniform_start(images) if self.config.random_start else images
        return Batch(self._inner.climb(model, start, images, targets), targets)

    def on_epoch_start(self, model: nn.Module, epoch: int, draw: Draw) -> dict[str, float]:
        self._inner.start_epoch(epoch)
        return {}
