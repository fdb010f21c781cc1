"""MSVP: the power iteration against singular values, the penalty against a loop, and when the vectors move."""

from __future__ import annotations

import io
from copy import deepcopy
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from timm.layers import Attention
from torch import nn

from search_spaces.errors import ModelError
from trainables.attention import attention_layers
from trainables.method import Batch, ModelFacts
from trainables.methods.msvp import Msvp, MsvpConfig, head_matrices, iterate
from trainables.training import Training

BATCH = Batch(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long))
SIZES = {"out": (8, 24), "in": (24, 8)}


@pytest.fixture(autouse=True)
def _same_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def layers_of(count=2, dim=24, heads=3, dtype=torch.float32):
    return nn.ModuleList([Attention(dim, num_heads=heads, qkv_bias=True) for _ in range(count)]).to(dtype)


def by_hand(model, axis):
    """Return {(layer, projection, head): matrix}, cut out one by one from the fused weight."""
    found = {}
    for number, layer in enumerate(model):
        for part in range(3):
            rows = layer.num_heads * layer.head_dim
            whole = layer.qkv.weight[part * rows : (part + 1) * rows]
            for head in range(layer.num_heads):
                width = (layer.head_dim, whole.shape[1] // layer.num_heads)[axis == "in"]
                span = slice(head * width, (head + 1) * width)
                found[number, part, head] = whole[span] if axis == "out" else whole[:, span]
    return found


def started(model, **values):
    method = Msvp(MsvpConfig(**values), total_epochs=1)
    assert method.wrap(model, BATCH) is model
    return method


def move(model, amount=0.01):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(amount * torch.randn_like(parameter))


@pytest.mark.parametrize("axis", ["out", "in"])
def test_each_head_is_cut_from_its_own_projection(axis):
    model = layers_of()
    cut = head_matrices(list(model), [0, 1, 2], axis).view(2, 3, 3, *SIZES[axis])
    for place, matrix in by_hand(model, axis).items():
        assert torch.equal(cut[place], matrix)
    chosen = head_matrices(list(model), [2], axis).view(2, 1, 3, *SIZES[axis])
    assert torch.equal(chosen[:, 0], cut[:, 2])


def test_the_heads_of_slice_out_are_those_that_attention_computes_with():
    (layer,) = layers_of(1)
    tokens = torch.randn(1, 5, 24)
    seen = []
    layer.k_norm.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    layer(tokens)
    keys = head_matrices([layer], [1], "out")  # (H, d, D)
    bias = layer.qkv.bias.view(3, 3, 8)[1]
    assert torch.allclose(seen[0][0], tokens[0] @ keys.mT + bias[:, None], rtol=0, atol=1e-5)


@pytest.mark.parametrize("axis", ["out", "in"])
def test_fifty_iterations_reach_the_spectral_norm(axis):
    rows, columns = SIZES[axis]
    left, _, right = torch.linalg.svd(torch.randn(20, rows, columns), full_matrices=False)
    values = torch.linspace(1, 0.1, 8) ** 0.5  # the second is 0.93 of the first; the closer, the slower
    matrices = torch.logspace(-3, 3, 20).view(-1, 1, 1) * (left * values) @ right
    u, v = torch.randn(20, rows, 1), torch.zeros(20, columns, 1)
    for _ in range(50):
        u, v = iterate(matrices, u, v)
    sigma = (u * (matrices @ v)).sum((1, 2))
    torch.testing.assert_close(sigma, torch.linalg.matrix_norm(matrices, 2), rtol=1e-4, atol=0)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    iterations=st.integers(1, 4),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 2**31),
)
def test_no_estimate_exceeds_the_true_value(rows, columns, iterations, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    matrices = scale * torch.randn(5, rows, columns, generator=generator, dtype=torch.float64)
    u, v = (
        torch.randn(5, rows, 1, generator=generator, dtype=torch.float64),
        torch.zeros(5, columns, 1, dtype=torch.float64),
    )
    for _ in range(iterations):
        u, v = iterate(matrices, u, v)
    sigma = (u * (matrices @ v)).sum((1, 2))
    assert bool((sigma <= torch.linalg.matrix_norm(matrices, 2) * (1 + 1e-12)).all())
    assert bool((sigma > 0).all())


def test_a_matrix_of_zeros_keeps_its_vectors_until_it_has_a_direction():
    zeros = torch.zeros(1, 3, 4)
    u, v = iterate(zeros, torch.ones(1, 3, 1), torch.ones(1, 4, 1))
    assert torch.equal(u, torch.ones(1, 3, 1))
    assert torch.equal(v, torch.ones(1, 4, 1))
    u, v = iterate(zeros + 2, u, v)
    assert float((u * ((zeros + 2) @ v)).sum()) == pytest.approx(2 * 12**0.5)


@pytest.mark.parametrize("axis", ["out", "in"])
@pytest.mark.parametrize("weights", [(1e-3, 2e-2, 0.3), (0, 2e-2, 0.3), (1e-3, 0, 0)])
def test_the_penalty_is_the_weighted_sum_of_the_squared_norms_of_all_heads(axis, weights):
    model = layers_of()
    method = started(model, **dict(zip(Msvp.strengths, weights, strict=True)), slice=axis)
    for _ in range(400):
        method._iterate(head_matrices(list(model), method._parts, axis).detach())
    expected = sum(
        weights[part] * float(torch.linalg.svdvals(matrix.detach().double())[0]) ** 2
        for (_, part, _), matrix in by_hand(model, axis).items()
    )
    terms = method.penalty(model, [])
    assert terms.keys() == {"msvp"}
    assert terms["msvp"].item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("axis", ["out", "in"])
def test_the_gradient_is_twice_sigma_times_the_outer_product_of_the_vectors(axis):
    model = layers_of(dtype=torch.float64)
    weights = (0.5, 0.0, 2.0)
    method = started(model, **dict(zip(Msvp.strengths, weights, strict=True)), slice=axis)
    method.penalty(model, [])["msvp"].backward()
    u, v = (t.view(2, 2, 3, -1) for t in (method._u, method._v))
    expected = [torch.zeros_like(layer.qkv.weight) for layer in model]
    for (number, part, head), matrix in by_hand(model, axis).items():
        if part == 1:
            continue
        left, right = u[number, part // 2, head], v[number, part // 2, head]
        gradient = 2 * weights[part] * (left @ matrix.detach() @ right) * torch.outer(left, right)
        rows = (
            slice(part * 24 + head * 8, part * 24 + head * 8 + 8) if axis == "out" else slice(part * 24, part * 24 + 24)
        )
        columns = slice(None) if axis == "out" else slice(head * 8, head * 8 + 8)
        expected[number][rows, columns] += gradient
    for layer, gradient in zip(model, expected, strict=True):
        torch.testing.assert_close(layer.qkv.weight.grad, gradient, rtol=1e-12, atol=1e-15)


def test_the_gradient_is_that_of_the_true_norms_by_finite_differences():
    model = layers_of(1, dtype=torch.float64)
    weights = (0.5, 1.0, 2.0)
    method = started(model, **dict(zip(Msvp.strengths, weights, strict=True)))
    for _ in range(600):
        method._iterate(head_matrices(list(model), [0, 1, 2], "out").detach())
    method.penalty(model, [])["msvp"].backward()
    weight = model[0].qkv.weight

    def exact():
        norms = torch.linalg.matrix_norm(weight.detach().view(3, 3, 8, 24), 2)
        return float((norms.square().sum(1) * torch.tensor(weights, dtype=torch.float64)).sum())

    for row, column in ((0, 0), (10, 5), (30, 23), (50, 11), (71, 2)):
        sides = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[row, column] += step
            sides.append(exact())
            with torch.no_grad():
                weight[row, column] -= step
        assert float(weight.grad[row, column]) == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("axis", ["out", "in"])
def test_either_slice_brackets_the_norm_of_the_whole_projection(axis):
    model = layers_of(5)
    norms = torch.linalg.matrix_norm(head_matrices(list(model), [0, 1, 2], axis), 2).view(5, 3, 3)
    whole = torch.linalg.matrix_norm(torch.stack([layer.qkv.weight.view(3, 24, 24) for layer in model]), 2)
    assert bool((norms.amax(-1) ** 2 <= whole**2 * (1 + 1e-6)).all())
    assert bool((whole**2 <= norms.square().sum(-1) * (1 + 1e-6)).all())


def test_asking_again_without_a_step_changes_nothing():
    model = layers_of()
    method = started(model)
    move(model)
    first = method.penalty(model, [])["msvp"].item()
    kept = deepcopy(method.state_dict())
    assert method.penalty(model, [])["msvp"].item() == first
    assert all(torch.equal(value, kept[name]) for name, value in method.state_dict().items())
    move(model)
    method.penalty(model, [])
    assert not torch.equal(method.state_dict()["u"], kept["u"])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("micro_batch", [None, 10])
def test_training_iterates_once_for_each_step(optimizer, micro_batch, tiny_trial, tmp_path, monkeypatch):
    asked = []
    plain_penalty = Msvp.penalty

    def penalty(self, model, attention):
        found = plain_penalty(self, model, attention)
        weights = [layer.qkv.weight.detach().clone() for layer in attention_layers(model)]
        asked.append((weights, self._u, self._v))
        return found

    monkeypatch.setattr(Msvp, "penalty", penalty)
    training = Training(
        tiny_trial({"msvp": {}}, training={"optimizer": optimizer, "micro_batch": micro_batch}), 0, tmp_path
    )
    training.run_epoch()
    training.run_epoch()
    assert len(asked) == 8 if micro_batch is None else len(asked) > 8  # 2 epochs of 4 steps
    moves = 0
    for (weights, u, v), (next_weights, next_u, next_v) in pairwise(asked):
        stayed = all(map(torch.equal, weights, next_weights))
        moves += not stayed
        matrices = head_matrices(
            [SimpleNamespace(qkv=SimpleNamespace(weight=w), num_heads=3) for w in next_weights], [0, 1, 2], "out"
        )
        expected = (u, v) if stayed else iterate(matrices, u, v)
        assert torch.equal(next_u, expected[0])
        assert torch.equal(next_v, expected[1])
    assert moves == 7


def test_a_restored_method_goes_on_bit_by_bit():
    model = layers_of()
    method = started(model)
    for moves in (True, False):  # saved after a step, and saved before the next has moved anything
        move(model)
        method.penalty(model, [])
        if moves:
            move(model)
        saved = io.BytesIO()
        torch.save(method.state_dict(), saved)
        saved.seek(0)
        restored = started(layers_of())
        restored.load_state_dict(torch.load(saved, weights_only=True))
        twin = deepcopy(model)
        for _ in range(3):
            assert restored.penalty(twin, [])["msvp"].item() == method.penalty(model, [])["msvp"].item()
            assert all(torch.equal(v, restored.state_dict()[k]) for k, v in method.state_dict().items())
            move(model)
            twin.load_state_dict(model.state_dict())


def test_the_vectors_depend_on_no_global_random_number_and_draw_none():
    model, states = layers_of(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        method = started(model)
        method.penalty(model, [])
        assert torch.equal(torch.get_rng_state(), before)
        states.append(method.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in ("u", "v"))


def test_reduced_precision_does_not_reach_the_penalty():
    model = layers_of()
    method = started(model)
    plain = method.penalty(model, [])["msvp"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = method.penalty(model, [])["msvp"]
    assert reduced.dtype == torch.float32
    assert reduced.item() == plain.item()


def test_without_weights_nothing_is_kept_and_nothing_is_added():
    model = layers_of()
    method = started(model, weight_q=0, weight_k=0, weight_v=0)
    assert method.penalty(model, []) == {}
    assert all(not value.numel() for value in method.state_dict().values())


def test_layers_of_different_shapes_and_models_without_any_are_refused():
    for model in (nn.ModuleList([*layers_of(1), *layers_of(1, heads=2)]), nn.Linear(2, 2)):
        with pytest.raises(ModelError, match="attention layers of one shape"):
            started(model)


def facts(**values):
    given = {"tokens": 17, "depth": 2, "num_heads": 3, "embed_dim": 48, "exposes_attention": True}
    return ModelFacts(name="some_vit", **{**given, **values})


@pytest.mark.parametrize(
    ("values", "model", "fields"),
    [
        ({}, {}, []),
        ({}, {"exposes_attention": False}, ["weight_q", "weight_k", "weight_v"]),
        ({"weight_k": 0}, {"normalises_queries": True}, ["weight_q"]),
        ({"weight_q": 0, "weight_k": 0}, {"normalises_queries": True}, []),
        ({"weight_q": 0, "weight_k": 0, "weight_v": 0}, {"exposes_attention": False}, []),
        ({"slice": "in"}, {"embed_dim": 50}, ["slice"]),
    ],
)
def test_models_whose_projections_mean_something_else_are_refused_by_field(values, model, fields):
    reasons = list(Msvp.check(MsvpConfig(**values), facts(**model)))
    assert [field for field, _ in reasons] == fields
    assert all("some_vit" in reason or field == "slice" for field, reason in reasons)


@pytest.mark.parametrize("values", [{"weight_q": -1e-5}, {"slice": "both"}, {"weight": 1e-4}])
def test_impossible_settings_are_refused(values):
    with pytest.raises(ValidationError):
        MsvpConfig(**values)
