"""What attacks ascend on, against definitions written out for one image."""

from __future__ import annotations

import math

import pytest
import torch

from trainables.attack_losses import cross_entropy, dlr, margin, targeted_dlr


@pytest.fixture
def logits():
    return 4 * torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def labels(logits):
    return torch.arange(len(logits)) % 6


def test_the_losses_are_their_definitions(logits, labels):
    aims = (labels + 2) % 6
    found = {
        "entropy": cross_entropy(logits, labels),
        "margin": margin(logits, labels),
        "ratio": dlr(logits, labels),
        "aimed": targeted_dlr(logits, torch.stack([labels, aims], dim=1)),
    }
    for index, (row, y, t) in enumerate(zip(logits.tolist(), labels.tolist(), aims.tolist(), strict=True)):
        ranked = sorted(row, reverse=True)
        other = max(value for j, value in enumerate(row) if j != y)
        expected = {
            "entropy": math.log(sum(math.exp(value) for value in row)) - row[y],
            "margin": max(other - row[y], -10),
            "ratio": -(row[y] - other) / (ranked[0] - ranked[2]),
            "aimed": -(row[y] - row[t]) / (ranked[0] - (ranked[2] + ranked[3]) / 2),
        }
        assert {name: float(values[index]) for name, values in found.items()} == pytest.approx(expected)


def test_the_ratios_do_not_see_shift_and_scale_of_the_logits(logits, labels):
    pairs = torch.stack([labels, (labels + 1) % 6], dim=1)
    assert torch.allclose(dlr(3 * logits + 5, labels), dlr(logits, labels))
    assert torch.allclose(targeted_dlr(3 * logits + 5, pairs), targeted_dlr(logits, pairs))


def test_the_margin_has_no_gradient_where_the_true_class_leads_by_more_than_ten():
    logits = torch.tensor([[12.0, 0.0, 1.0], [8.0, 0.0, 1.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(margin(logits, torch.zeros(2, dtype=torch.long)).sum(), logits)
    assert gradient.tolist() == [[0, 0, 0], [-1, 0, 1]]


def test_half_precision_is_widened_first():
    logits = torch.tensor([[96.0, 80.0, 3.0, 1.0]])  # exact in bfloat16, their quotient is not
    narrow = dlr(logits.bfloat16(), torch.tensor([0]))
    assert narrow.dtype == torch.float32
    assert float(narrow) == pytest.approx(-16 / 93, rel=1e-6)
