"""The statistic against its theorems, and against its definition written with loops and a full sort in float64."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks

from trainables.softmax_jacobian import from_probabilities, from_projections, log_g1, log_ratio


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
    assert torch.allclose(from_probabilities(p, k, aggregation), slow_penalty(p, k, aggregation), rtol=0, atol=1e-10)


@pytest.mark.parametrize("k", [0, 4])
def test_float32_stays_close_to_the_definition_even_for_nearly_one_hot_rows(k):
    for scale in (1.0, 8.0, 25.0):
        p = random_attention(dtype=torch.float32, scale=scale)
        slow = slow_penalty(p.double(), k, "max")
        assert torch.allclose(from_probabilities(p, k, "max").double(), slow, rtol=1e-4, atol=2e-5)


def test_the_rest_of_a_nearly_one_hot_row_is_not_lost_in_rounding():
    tiny = torch.tensor([1.0, 3e-9, 2e-9])  # 1 − p₁ is 0 in float32, the rest is not
    assert float(log_g1(tiny)) == pytest.approx(math.log(5e-9 + 3e-9), abs=1e-5)


@pytest.mark.parametrize("aggregation", ["max", "mean"])
@pytest.mark.parametrize("k", [0, 3])
def test_gradients_agree_with_finite_differences(k, aggregation):
    scores = torch.randn(1, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scores.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s: from_probabilities(s.softmax(-1), k, aggregation), scores)


def test_with_max_one_row_per_head_has_a_gradient_and_with_mean_all():
    for aggregation, rows in (("max", 1), ("mean", 9)):
        p = random_attention().requires_grad_(True)
        from_probabilities(p, 0, aggregation).sum().backward()
        touched = (p.grad.abs().sum(-1) > 0).sum(-1)
        assert touched.tolist() == [[rows] * 3] * 2


def projections(tokens=9, dtype=torch.float64, scale=1.0, batch=2):
    generator = torch.Generator().manual_seed(tokens)
    return [scale * torch.randn(batch, 3, tokens, 4, generator=generator, dtype=torch.float64).to(dtype) for _ in "qk"]


def softmax_of(queries, keys, scale=0.5):
    return (scale * queries @ keys.mT).softmax(-1)


def gradients(penalty, queries, keys):
    queries, keys = queries.detach().requires_grad_(), keys.detach().requires_grad_()
    weights = torch.arange(1, queries.shape[0] * queries.shape[1] + 1, dtype=torch.float64)
    (penalty(queries, keys) * weights.view(queries.shape[:2])).sum().backward()
    return queries.grad, keys.grad


def slow_rows(p, k):
    """The penalty of every row by a full sort, differentiable by autograd alone: (..., N) → (...)."""
    ordered = torch.cat([p.sort(-1, descending=True).values, torch.zeros_like(p[..., :1])], -1)

    def g(rank):
        return ordered[..., rank - 1] * (1 - ordered[..., rank - 1] + ordered[..., rank])

    return g(1).clamp_min(1e-12).log() if k == 0 else (g(1) + 1e-12).log() - (g(k) + 1e-6).log()


def slow_heads(p, k, aggregation):
    rows = slow_rows(p, k)
    return rows.amax(-1) if aggregation == "max" else rows.mean(-1)


PATHS = {
    "probabilities": lambda k, how: lambda q, key: from_probabilities(softmax_of(q, key), k, how),
    "recompute": lambda k, how: lambda q, key: from_projections(q, key, 0.5, k, how),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("aggregation", ["max", "mean"])
@pytest.mark.parametrize("k", [0, 2, 5, 8, 9])
def test_both_paths_have_the_gradient_of_the_slow_definition(path, aggregation, k):
    queries, keys = projections(scale=1.5)
    found = gradients(PATHS[path](k, aggregation), queries, keys)
    expected = gradients(lambda q, key: slow_heads(softmax_of(q, key), k, aggregation), queries, keys)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("aggregation", ["max", "mean"])
@pytest.mark.parametrize("k", [0, 3])
def test_recomputed_gradients_agree_with_finite_differences(aggregation, k):
    queries, keys = (tensor[:1, :2, :5].requires_grad_() for tensor in projections())
    assert torch.autograd.gradcheck(lambda q, key: from_projections(q, key, 0.5, k, aggregation), (queries, keys))


@given(
    scores=st.lists(st.lists(st.floats(-30, 30), min_size=4, max_size=4), min_size=4, max_size=4),
    k=st.sampled_from([0, 2, 3, 4]),
    aggregation=st.sampled_from(["max", "mean"]),
)
@settings(max_examples=150, deadline=None)
def test_both_paths_agree_on_any_scores_ties_and_one_hot_rows_included(scores, k, aggregation):
    queries, keys = torch.tensor(scores, dtype=torch.float64)[None, None], torch.eye(4, dtype=torch.float64)[None, None]

    def recompute(q, key):
        return from_projections(q, key, 1.0, k, aggregation)

    expected = from_probabilities(queries.softmax(-1), k, aggregation)
    assert torch.allclose(recompute(queries, keys), expected, rtol=1e-9, atol=1e-9)
    assert bool(torch.isfinite(torch.cat(gradients(recompute, queries, keys))).all())


@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("path", PATHS)
def test_float32_gradients_of_nearly_one_hot_rows_keep_their_digits(path, k):
    queries, keys = projections(scale=4.0)  # the rest of some rows is below 1e-7, where 1 − p₁ would be rounding
    assert float((1 - softmax_of(queries, keys).amax(-1)).min()) < 1e-7
    exact = gradients(lambda q, key: slow_heads(softmax_of(q, key), k, "mean"), queries, keys)
    found = gradients(PATHS[path](k, "mean"), queries.float(), keys.float())
    for ours, theirs in zip(found, exact, strict=True):
        assert torch.allclose(ours.double(), theirs, rtol=2e-3, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("aggregation", ["max", "mean"])
@pytest.mark.parametrize("k", [0, 10])
@pytest.mark.parametrize("tokens", [65, 197])
def test_the_recomputing_path_saves_no_tensor_of_n_by_n(tokens, k, aggregation):
    queries, keys = (tensor.float().requires_grad_() for tensor in projections(tokens, batch=1))
    saved = []

    def note(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    def quadratic():
        return [
            shape for shape in saved if shape[-2:] == (tokens, tokens) or torch.Size(shape).numel() >= tokens**2 * 3
        ]

    with saved_tensors_hooks(note, lambda tensor: tensor):
        from_projections(queries, keys, 0.5, k, aggregation)
    assert saved
    assert quadratic() == []
    with saved_tensors_hooks(note, lambda tensor: tensor):
        from_probabilities(softmax_of(queries, keys), k, aggregation)
    assert quadratic()  # the hooks do see them


def test_proposition_1_a_small_ratio_bounds_the_norm():
    """‖M‖ ≤ (1 − √(1 − 4γ/k))/2 for γ = g₁/g_k ≤ k/4, and the simpler ‖M‖ ≤ g₁ ≤ γ/k."""
    checked = 0
    for row in random_rows(count=400, seed=5):
        norm = float(singular_values(row)[0])
        for k in range(2, len(row) + 1):
            if bound(row, k) < 1e-9:
                continue
            gamma = bound(row, 1) / bound(row, k)
            assert norm <= gamma / k + 1e-12
            if gamma <= k / 4:
                checked += 1
                assert norm <= (1 - math.sqrt(1 - 4 * gamma / k)) / 2 + 1e-12
    assert checked > 200


def test_equation_10_a_small_g1_leaves_two_kinds_of_rows():
    checked = 0
    for row in random_rows(count=400, seed=6):
        gamma = float(log_g1(row).exp())
        if gamma < 0.25:
            checked += 1
            edge = math.sqrt(1 - 4 * gamma) / 2
            assert float(row.max()) <= 0.5 - edge + 1e-12 or float(row.max()) >= 0.5 + edge - 1e-12
    assert checked > 100


def test_half_precision_is_computed_in_float32():
    assert from_probabilities(random_attention(dtype=torch.bfloat16), 0, "max").dtype == torch.float32
    half = [tensor.bfloat16() for tensor in projections()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = from_projections(*half, 0.5, 3, "mean")
    exact = from_projections(*(tensor.double() for tensor in half), 0.5, 3, "mean")
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), exact, atol=1e-5)


def test_k_beyond_the_number_of_tokens_is_refused():
    for k in (1, 18):
        with pytest.raises(ValueError, match="2 … 17"):
            log_ratio(torch.full((17,), 1 / 17), k)
