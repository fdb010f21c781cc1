"""Attention: which layers of a timm vision transformer can be read, and the recording of what they compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from timm.layers import Attention
from torch import Tensor, nn

from search_spaces.errors import ModelError


def attention_layers(model: nn.Module) -> list[Attention]:
    """Return the attention modules whose probabilities can be read, first block first."""
    return [module for module in model.modules() if type(module) is Attention]


@contextmanager
def record_attention(model: nn.Module) -> Iterator[list[Tensor]]:
    """Record the attention of the first forward pass inside the context, and of no other.

    timm's fused attention never forms the probabilities, so each layer computes its first pass the plain way; a
    pre-hook on its dropout then reads them, takes itself off and gives the layer its fused attention back.

    Yields: a list that fills with one (B, H, N, N) tensor per block, before dropout, with its graph; the caller's own.
    Raises: ModelError if the model has no layer that can be read.
    """
    layers = attention_layers(model)
    if not layers:
        raise ModelError("no attention layer of this model exposes its probabilities.")
    recorded: list[Tensor] = []
    fused = [layer.fused_attn for layer in layers]
    handles: dict[Attention, Any] = {}

    def read(layer: Attention, was_fused: bool, _dropout: nn.Module, inputs: tuple[Tensor]) -> None:
        recorded.append(inputs[0])
        handles.pop(layer).remove()
        layer.fused_attn = was_fused

    for layer, was_fused in zip(layers, fused, strict=True):
        layer.fused_attn = False
        handles[layer] = layer.attn_drop.register_forward_pre_hook(partial(read, layer, was_fused))
    try:
        yield recorded
    finally:
        for handle in handles.values():
            handle.remove()
        for layer, was_fused in zip(layers, fused, strict=True):
            layer.fused_attn = was_fused
