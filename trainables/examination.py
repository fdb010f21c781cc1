"""Examining a model before it is attacked: what would make a verdict on it say less than it seems to.

The tests and their thresholds are those of AutoAttack's authors (pyautoattack.checks), the sentences ours. A model that
fails one is judged all the same, and its verdict carries the sentence.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType

import torch
from torch import Tensor, nn

from search_spaces.seeds import derive_seed
from trainables.apgd import CLASSES_FOR_RATIO, CLASSES_FOR_TARGETS
from trainables.randomness import Randomness

EXAMINED = 16
"""Images that are looked at, at most (our choice: what is looked for shows in every image)."""
PASSES = 5
"""Passes that are compared to find a model that draws random numbers."""
RANDOM_CHANGE = 1e-4
"""Distance of two passes' logits, each of length 1, from which on the model counts as one that draws them."""
PROBABILITY_SLACK = 1e-5
"""How far outputs may be from [0, 1] and their sum from 1 and still count as probabilities."""
CLASSES_NEEDED = {"apgd_dlr": CLASSES_FOR_RATIO, "apgd_t": CLASSES_FOR_TARGETS}
GRADIENT_CALLS = frozenset({"grad", "backward", "_make_grads"})
"""Python functions of torch that compute gradients."""


def examine(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[str, ...]:
    """Return one sentence for every reason why attacks may misjudge the model; none for an ordinary one.

    Prints nothing, and gives the global random numbers and the tracer of the interpreter back as they were.

    Args: images: (B, C, H, W) in [0, 1], of which the first EXAMINED are looked at; labels: (B,) true classes.
    """
    images, labels = images[:EXAMINED], labels[:EXAMINED]
    if not len(images):
        return ()
    with Randomness(derive_seed("examination")).active():
        with torch.no_grad():
            logits = torch.stack([model(images).float() for _ in range(PASSES)])
        doubts = [*_doubts(logits, labels)]
        if computes_gradients(model, images):
            doubts.append(
                "the model computes gradients in its forward pass: it may be a dynamic defense, for which these "
                "attacks may be too weak; judge it with an attack made for it as well"
            )
    return tuple(doubts)


def draws_random_numbers(logits: Tensor, labels: Tensor) -> bool:
    """Return whether repeated passes differ: (P, B, K), (B,) → by RANDOM_CHANGE in direction, or in a count of hits."""
    unit = logits / (logits.norm(dim=-1, keepdim=True) + 1e-10)
    furthest = (unit[:, None] - unit[None]).norm(dim=-1).max()
    hits = (logits.argmax(-1) == labels).sum(-1)
    return bool(furthest > RANDOM_CHANGE) or len(hits.unique()) > 1


def are_probabilities(logits: Tensor) -> bool:
    """Return whether all outputs (B, K) lie in [0, 1] and add up to 1 for each image."""
    in_range = logits.min() > -PROBABILITY_SLACK and logits.max() < 1 + PROBABILITY_SLACK
    return bool(in_range) and bool(((logits.sum(-1) - 1).abs() < PROBABILITY_SLACK).all())


def computes_gradients(model: nn.Module, images: Tensor) -> bool:
    """Return whether a forward pass calls one of torch's functions that compute gradients.

    Differs: the package goes on counting from model to model, so that after one that does, every other seems to.
    """
    called = set()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            called.add(frame.f_code.co_name)

    tracer = sys.gettrace()
    sys.settrace(note)
    try:
        model(images)
    finally:
        sys.settrace(tracer)
    return not GRADIENT_CALLS.isdisjoint(called)


def _doubts(logits: Tensor, labels: Tensor) -> Iterator[str]:
    if draws_random_numbers(logits, labels):
        yield (
            "the model gives other logits at every pass: it seems to be a randomized defense, for which one "
            "misclassified pass proves little; use autoattack with version: rand"
        )
    if are_probabilities(logits[0]):
        yield (
            "the model's outputs seem to be probabilities, whose gradients vanish where it is confident; attacks need "
            "its logits"
        )
    classes = logits.shape[-1]
    if left_out := [part for part, needed in CLASSES_NEEDED.items() if classes < needed]:
        yield (
            f"with {classes} classes the parts {' and '.join(left_out)} of autoattack cannot run; use version: custom "
            "with attacks: [apgd_ce, fab_t, square]"
        )
