"""The ε-ball: projection, steps, random points, distances."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from torch import nn

from trainables.ascent import Batched, ascend, distance, frozen, loss_gradient, project, spread, summed_cross_entropy


@pytest.fixture
def origin():
    return torch.rand(6, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_ends_inside_both_sets_and_moves_nothing_that_is_inside(norm, origin):
    outside = origin + torch.randn(origin.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    projected = project(outside, origin, norm=norm, epsilon=0.1)
    assert float(distance(projected, origin, norm).max()) <= 0.1 + 1e-12
    assert float(projected.min()) >= 0
    assert float(projected.max()) <= 1
    assert torch.allclose(project(projected, origin, norm=norm, epsilon=0.1), projected, rtol=0, atol=1e-12)


def test_projection_is_the_nearest_point_of_the_ball():
    centre = torch.full((1, 1, 1, 2), 0.5)
    far = centre + torch.tensor([0.3, 0.4]).view(1, 1, 1, 2)
    assert torch.allclose(project(far, centre, norm="l2", epsilon=0.25), centre + torch.tensor([0.15, 0.2]))
    assert torch.allclose(project(far, centre, norm="linf", epsilon=0.35), centre + torch.tensor([0.3, 0.35]))


def test_distance_is_the_norm_of_the_change_of_each_image(origin):
    moved = origin.clone()
    moved[1, 0, 0, :2] += torch.tensor([0.3, -0.4])
    assert distance(moved, origin, "linf").tolist() == pytest.approx([0, 0.4, 0, 0, 0, 0])
    assert distance(moved, origin, "l2").tolist() == pytest.approx([0, 0.5, 0, 0, 0, 0])


def test_a_step_is_the_steepest_of_its_length():
    images = torch.full((1, 1, 1, 3), 0.5)
    gradient = torch.tensor([3.0, 0.0, -4.0]).view(1, 1, 1, 3)
    signed = ascend(images, gradient, images, norm="linf", epsilon=1, step_size=0.1)
    straight = ascend(images, gradient, images, norm="l2", epsilon=1, step_size=0.1)
    assert torch.allclose(signed - images, torch.tensor([0.1, 0.0, -0.1]))
    assert torch.allclose(straight - images, torch.tensor([0.06, 0.0, -0.08]))


def test_a_vanishing_gradient_moves_nothing(origin):
    for norm in ("linf", "l2"):
        still = ascend(origin, torch.zeros_like(origin), origin, norm=norm, epsilon=0.1, step_size=0.1)
        assert torch.allclose(still, origin, rtol=0, atol=1e-15)


def test_random_points_fill_the_ball_evenly():
    generator = torch.Generator().manual_seed(0)
    noise, radius = torch.randn(4000, 1, 1, 3, generator=generator), torch.rand(4000, generator=generator)
    change = spread(noise, radius, norm="l2", epsilon=0.5)
    lengths = distance(change, torch.zeros_like(change), "l2")
    assert float(lengths.max()) <= 0.5 + 1e-7
    assert float((lengths < 0.25).double().mean()) == pytest.approx(1 / 8, abs=0.02)  # volume of half the radius in 3-D
    box = spread(torch.rand(4000, 1, 1, 3, generator=generator), radius, norm="linf", epsilon=0.5)
    assert float(box.mean()) == pytest.approx(0, abs=0.01)
    assert float(box.std()) == pytest.approx(0.5 / math.sqrt(3), abs=0.01)


def test_an_images_gradient_does_not_depend_on_its_batch(origin):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32, 5)).double()
    labels = torch.arange(6) % 5
    _, together = loss_gradient(model, origin, labels)
    _, alone = loss_gradient(model, origin[2:3], labels[2:3])
    assert torch.allclose(together[2:3], alone, rtol=0, atol=1e-14)


def test_the_gradient_is_that_of_the_loss_that_was_asked_for(origin):
    targets = torch.arange(6, dtype=torch.float64)
    logits, gradient = loss_gradient(
        torch.square, origin, targets, lambda squares, t: (squares.sum((1, 2, 3)) * t).sum()
    )
    assert torch.equal(logits, origin.square())
    assert not logits.requires_grad
    assert torch.allclose(gradient, 2 * origin * targets.view(-1, 1, 1, 1))


def test_the_cross_entropy_is_summed_in_float32_and_takes_probabilities_too():
    logits, labels = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]]), torch.tensor([0, 2])
    by_hand = -sum(float(logits[i].log_softmax(0)[labels[i]]) for i in range(2))
    assert summed_cross_entropy(logits, labels).item() == pytest.approx(by_hand)
    assert summed_cross_entropy(logits, torch.eye(3)[labels]).item() == pytest.approx(by_hand)
    reduced = summed_cross_entropy(logits.bfloat16(), labels)  # these logits are exact in bfloat16
    assert reduced.dtype == torch.float32
    assert reduced.item() == pytest.approx(by_hand)


def test_freezing_gives_each_flag_back_even_after_an_error():
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    with contextlib.suppress(KeyError), frozen(model):
        assert not model.weight.requires_grad
        raise KeyError
    assert model.weight.requires_grad
    assert not model.bias.requires_grad


class Watched(nn.Module):
    """A small model in float64 that remembers how many images each pass had."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(32, 5), nn.Tanh(), nn.Linear(5, 5)).double()
        self.sizes = []

    def forward(self, images):
        self.sizes.append(len(images))
        return self.layers(images)


@pytest.fixture
def many():
    return torch.rand(30, 2, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize(
    ("count", "sizes"), [(30, [8, 8, 7, 7]), (17, [6, 6, 5]), (16, [8, 8]), (8, [8]), (3, [3]), (0, [0])]
)
def test_a_batched_model_makes_as_few_passes_of_equal_size_as_there_can_be(count, sizes, many):
    model = Watched()
    with torch.no_grad():
        logits = Batched(model, 8)(many[:count])
    assert model.sizes == sizes
    assert torch.allclose(logits, model(many[:count]), rtol=0, atol=1e-14)


def test_a_gradient_on_a_batched_model_is_that_of_the_model_batch_by_batch(many):
    model = Watched()
    labels = torch.arange(30) % 5
    pairs = torch.stack([labels, labels.flip(0)], dim=1)
    for loss, targets in ((summed_cross_entropy, labels), (lambda z, t: z.gather(1, t).sum(), pairs)):
        expected = loss_gradient(model, many, targets, loss)
        model.sizes.clear()
        found = loss_gradient(Batched(model, 8), many, targets, loss)
        assert model.sizes == [8, 8, 7, 7]
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-14)
            assert not ours.requires_grad


def test_whoever_builds_a_graph_on_a_batched_model_gets_one_pass(many):
    model = Watched()
    pixels = many.clone().requires_grad_(True)
    logits = Batched(model, 8)(pixels)
    assert model.sizes == [30]
    (gradient,) = torch.autograd.grad(summed_cross_entropy(logits, torch.arange(30) % 5), pixels)
    assert torch.allclose(gradient, loss_gradient(model, many, torch.arange(30) % 5)[1], rtol=0, atol=1e-14)


def test_a_batched_model_freezes_and_keeps_the_mode_of_the_model_inside():
    model = Watched().eval()
    batched = Batched(model, 8)
    assert not batched.training
    with frozen(batched):
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_each_channel_may_have_a_radius_of_its_own(origin):
    radii = torch.tensor([0.05, 0.2], dtype=torch.float64).view(1, 2, 1, 1)
    gradient = torch.randn(origin.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    noise = torch.rand(origin.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    radius = torch.zeros(len(origin), dtype=torch.float64)
    moved = ascend(origin, gradient, origin, norm="linf", epsilon=radii, step_size=2 * radii)
    change = spread(noise, radius, norm="linf", epsilon=radii)
    for channel, epsilon in enumerate((0.05, 0.2)):
        own = (slice(None), slice(channel, channel + 1))
        alone = ascend(origin[own], gradient[own], origin[own], norm="linf", epsilon=epsilon, step_size=2 * epsilon)
        assert torch.equal(moved[own], alone)
        assert torch.equal(change[own], spread(noise[own], radius, norm="linf", epsilon=epsilon))
        assert torch.equal(
            project(origin + change, origin, norm="linf", epsilon=radii / 2)[own],
            project((origin + change)[own], origin[own], norm="linf", epsilon=epsilon / 2),
        )
