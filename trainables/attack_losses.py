"""What attacks ascend on, image by image: logits (B, K) and targets → (B,), in float32 at least.

The difference-of-logits ratios are Croce and Hein 2020 (arXiv:2003.01690, section 4.4 and equation 6).
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from trainables.worst_case import wrong_lead

ImageLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, K) and targets → one number per image (B,)."""

DLR_GUARD = 1e-12
"""Added to the denominator of the ratios, as in the authors' code."""
MARGIN_FLOOR = -10.0


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return −log softmax(z)_y for labels (B,); in [0, ∞)."""
    return F.cross_entropy(_wide(logits), labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return max(max_{j≠y} z_j − z_y, −10) for labels (B,): flat where the true class leads by more than 10."""
    return wrong_lead(_wide(logits), labels).clamp_min(MARGIN_FLOOR)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (max_{j≠y} z_j − z_y) / (z_π1 − z_π3) for labels (B,), with π the descending order; K >= 3, in [−1, 1]."""
    wide = _wide(logits)
    largest = wide.topk(3).values
    return wrong_lead(wide, labels) / (largest[:, 0] - largest[:, 2] + DLR_GUARD)


def targeted_dlr(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (z_t − z_y) / (z_π1 − (z_π3 + z_π4) / 2) for targets (B, 2) = (label y, aimed-at class t); K >= 4."""
    wide = _wide(logits)
    own, aim = wide.gather(1, targets).unbind(1)
    largest = wide.topk(4).values
    return (aim - own) / (largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + DLR_GUARD)


def _wide(logits: Tensor) -> Tensor:
    """Return at least float32: half precision would round the differences that the losses are made of."""
    return logits if logits.element_size() >= 4 else logits.float()
