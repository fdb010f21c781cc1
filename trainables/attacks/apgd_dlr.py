"""APGD-DLR: Auto-PGD on the ratio of logits (Croce and Hein 2020, arXiv:2003.01690, section 4.4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor

from trainables.apgd import CLASSES_FOR_RATIO
from trainables.attack import Threat
from trainables.attack_losses import dlr
from trainables.attacks.apgd_ce import ApgdCe, ApgdCeConfig


class ApgdDlr(ApgdCe):
    """The ascents of APGD-CE on a loss that does not see shift and scale of the logits."""

    name: ClassVar[str] = "apgd_dlr"

    @staticmethod
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return dlr(logits, labels)

    @classmethod
    def check(cls, config: ApgdCeConfig, threat: Threat, num_classes: int) -> Iterable[str]:
        yield from super().check(config, threat, num_classes)
        if num_classes < CLASSES_FOR_RATIO:
            yield f"it needs at least {CLASSES_FOR_RATIO} classes, the data set has {num_classes}; use apgd_ce"
