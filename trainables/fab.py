"""FAB, the authors' code, on the images that stand: the nearest misclassified point, whatever ε is.

Croce and Hein 2020, arXiv:1907.02044. The attack walks along linearised decision boundaries and remembers the nearest
misclassified point that it met; here that point counts if it lies in the ε-ball. One run, without a random start, draws
no random numbers, and every image is computed by itself, so that order and batching do not matter.

Differs: who fell to one target leaves before the next only if the lead is sure (see worst_case.py).
Differs: the authors' code computes in float32 and takes no other; a model of another precision sees its own, and its
logits are rounded.
"""

from __future__ import annotations

import torch
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor

from trainables.ascent import distance
from trainables.attack import Model, Threat
from trainables.worst_case import WorstCase


def search_boundary(model: Model, worst: WorstCase, *, threat: Threat, steps: int) -> None:
    """Walk along the nearest of all decision boundaries, `steps` iterations, and offer what lies in the ball.

    Args: model: with frozen parameters; its attribute batch_size, if it has one, is the most images of a pass.
    """
    if len(worst.standing):
        _walk(model, worst, threat, steps, None)


def search_boundaries(model: Model, worst: WorstCase, *, threat: Threat, steps: int, targets: int) -> None:
    """Walk along the boundary to each of the `targets` best wrong classes, as far as there are so many.

    Args: model: as in `search_boundary`.
    """
    rows = worst.standing
    if not len(rows):
        return
    with torch.no_grad():
        num_classes = model(worst.origin[rows[:1]]).shape[1]
    for rank in range(min(targets, num_classes - 1)):
        _walk(model, worst, threat, steps, rank)


@torch.no_grad()
def _walk(model: Model, worst: WorstCase, threat: Threat, steps: int, rank: int | None) -> None:
    """Run the authors' attack once on the images that stand, toward the wrong class of that rank, or toward any."""
    package = FABAttack_PT(
        lambda pixels: model(pixels.to(worst.origin.dtype)).float(),
        norm={"linf": "Linf", "l2": "L2"}[threat.norm],
        n_iter=steps,
        eps=threat.epsilon,
        device=worst.origin.device,
    )
    if rank is not None:
        package.target_class = rank + 2  # counted from the largest logit, which is the true class's, as 1
    rows = worst.standing
    if not len(rows):
        return
    for some in rows.split(getattr(model, "batch_size", len(rows))):
        origin = worst.origin[some]
        found: Tensor = package.attack_single_run(origin, worst.labels[some], is_targeted=rank is not None)
        found = found.detach().to(origin)
        length = distance(found, origin, threat.norm)
        near = (length > 0) & (length <= threat.epsilon)  # who was not misclassified anywhere comes back unmoved
        if near.any():
            worst.offer(some[near], found[near], model(found[near]))
