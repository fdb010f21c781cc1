"""FGSM, PGD, CW, APGD and AutoAttack beyond the contract that all attacks share."""

from __future__ import annotations

import logging
import random
import sys
import warnings
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from pydantic import ValidationError
from torch import nn

from search_spaces.errors import AttackError
from trainables.ascent import frozen
from trainables.attack import Threat
from trainables.attacks.apgd_ce import ApgdCe, ApgdCeConfig
from trainables.attacks.apgd_t import ApgdT, ApgdTConfig
from trainables.attacks.autoattack import STAGES, Autoattack, AutoattackConfig, stage_passes
from trainables.attacks.cw import Cw
from trainables.attacks.fgsm import Fgsm
from trainables.attacks.pgd import Pgd, PgdConfig
from trainables.config import AttackConfig
from trainables.dataset import InMemory
from trainables.verdicts import judge
from trainables.worst_case import WorstCase, wrong_lead

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


def test_an_image_that_is_not_surely_fooled_is_handed_back_as_its_worst_iterate(trained, some):
    class Faint(nn.Module):
        """The same decisions with leads that are all below the sure margin."""

        def forward(self, x):
            iterates.append(x.detach().clone())
            return trained.model(x) * 1e-6

    images, labels, ids = some
    iterates = []
    config = PgdConfig(steps=6, step_size=0.02, restarts=2)
    attacked = Pgd(config, Threat(epsilon=0.1)).perturb(Faint(), images, labels, 0, ids)
    assert [len(batch) for batch in iterates] == [len(images)] * 14
    with torch.no_grad():
        leads = torch.stack([wrong_lead(trained.model(batch), labels) for batch in iterates])
        assert torch.allclose(wrong_lead(trained.model(attacked), labels), leads.amax(0), rtol=0, atol=1e-3)


def test_cw_is_the_ascent_of_pgd_on_the_margin_of_the_logits(trained, some):
    images, labels, ids = some
    pixels = images.clone().requires_grad_(True)
    logits = trained.model(pixels)
    margins = logits.scatter(1, labels[:, None], -1e9).amax(1) - logits.gather(1, labels[:, None]).squeeze(1)
    (gradient,) = torch.autograd.grad(margins.clamp_min(-10).sum(), pixels)
    expected = (images + 0.05 * gradient.sign()).clamp(0, 1)
    one_step = PgdConfig(steps=1, step_size=0.05, random_start=False)
    attacked = Cw(one_step, THREAT).perturb(trained.model, images, labels, 0, ids)
    moved = (attacked != images).flatten(1).any(1)  # a step that made nothing worse is not handed back
    assert moved.any()
    assert torch.allclose(attacked[moved], expected[moved], atol=1e-6)
    assert Cw.Config().steps == 20


def test_cw_starts_elsewhere_than_pgd(some):
    images = some[0]
    starts = [attack(PgdConfig(), THREAT)._start(images, range(6), 0, 0) for attack in (Pgd, Cw)]
    assert not torch.equal(*starts)


def test_apgd_t_takes_no_more_targets_than_there_are_and_refuses_too_few_classes():
    model = Linear(5)
    data = labelled(model)
    assert ApgdT.passes(ApgdTConfig(steps=4), 5) == (4, 1 + 4 * 13)
    attacked = ApgdT(ApgdTConfig(steps=4), THREAT).perturb(model, data.pixels, data.labels, 0, torch.arange(20))
    assert (model(attacked).argmax(1) != data.labels).any()
    (reason,) = ApgdT.check(ApgdTConfig(), THREAT, 3)
    assert "at least 4 classes, the data set has 3" in reason
    model = Linear(3)
    data = labelled(model)
    with pytest.raises(AttackError, match="at least 4 classes"):
        ApgdT(ApgdTConfig(), THREAT).perturb(model, data.pixels, data.labels, 0, torch.arange(20))


def passes_of(model, run):
    """Count the images of all forward passes in a run, and those of backward passes twice."""
    counted = []

    def on_forward(_module, _inputs, output):
        counted.append(len(output))
        if output.requires_grad:
            output.register_hook(lambda gradient: counted.append(2 * len(gradient)))

    handle = model.register_forward_hook(on_forward)
    run()
    handle.remove()
    return sum(counted)


@pytest.mark.parametrize(
    "attack", [ApgdCe(ApgdCeConfig(steps=6, restarts=2), THREAT), ApgdT(ApgdTConfig(steps=6), THREAT)]
)
def test_apgd_costs_what_it_says(attack):
    model, ids = Linear(6), torch.arange(1)
    data = labelled(model, 1)
    wrong = (data.labels + 1) % 6
    fewest, most = attack.passes(attack.config, 6)
    safe = type(attack)(attack.config, Threat(epsilon=1e-6))
    assert passes_of(model, lambda: safe.perturb(model, data.pixels, data.labels, 0, ids)) == most
    assert passes_of(model, lambda: attack.perturb(model, data.pixels, wrong, 0, ids)) == fewest


@pytest.mark.parametrize("stage", ["apgd_ce", "apgd_dlr", "apgd_t", "fab", "fab_t", "square"])
def test_a_stage_of_autoattack_costs_what_it_says(stage):
    model, ids = Linear(6), torch.arange(1)
    data = labelled(model, 1)
    config = AutoattackConfig(version="custom", attacks=(stage,), steps=5, queries=9)
    attack = Autoattack(config, Threat(epsilon=1e-6))

    def run():
        package = attack._configured(model, 6, CPU, 0)
        attack._run(stage, package, model, WorstCase(data.pixels, data.labels), 0, ids)

    with frozen(model), torch.random.fork_rng():
        assert passes_of(model, run) == stage_passes(stage, config, 6)[1]


def test_rand_averages_its_gradients_over_twenty_passes_and_nobody_leaves_early():
    model = Linear(6)
    data = labelled(model, 1)
    config = AutoattackConfig(version="rand", steps=4)
    attack = Autoattack(config, Threat(epsilon=1e-6))
    overhead = 4  # the number of classes, two checks and the clean pass
    counted = passes_of(model, lambda: attack.perturb(model, data.pixels, data.labels, 0, torch.arange(1)))
    assert counted - overhead == Autoattack.passes(config, 6)[1] == 2 * (3 * 20 * 5 + 2)


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


def test_each_stage_works_on_the_images_that_withstood_those_before_it(trained, monkeypatch):
    reached, stood, given = [], [], []
    run = Autoattack._run
    for package in (FABAttack_PT, SquareAttack):

        def counted(self, x, y, inner=package.perturb):
            given.append(len(x))
            return inner(self, x, y)

        monkeypatch.setattr(package, "perturb", counted)

    def watched(self, stage, package, model, worst, seed, image_ids):
        reached.append((stage, len(worst.standing)))
        run(self, stage, package, model, worst, seed, image_ids)
        stood.append(len(worst.standing))

    monkeypatch.setattr(Autoattack, "_run", watched)
    found = verdict(trained, Autoattack(AutoattackConfig(steps=10, queries=20), Threat(epsilon=0.03)))
    assert [stage for stage, _ in reached] == list(STAGES["standard"])
    assert [count for _, count in reached] == [int(found.clean.sum()), *stood[:-1]]
    assert given == [count for _, count in reached[2:]]
    assert stood[-1] == int(found.correct.sum()) > 0
    assert stood[0] < reached[0][1]


def test_a_stage_alone_is_the_attack_of_that_name(trained, some):
    images, labels, ids = some
    for stage, attack in (
        ("apgd_ce", ApgdCe(ApgdCeConfig(steps=8), THREAT)),
        ("apgd_t", ApgdT(ApgdTConfig(steps=8), THREAT)),
    ):
        whole = Autoattack(AutoattackConfig(version="custom", attacks=(stage,), steps=8), THREAT)
        expected = attack.perturb(trained.model, images, labels, 3, ids)
        assert torch.equal(whole.perturb(trained.model, images, labels, 3, ids), expected)


def test_the_stages_on_apgd_do_not_depend_on_order_and_batching(trained, some):
    images, labels, ids = some
    model = deepcopy(trained.model).double()
    config = AutoattackConfig(version="custom", attacks=("apgd_ce", "apgd_dlr", "apgd_t"), steps=4)
    attack = Autoattack(config, Threat(epsilon=0.03))
    together = attack.perturb(model, images.double(), labels, 0, ids)
    for index in (torch.tensor([5]), torch.tensor([3, 0])):
        alone = attack.perturb(model, images[index].double(), labels[index], 0, ids[index])
        assert torch.allclose(alone, together[index], rtol=0, atol=1e-9)


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
