"""CW: the ascents of PGD on the margin of the logits (Carlini and Wagner 2017, arXiv:1608.04644, in the L∞ form)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from trainables.attack_losses import margin
from trainables.attacks.pgd import Pgd


class Cw(Pgd):
    """PGD on max(max_{j≠y} z_j − z_y, −10), the form in which vision transformers are evaluated; 20 steps.

    The loss is flat where the true class leads by more than 10: such an image stays at its starting point.

    Differs: projected ascent in the ball, not the paper's search for the nearest adversarial image.
    """

    name: ClassVar[str] = "cw"

    @staticmethod
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return margin(logits, labels)
