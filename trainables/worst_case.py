"""The most misclassified version of every image so far, and which images no attack has surely fooled yet."""

from __future__ import annotations

import torch
from torch import Tensor

SURE_MARGIN = 1e-4
"""Lead of a wrong class at which an image counts as fooled inside an attack. An image's logits differ by about 2e-6
between batch shapes, so that whoever leaves early is misclassified in the evaluator's own pass too."""


def wrong_lead(logits: Tensor, labels: Tensor) -> Tensor:
    """Return by how much the best wrong class is ahead of the true one: (B, K), (B,) → (B,), negative if correct."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    return logits.scatter(1, labels[:, None], -torch.inf).max(1).values - own


class WorstCase:
    """What an attack found: for each image the candidate with the largest lead of a wrong class.

    An image whose lead exceeds the sure margin has fallen and needs no more work. One with a smaller lead is attacked
    on, and handed back as its most misclassified candidate, so that the evaluator decides: wherever some candidate is
    misclassified, what is handed back is, as if every misclassified candidate counted.
    """

    def __init__(self, origin: Tensor, labels: Tensor, sure_margin: float = SURE_MARGIN) -> None:
        """Start with the images (B, C, H, W) themselves and their labels (B,); any candidate is worse than no other.

        Args: sure_margin: lead at which an image has fallen; infinity where the leads are those of another model than
            the judged one: then no image leaves, and each is handed back as its most misclassified candidate.
        """
        self._sure_margin = sure_margin
        self.origin = origin
        self.labels = labels
        self.images = origin.clone()
        self.lead = torch.full((len(origin),), -torch.inf, device=origin.device)
        self.flat = torch.zeros(len(origin), dtype=torch.bool, device=origin.device)
        """(B,) images at whose start the gradient of an attack's loss was exactly zero."""

    def offer(self, rows: Tensor, candidates: Tensor, logits: Tensor) -> Tensor:
        """Keep those candidates (n, C, H, W) of the images `rows` (n,) that are worse, and say who stands (n,) bool.

        An image with NaN among its logits keeps what it has and stands.
        """
        lead = wrong_lead(logits, self.labels[rows]).to(self.lead)
        worse = (lead > self.lead[rows]).nonzero().squeeze(1)
        if len(worse):
            there = rows[worse]
            self.images[there] = candidates[worse]
            self.lead[there] = lead[worse]
        return ~(lead > self._sure_margin)

    def take(self, rows: Tensor, candidates: Tensor) -> None:
        """Replace the images `rows` (n,) by candidates that come without logits: nothing is claimed about them."""
        self.images[rows] = candidates.to(self.images)

    def note_gradient(self, rows: Tensor, gradient: Tensor) -> None:
        """Remember whose gradient (n, C, H, W) is exactly zero at the start of an ascent."""
        self.flat[rows] |= (gradient == 0).flatten(1).all(1)

    @property
    def standing(self) -> Tensor:
        """The images (n,) that have not surely fallen, in order."""
        return (self.lead <= self._sure_margin).nonzero().squeeze(1)
