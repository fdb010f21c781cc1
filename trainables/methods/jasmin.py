"""JaSMin: penalise the softmax Jacobian norm of every attention row (Yudin et al. 2025, arXiv:2507.07814).

The Jacobian of softmax at p is diag(p) − ppᵀ; its spectral norm is at most g₁(p) ≤ 1/2 (theorem 4, corollary 1), and
g₁/g_k bounds how far the norm stands out from the (k−1)-th singular value (equation 11).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from search_spaces.config import Number
from search_spaces.domains import Choice, LogUniform
from trainables.config import MethodConfig
from trainables.method import Method, ModelFacts

NUMERATOR_FLOOR = 1e-12
"""Keeps log g₁ of a one-hot row finite (our choice: the paper does not guard the numerator)."""
DENOMINATOR_GUARD = 1e-6
"""Added to g_k (paper, appendix D)."""


class JasminConfig(MethodConfig):
    """Hyper-parameters of equations 8 and 9."""

    k: Annotated[int, Field(ge=0), Choice((0, 5, 10, 20, 30))] = 10
    """0 penalises log g₁ alone; k > 1 penalises log(g₁/g_k). Must be smaller than the number of tokens."""
    weight: Annotated[Number, Field(ge=0), LogUniform(1e-4, 3e-2)] = 1e-3
    """λ: multiplier on the penalty summed over layers and heads; 0 is plain fine-tuning, bit by bit."""
    aggregation: Annotated[Literal["max", "mean"], Choice(("max", "mean"))] = "max"
    """How the rows (queries) of one head become one number."""

    @field_validator("k")
    @classmethod
    def _not_one(cls, k: int) -> int:
        if k == 1:
            raise ValueError("k is 0 or at least 2: at 1 the penalty log(g₁/g₁) is always 0")
        return k


def log_g1(p: Tensor) -> Tensor:
    """Logarithm of the bound g₁ on the spectral norm of the softmax Jacobian diag(p) − ppᵀ.

    Args:    p: probabilities (..., N), rows sum to 1, N >= 2.
    Returns: log(p₁(1 − p₁ + p₂)), shape (...), with p₁ >= p₂ the two largest entries; at least log(1e-12).
    Source:  Yudin et al. 2025, definition 1 and theorem 4.
    """
    top = p.topk(2, dim=-1)
    first, second = top.values.unbind(-1)
    rest = p.scatter(-1, top.indices[..., :1], 0.0).sum(-1)  # 1 − p₁ without the cancellation near one-hot rows
    return (first * (rest + second)).clamp_min(NUMERATOR_FLOOR).log()


def log_ratio(p: Tensor, k: int) -> Tensor:
    """Logarithm of g₁/g_k, both guarded.

    Args:    p: probabilities (..., N), rows sum to 1; k: 2 to N.
    Returns: log(g₁ + 1e-12) − log(g_k + 1e-6), shape (...), with g_k = p_k(1 − p_k + p_{k+1}) and p_{N+1} = 0.
    Raises:  ValueError if k is not in 2 … N.
    Source:  Yudin et al. 2025, equation 9; g_N and the guard of g₁ are our choice.
    """
    size = p.shape[-1]
    if not 2 <= k <= size:
        raise ValueError(f"k must lie in 2 … {size}, the number of tokens; found {k}")
    top = p.topk(min(k + 1, size), dim=-1)
    first, second, kth = top.values[..., 0], top.values[..., 1], top.values[..., k - 1]
    following = top.values[..., k] if k < size else torch.zeros_like(kth)
    rest = p.scatter(-1, top.indices[..., :1], 0.0).sum(-1)
    numerator = first * (rest + second)
    return (numerator + NUMERATOR_FLOOR).log() - (kth * (1 - kth + following) + DENOMINATOR_GUARD).log()


def head_penalty(p: Tensor, k: int, aggregation: str) -> Tensor:
    """Return the penalty of each head of one layer.

    With "max" only the worst row of a head has a gradient, so the rows are compared without a graph first and the
    formula is evaluated again for that row alone: no further (B, H, N, N) tensor survives for the backward pass.

    Args:    p: probabilities (B, H, N, N), before dropout; computed in float32 at least.
    Returns: (B, H), max or mean over the N rows of log g₁ (k = 0) or log(g₁/g_k).
    """
    p = p if p.dtype == torch.float64 else p.float()
    if aggregation == "mean":
        return _log_rows(p, k).mean(-1)
    with torch.no_grad():
        worst = _log_rows(p, k).argmax(-1)
    row = p.gather(-2, worst[..., None, None].expand(*worst.shape, 1, p.shape[-1]))
    return _log_rows(row, k).squeeze(-1)


def _log_rows(p: Tensor, k: int) -> Tensor:
    return log_ratio(p, k) if k else log_g1(p)


class Jasmin(Method[JasminConfig]):
    """λ Σ_layers Σ_heads agg_rows log g₁ (k = 0) or log(g₁/g_k); the mean over the batch is our choice."""

    Config = JasminConfig
    strengths = ("weight",)

    @classmethod
    def check(cls, config: JasminConfig, facts: ModelFacts) -> Iterable[tuple[str, str]]:
        if config.k >= facts.tokens:
            yield "k", f"k must be smaller than the {facts.tokens} tokens of {facts.name}; found {config.k}"
        if not facts.exposes_attention:
            yield "weight", f"jasmin reads attention probabilities, which {facts.name} does not expose"

    @property
    def needs_attention(self) -> bool:
        return self.config.weight > 0

    def penalty(self, model: nn.Module, attention: Sequence[Tensor]) -> dict[str, Tensor]:
        if not self.needs_attention:
            return {}
        heads = torch.stack([head_penalty(p, self.config.k, self.config.aggregation) for p in attention])  # (L, B, H)
        return {"jasmin": self.config.weight * heads.sum((0, 2)).mean()}
