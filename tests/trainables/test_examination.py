"""Examining a model: what AutoAttack's authors look for is found, and the process stays as it was."""

from __future__ import annotations

import random
import sys

import pytest
import torch
import torch.nn.functional as F
from pyautoattack import checks
from torch import nn

from trainables.examination import EXAMINED, PASSES, examine

IMAGES = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(20) % 10


class Linear(nn.Module):
    """Ten logits, or as many as a test asks for."""

    def __init__(self, classes=10):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(classes, 64, generator=generator))
        self.seen = []

    def forward(self, images):
        self.seen.append(len(images))
        return (images.flatten(1) - 0.5) @ self.weight.T


class Noisy(Linear):
    def forward(self, images):
        return super().forward(images) + 0.01 * torch.randn(len(images), 10)


class Flips(Linear):
    """Gives one of two sets of logits that differ by less than the package's threshold, and in their decision."""

    def forward(self, images):
        tie = torch.zeros(len(images), 10)
        tie[:, (0, 9)] = 1  # zero is the label of two of the images that are looked at, nine of one
        tie[:, random.choice((0, 9))] += 1e-5
        return tie


class Probabilities(Linear):
    def forward(self, images):
        return super().forward(images).softmax(1)


class Purifies(Linear):
    """Moves its input along a gradient before it answers."""

    def forward(self, images):
        with torch.enable_grad():
            pixels = images.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(super().forward(pixels).sum(), pixels)
        return super().forward(images - 0.01 * gradient)


def package_says(model):
    """What the package's own checks say of the model, as one text."""
    said = []
    logger = type("Logger", (), {"warning": lambda self, text: said.append(text)})()
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # the package goes on counting from model to model
    images, labels = IMAGES[:EXAMINED], LABELS[:EXAMINED]
    checks.check_randomized(model, images, labels, bs=EXAMINED, logger=logger)
    checks.check_range_output(model, images, logger=logger)
    tracer = sys.gettrace()
    try:
        checks.check_dynamic(model, images, logger=logger)
    finally:
        sys.settrace(tracer)
    return " ".join(said)


@pytest.mark.parametrize(
    ("model", "ours", "theirs"),
    [
        (Linear(), "", ""),
        (Noisy(), "randomized defense", "randomized defense"),
        (Flips(), "randomized defense", "randomized defense"),
        (Probabilities(), "probabilities", "probability distribution"),
        (Purifies(), "dynamic defense", "dynamic defense"),
    ],
    ids=["ordinary", "noisy", "flips", "probabilities", "purifies"],
)
def test_a_model_is_doubted_where_the_package_doubts_it_and_for_nothing_else(model, ours, theirs):
    random.seed(2)  # among five coin flips there are both sides
    said = examine(model, IMAGES, LABELS)
    assert len(said) == (1 if ours else 0)
    assert ours in " ".join(said)
    in_package = package_says(model)
    assert bool(in_package) == bool(theirs)
    assert theirs in in_package


def test_after_a_dynamic_model_an_ordinary_one_is_not_doubted():
    assert examine(Purifies(), IMAGES, LABELS) != ()
    assert examine(Linear(), IMAGES, LABELS) == ()


def test_several_doubts_are_several_sentences():
    class Both(Linear):
        def forward(self, images):
            return F.dropout(super().forward(images), 0.5).softmax(1)

    first, second = examine(Both(), IMAGES, LABELS)
    assert "randomized" in first
    assert "probabilities" in second


@pytest.mark.parametrize(("classes", "parts"), [(2, ("apgd_dlr", "apgd_t")), (3, ("apgd_t",)), (4, ())])
def test_too_few_classes_name_the_parts_of_autoattack_that_cannot_run(classes, parts):
    said = examine(Linear(classes), IMAGES, LABELS % classes)
    assert len(said) == (1 if parts else 0)
    for text in said:
        assert f"with {classes} classes" in text
        assert [part for part in ("apgd_dlr", "apgd_t") if part in text.split("cannot")[0].split()] == list(parts)


def test_a_few_images_are_looked_at_and_none_is_no_mistake():
    model = Linear()
    examine(model, IMAGES, LABELS)
    assert model.seen == [EXAMINED] * (PASSES + 1)
    assert examine(model, IMAGES[:0], LABELS[:0]) == ()


def test_random_numbers_and_tracer_are_as_they_were_and_nothing_is_printed(capsys):
    def tracer(*_):
        return None

    before, outer = (torch.get_rng_state(), random.getstate()), sys.gettrace()
    sys.settrace(tracer)  # as a debugger or a coverage tool does
    try:
        examine(Noisy(), IMAGES, LABELS)
        examine(Flips(), IMAGES, LABELS)
        kept = sys.gettrace()
    finally:
        sys.settrace(outer)
    assert kept is tracer
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert capsys.readouterr() == ("", "")
