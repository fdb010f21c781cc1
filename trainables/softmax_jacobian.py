"""The bound g₁ on the spectral norm of the softmax Jacobian, per attention row, head and layer (JaSMin's statistic).

The Jacobian of softmax at p is diag(p) − ppᵀ. With p₁ ≥ p₂ ≥ … the sorted entries, g_k = p_k(1 − p_k + p_{k+1}) bounds
its k-th singular value; g₁ ≤ 1/2, and g₁/g_k bounds how far the first stands out from the (k−1)-th (Yudin et al. 2025,
arXiv:2507.07814, theorem 4, corollary 1 and equation 11).

The penalty is defined once, in `_formula`, as a function of at most four entries of a row and of the sum of the others.
There are two ways to these entries: `from_probabilities` reads attention that was computed the plain way;
`from_projections` computes the scores a second time beside fused attention and lets no N × N tensor survive for the
backward pass. Both have a hand-written backward pass that gets its slopes from `_formula` and touches only what has a
gradient: with "max" that is one row per head.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

NUMERATOR_FLOOR = 1e-12
"""Keeps log g₁ of a one-hot row finite (our choice: the paper does not guard the numerator)."""
DENOMINATOR_GUARD = 1e-6
"""Added to g_k (paper, appendix D)."""

Aggregation = Literal["max", "mean"]


def log_g1(p: Tensor) -> Tensor:
    """Logarithm of the bound g₁ on the spectral norm of the softmax Jacobian diag(p) − ppᵀ.

    Args:    p: probabilities (..., N), rows sum to 1, N >= 2.
    Returns: log(p₁(1 − p₁ + p₂)), shape (...), with p₁ >= p₂ the two largest entries; at least log(1e-12).
    Source:  Yudin et al. 2025, definition 1 and theorem 4.
    """
    return _formula(_read(p, 0), 0)


def log_ratio(p: Tensor, k: int) -> Tensor:
    """Logarithm of g₁/g_k, both guarded.

    Args:    p: probabilities (..., N), rows sum to 1; k: 2 to N.
    Returns: log(g₁ + 1e-12) − log(g_k + 1e-6), shape (...), with g_k = p_k(1 − p_k + p_{k+1}) and p_{N+1} = 0.
    Raises:  ValueError if k is not in 2 … N.
    Source:  Yudin et al. 2025, equation 9; g_N and the guard of g₁ are our choice.
    """
    if not 2 <= k <= p.shape[-1]:
        raise ValueError(f"k must lie in 2 … {p.shape[-1]}, the number of tokens; found {k}")
    return _formula(_read(p, k), k)


def from_probabilities(p: Tensor, k: int, aggregation: Aggregation) -> Tensor:
    """Return the penalty of each head of one layer.

    Args:    p: probabilities (B, H, N, N), before dropout; statistics are computed in float32 at least.
    Returns: (B, H), max or mean over the N rows of log g₁ (k = 0) or log(g₁/g_k). Only first derivatives exist.
    """
    penalty: Tensor = _FromProbabilities.apply(_at_least_float32(p), k, aggregation)  # type: ignore[no-untyped-call]
    return penalty


def from_projections(queries: Tensor, keys: Tensor, scale: float, k: int, aggregation: Aggregation) -> Tensor:
    """Return what `from_probabilities` returns for softmax(scale · queries keysᵀ), keeping no N × N tensor.

    Args:    queries, keys: (B, H, N, d); scale: 1/√d as a rule. Computed in float32 at least.
    Returns: (B, H). Only first derivatives exist.
    """
    wide = _at_least_float32(queries), _at_least_float32(keys)
    penalty: Tensor = _FromProjections.apply(*wide, scale, k, aggregation)  # type: ignore[no-untyped-call]
    return penalty


class _Row(NamedTuple):
    """What `_formula` reads of a row p."""

    top: Tensor
    """(..., m): p₁ and p₂ and, for k > 1, p_k and p_{k+1}; each entry once, and p_{N+1} left out."""
    where: Tensor
    """(..., m): their positions in the row."""
    rest: Tensor
    """(...): sum of all entries but p₁, which is 1 − p₁ without the cancellation near one-hot rows."""


def _formula(row: _Row, k: int) -> Tensor:
    """The penalty of a row, (...): log g₁ for k = 0, log(g₁/g_k) for k > 1."""
    first, second = row.top[..., 0], row.top[..., 1]
    g1 = first * (row.rest + second)
    if k == 0:
        return g1.clamp_min(NUMERATOR_FLOOR).log()
    kth = row.top[..., 1 if k == 2 else 2]
    is_last = row.top.shape[-1] == (2 if k == 2 else 3)  # k = N
    gk = kth * (1 - kth) if is_last else kth * (1 - kth + row.top[..., -1])
    return (g1 + NUMERATOR_FLOOR).log() - (gk + DENOMINATOR_GUARD).log()


def _read(p: Tensor, k: int) -> _Row:
    """Read rows p (..., N); differentiable."""
    values, where = _largest(p, k)
    rest = p.scatter(-1, where[..., :1], 0.0).sum(-1)
    return _Row(values, where, rest)


def _read_scores(scores: Tensor, k: int) -> tuple[_Row, Tensor]:
    """Read softmax(scores) and return also the log-sum-exp of each row (...). Overwrites the scores."""
    top, where = _largest(scores, k)
    largest = top[..., :1]
    tail = scores.sub_(largest).exp_().scatter_(-1, where[..., :1], 0.0).sum(-1)
    total = 1 + tail
    row = _Row((top - largest).exp() / total.unsqueeze(-1), where, tail / total)
    return row, largest.squeeze(-1) + total.log()


def _largest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the entries (..., m) that `_formula` reads, and where they are."""
    size = rows.shape[-1]
    if k == 0:  # twice the maximum: a fraction of what topk costs, on a CPU
        first = rows.max(-1, keepdim=True)
        second = rows.scatter(-1, first.indices, -torch.inf).max(-1, keepdim=True)
        return torch.cat([first.values, second.values], -1), torch.cat([first.indices, second.indices], -1)
    top = rows.topk(min(k + 1, size), dim=-1)
    ranks = sorted(rank for rank in {0, 1, k - 1, k} if rank < size)
    return top.values[..., ranks], top.indices[..., ranks]


def _slopes(row: _Row, k: int) -> tuple[Tensor, ...]:
    """Return the derivatives of `_formula` with respect to the entries (..., m) and to the rest (...)."""
    with torch.enable_grad():
        top, rest = row.top.detach().requires_grad_(), row.rest.detach().requires_grad_()
        return torch.autograd.grad(_formula(_Row(top, row.where, rest), k).sum(), (top, rest))


def _row_gradient(row: _Row, k: int, size: int) -> Tensor:
    """Return the derivative of `_formula` with respect to every entry of the rows: (..., N)."""
    by_top, by_rest = _slopes(row, k)
    by_top[..., 1:] += by_rest.unsqueeze(-1)  # every entry but the largest is a part of the rest
    return by_rest.unsqueeze(-1).repeat(*(1 for _ in by_rest.shape), size).scatter_(-1, row.where.long(), by_top)


def _choose(row: _Row, k: int, aggregation: Aggregation) -> tuple[Tensor, _Row, Tensor | None]:
    """Aggregate rows (B, H, N).

    Returns: the penalty (B, H); the rows (B, H, R) that have a gradient, R = N or 1; their positions (B, H, 1), None
        for all.
    """
    values = _formula(row, k)
    small = row._replace(where=row.where.int())
    if aggregation == "mean":
        return values.mean(-1), small, None
    worst = values.max(-1, keepdim=True)
    entries = worst.indices.unsqueeze(-1).expand(-1, -1, -1, row.top.shape[-1])
    chosen = _Row(row.top.gather(2, entries), small.where.gather(2, entries), row.rest.gather(2, worst.indices))
    return worst.values.squeeze(-1), chosen, worst.indices


class _FromProbabilities(torch.autograd.Function):
    """Backward: the derivative of the rows that count, zero elsewhere; reads no N × N tensor."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, k: int, aggregation: Aggregation) -> Tensor:
        penalty, row, position = _choose(_read(p, k), k, aggregation)
        ctx.save_for_backward(*row, position)
        ctx.k, ctx.size = k, p.shape[-1]
        return penalty

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        *row, position = ctx.saved_tensors
        gradient = _row_gradient(_Row(*row), ctx.k, ctx.size)  # (B, H, R, N)
        gradient *= grad[..., None, None] / gradient.shape[2]
        return _place(gradient, position, ctx.size), None, None


class _FromProjections(torch.autograd.Function):
    """Backward: computes the scores of the rows that count once more; saves queries, keys and a few numbers per row."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, scale: float, k: int, aggregation: Aggregation) -> Tensor:
        with torch.autocast(queries.device.type, enabled=False):
            rows, log_sum = _read_scores((queries * scale) @ keys.mT, k)
        penalty, row, position = _choose(rows, k, aggregation)
        log_sum = log_sum if position is None else log_sum.gather(2, position)
        ctx.save_for_backward(queries, keys, log_sum, *row, position)
        ctx.k, ctx.scale = k, scale
        return penalty

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        queries, keys, log_sum, *row, position = ctx.saved_tensors
        size, width = queries.shape[2:]
        if position is not None:
            queries = queries.gather(2, position.unsqueeze(-1).expand(-1, -1, -1, width))
        with torch.autocast(queries.device.type, enabled=False):
            queries = queries * ctx.scale  # (B, H, R, d)
            p = (queries @ keys.mT).sub_(log_sum.unsqueeze(-1)).exp_()  # (B, H, R, N)
            slopes = _row_gradient(_Row(*row), ctx.k, size)
            mean_slope = torch.linalg.vecdot(p, slopes).unsqueeze(-1)
            by_scores = slopes.sub_(mean_slope).mul_(p)  # softmax's own Jacobian
            by_scores *= grad[..., None, None] / by_scores.shape[2]
            by_queries = _place(by_scores @ (keys * ctx.scale), position, size)
            return by_queries, by_scores.mT @ queries, None, None, None


def _place(rows: Tensor, position: Tensor | None, size: int) -> Tensor:
    """Put rows (B, H, 1, w) at their positions among N rows of zeros; all N rows (position None) stay as they are."""
    if position is None:
        return rows
    everywhere = rows.new_zeros(*rows.shape[:2], size, rows.shape[-1])
    return everywhere.scatter_(2, position.unsqueeze(-1).expand(-1, -1, -1, rows.shape[-1]), rows)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
