"""JaSMin: penalise the softmax Jacobian norm of every attention row (Yudin et al. 2025, arXiv:2507.07814).

The statistic of a row and its two ways of computation are in `trainables/softmax_jacobian.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from search_spaces.config import Number
from search_spaces.domains import Choice, LogUniform
from trainables.attention import Attended, Reads
from trainables.config import MethodConfig
from trainables.method import Method, ModelFacts
from trainables.softmax_jacobian import from_probabilities, from_projections


class JasminConfig(MethodConfig):
    """Hyper-parameters of equations 8 and 9."""

    k: Annotated[int, Field(ge=0), Choice((0, 5, 10, 20, 30))] = 10
    """0 penalises log g₁ alone; k > 1 penalises log(g₁/g_k). Must be smaller than the number of tokens."""
    weight: Annotated[Number, Field(ge=0), LogUniform(1e-4, 3e-2)] = 1e-3
    """λ: multiplier on the penalty summed over layers and heads; 0 is plain fine-tuning, bit by bit."""
    aggregation: Annotated[Literal["max", "mean"], Choice(("max", "mean"))] = "max"
    """How the rows (queries) of one head become one number."""
    path: Literal["auto", "probabilities", "recompute"] = "auto"
    """How the statistic is computed: "probabilities" switches fused attention off and reads what it then forms;
    "recompute" keeps it and computes the scores once more, so that no N × N tensor survives for the backward pass. They
    differ by rounding. auto is "recompute" on a GPU, where memory is dear, and "probabilities" on a CPU."""

    @field_validator("k")
    @classmethod
    def _not_one(cls, k: int) -> int:
        if k == 1:
            raise ValueError("k is 0 or at least 2: at 1 the penalty log(g₁/g₁) is always 0")
        return k


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

    def reads(self, device: torch.device) -> Reads:
        if self.config.weight == 0:
            return "nothing"
        recomputes = self.config.path == "recompute" or (self.config.path == "auto" and device.type != "cpu")
        return "projections" if recomputes else "probabilities"

    def penalty(self, model: nn.Module, attention: Sequence[Attended]) -> dict[str, Tensor]:
        if self.config.weight == 0:
            return {}
        heads = torch.stack([self._head_penalty(layer) for layer in attention])  # (L, B, H)
        return {"jasmin": self.config.weight * heads.sum((0, 2)).mean()}

    def _head_penalty(self, layer: Attended) -> Tensor:
        """Return (B, H)."""
        k, aggregation = self.config.k, self.config.aggregation
        if layer.probabilities is not None:
            return from_probabilities(layer.probabilities, k, aggregation)
        return from_projections(layer.queries, layer.keys, layer.scale, k, aggregation)
