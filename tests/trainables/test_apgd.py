"""Auto-PGD: its rules for one image at a time, its verdicts against the authors' code, its cost."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from copy import deepcopy

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

from search_spaces.errors import AttackError
from tests.trainables.victims import correct, hardened
from trainables.apgd import (
    Walkers,
    best_wrong_classes,
    checkpoints,
    climb,
    climb_to_targets,
    climb_with_restarts,
    random_start,
)
from trainables.ascent import distance, frozen
from trainables.attack import Threat
from trainables.attack_losses import cross_entropy, dlr, targeted_dlr
from trainables.worst_case import WorstCase


@contextmanager
def seen(model):
    """Collect what goes through the model, batch by batch."""
    batches = []
    handle = model.register_forward_hook(lambda _module, inputs, _output: batches.append(inputs[0].detach().clone()))
    try:
        yield batches
    finally:
        handle.remove()


def climbed(model, images, labels, start, targets, loss, threat, steps):
    worst = WorstCase(images, labels)
    with frozen(model):
        climb(model, worst, torch.arange(len(images)), start, targets, loss=loss, threat=threat, steps=steps)
    return worst


def test_the_step_is_reconsidered_where_the_published_schedule_says():
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoints(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert checkpoints(10) == {2: 2, **dict.fromkeys(range(3, 11), 1)}
    assert checkpoints(1) == {1: 1}


def path_of_one_image(model, image, label, start, loss, threat, steps):
    """Algorithm 1 for one image, written from the paper: return its iterates and how often each condition held.

    As in the authors' code, 0 stands for the loss of the start, and losses are compared as they were seen.
    """
    origin, epsilon = image[None], threat.epsilon

    def judged(point):
        pixels = point.clone().requires_grad_(True)
        value = loss(model(pixels), label[None])
        (slope,) = torch.autograd.grad(value.sum(), pixels)
        return float(value.detach()), slope

    def projected(point):
        change = point - origin
        if threat.norm == "linf":
            change = change.clamp(-epsilon, epsilon)
        elif change.norm() > epsilon:
            change = epsilon * change / change.norm()
        return (origin + change).clamp(0, 1)

    def direction(slope):
        return slope.sign() if threat.norm == "linf" else slope / slope.norm()

    windows, size, smallest, drop = [], int(0.22 * steps), int(0.06 * steps), int(0.03 * steps)
    while sum(windows) < steps:
        windows.append(max(size, smallest, 1))
        size = windows[-1] - max(drop, 1)
    marks = [sum(windows[: index + 1]) for index in range(len(windows))]

    x = before = start[None]
    value, slope = judged(x)
    best, top, top_slope = x, value, slope
    points, losses, eta, halved_last, top_last = [x], [0.0], 2 * epsilon, True, value
    oscillated = stalled = 0
    for k in range(steps):
        z = projected(x + eta * direction(slope))
        after = z if k == 0 else projected(x + 0.75 * (z - x) + 0.25 * (x - before))
        before, x = x, after
        value, slope = judged(x)
        points.append(x)
        losses.append(value)
        if value > top:
            best, top, top_slope = x, value, slope
        if k + 1 in marks:
            width = windows[marks.index(k + 1)]
            rises = sum(losses[i + 1] > losses[i] for i in range(k + 1 - width, k + 1))
            first, second = rises <= 0.75 * width, not halved_last and top_last >= top
            oscillated, stalled = oscillated + first, stalled + second
            if first or second:
                eta, x, slope = eta / 2, best, top_slope
            halved_last, top_last = first or second, top
    return torch.cat(points), oscillated, stalled


@pytest.mark.parametrize(("steps", "count"), [(40, 8), (10, 30)])
@pytest.mark.parametrize("loss", [cross_entropy, dlr])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_image_takes_the_path_of_algorithm_1(norm, loss, steps, count, trained):
    model = deepcopy(trained.model).double().requires_grad_(False)
    threat = Threat(norm=norm, epsilon=0.02 if norm == "linf" else 0.08)
    images, labels = correct(trained, trained.model, 2 * count + 20)
    images = images.double()
    start = random_start(images, range(len(images)), threat, 0, "test", 0)
    stood = climbed(model, images, labels, start, labels, loss, threat, steps).standing[:count]
    images, labels, start = images[stood], labels[stood], start[stood]
    with seen(model) as batches:
        climbed(model, images, labels, start, labels, loss, threat, steps)
    conditions = [0, 0]  # a short run, with windows of one step, is where the second decides alone
    for index in range(len(images)):
        path, *held = path_of_one_image(model, images[index], labels[index], start[index], loss, threat, steps)
        conditions = [total + more for total, more in zip(conditions, held, strict=True)]
        assert torch.allclose(torch.stack([batch[index] for batch in batches]), path, rtol=0, atol=1e-9)
    assert conditions[0] > 0
    assert conditions[1] > 0 or steps == 40


def at_a_checkpoint(**values):
    """One image before a checkpoint: it rose once in a window of one step and was not halved at the last one."""
    one = torch.ones(1, 1, 1, 1)
    state = dict.fromkeys(("origin", "targets", "images", "previous", "gradient", "step"), one)
    state |= {"best_images": 2 * one, "best_gradient": 3 * one, "rows": torch.tensor([0]), "rises": torch.tensor([1])}
    state |= {"loss": one.view(1), "best_loss": one.view(1), "checked_loss": one.view(1)}
    return Walkers(**state | {"was_halved": torch.tensor([False])} | values)


@pytest.mark.parametrize(
    ("values", "halves"),
    [
        ({"rises": torch.tensor([0]), "checked_loss": torch.tensor([0.5])}, True),  # oscillates
        ({}, True),  # rose, but not above what was best at the last checkpoint
        ({"was_halved": torch.tensor([True])}, False),  # the same with a step that is new
        ({"checked_loss": torch.tensor([0.5])}, False),  # improved
    ],
)
def test_a_checkpoint_halves_the_step_of_who_oscillates_or_is_stuck(values, halves):
    walkers = at_a_checkpoint(**values)
    walkers.check(1)
    state = [float(part) for part in (walkers.step, walkers.images, walkers.gradient)]
    assert state == ([0.5, 2, 3] if halves else [1, 1, 1])
    assert (walkers.was_halved.tolist(), walkers.rises.tolist()) == ([halves], [0])
    assert float(walkers.checked_loss) == 1


def test_at_the_first_checkpoint_nobody_is_stuck():
    points = []

    def less_wrong_after_the_start(x):
        """Class 0 leads by 2, then by 4, so that the start stays best; the slope always points to brighter pixels."""
        points.append(float(x.detach()))
        lead = (2.0 if len(points) == 1 else 4.0) - (x - x.detach()).sum()
        return torch.stack([lead, torch.zeros(())])[None]

    image, label = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    climbed(less_wrong_after_the_start, image, label, image, label, cross_entropy, Threat(epsilon=0.1), 2)
    assert list(checkpoints(2)) == [1, 2]
    assert points == pytest.approx([0.5, 0.6, 0.6])  # halved and brought back, it would be at 0.575


class Theirs:
    """One run of the authors' APGD from given starting points."""

    def __init__(self, model, images, labels, threat, steps, aims=None):
        kind = APGDAttack if aims is None else APGDAttack_targeted
        norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
        self.attack = kind(model, n_iter=steps, norm=norm, eps=threat.epsilon, seed=0, device=images.device)
        self.attack.logger = logging.getLogger("auto-attack")
        self.attack.y_target = aims
        self.attack.init_hyperparam(images)
        self.images, self.labels = images, labels

    def withstood(self, start):
        return self.attack.attack_single_run(self.images, self.labels, x_init=start)[1].bool()


def compare(trained, models, threats, steps, count):
    """Return how many pairs of image and attack were compared, how many fell, and how many verdicts differ."""
    pairs = fell = differing = 0
    for model in models:
        images, labels = correct(trained, model, count)
        for threat in threats:
            aims = best_wrong_classes(model(images).detach(), labels, 9)
            for rank in (None, 0, 1):
                start = random_start(images, range(len(images)), threat, 0, "test", rank)
                aim = None if rank is None else aims[:, rank]
                targets = labels if aim is None else torch.stack([labels, aim], dim=1)
                loss = cross_entropy if aim is None else targeted_dlr
                worst = climbed(model, images, labels, start, targets, loss, threat, steps)
                with frozen(model), torch.no_grad():
                    ours = model(worst.images).argmax(1) == labels
                    theirs = Theirs(model, images, labels, threat, steps, aim).withstood(start)
                pairs += len(images)
                fell += int((~theirs).sum())
                differing += int((ours != theirs).sum())
    return pairs, fell, differing


def test_the_verdicts_are_those_of_the_authors_code(trained):
    threats = [Threat(epsilon=0.03), Threat(norm="l2", epsilon=0.15)]
    pairs, fell, differing = compare(trained, [trained.model], threats, steps=20, count=60)
    assert 0.2 * pairs < fell < 0.9 * pairs
    assert differing == 0


@pytest.mark.slow
def test_the_verdicts_are_those_of_the_authors_code_at_full_length_on_plain_and_hardened_models(trained):
    models = [trained.model, hardened(trained, 0.05), hardened(trained, 0.1)]
    threats = [Threat(epsilon=epsilon) for epsilon in (0.02, 0.05, 0.1)]
    threats += [Threat(norm="l2", epsilon=epsilon) for epsilon in (0.2, 0.5)]
    pairs, fell, differing = compare(trained, models, threats, steps=100, count=80)
    assert pairs >= 1000
    assert 0.2 * pairs < fell < 0.9 * pairs
    assert differing == 0


def test_an_image_that_falls_at_the_tenth_pass_costs_ten_and_one_that_stands_as_many_as_in_the_authors_code(trained):
    threat, steps = Threat(epsilon=0.04), 15
    images, labels = correct(trained, trained.model, 40)
    start = random_start(images, range(len(images)), threat, 0, "test", 0)
    with seen(trained.model) as theirs:
        stood = Theirs(trained.model, images, labels, threat, steps).withstood(start)
    with torch.no_grad():
        wrong = torch.stack([trained.model(points).argmax(1) != labels for points in theirs])
    first = torch.where(stood, steps, wrong.int().argmax(0)) + 1
    assert first.unique().numel() > 3
    for index in range(0, len(images), 2):
        one = slice(index, index + 1)
        with seen(trained.model) as ours:
            climbed(trained.model, images[one], labels[one], start[one], labels[one], cross_entropy, threat, steps)
        assert len(ours) == first[index]
    with seen(trained.model) as ours:
        climbed(trained.model, images, labels, start, labels, cross_entropy, threat, steps)
    assert sum(map(len, ours)) == first.sum() < sum(map(len, theirs))


def test_who_is_not_surely_fooled_goes_on_and_is_handed_back_as_its_worst_iterate(trained):
    class Faint(torch.nn.Module):
        """The same decisions with leads that are all below the sure margin."""

        def forward(self, x):
            return trained.model(x) * 1e-6

    threat, steps = Threat(epsilon=0.1), 12
    images, labels = correct(trained, trained.model, 30)
    start = random_start(images, range(len(images)), threat, 0, "test", 0)
    model = Faint()
    with seen(model) as batches:
        worst = climbed(model, images, labels, start, labels, dlr, threat, steps)
    assert [len(batch) for batch in batches] == [len(images)] * (steps + 1)
    with torch.no_grad():
        fooled = torch.stack([model(batch).argmax(1) != labels for batch in batches]).any(0)
        handed_back = model(worst.images).argmax(1) != labels
    assert fooled.any()
    assert torch.equal(handed_back, fooled)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_start_depends_on_seed_attack_image_and_restart_and_on_no_other_image(norm):
    images = torch.full((4, 1, 8, 8), 0.5)
    threat = Threat(norm=norm, epsilon=0.1)
    together = random_start(images, [3, 1, 4, 9], threat, 0, "apgd_ce", 0)
    alone = random_start(images[:2], [9, 1], threat, 0, "apgd_ce", 0)
    assert torch.equal(alone, together[[3, 1]])
    assert distance(together, images, norm).tolist() == pytest.approx([0.1] * 4, rel=1e-5)  # on the surface
    others = [(1, "apgd_ce", 0), (0, "apgd_t", 0), (0, "apgd_ce", 1)]
    rows = [together, *(random_start(images, [3, 1, 4, 9], threat, *parts) for parts in others)]
    assert len({tuple(start.flatten().tolist()) for batch in rows for start in batch}) == 16


def test_restarts_and_targets_work_on_those_who_stand_alone(trained):
    images, labels = correct(trained, trained.model, 60)
    ids, threat = torch.arange(len(images)), Threat(epsilon=0.03)
    once, more, aimed = (WorstCase(images, labels) for _ in range(3))
    run = {"seed": 0, "threat": threat, "steps": 5}
    with frozen(trained.model):
        climb_with_restarts(trained.model, once, ids, name="apgd_ce", loss=cross_entropy, **run)
        climb_with_restarts(trained.model, more, ids, name="apgd_ce", loss=cross_entropy, restarts=3, **run)
        left = once.standing.tolist()
        with seen(trained.model) as batches:
            climb_to_targets(trained.model, once, ids, targets=1, **run)
        climb_to_targets(trained.model, aimed, ids, targets=9, **run)
    assert len(batches[0]) == len(batches[1]) == len(left) < len(images)
    assert set(more.standing.tolist()) <= set(left)
    assert 0 < len(aimed.standing) < len(images)


def test_targets_are_the_best_wrong_classes_in_order():
    logits = torch.tensor([[5.0, 1.0, 4.0, 2.0, 3.0], [0.0, 9.0, 1.0, 3.0, 2.0]])
    found = best_wrong_classes(logits, torch.tensor([0, 4]), 9)  # the second is not even the best
    assert found.tolist() == [[2, 4, 3, 1], [1, 3, 2, 0]]
    assert best_wrong_classes(logits, torch.tensor([0, 4]), 2).tolist() == [[2, 4], [1, 3]]
    with pytest.raises(AttackError, match="4 classes"):
        best_wrong_classes(logits[:, :3], torch.tensor([0, 1]), 9)


def test_a_start_without_a_gradient_is_remembered_and_one_with_a_gradient_is_not():
    images = torch.full((3, 1, 4, 4), 0.5)
    images[1] = 0.2
    labels = torch.zeros(3, dtype=torch.long)

    def flat_where_bright(x):
        slope = (x.amax((1, 2, 3)) < 0.4).float()
        lead = 1 - slope * x.sum((1, 2, 3)) / 50
        return torch.stack([lead, torch.zeros_like(lead), torch.zeros_like(lead)], dim=1)

    worst = climbed(flat_where_bright, images, labels, images, labels, cross_entropy, Threat(epsilon=0.1), 2)
    assert worst.flat.tolist() == [True, False, True]


def test_ranks_from_the_first_on_are_aimed_at_with_the_same_starts(trained):
    images, labels = correct(trained, trained.model, 30)
    ids, threat = torch.arange(len(images)), Threat(epsilon=1e-5)  # nobody falls
    run = {"seed": 0, "threat": threat, "steps": 1}
    batches = {}
    for first, targets in ((0, 4), (2, 2), (8, 5)):
        with frozen(trained.model), seen(trained.model) as batches[first]:
            climb_to_targets(trained.model, WorstCase(images, labels), ids, targets=targets, first=first, **run)
    assert [len(found) for found in batches.values()] == [1 + 4 * 2, 1 + 2 * 2, 1 + 2]  # the ninth is the last
    for ours, theirs in zip(batches[2][1:], batches[0][5:], strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(AttackError, match="below the 9 wrong classes, found 9"):
        climb_to_targets(trained.model, WorstCase(images, labels), ids, targets=1, first=9, **run)
