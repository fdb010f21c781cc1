"""Label smoothing as a method: part of every target goes to the other classes (Szegedy et al. 2016, arXiv:1512.00567).

The recipe has it too (`training.label_smoothing`), for all methods alike. As a method of its own it is searched and
compared with the others, which is what this example shows.
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from search_spaces.config import Number
from search_spaces.domains import Uniform
from trainables.config import MethodConfig
from trainables.method import Batch, Method


class LabelSmoothingConfig(MethodConfig):
    """How much is taken from the true class."""

    smoothing: Annotated[Number, Field(ge=0, lt=1), Uniform(0.0, 0.3)] = 0.1
    """Share of the target that is spread evenly over all classes; 0 is plain fine-tuning."""


class LabelSmoothing(Method[LabelSmoothingConfig]):
    """Cross-entropy against (1 − s) · target + s / K, equation 10 there."""

    Config = LabelSmoothingConfig
    strengths = ("smoothing",)

    def loss(self, model: nn.Module, seen: Batch, clean: Batch) -> Tensor:
        logits = model(seen.images).float()
        return F.cross_entropy(logits, seen.targets, label_smoothing=self.config.smoothing)
