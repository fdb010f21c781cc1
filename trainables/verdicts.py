"""Verdicts: which images a model still classifies correctly under one attack, checked independently of the attack."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainables.ascent import Batched
from trainables.attack import Attack
from trainables.canonical_passes import CANONICAL_BATCH, evaluating, judging, padded_logits
from trainables.dataset import Images
from trainables.examination import EXAMINED, examine
from trainables.verified import check_logits, check_shape, checked_pixels, verified
from trainables.worst_case import SURE_MARGIN, WorstCase

PACKED_BATCHES = 4
"""Batches of images that are judged together, at most (our choice). The survivors of four fill whole batches until less
than a quarter of the images stand, and what a killed evaluation loses stays small."""
FLAT = "some images have a gradient of exactly zero where an ascent starts; attacks by gradient may be unreliable there"


@dataclass(frozen=True)
class Verdict:
    """One attack on one model, image by image."""

    ids: Tensor
    """(n,) positions in the split."""
    correct: Tensor
    """(n,) bool: still classified correctly after the attack."""
    warnings: tuple[str, ...]
    """What the attack had to say, each sentence once."""
    forward_images: int
    """Images that went through the model, all passes together, the evaluator's own included."""
    backward_images: int
    """Images whose gradient was computed."""
    seconds: float
    mismatched: Tensor
    """(n,) bool: the attack claimed something else than the evaluator's own pass says."""
    flat_start: Tensor
    """(n,) bool: the gradient was exactly zero where an ascent started."""
    attacked: Tensor | None = None
    """(m, C, H, W): the images `ids[~correct]`, in that order, as they were misclassified in the evaluator's own pass,
    bit by bit; float32 if the data set's images are. None if they were not to be kept, or if nothing was judged."""

    @property
    def mismatches(self) -> int:
        return int(self.mismatched.sum())

    @property
    def flat(self) -> int:
        return int(self.flat_start.sum())

    @property
    def costs(self) -> dict[str, float]:
        """Return what the unit cost, for the verdict store."""
        return {"forwards": self.forward_images, "backwards": self.backward_images, "seconds": self.seconds}

    @property
    def per_image(self) -> dict[str, Tensor]:
        """Return what adds up over images, for the verdict store: each (n,)."""
        return {"mismatches": self.mismatched, "flat": self.flat_start}


@dataclass(frozen=True)
class CleanVerdict:
    """One model without an attack, image by image."""

    ids: Tensor
    """(n,) positions in the split."""
    correct: Tensor
    """(n,) bool: classified correctly."""
    logit_scales: Tensor
    """(n,) float64: largest minus smallest logit. Logits that are tiny or huge can hide gradients in rounding."""
    warnings: tuple[str, ...]
    """What the examination of the model had to say."""
    forward_images: int
    """Images that went through the model, those of the examination included."""
    seconds: float
    attacked: None = None
    """Nothing was attacked."""

    @property
    def costs(self) -> dict[str, float]:
        """Return what the unit cost, for the verdict store."""
        return {"forwards": self.forward_images, "seconds": self.seconds}

    @property
    def per_image(self) -> dict[str, Tensor]:
        """Return what adds up over images, for the verdict store: (n,)."""
        return {"logit_scale_sum": self.logit_scales}


def units(ids: Tensor, batch_size: int, batches: int = PACKED_BATCHES) -> list[Tensor]:
    """Split ids (n,) into what is judged, and lost, at once: as few parts of nearly equal size as there can be.

    Args: batches: a part is no larger than so many times batch_size.
    """
    return list(ids.tensor_split(math.ceil(len(ids) / (batches * batch_size)))) if len(ids) else []


def judge(
    model: nn.Module,
    attack: Attack[Any],
    images: Images,
    ids: Tensor,
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
    keep: bool = False,
    surrogate: nn.Module | None = None,
) -> Verdict:
    """Attack the images `ids`, which the model classifies correctly, all in one unit, and say which withstood.

    An image falls only if a forward pass of our own, in CANONICAL_BATCH images, misclassifies what the attack returned.
    The model comes back in its mode and with its flags; TF32 is off throughout. An attack that has a `run` of its own
    gets all images at once and a model that takes any number of them; any other gets them batch by batch.

    Args:
        keep: whether the verdict keeps what the fallen images became.
        surrogate: the model that the attack sees instead of the judged one, to which its images are transferred; it
            takes all its steps then, because falling there is no reason to stop. None is the judged model itself.

    Raises: AttackError if an attack returns images outside [0, 1] or outside its ε-ball, by more than rounding
        (TOLERANCE), or of another shape; if the images, labels or logits cannot be judged; if the memory is too small.
    """
    if not len(ids):
        nobody = torch.zeros(0, dtype=torch.bool)
        return Verdict(ids, nobody, (), 0, 0, 0.0, nobody, nobody)
    started = time.monotonic()
    name = type(attack).__name__
    seen = model if surrogate is None else surrogate
    with ExitStack() as stack:
        passes = [stack.enter_context(judging(each, name, batch_size, device)) for each in dict.fromkeys((model, seen))]
        said = stack.enter_context(_collected_warnings())
        origin = checked_pixels(images.take(ids), ids).to(device)
        labels = images.labels[ids].to(device)
        with torch.no_grad():
            check_logits(seen(origin[:1]), labels, ids)
        margin = SURE_MARGIN if seen is model else math.inf
        worst = WorstCase(origin.clone(), labels.clone(), margin)
        _attack(attack, Batched(seen, batch_size), worst, seed, ids)
        attacked = verified(worst.images.detach(), origin, attack.threat, name)
        correct = confirmed(model, attacked, labels)
        claims = worst.lead.isfinite() if seen is model else torch.zeros_like(correct)
        mismatched = claims & ((worst.lead > 0) == correct)
    texts = [str(item.message) for item in said]
    return Verdict(
        ids,
        correct.cpu(),
        tuple(dict.fromkeys([*texts, FLAT] if bool(worst.flat.any()) else texts)),
        sum(counts["forward"] for counts in passes),
        sum(counts["backward"] for counts in passes),
        time.monotonic() - started,
        mismatched.cpu(),
        worst.flat.cpu(),
        attacked[~correct].cpu() if keep else None,
    )


def judge_clean(
    model: nn.Module, images: Images, ids: Tensor, *, batch_size: int, device: torch.device
) -> CleanVerdict:
    """Say which of the images `ids` the model classifies correctly, and examine the model on the first of them.

    Every pass has CANONICAL_BATCH images, as in `judge`. Args: batch_size: of the examination, at most.

    Raises: AttackError if the images, labels or logits cannot be judged; if the memory is too small.
    """
    started = time.monotonic()
    hits, scales = [torch.zeros(0, dtype=torch.bool)], [torch.zeros(0, dtype=torch.float64)]
    with judging(model, "the clean pass", batch_size, device) as counts:
        for part in _batches(ids, CANONICAL_BATCH):
            pixels = checked_pixels(images.take(part), part).to(device)
            labels = images.labels[part].to(device)
            logits = padded_logits(model, pixels, CANONICAL_BATCH)
            check_logits(logits, labels, part)
            hits.append((logits.argmax(1) == labels).cpu())
            scales.append((logits.amax(1) - logits.amin(1)).double().cpu())
        few = ids[: min(EXAMINED, batch_size)]
        texts = examine(model, images.take(few).to(device), images.labels[few].to(device)) if len(few) else ()
    seconds = time.monotonic() - started
    return CleanVerdict(ids, torch.cat(hits), torch.cat(scales), texts, counts["forward"], seconds)


def clean_correct(model: nn.Module, images: Images, ids: Tensor, batch_size: int, device: torch.device) -> Tensor:
    """Return which of the images `ids` the model classifies correctly in eval mode: (n,) bool, on the CPU."""
    if not len(ids):
        return torch.zeros(0, dtype=torch.bool)
    return predict_logits(model, images, ids, batch_size, device).argmax(1) == images.labels[ids].cpu()


def predict_logits(model: nn.Module, images: Images, ids: Tensor, batch_size: int, device: torch.device) -> Tensor:
    """Return the logits (n, K) of the images `ids`, n > 0, in eval mode, on the CPU.

    Every pass has the shape of a full batch, so that an image's logits do not depend on how many others there are.
    """
    with evaluating(model):
        parts = [
            padded_logits(model, images.take(part).to(device), batch_size).cpu() for part in _batches(ids, batch_size)
        ]
    return torch.cat(parts)


def confirmed(model: nn.Module, attacked: Tensor, labels: Tensor) -> Tensor:
    """Return which images (n, C, H, W) are classified correctly in eval mode with TF32 off: (n,) bool.

    Every pass has CANONICAL_BATCH images. An image with NaN among its logits is none of them.
    """
    with evaluating(model):
        parts = [padded_logits(model, part, CANONICAL_BATCH) for part in _batches(attacked, CANONICAL_BATCH)]
    logits = torch.cat(parts) if parts else torch.zeros(0, 1, device=attacked.device)
    return (logits.argmax(1) == labels) & ~logits.isnan().any(1)


def _attack(attack: Attack[Any], model: Batched, worst: WorstCase, seed: int, ids: Tensor) -> None:
    """Let the attack fill `worst`, which holds copies of all that it is judged by.

    Whoever only has a `perturb` may hold the graph of all that it is given, which is a batch therefore.
    """
    if type(attack).run is not Attack.run:
        attack.run(model, worst, seed, ids)
        return
    origin, labels = worst.origin, worst.labels
    for rows in torch.arange(len(origin), device=origin.device).split(model.batch_size):
        found = attack.perturb(model, origin[rows], labels[rows], seed, ids[rows.cpu()])
        check_shape(found, origin[rows], type(attack).__name__)
        worst.take(rows, found.detach())


def _batches(positions: Tensor, size: int) -> tuple[Tensor, ...]:
    """Split positions; none at all make no batch, where torch's own split makes an empty one."""
    return positions.split(size) if len(positions) else ()


@contextmanager
def _collected_warnings() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield said
