"""FGSM, PGD and AutoAttack beyond the contract that all attacks share."""

from __future__ import annotations

import logging
import random
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from search_spaces.errors import AttackError
from trainables.attack import Threat
from trainables.attacks.autoattack import Autoattack, AutoattackConfig
from trainables.attacks.fgsm import Fgsm
from trainables.attacks.pgd import Pgd, PgdConfig
from trainables.config import AttackConfig
from trainables.dataset import InMemory
from trainables.verdicts import judge

CPU = torch.device("cpu")
THREAT = Threat(norm="linf", epsilon=0.05)


def verdict(trained, attack, count=64):
    return judge(trained.model, attack, trained.splits.test, torch.arange(count), seed=0, batch_size=64, device=CPU)


@pytest.fixture
def some(trained):
    ids = torch.arange(6)
    return trained.splits.test.take(ids), trained.splits.test.labels[ids], ids


def test_fgsm_is_one_signed_step_of_the_full_radius(trained, some):
    images, labels, ids = some
    pixels = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(trained.model(pixels), labels), pixels)
    expected = (images + 0.05 * gradient.sign()).clamp(0, 1)
    attacked = Fgsm(AttackConfig(), THREAT).perturb(trained.model, images, labels, 0, ids)
    assert torch.allclose(attacked, expected, atol=1e-6)


def test_stronger_attacks_leave_no_more_correct(trained):
    fgsm = verdict(trained, Fgsm(AttackConfig(), THREAT))
    pgd = verdict(trained, Pgd(PgdConfig(), THREAT))
    more = verdict(trained, Pgd(PgdConfig(steps=40, restarts=3), THREAT))
    package = verdict(trained, Autoattack(AutoattackConfig(steps=20, queries=50), THREAT))
    accuracies = [fgsm.robust_accuracy, pgd.robust_accuracy, more.robust_accuracy, package.robust_accuracy]
    assert fgsm.clean_accuracy > accuracies[0]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > accuracies[-1]


def test_a_larger_radius_leaves_fewer_correct(trained):
    accuracies = [
        verdict(trained, Pgd(PgdConfig(), Threat(epsilon=epsilon))).robust_accuracy for epsilon in (0.01, 0.05, 0.1)
    ]
    assert accuracies[0] > accuracies[1] > accuracies[2]


def test_the_start_differs_by_seed_by_image_and_by_restart(some):
    images = some[0][:1].expand(3, -1, -1, -1)
    attack = Pgd(PgdConfig(), THREAT)
    starts = [attack._start(images, [5, 6, 7], seed, restart) for seed, restart in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(start.flatten().tolist()) for batch in starts for start in batch}) == 9


def test_restarts_never_save_an_image(trained):
    threat = Threat(norm="linf", epsilon=0.2)
    blind = {"steps": 1, "step_size": 1e-4}  # where it starts decides
    few, many = (verdict(trained, Pgd(PgdConfig(**blind, restarts=n), threat)).correct for n in (2, 12))
    assert bool((many <= few).all())
    assert many.sum() < few.sum()


def test_fooled_images_leave_the_working_batch(trained):
    strong = Threat(norm="linf", epsilon=0.3)
    found = verdict(trained, Pgd(PgdConfig(steps=50), strong))
    assert found.robust_accuracy < 0.1
    assert found.backward_images < 0.3 * 50 * int(found.clean.sum())


def test_without_a_random_start_the_seed_does_not_matter(trained, some):
    images, labels, ids = some
    attack = Pgd(PgdConfig(steps=2, random_start=False), THREAT)
    first, second = (attack.perturb(trained.model, images, labels, seed, ids) for seed in (1, 2))
    assert torch.equal(first, second)
    with pytest.raises(ValidationError, match="restart"):
        PgdConfig(restarts=2, random_start=False)


class Linear(nn.Module):
    """A linear model of 8×8 pixels with any number of classes."""

    def __init__(self, classes, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(classes, 64))
        self.dropout = dropout

    def forward(self, x):
        return F.dropout(x.flatten(1) - 0.5, self.dropout) @ self.weight.T


def labelled(model, count=20):
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return InMemory(images, model(images).argmax(1))


@pytest.mark.parametrize("classes", [4, 7])
def test_autoattack_runs_with_fewer_than_ten_classes(classes):
    model = Linear(classes)
    attack = Autoattack(AutoattackConfig(steps=5, queries=10), Threat(epsilon=0.004))
    found = judge(model, attack, labelled(model), torch.arange(20), seed=0, batch_size=20, device=CPU)
    assert found.warnings == ()  # the package warns when it is asked for more targets than there are
    assert 0 < found.robust_accuracy < 1


@pytest.mark.parametrize(("classes", "version"), [(3, "standard"), (2, "standard"), (2, "rand")])
def test_autoattack_refuses_too_few_classes_for_its_losses(classes, version):
    config = AutoattackConfig(version=version)
    (reason,) = Autoattack.check(config, THREAT, classes)
    assert f"has {classes}" in reason
    assert "custom" in reason
    model = Linear(classes)
    data = labelled(model)
    with pytest.raises(AttackError, match="classes"):
        Autoattack(config, THREAT).perturb(model, data.pixels, data.labels, 0, torch.arange(20))
    custom = AutoattackConfig(version="custom", attacks=("apgd_ce", "fab_t", "square"), steps=3, queries=5)
    assert list(Autoattack.check(custom, THREAT, classes)) == []
    Autoattack(custom, THREAT).perturb(model, data.pixels, data.labels, 0, torch.arange(20))


def test_a_custom_stage_is_the_same_as_in_the_standard_version(trained):
    attack = Autoattack(AutoattackConfig(version="custom", attacks=("apgd_ce",)), THREAT)
    package = attack._configured(trained.model, 10, CPU, 0)
    standard = Autoattack(AutoattackConfig(), THREAT)._configured(trained.model, 10, CPU, 0)
    assert package.attacks_to_run == ["apgd-ce"]
    assert standard.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
    for part in ("apgd", "apgd_targeted", "fab", "square"):
        ours, theirs = vars(getattr(package, part)), vars(getattr(standard, part))
        same = [key for key in ours if isinstance(ours[key], int | float | str)]
        assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}


def test_a_shorter_schedule_still_halves_its_steps(trained):
    short = Autoattack(AutoattackConfig(steps=10), THREAT)._configured(trained.model, 10, CPU, 0)
    published = Autoattack(AutoattackConfig(), THREAT)._configured(trained.model, 10, CPU, 0)
    assert (short.apgd.n_iter_2, short.apgd.n_iter_min, short.apgd.size_decr) == (2, 1, 1)
    assert (published.apgd.n_iter_2, published.apgd.n_iter_min, published.apgd.size_decr) == (22, 6, 3)
    assert (published.apgd.n_iter, published.fab.n_iter, published.square.n_queries) == (100, 100, 5000)
    assert published.apgd_targeted.n_target_classes == published.fab.n_target_classes == 9


def test_autoattack_leaves_the_process_as_it_was(trained, some, capsys):
    def state():
        return logger.level, logger.propagate, list(logger.handlers), random.getstate()

    def tracer(*_):
        return None

    images, labels, ids = some
    logger = logging.getLogger("auto-attack")
    before, outer = state(), sys.gettrace()
    sys.settrace(tracer)  # as a debugger or a coverage tool does
    try:
        Autoattack(AutoattackConfig(steps=2, queries=5), THREAT).perturb(trained.model, images, labels, 0, ids)
        kept = sys.gettrace()
    finally:
        sys.settrace(outer)
    assert kept is tracer
    assert state() == before
    output = capsys.readouterr()
    assert output.out + output.err == ""


def test_what_autoattack_warns_of_reaches_the_verdict():
    random_model = Linear(10, dropout=0.3)
    attack = Autoattack(AutoattackConfig(version="custom", attacks=("apgd_ce",), steps=2), Threat(epsilon=0.01))
    data = labelled(Linear(10))
    found = judge(random_model, attack, data, torch.arange(20), seed=0, batch_size=20, device=CPU)
    assert any("randomized defense" in text for text in found.warnings)


def test_pixels_outside_the_range_are_refused(trained, some):
    images, labels, ids = some
    with pytest.raises(AttackError, match=r"pixels in \[0, 1\]"):
        Autoattack(AutoattackConfig(), THREAT).perturb(trained.model, images * 255, labels, 0, ids)


@pytest.mark.parametrize(
    "values",
    [
        {"version": "custom"},
        {"attacks": ("apgd_ce",)},
        {"version": "custom", "attacks": ("deepfool",)},
        {"version": "plus"},
        {"steps": 0},
    ],
)
def test_impossible_versions_are_refused(values):
    with pytest.raises(ValidationError):
        AutoattackConfig(**values)


def test_the_published_autoattack_is_the_default():
    assert AutoattackConfig().stages == ("apgd_ce", "apgd_t", "fab_t", "square")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(Autoattack.check(AutoattackConfig(), Threat(norm="l2", epsilon=0.5), 10)) == []
