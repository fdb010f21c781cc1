"""Attention: which layers of a timm vision transformer can be read, and the recording of what they compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from timm.layers import Attention
from torch import Tensor, nn

from search_spaces.errors import ModelError

Reads = Literal["nothing", "projections", "probabilities"]
"""What a method reads of the attention; each includes those before it."""
READS: tuple[Reads, ...] = ("nothing", "projections", "probabilities")


class Attended(NamedTuple):
    """What one block's attention computed, with its graph: softmax(scale · queries keysᵀ) = probabilities."""

    queries: Tensor
    """(B, H, N, d), after the queries' norm if there is one."""
    keys: Tensor
    """(B, H, N, d), after the keys' norm if there is one."""
    scale: float
    probabilities: Tensor | None
    """(B, H, N, N), before dropout; None if only the projections were asked for."""


def attention_layers(model: nn.Module) -> list[Attention]:
    """Return the attention modules whose probabilities can be read, first block first."""
    return [module for module in model.modules() if type(module) is Attention]


@contextmanager
def record_attention(model: nn.Module, reads: Reads = "probabilities") -> Iterator[list[Attended]]:
    """Record the attention of the first forward pass inside the context, and of no other.

    timm's fused attention never forms the probabilities. Where they are asked for, each layer computes its first pass
    the plain way and has its fused attention back before the next; projections are read beside the fused attention.

    Yields: a list that fills with one entry per block, the caller's own; it stays empty if nothing is to be read.
    Raises: ModelError if the model has no layer that can be read.
    """
    layers = [] if reads == "nothing" else attention_layers(model)
    if reads != "nothing" and not layers:
        raise ModelError("no attention layer of this model exposes its probabilities.")
    recorded: list[Attended] = []
    readers = [_Reader(layer, reads == "probabilities", recorded) for layer in layers]
    try:
        yield recorded
    finally:
        for reader in readers:
            reader.stop()


class _Reader:
    """Hooks on one layer that take themselves off after its first forward pass."""

    def __init__(self, layer: Attention, with_probabilities: bool, recorded: list[Attended]) -> None:
        self._layer, self._recorded = layer, recorded
        self._was_fused = layer.fused_attn
        self._queries: Tensor | None = None
        self._keys: Tensor | None = None
        self._handles: list[Any] = [layer.q_norm.register_forward_hook(self._read_queries)]
        if with_probabilities:
            layer.fused_attn = False
            self._handles.append(layer.k_norm.register_forward_hook(self._read_keys))
            self._handles.append(layer.attn_drop.register_forward_pre_hook(self._read_probabilities))
        else:
            self._handles.append(layer.k_norm.register_forward_hook(self._read_last))

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._layer.fused_attn = self._was_fused

    def _read_queries(self, _norm: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._queries = output

    def _read_keys(self, _norm: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._keys = output

    def _read_last(self, norm: nn.Module, inputs: Any, output: Tensor) -> None:
        self._keys = output
        self._finish(None)

    def _read_probabilities(self, _dropout: nn.Module, inputs: tuple[Tensor]) -> None:
        self._finish(inputs[0])

    def _finish(self, probabilities: Tensor | None) -> None:
        assert self._queries is not None
        assert self._keys is not None
        self._recorded.append(Attended(self._queries, self._keys, self._layer.scale, probabilities))
        self._queries = self._keys = None
        self.stop()
