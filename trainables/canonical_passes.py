"""The evaluator's own passes: eval mode, batches of one shape, full float32 precision, counted.

The logits of a vision transformer differ by about 2e-6 between batch shapes. In one shape, filled up where images are
missing, those of an image do not depend on how many others there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.errors import AttackError
from trainables.ascent import frozen

CANONICAL_BATCH = 32
"""Images of a judging pass, whatever the attack's batch size (our choice): a verdict then depends on neither, and a few
images, filled up, cost no whole batch of the attack."""
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
"""What torch says, on GPUs and on CPUs."""


@contextmanager
def judging(model: nn.Module, name: str, batch_size: int, device: torch.device) -> Iterator[dict[str, int]]:
    """Put the model in order for judging and count its passes, forward and backward, in images.

    Raises: AttackError, with what to do, if the memory is too small. Args: name: of what runs there.
    """
    try:
        with evaluating(model), frozen(model), _counting(model) as counts:
            yield counts
    except RuntimeError as error:
        text = str(error).lower()
        if isinstance(error, torch.OutOfMemoryError) or any(words in text for words in OUT_OF_MEMORY):
            raise AttackError(
                f"{name} ran out of memory with batch_size {batch_size} on {device}; lower attacks.batch_size or give "
                "the evaluation a larger share (resources.evaluation.gpus)."
            ) from error
        raise


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode with full float32 precision, and everything back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    model.eval()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32
        for module, training in modes:
            module.training = training


@contextmanager
def _counting(model: nn.Module) -> Iterator[dict[str, int]]:
    """Count the images that pass through the model, and those whose gradient comes back."""
    counts = {"forward": 0, "backward": 0}

    def seen(count: int) -> Callable[[Tensor], None]:
        def add(_gradient: Tensor) -> None:
            counts["backward"] += count

        return add

    def on_forward(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        counts["forward"] += len(output)
        if output.requires_grad:
            output.register_hook(seen(len(output)))

    handle = model.register_forward_hook(on_forward)
    try:
        yield counts
    finally:
        handle.remove()


@torch.no_grad()
def padded_logits(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """Return the logits (n, K) of at most batch_size images from a pass over exactly so many, in float32 at least."""
    missing = batch_size - len(images)
    full = torch.cat([images, images[:1].expand(missing, *images.shape[1:])]) if missing > 0 else images
    logits: Tensor = model(full)[: len(images)]
    return logits if logits.dtype == torch.float64 else logits.float()
