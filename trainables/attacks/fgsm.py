"""FGSM: one full step of steepest ascent, no random start (Goodfellow et al. 2015, arXiv:1412.6572)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from trainables.ascent import ascend, frozen, loss_gradient
from trainables.attack import Attack, Model, Threat
from trainables.normalized_budget import NormalizedBudgetConfig, budget_scale, reasons_against
from trainables.worst_case import WorstCase


class FgsmConfig(NormalizedBudgetConfig):
    """The step is ε long; nothing else to choose."""


class Fgsm(Attack[FgsmConfig]):
    """x + ε sign(∇ cross-entropy) in L∞; ε along the normalised gradient in L2 (FGM). In pixels, clamped to [0, 1]."""

    Config = FgsmConfig

    @classmethod
    def check(cls, config: FgsmConfig, threat: Threat, num_classes: int) -> Iterable[str]:
        yield from super().check(config, threat, num_classes)
        yield from reasons_against(config, threat)

    @classmethod
    def passes(cls, config: FgsmConfig, num_classes: int) -> tuple[int, int]:
        return 3, 3

    def run(self, model: Model, worst: WorstCase, seed: int, image_ids: Tensor) -> None:
        rows = worst.standing
        if not len(rows):
            return
        origin = worst.origin[rows]
        epsilon = self.threat.epsilon * budget_scale(self.config, model)
        with frozen(model):
            _, gradient = loss_gradient(model, origin, worst.labels[rows])
        worst.note_gradient(rows, gradient)
        # offering it would take a pass more, for the logits
        worst.take(rows, ascend(origin, gradient, origin, norm=self.threat.norm, epsilon=epsilon, step_size=epsilon))
