"""MSVP: penalise the largest singular values of the attention projections (SpecFormer, Hu et al., arXiv:2402.03317).

Σ_layers Σ_{s ∈ q, k, v} λ_s Σ_heads σ₁(W_s,h)², with σ₁ from a power iteration that follows the weights (there, and
equation 1 of arXiv:2507.07814). Only weights enter, no images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from timm.layers import Attention
from torch import Tensor, nn

from search_spaces.config import Number
from search_spaces.domains import LogUniform
from search_spaces.errors import ModelError
from search_spaces.seeds import derive_seed
from trainables.attention import Attended, attention_layers
from trainables.config import MethodConfig
from trainables.method import Batch, Method, ModelFacts

START_ITERATIONS = 20
"""Before the first step: one alone would start with values that are too small."""
START_SEED = derive_seed("msvp")
"""Of the vectors that the iteration starts from, the same in every trial; the limit does not depend on them."""


class MsvpConfig(MethodConfig):
    """λ_q, λ_k, λ_v: multipliers on sums over all layers and heads; all 0 is plain fine-tuning, bit by bit.

    The defaults are those of the published code's CIFAR example; its ImageNet example has 5e-3, 6e-4, 7e-5.
    """

    weight_q: Annotated[Number, Field(ge=0), LogUniform(1e-6, 1e-2)] = 1e-5
    """λ_q, on the query projections; 0 leaves them out."""
    weight_k: Annotated[Number, Field(ge=0), LogUniform(1e-6, 1e-2)] = 1e-5
    """λ_k, on the key projections; 0 leaves them out."""
    weight_v: Annotated[Number, Field(ge=0), LogUniform(1e-6, 1e-2)] = 1e-5
    """λ_v, on the value projections; 0 leaves them out."""
    slice: Literal["out", "in"] = "out"
    """What a head's matrix is: its own output rows (d, D), or a block of input columns (D, d), as published."""


def head_matrices(layers: Sequence[Attention], parts: Sequence[int], axis: str) -> Tensor:
    """Return the matrices whose norms are penalised, one for each layer, projection and head.

    Args:
        layers: attention layers of one shape; qkv.weight is (3·H·d, D), queries first, each head by head.
        parts: which projections: 0 queries, 1 keys, 2 values; not empty.
        axis: "out" cuts W_s (H·d, D) into H blocks of rows, "in" into H blocks of columns.

    Returns: (L·S·H, d, D) for "out", (L·S·H, H·d, D/H) for "in", S = len(parts); with the graph to the weights.
    """
    projections: list[tuple[Tensor, ...]] = [layer.qkv.weight.unflatten(0, (3, -1)).unbind(0) for layer in layers]
    stacked = torch.stack([of_layer[part] for of_layer in projections for part in parts])  # (L·S, H·d, D)
    count, rows, columns = stacked.shape
    heads = layers[0].num_heads
    if axis == "out":
        return stacked.view(count * heads, rows // heads, columns)
    return stacked.view(count, rows, heads, columns // heads).movedim(2, 1).flatten(0, 1)


@torch.no_grad()
def iterate(matrices: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the vectors after one power iteration: v ← Wᵀu / ‖Wᵀu‖, u ← Wv / ‖Wv‖.

    Args: matrices: (n, r, c); u: (n, r, 1); v: (n, c, 1), kept where Wᵀu vanishes, as u is where Wv does.
    """
    v = _unit(matrices.transpose(1, 2) @ u, v)
    return _unit(matrices @ v, u), v


class Msvp(Method[MsvpConfig]):
    """One power iteration for each change of the weights, all layers and heads at once, in the weights' own precision.

    u and v are state of the method, not of the model: what is trained, averaged and kept is the model alone.

    Differs: the published code slices the input axis, which is no head's projection (``slice: in`` does so too), and
    starts without iterations ahead.
    """

    Config = MsvpConfig
    strengths = ("weight_q", "weight_k", "weight_v")

    def __init__(self, config: MsvpConfig, total_epochs: int) -> None:
        super().__init__(config, total_epochs)
        weights = (config.weight_q, config.weight_k, config.weight_v)
        self._parts = [part for part, weight in enumerate(weights) if weight]
        self._weights = [weight for weight in weights if weight]
        self._u = self._v = torch.empty(0)
        self._image = torch.empty(0)
        """W v of the weights that u and v have seen."""

    @classmethod
    def check(cls, config: MsvpConfig, facts: ModelFacts) -> Iterable[tuple[str, str]]:
        used = [field for field in cls.strengths if getattr(config, field) > 0]
        for field in used:
            if not facts.exposes_attention:
                yield field, f"msvp reads the projections of ordinary attention, which {facts.name} does not have"
            elif facts.normalises_queries and field != "weight_v":
                reason = f"{facts.name} normalises queries and keys, so that their projections do not scale its scores"
                yield field, f"{reason}; use weight_v alone, with {field}: 0"
        if used and config.slice == "in" and facts.embed_dim % facts.num_heads:
            found = f"{facts.embed_dim} and {facts.num_heads}"
            yield "slice", f"in cuts the width into as many parts as there are heads; found {found}"

    def wrap(self, model: nn.Module, probe: Batch) -> nn.Module:
        if self._parts:
            layers = _alike(attention_layers(model))
            matrices = head_matrices(layers, self._parts, self.config.slice).detach()
            count, rows, columns = matrices.shape
            generator = torch.Generator().manual_seed(START_SEED)
            self._u = torch.randn((count, rows, 1), generator=generator).to(matrices)
            self._v = torch.randn((count, columns, 1), generator=generator).to(matrices)
            for _ in range(START_ITERATIONS):
                self._iterate(matrices)
        return model

    def penalty(self, model: nn.Module, attention: Sequence[Attended]) -> dict[str, Tensor]:
        if not self._parts:
            return {}
        layers = attention_layers(model)
        with torch.autocast(self._u.device.type, enabled=False):
            matrices = head_matrices(layers, self._parts, self.config.slice)
            self._follow(matrices.detach())
            # u and v are constants, so that the gradient of σ² is 2 σ u vᵀ
            sigmas = (self._u * (matrices @ self._v)).sum((1, 2)).view(len(layers), len(self._parts), -1)  # (L, S, H)
            sums = sigmas.square().sum((0, 2)).unbind()
            weighted = [weight * part for weight, part in zip(self._weights, sums, strict=True)]
            return {"msvp": torch.stack(weighted).sum()}

    def state_dict(self) -> dict[str, Any]:
        return {"u": self._u, "v": self._v, "image": self._image}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._u, self._v, self._image = (state[name].to(self._u) for name in ("u", "v", "image"))

    @torch.no_grad()
    def _follow(self, matrices: Tensor) -> None:
        """Iterate once if the weights have moved: penalty may be asked several times for one step.

        Their product with v tells; torch's version counters do not, which fused optimizers leave as they are. The
        choice is made on the device: asking for the answer here would wait for a GPU in every step.
        """
        before = self._u, self._v, self._image
        moved = (matrices @ self._v != self._image).any()
        self._iterate(matrices)
        after = self._u, self._v, self._image
        self._u, self._v, self._image = (torch.where(moved, *pair) for pair in zip(after, before, strict=True))

    @torch.no_grad()
    def _iterate(self, matrices: Tensor) -> None:
        self._u, self._v = iterate(matrices, self._u, self._v)
        self._image = matrices @ self._v


def _alike(layers: list[Attention]) -> list[Attention]:
    shapes = sorted({(*layer.qkv.weight.shape, layer.num_heads) for layer in layers})
    if len(shapes) != 1:
        raise ModelError(f"msvp needs attention layers of one shape; found (rows, columns, heads) {shapes or 'none'}.")
    return layers


def _unit(product: Tensor, otherwise: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(product, dim=1, keepdim=True)
    return torch.where(length > 0, product / length.clamp_min(1e-12), otherwise)
