"""Square: its verdicts and images against the authors' code image by image, its moves, its cost."""

from __future__ import annotations

import math
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pyautoattack.square import SquareAttack
from torch import nn

from search_spaces.seeds import derive_seed
from tests.trainables.victims import correct, hardened
from trainables.ascent import distance
from trainables.attack import Threat
from trainables.attacks.square import Draws, Square, SquareConfig
from trainables.square_moves import bump, square_share, square_side, tile_corners
from trainables.worst_case import SURE_MARGIN, WorstCase, wrong_lead

SEED = 3


class Small(nn.Module):
    """A fixed convolution and a linear head on images of any shape, ten classes."""

    def __init__(self, shape, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.kernel = nn.Parameter(torch.randn(6, shape[0], 3, 3, generator=generator))
        self.head = nn.Parameter(torch.randn(10, 6 * shape[1] * shape[2], generator=generator))
        self.batches = []

    def forward(self, x):
        self.batches.append(len(x))
        return F.conv2d(x - 0.5, self.kernel, padding=1).tanh().flatten(1) @ self.head.T / 8


def case(shape, count, seed=0):
    """A small model in float64, and images that it classifies correctly."""
    model = Small(shape, seed).double()
    images = torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed + 1)).double()
    with torch.no_grad():
        labels = model(images).argmax(1)
    model.batches.clear()
    return model, images, labels


@contextmanager
def drawing_for(image_id, monkeypatch):
    """Let torch draw the numbers of that image, in the order in which they are asked for, in float64."""
    generator = np.random.Generator(np.random.Philox(key=derive_seed(SEED, "square", image_id)))

    def draw(*shape):
        shape = shape[0] if isinstance(shape[0], list) else list(shape)
        return torch.from_numpy(generator.random(math.prod(shape), dtype=np.float32)).double().view(shape)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "rand", draw)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def theirs(model, image, label, image_id, threat, config, monkeypatch):
    """Return the authors' best candidate for one image, which draws our numbers."""
    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    queries, rescaled = config.queries, config.rescaled
    attack = SquareAttack(model, norm, queries, threat.epsilon, resc_schedule=rescaled, device=image.device)
    attack.init_hyperparam(image[None])
    with drawing_for(image_id, monkeypatch), torch.no_grad():
        return attack.attack_single_run(image[None], label[None])[1][0]


def ours(model, images, labels, ids, threat, config):
    return Square(config, threat).perturb(model, images, labels, SEED, ids)


@pytest.mark.parametrize(
    ("norm", "shape", "epsilons"),
    [
        ("linf", (1, 8, 8), (0.01, 0.03, 0.1)),
        ("linf", (3, 10, 7), (0.02, 0.05, 0.1)),
        ("l2", (1, 8, 8), (0.05, 0.2, 0.4)),
        ("l2", (3, 10, 7), (0.1, 0.3, 0.9)),
        ("l2", (2, 16, 23), (0.3, 0.6, 1.0)),
    ],
)
def test_every_image_ends_where_the_authors_code_ends(norm, shape, epsilons, monkeypatch):
    config = SquareConfig(queries=250, rescaled=True)  # every size of the schedule
    model, images, labels = case(shape, 14)
    ids = torch.arange(100, 114)
    stood = []
    for epsilon in epsilons:
        threat = Threat(norm=norm, epsilon=epsilon)
        found = ours(model, images, labels, ids, threat, config)
        expected = torch.stack(
            [
                theirs(model, *pair, int(number), threat, config, monkeypatch)
                for *pair, number in zip(images, labels, ids, strict=True)
            ]
        )
        with torch.no_grad():
            verdicts, lead = model(found).argmax(1) == labels, wrong_lead(model(expected), labels)
            assert torch.equal(verdicts, model(expected).argmax(1) == labels)
        sure = (lead <= 0) | (lead > SURE_MARGIN)  # the others go on here
        assert sure.sum() >= len(images) - 1
        tolerance = 1e-9 if norm == "linf" else 1e-6  # in L2 a root is taken of ε² − ‖δ‖², which may be rounding alone
        assert torch.allclose(found[sure], expected[sure], rtol=0, atol=tolerance)
        stood += verdicts.tolist()
    assert 0.1 < sum(stood) / len(stood) < 0.9


@pytest.mark.parametrize("queries", [7, 250, 5000])
def test_the_schedule_is_that_of_the_authors_code(queries):
    for rescaled in (False, True):
        attack = SquareAttack(None, n_queries=queries, resc_schedule=rescaled)
        published = [attack.p_selection(query) for query in range(queries)]
        assert [square_share(query, queries if rescaled else None) for query in range(queries)] == published


def test_a_square_covers_its_share_and_fits_into_the_image():
    shape = torch.Size((1, 3, 32, 20))
    assert [square_side(p, shape, "linf") for p in (0.8, 0.2, 0.0001)] == [20, 11, 1]  # of 32·20 = 640 pixels
    assert [square_side(p, shape, "l2") for p in (0.8, 0.15, 0.0001)] == [20, 11, 3]  # odd where it fits: 10 is 11


def test_a_bump_has_length_one_and_balances_two_halves():
    for side in (1, 2, 3, 6, 11):
        made = bump(side)
        assert float(made.norm()) == pytest.approx(1)
        assert bool((made[: side // 2] > 0).all())
        assert bool((made[side // 2 :] < 0).all())


@pytest.mark.parametrize("shape", [(1, 19, 19), (2, 4, 6), (1, 3, 9)])
def test_images_of_any_shape_are_tiled_within_their_borders(shape):
    model, images, labels = case(shape, 3)
    threat = Threat(norm="l2", epsilon=0.2)
    found = ours(model, images, labels, torch.arange(3), threat, SquareConfig(queries=12))
    assert all(top < shape[1] + 1 and left < shape[2] + 1 for top, left in tile_corners(images.shape))
    assert bool((distance(found, images, "l2") > 0.05).all())  # moved, though pixels are cut to [0, 1]
    assert float(distance(found, images, "l2").max()) <= 0.2 + 1e-9


def test_the_numbers_of_an_image_depend_on_seed_and_image_and_come_in_one_stream():
    like = torch.zeros(())
    together, alone = Draws([4, 9, 2], 0, like), Draws([9], 0, like)
    whole = together.take(10)
    assert torch.equal(torch.cat([alone.take(3), alone.take(7)], dim=1)[0], whole[1])
    together.keep(torch.tensor([False, True, True]))
    assert torch.equal(together.take(5)[0], alone.take(5)[0])
    others = [whole, Draws([4, 9, 2], 1, like).take(10)]
    assert len({tuple(row.tolist()) for rows in others for row in rows}) == 6


def test_who_falls_leaves_and_the_others_are_packed():
    model, images, labels = case((1, 8, 8), 20)
    config, threat = SquareConfig(queries=40, rescaled=True), Threat(epsilon=0.1)
    worst = WorstCase(images, labels)
    Square(config, threat).run(model, worst, SEED, torch.arange(20))
    together = list(model.batches)
    assert together[0] == 20
    assert together == sorted(together, reverse=True)
    assert len(together) == 41
    assert together[-1] >= len(worst.standing) > 0
    model.batches.clear()
    for index in range(20):  # nobody costs more or less for the company
        one = slice(index, index + 1)
        ours(model, images[one], labels[one], torch.arange(20)[one], threat, config)
    assert sum(model.batches) == sum(together) < 20 * 41 == 20 * Square.passes(config, 10)[1]


def test_who_has_fallen_already_is_left_alone():
    model, images, labels = case((1, 8, 8), 4)
    worst = WorstCase(images, labels)
    sure = torch.zeros(2, 10).scatter(1, (labels[:2, None] + 1) % 10, 1.0)
    worst.offer(torch.tensor([0, 1]), images[:2], sure)
    Square(SquareConfig(queries=3), Threat(epsilon=1e-3)).run(model, worst, SEED, torch.arange(4))
    assert model.batches == [2] * 4
    assert torch.equal(worst.images[:2], images[:2])
    worst.offer(torch.tensor([2, 3]), images[2:], torch.zeros(2, 10).scatter(1, (labels[2:, None] + 1) % 10, 1.0))
    Square(SquareConfig(queries=3), Threat(epsilon=1e-3)).run(model, worst, SEED, torch.arange(4))
    assert model.batches == [2] * 4


def test_who_is_not_surely_fooled_goes_on_and_is_handed_back_as_its_worst_candidate():
    whole, images, labels = case((1, 8, 8), 12)
    seen = []

    def faint(x):
        """The same decisions with leads that are all below the sure margin."""
        seen.append(x.clone())
        return whole(x) * 1e-6

    found = ours(faint, images, labels, torch.arange(12), Threat(epsilon=0.2), SquareConfig(queries=30))
    assert [len(batch) for batch in seen] == [12] * 31
    with torch.no_grad():
        leads = torch.stack([wrong_lead(faint(batch), labels) for batch in seen[:31]])
        assert 0 < float(leads.max()) < SURE_MARGIN
        assert torch.allclose(wrong_lead(faint(found), labels), leads.amax(0).float().double(), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_the_verdicts_are_those_of_the_authors_code_on_plain_and_hardened_models(trained, monkeypatch):
    config, stood = SquareConfig(queries=400, rescaled=True), []
    for model in (trained.model, hardened(trained, 0.05)):
        images, labels = correct(trained, model, 40)
        model, images = deepcopy(model).double(), images.double()
        for threat in (Threat(epsilon=0.05), Threat(epsilon=0.15), Threat(norm="l2", epsilon=0.5)):
            found = ours(model, images, labels, torch.arange(len(images)), threat, config)
            pairs = enumerate(zip(images, labels, strict=True))
            expected = [theirs(model, *pair, number, threat, config, monkeypatch) for number, pair in pairs]
            with torch.no_grad():
                verdicts = model(found).argmax(1) == labels
                assert torch.equal(verdicts, model(torch.stack(expected)).argmax(1) == labels)
            stood += verdicts.tolist()
    assert 0.1 < sum(stood) / len(stood) < 0.9
