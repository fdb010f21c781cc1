"""JaSMin against its theorems, and against its definition written with loops and a full sort in float64."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from trainables.method import ModelFacts
from trainables.methods.jasmin import Jasmin, JasminConfig, head_penalty, log_g1, log_ratio

FACTS = ModelFacts("vit", tokens=17, depth=3, num_heads=3, embed_dim=48, exposes_attention=True)


def random_rows(count=300, seed=0):
    """Probability vectors of 2 to 20 entries, from nearly uniform to nearly one-hot, some with ties and zeros."""
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        size = int(torch.randint(2, 21, (), generator=generator))
        sharpness = 10 ** float(torch.rand((), generator=generator) * 3 - 1.5)
        row = (torch.randn(size, generator=generator, dtype=torch.float64) * sharpness).softmax(0)
        if number % 5 == 0:
            row[: size // 2] = row[0]
            row = row / row.sum()
        if number % 7 == 0:
            row[-1] = 0
            row = row / row.sum()
        yield row


def bound(row, k):
    """g_k by its definition: k-th largest times (1 − itself + the next), the next of the last being 0."""
    ordered = [*sorted(row.tolist(), reverse=True), 0.0]
    return ordered[k - 1] * (1 - ordered[k - 1] + ordered[k])


def singular_values(row):
    return torch.linalg.svdvals(torch.diag(row) - torch.outer(row, row))


def slow_penalty(p, k, aggregation):
    """Equations 8 and 9 with the documented guards; (B, H, N, N) float64 → (B, H)."""
    out = torch.zeros(p.shape[:2], dtype=torch.float64)
    for b in range(p.shape[0]):
        for h in range(p.shape[1]):
            rows = []
            for row in p[b, h]:
                if k == 0:
                    rows.append(math.log(max(bound(row, 1), 1e-12)))
                else:
                    rows.append(math.log(bound(row, 1) + 1e-12) - math.log(bound(row, k) + 1e-6))
            out[b, h] = max(rows) if aggregation == "max" else sum(rows) / len(rows)
    return out


def random_attention(tokens=9, dtype=torch.float64, scale=2.0):
    generator = torch.Generator().manual_seed(tokens)
    return (torch.randn(2, 3, tokens, tokens, generator=generator, dtype=torch.float64) * scale).softmax(-1).to(dtype)


def test_theorem_4_singular_values_order_statistics_and_bounds_interlace():
    for row in random_rows():
        sigma, ordered = singular_values(row), row.sort(descending=True).values
        chain = []
        for k in range(1, len(row) + 1):
            chain += [float(ordered[k - 1]), bound(row, k), float(sigma[k - 1])]
        assert all(left >= right - 1e-12 for left, right in pairwise(chain))


def test_corollary_1_the_norm_is_at_most_g1_and_g1_at_most_one_half():
    for row in random_rows(seed=1):
        g1 = float(log_g1(row).exp())
        assert float(singular_values(row)[0]) <= g1 + 1e-12
        assert g1 <= 0.5 + 1e-12
    assert float(log_g1(torch.tensor([0.5, 0.5, 0.0])).exp()) == pytest.approx(0.5)


def test_g1_is_never_more_than_a_sixth_above_the_norm():
    ratios = [float(log_g1(row).exp() / singular_values(row)[0]) for row in random_rows(seed=2) if row.max() < 0.999]
    assert len(ratios) > 100
    assert min(ratios) >= 1 - 1e-6
    assert max(ratios) < 4 - 2 * math.sqrt(2)


def test_the_ratio_bounds_how_far_the_largest_singular_value_stands_out():
    checked = 0
    for row in random_rows(seed=3):
        sigma = singular_values(row)
        for k in range(2, len(row) + 1):
            if sigma[k - 2] > 1e-3 and bound(row, k) > 1e-3:  # where the guards do not matter
                checked += 1
                assert float(sigma[0] / sigma[k - 2]) <= float(log_ratio(row, k).exp()) * 1.002
    assert checked > 300


def test_a_uniform_row_has_one_over_n_and_a_one_hot_row_the_floor():
    assert float(log_g1(torch.full((65,), 1 / 65))) == pytest.approx(-math.log(65), abs=1e-5)
    one_hot = torch.tensor([0.0, 1.0, 0.0])
    assert float(log_g1(one_hot)) == pytest.approx(math.log(1e-12))
    assert math.isfinite(float(log_ratio(one_hot, 2)))


@pytest.mark.parametrize("aggregation", ["max", "mean"])
@pytest.mark.parametrize("k", [0, 2, 5, 8, 9])
def test_the_penalty_is_its_definition(k, aggregation):
    p = random_attention()
    assert torch.allclose(head_penalty(p, k, aggregation), slow_penalty(p, k, aggregation), rtol=0, atol=1e-10)


@pytest.mark.parametrize("k", [0, 4])
def test_float32_stays_close_to_the_definition_even_for_nearly_one_hot_rows(k):
    for scale in (1.0, 8.0, 25.0):
        p = random_attention(dtype=torch.float32, scale=scale)
        slow = slow_penalty(p.double(), k, "max")
        assert torch.allclose(head_penalty(p, k, "max").double(), slow, rtol=1e-4, atol=2e-5)


def test_the_rest_of_a_nearly_one_hot_row_is_not_lost_in_rounding():
    tiny = torch.tensor([1.0, 3e-9, 2e-9])  # 1 − p₁ is 0 in float32, the rest is not
    assert float(log_g1(tiny)) == pytest.approx(math.log(5e-9 + 3e-9), abs=1e-5)


@pytest.mark.parametrize("aggregation", ["max", "mean"])
@pytest.mark.parametrize("k", [0, 3])
def test_gradients_agree_with_finite_differences(k, aggregation):
    scores = torch.randn(1, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scores.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s: head_penalty(s.softmax(-1), k, aggregation), scores)


def test_with_max_one_row_per_head_has_a_gradient_and_with_mean_all():
    for aggregation, rows in (("max", 1), ("mean", 9)):
        p = random_attention().requires_grad_(True)
        head_penalty(p, 0, aggregation).sum().backward()
        touched = (p.grad.abs().sum(-1) > 0).sum(-1)
        assert touched.tolist() == [[rows] * 3] * 2


def test_half_precision_is_computed_in_float32():
    assert head_penalty(random_attention(dtype=torch.bfloat16), 0, "max").dtype == torch.float32


def test_the_penalty_sums_layers_and_heads_and_averages_the_batch():
    attention = [random_attention(), random_attention(tokens=7)]
    method = Jasmin(JasminConfig(k=3, weight=0.5, aggregation="mean"), 1)
    expected = 0.5 * sum(slow_penalty(p, 3, "mean").sum(1) for p in attention).mean()
    assert float(method.penalty(torch.nn.Identity(), attention)["jasmin"]) == pytest.approx(float(expected))


def test_a_weight_of_zero_needs_no_attention_and_adds_nothing():
    method = Jasmin(JasminConfig(weight=0), 1)
    assert not method.needs_attention
    assert method.penalty(torch.nn.Identity(), []) == {}
    assert Jasmin(JasminConfig(weight=1e-3), 1).needs_attention


@pytest.mark.parametrize("values", [{"k": 1}, {"k": -1}, {"weight": -1e-3}, {"aggregation": "sum"}, {"lambda": 1}])
def test_impossible_settings_are_refused(values):
    with pytest.raises(ValidationError):
        JasminConfig(**values)


def test_the_number_of_tokens_bounds_k():
    assert list(Jasmin.check(JasminConfig(k=16), FACTS)) == []
    ((field, sentence),) = Jasmin.check(JasminConfig(k=17), FACTS)
    assert field == "k"
    assert "17 tokens" in sentence
    for k in (1, 18):
        with pytest.raises(ValueError, match="2 … 17"):
            log_ratio(torch.full((17,), 1 / 17), k)


def test_a_model_that_hides_its_attention_is_refused_by_name():
    hidden = ModelFacts("vit_parallel", 17, 3, 3, 48, exposes_attention=False)
    ((_, sentence),) = Jasmin.check(JasminConfig(k=0), hidden)
    assert "vit_parallel" in sentence
