"""Auto-PGD with early exit: no step size to choose, and no work on an image once it has fallen.

Croce and Hein 2020, arXiv:2003.01690, section 3 and algorithm 1; rules and constants as in the authors' code. An image
leaves the working batch at its first surely misclassified iterate, and the others are packed together. Step size,
momentum and best point belong to one image each, so that nobody's path depends on who else is in the batch.

Differs: the authors' code optimises fallen images to the end. The verdict is the same, because it counts any
misclassified iterate: who has fallen surely is handed back as it fell, and who was ahead by less than SURE_MARGIN goes
on and is handed back as its most misclassified iterate, for the evaluator to decide.
Differs: the start of every image comes from a generator of its own, seeded by (seed, attack, image, restart or target).
Differs: from the paper, as the authors' code does: checkpoints lie at whole windows of steps; the loss of the first
iterate is compared with 0 and not with that of the start; after a return to the best point the next loss is compared
with the last one seen and not with the best.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from search_spaces.errors import AttackError
from trainables.ascent import ascend, image_noise, loss_gradient, project
from trainables.attack import Model, Threat
from trainables.attack_losses import ImageLoss, targeted_dlr
from trainables.worst_case import WorstCase

MOMENTUM = 0.25
"""Share of the last move in the next one; none in the first."""
RISING = 0.75
"""Share ρ of the steps since the last checkpoint that must raise the loss, or the step is halved."""
MOST_TARGETS = 9
CLASSES_FOR_RATIO = 3
"""The ratio divides by a difference to the third largest logit."""
CLASSES_FOR_TARGETS = 4
"""The targeted ratio divides by a difference to the fourth largest logit."""


@dataclass
class Walkers:
    """The images still worked on; every tensor begins with them, (n, …)."""

    rows: Tensor
    """Where each image stands in the whole batch."""
    origin: Tensor
    targets: Tensor
    images: Tensor
    previous: Tensor
    gradient: Tensor
    loss: Tensor
    best_images: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    step: Tensor
    """η on the [0, 1] pixel scale, (n, 1, 1, 1)."""
    rises: Tensor
    """How often the loss rose since the last checkpoint."""
    was_halved: Tensor
    """Whether the last checkpoint halved the step; true before there was one."""
    checked_loss: Tensor
    """The best loss at the last checkpoint."""

    def keep(self, stands: Tensor) -> None:
        """Drop the images that do not stand, (n,) bool."""
        if not bool(stands.all()):
            for field in fields(self):
                setattr(self, field.name, getattr(self, field.name)[stands])

    def move(self, threat: Threat, momentum: float) -> None:
        """Take one projected step and go on in the direction of the last one (algorithm 1, lines 7 and 8)."""
        norm, epsilon = threat.norm, threat.epsilon
        step = self.step
        reached = ascend(self.images, self.gradient, self.origin, norm=norm, epsilon=epsilon, step_size=step)
        change = (1 - momentum) * (reached - self.images) + momentum * (self.images - self.previous)
        self.previous = self.images
        self.images = project(self.images + change, self.origin, norm=norm, epsilon=epsilon)

    def record(self, loss: Tensor, gradient: Tensor) -> None:
        """Take in loss (n,) and gradient (n, C, H, W) of the images where they are."""
        self.rises = self.rises + (loss > self.loss)
        self.loss, self.gradient = loss, gradient
        better = loss > self.best_loss
        pixels = better.view(-1, 1, 1, 1)
        self.best_images = torch.where(pixels, self.images, self.best_images)
        self.best_gradient = torch.where(pixels, gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)

    def check(self, window: int) -> None:
        """Halve the step of who oscillates or does not improve, and bring it back to its best point (conditions 1, 2).

        Args: window: steps since the last checkpoint.
        """
        stuck = ~self.was_halved & (self.checked_loss >= self.best_loss)
        halved = (self.rises <= RISING * window) | stuck
        pixels = halved.view(-1, 1, 1, 1)
        self.step = torch.where(pixels, self.step / 2, self.step)
        self.images = torch.where(pixels, self.best_images, self.images)
        self.gradient = torch.where(pixels, self.best_gradient, self.gradient)
        self.rises = torch.zeros_like(self.rises)
        self.was_halved, self.checked_loss = halved, self.best_loss


def checkpoints(steps: int) -> dict[int, int]:
    """Return at which steps the step size is reconsidered, each with the length of the window that ends there.

    For 100 steps the windows are 22, 19, 16, 13, 10, 7, 6 and 6 long, for 10 steps 2 and then 1.
    """
    window, shortest, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    found, at = {}, window
    while at <= steps:
        found[at] = window
        window = max(window - shrink, shortest)
        at += window
    return found


def climb(
    model: Model,
    worst: WorstCase,
    rows: Tensor,
    start: Tensor,
    targets: Tensor,
    *,
    loss: ImageLoss,
    threat: Threat,
    steps: int,
) -> None:
    """Run Auto-PGD on the images `rows` (n,) from `start` and offer every iterate, the start too, to `worst`.

    Who falls at the t-th iterate costs t passes forward and back; who never falls costs steps + 1 forward, steps back.

    Args:
        start: (n, C, H, W) in the ball and in [0, 1].
        targets: (n, …) whatever `loss` takes beside the logits.
    """
    logits, gradient = loss_gradient(model, start, targets, lambda z, t: loss(z, t).sum())
    worst.note_gradient(rows, gradient)
    walkers = _walkers(worst, rows, start, targets, gradient, loss(logits, targets), threat)
    walkers.keep(worst.offer(rows, start, logits))
    windows = checkpoints(steps)
    for step in range(1, steps + 1):
        if not len(walkers.rows):
            return
        walkers.move(threat, MOMENTUM if step > 1 else 0.0)
        if step == steps:
            with torch.no_grad():
                worst.offer(walkers.rows, walkers.images, model(walkers.images))
            return
        logits, gradient = loss_gradient(model, walkers.images, walkers.targets, lambda z, t: loss(z, t).sum())
        stands = worst.offer(walkers.rows, walkers.images, logits)
        walkers.record(loss(logits, walkers.targets), gradient)
        walkers.keep(stands)
        if step in windows:
            walkers.check(windows[step])


def climb_with_restarts(
    model: Model,
    worst: WorstCase,
    image_ids: Tensor,
    *,
    seed: int,
    name: str,
    loss: ImageLoss,
    threat: Threat,
    steps: int,
    restarts: int = 1,
) -> None:
    """Climb from `restarts` random starts, each on the images that still stand; the loss takes their labels."""
    for restart in range(restarts):
        rows = worst.standing
        if not len(rows):
            return
        start = random_start(worst.origin[rows], image_ids[rows.cpu()].tolist(), threat, seed, name, restart)
        climb(model, worst, rows, start, worst.labels[rows], loss=loss, threat=threat, steps=steps)


def climb_to_targets(
    model: Model,
    worst: WorstCase,
    image_ids: Tensor,
    *,
    seed: int,
    threat: Threat,
    steps: int,
    targets: int,
    first: int = 0,
) -> None:
    """Climb on the targeted ratio toward wrong classes, the best of them first, on the images that still stand.

    Args:
        targets: how many classes, as far as there are so many.
        first: how many of the best wrong classes are left out.

    Raises: AttackError if there are fewer than four classes, or none is left.
    """
    rows = worst.standing
    if not len(rows):
        return
    with torch.no_grad():
        found = best_wrong_classes(model(worst.origin[rows]), worst.labels[rows], first + targets)
    if first >= found.shape[1]:
        raise AttackError(f"apgd_t: first must be below the {found.shape[1]} wrong classes, found {first}.")
    aims = torch.zeros(len(worst.labels), found.shape[1], dtype=torch.long, device=rows.device)
    aims[rows] = found
    for rank in range(first, aims.shape[1]):
        rows = worst.standing
        if not len(rows):
            return
        start = random_start(worst.origin[rows], image_ids[rows.cpu()].tolist(), threat, seed, "apgd_t", rank)
        pairs = torch.stack([worst.labels[rows], aims[rows, rank]], dim=1)
        climb(model, worst, rows, start, pairs, loss=targeted_dlr, threat=threat, steps=steps)


def best_wrong_classes(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the `count` wrong classes of the largest logits, at most K − 1, best first: (B, K), (B,) → (B, count).

    Raises: AttackError if there are fewer than four classes.
    """
    classes = logits.shape[1]
    if classes < CLASSES_FOR_TARGETS:
        raise AttackError(f"apgd_t needs at least {CLASSES_FOR_TARGETS} classes, the model has {classes}; use apgd_ce.")
    wrong = logits.scatter(1, labels[:, None], -torch.inf)
    order: Tensor = wrong.sort(dim=1, descending=True).indices
    return order[:, : min(count, classes - 1)]


def random_start(origin: Tensor, ids: Iterable[int], threat: Threat, *parts: object) -> Tensor:
    """Return a random point on the surface of each image's ball, clamped to [0, 1]: (B, C, H, W)."""
    noise, _ = image_noise(origin, ids, threat.norm, *parts)
    noise = 2 * noise - 1 if threat.norm == "linf" else noise
    order = torch.inf if threat.norm == "linf" else 2
    length = torch.linalg.vector_norm(noise.flatten(1), ord=order, dim=1).view(-1, 1, 1, 1)
    start: Tensor = (origin + threat.epsilon * noise / length.clamp_min(1e-12)).clamp(0, 1)
    return start


def _walkers(
    worst: WorstCase, rows: Tensor, start: Tensor, targets: Tensor, gradient: Tensor, loss: Tensor, threat: Threat
) -> Walkers:
    return Walkers(
        rows=rows,
        origin=worst.origin[rows],
        targets=targets,
        images=start,
        previous=start,
        gradient=gradient,
        loss=torch.zeros_like(loss),
        best_images=start,
        best_gradient=gradient,
        best_loss=loss,
        step=torch.full_like(loss, 2 * threat.epsilon).view(-1, 1, 1, 1),
        rises=torch.zeros_like(rows),
        was_halved=torch.ones_like(rows, dtype=torch.bool),
        checked_loss=loss,
    )
