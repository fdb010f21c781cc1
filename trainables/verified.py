"""What may be judged at all, and what an attack may return: pixels, labels, logits, the ε-ball."""

from __future__ import annotations

import math

from torch import Tensor

from search_spaces.errors import AttackError
from trainables.ascent import distance
from trainables.attack import Threat

TOLERANCE = 1e-6
"""How far float32 rounding may carry a pixel out of the ε-ball or of [0, 1]; in L2 it grows with √pixels."""


def checked_pixels(pixels: Tensor, ids: Tensor) -> Tensor:
    """Return the images, or raise AttackError if one has a pixel outside [0, 1], NaN included."""
    flat = pixels.flatten(1)
    bad = ~((flat >= 0) & (flat <= 1)).all(1).cpu()
    if bool(bad.any()):
        first = int(bad.nonzero()[0, 0])
        raise AttackError(
            f"image {int(ids[first])} of the split has pixels in [{flat[first].min():g}, {flat[first].max():g}]; "
            f"allowed: [0, 1]. {int(bad.sum())} of {len(ids)} images break that. Let the data set return pixels on "
            "this scale: normalisation belongs into the model."
        )
    return pixels


def check_logits(logits: Tensor, labels: Tensor, ids: Tensor) -> None:
    """Raise AttackError if a label (m,) is not among the K classes, or if the logits (n, K) of the first n have NaN.

    Args: ids: (m,) positions of the images in their split.
    """
    if logits.ndim != 2:
        raise AttackError(
            f"the model returns a tensor of shape {tuple(logits.shape)}; expected logits (images, classes)."
        )
    classes = logits.shape[1]
    bad = ((labels < 0) | (labels >= classes)).cpu()
    if bool(bad.any()):
        first = int(bad.nonzero()[0, 0])
        raise AttackError(
            f"image {int(ids[first])} of the split has the label {int(labels[first])}; the model has {classes} logits, "
            f"so that 0 … {classes - 1} are allowed. Judge the model on the data set that it was trained on."
        )
    broken = logits.isnan().any(1).cpu()
    if bool(broken.any()):
        first = int(broken.nonzero()[0, 0])
        raise AttackError(
            f"the model returns NaN among the logits of image {int(ids[first])} of the split, without any attack: "
            "there is nothing to judge. Look at the trial's weights and at its training loss."
        )


def check_shape(attacked: Tensor, origin: Tensor, name: str) -> None:
    """Raise AttackError if the attack returned images of another shape."""
    if attacked.shape != origin.shape:
        raise AttackError(f"{name} returned images of shape {tuple(attacked.shape)}, expected {tuple(origin.shape)}.")


def verified(attacked: Tensor, origin: Tensor, threat: Threat, name: str) -> Tensor:
    """Return the attacked images clamped to [0, 1], or raise AttackError if they break the threat model."""
    check_shape(attacked, origin, name)
    if not (attacked.min() >= -TOLERANCE and attacked.max() <= 1 + TOLERANCE):  # also false for NaN
        raise AttackError(f"{name} returned pixels in [{attacked.min():g}, {attacked.max():g}], outside [0, 1].")
    furthest = float(distance(attacked, origin, threat.norm).max())
    if furthest > threat.epsilon + _slack(origin, threat):
        raise AttackError(
            f"{name} moved an image by {furthest:g} in {threat.norm}, further than ε = {threat.epsilon:g}."
        )
    return attacked.clamp(0, 1)


def inside(attacked: Tensor, origin: Tensor, threat: Threat) -> Tensor:
    """Return which images (n, C, H, W) keep to their ε-ball and to [0, 1], rounding aside: (n,) bool, false for NaN."""
    pixels = attacked.flatten(1)
    in_range = (pixels >= -TOLERANCE).all(1) & (pixels <= 1 + TOLERANCE).all(1)
    return in_range & (distance(attacked, origin, threat.norm) <= threat.epsilon + _slack(origin, threat))


def _slack(origin: Tensor, threat: Threat) -> float:
    return TOLERANCE if threat.norm == "linf" else TOLERANCE * max(1.0, math.sqrt(origin[0].numel()) / 10)
