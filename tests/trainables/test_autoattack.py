"""AutoAttack: its parts and their worst case, its versions, the classes that it needs, and the package behind rand."""

from __future__ import annotations

import logging
import random
import sys
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from search_spaces.errors import AttackError
from tests.trainables.victims import Linear, labelled, passes_of
from trainables.attack import Threat, find_attack
from trainables.attacks.apgd_ce import ApgdCeConfig
from trainables.attacks.apgd_t import ApgdTConfig
from trainables.attacks.autoattack import Autoattack, AutoattackConfig
from trainables.attacks.fab_t import FabTConfig
from trainables.attacks.square import SquareConfig
from trainables.registry import find
from trainables.verdicts import clean_correct, judge
from trainables.worst_case import WorstCase

CPU = torch.device("cpu")
THREAT = Threat(norm="linf", epsilon=0.05)


class Curved(nn.Module):
    """Two layers on 8×8 pixels, ten classes, as they are or hidden from gradients."""

    def __init__(self, hidden):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(24, 64, generator=generator) / 4)
        self.second = nn.Parameter(torch.randn(10, 24, generator=generator))
        self.hidden = hidden

    def forward(self, x):
        if self.hidden == "by rounding":  # no gradient at all
            x = (24 * x).round() / 24
        logits = F.relu(x.flatten(1) @ self.first.T) @ self.second.T
        return 1000 * logits if self.hidden == "by scale" else logits  # none of the cross-entropy


def judged(model, attack, data, ids):
    return judge(model, attack, data, ids, seed=5, batch_size=20, device=CPU).correct


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("hidden", "attacks", "at_work"),
    [
        ("no", ("apgd_ce", "apgd_dlr", "apgd_t", "fab", "fab_t", "square"), {"apgd_ce"}),
        ("by scale", ("apgd_ce", "apgd_dlr", "apgd_t"), {"apgd_ce", "apgd_dlr", "apgd_t_1"}),
        ("by scale", ("apgd_ce", "fab_t", "square"), {"apgd_ce", "fab_t"}),
        ("by scale", ("fab", "apgd_t"), {"fab"}),
        ("by rounding", ("square", "apgd_t", "apgd_ce", "fab"), {"square"}),
    ],
)
def test_the_parts_one_by_one_give_the_verdicts_of_the_whole_image_by_image(hidden, attacks, at_work, norm):
    model = Curved(hidden)
    data, ids = labelled(model, 40), torch.arange(40)
    config = AutoattackConfig(version="custom", attacks=attacks, steps=8, queries=40)
    fell = Counter()
    for epsilon in (0.012, 0.05) if norm == "linf" else (0.06, 0.25):
        threat = Threat(norm=norm, epsilon=epsilon)
        whole = judged(model, Autoattack(config, threat), data, ids)
        left = ids
        for part in Autoattack.parts(config, 10):
            stands = judged(model, find_attack(part.attack, part.config, threat), data, left)
            fell[part.label] += int((~stands).sum())
            left = left[stands]
        assert left.tolist() == ids[whole].tolist()
        assert 0 < len(left) < 40
    assert at_work <= set(+fell)


def test_the_published_autoattack_is_the_default_and_aa10_the_same_with_ten_steps():
    def listed(config):
        return [(part.label, part.attack, part.config) for part in Autoattack.parts(config, 10)]

    def expected(steps):
        ranks = range(9)
        return [
            ("apgd_ce", "apgd_ce", ApgdCeConfig(steps=steps)),
            *((f"apgd_t_{rank + 1}", "apgd_t", ApgdTConfig(steps=steps, first=rank, targets=1)) for rank in ranks),
            ("fab_t", "fab_t", FabTConfig(steps=steps, targets=9)),
            ("square", "square", SquareConfig(queries=5000)),
        ]

    assert listed(AutoattackConfig()) == expected(100)
    assert listed(AutoattackConfig(steps=10)) == listed(AutoattackConfig(version="aa10")) == expected(10)
    assert list(Autoattack.check(AutoattackConfig(), Threat(norm="l2", epsilon=0.5), 10)) == []


def test_a_configuration_comes_back_from_its_plain_form():
    for config in (AutoattackConfig(), AutoattackConfig(version="aa10"), AutoattackConfig(steps=7)):
        assert AutoattackConfig.model_validate(config.plain()) == config


def test_every_part_is_an_attack_of_its_own_with_a_label_of_its_own():
    config = AutoattackConfig(version="custom", attacks=("square", "fab", "apgd_dlr", "apgd_t"), steps=3, queries=7)
    parts = Autoattack.parts(config, 10)
    assert len({part.label for part in parts}) == len(parts) == 12
    for part in parts:
        assert isinstance(part.config, find("attacks", part.attack).Config)
        assert list(find("attacks", part.attack).check(part.config, THREAT, 10)) == []
    assert Autoattack.parts(AutoattackConfig(version="rand"), 10) == ()


def test_fewer_classes_have_fewer_targets():
    labels = [part.label for part in Autoattack.parts(AutoattackConfig(), 5)]
    assert labels == ["apgd_ce", "apgd_t_1", "apgd_t_2", "apgd_t_3", "apgd_t_4", "fab_t", "square"]


def test_it_costs_what_its_parts_cost():
    config = AutoattackConfig(steps=100)
    parts = [find("attacks", part.attack).passes(part.config, 10) for part in Autoattack.parts(config, 10)]
    assert [most for _, most in parts] == [301, *[302] * 9, 3628, 5001]
    assert Autoattack.passes(config, 10) == (3, sum(most for _, most in parts))
    model = Linear(6)
    data = labelled(model, 1)
    short = AutoattackConfig(version="custom", attacks=("apgd_ce", "apgd_dlr", "apgd_t", "square"), steps=5, queries=9)
    attack = Autoattack(short, Threat(epsilon=1e-6))
    counted = passes_of(model, lambda: attack.perturb(model, data.pixels, data.labels, 0, torch.arange(1)))
    assert counted - 1 == Autoattack.passes(short, 6)[1]  # one pass says how many classes there are


@pytest.mark.parametrize("classes", [4, 7])
def test_it_runs_with_fewer_than_ten_classes(classes):
    model = Linear(classes)
    attack = Autoattack(AutoattackConfig(steps=5, queries=10), Threat(epsilon=0.004))
    found = judge(model, attack, labelled(model), torch.arange(20), seed=0, batch_size=20, device=CPU)
    assert found.warnings == ()
    assert 0 < int(found.correct.sum()) < 20


@pytest.mark.parametrize(("classes", "version"), [(3, "standard"), (3, "aa10"), (2, "standard"), (2, "rand")])
def test_it_refuses_too_few_classes_for_its_losses(classes, version):
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


def test_each_part_works_on_the_images_that_withstood_those_before_it(trained):
    test, ids = trained.splits.test, torch.arange(64)
    ids = ids[clean_correct(trained.model, test, ids, 64, CPU)]
    images, labels = test.take(ids), test.labels[ids]
    config, threat = AutoattackConfig(steps=10, queries=20), Threat(epsilon=0.03)
    whole, parts = WorstCase(images, labels), WorstCase(images, labels)
    reached, batches = [], []
    handle = trained.model.register_forward_hook(lambda _module, inputs, _output: batches.append(len(inputs[0])))
    for part in Autoattack.parts(config, 10):
        reached.append(len(parts.standing))
        batches.clear()
        find_attack(part.attack, part.config, threat).run(trained.model, parts, 0, ids)
        assert max(batches) == reached[-1]
    handle.remove()
    Autoattack(config, threat).run(trained.model, whole, 0, ids)
    assert torch.equal(whole.images, parts.images)
    assert len(ids) == reached[0] > reached[1] >= reached[-1] > 0


def test_without_anybody_standing_nothing_runs():
    model = Linear(10)
    data = labelled(model, 2)
    worst = WorstCase(data.pixels, data.labels)
    worst.offer(torch.arange(2), data.pixels, F.one_hot((data.labels + 1) % 10, 10).float())
    for version in ("standard", "rand"):
        attack = Autoattack(AutoattackConfig(version=version), THREAT)
        assert passes_of(model, lambda attack=attack: attack.run(model, worst, 0, torch.arange(2))) == 0


def test_rand_averages_its_gradients_over_twenty_passes_and_nobody_leaves_early():
    model = Linear(6)
    data = labelled(model, 1)
    config = AutoattackConfig(version="rand", steps=4)
    attack = Autoattack(config, Threat(epsilon=1e-6))
    overhead = 4  # the number of classes, two checks and the clean pass
    counted = passes_of(model, lambda: attack.perturb(model, data.pixels, data.labels, 0, torch.arange(1)))
    assert counted - overhead == Autoattack.passes(config, 6)[1] == 2 * (3 * 20 * 5 + 2)


def test_rand_takes_no_more_images_at_once_than_the_model_does():
    model = Linear(6, dropout=0.2)
    model.batch_size = 8
    data, batches = labelled(Linear(6)), []
    model.register_forward_hook(lambda _module, inputs, _output: batches.append(len(inputs[0])))
    attack = Autoattack(AutoattackConfig(version="rand", steps=2), Threat(epsilon=0.01))
    attacked = attack.perturb(model, data.pixels, data.labels, 0, torch.arange(20))
    assert max(batches) == 8
    assert bool((attacked != data.pixels).flatten(1).any(1).any())


def test_a_shorter_rand_still_halves_its_steps():
    short, published = (
        Autoattack(AutoattackConfig(version="rand", steps=steps), THREAT)._configured(Linear(10), CPU, 0).apgd
        for steps in (10, None)
    )
    assert (short.n_iter, short.n_iter_2, short.n_iter_min, short.size_decr) == (10, 2, 1, 1)
    assert (published.n_iter, published.n_iter_2, published.n_iter_min, published.size_decr) == (100, 22, 6, 3)
    assert (published.n_restarts, published.eot_iter) == (1, 20)


@pytest.mark.parametrize("version", ["standard", "rand"])
def test_it_leaves_the_process_as_it_was(version, capsys):
    def state():
        return logger.level, logger.propagate, list(logger.handlers), random.getstate(), torch.get_rng_state().tolist()

    def tracer(*_):
        return None

    model = Linear(10)
    data = labelled(model, 4)
    logger = logging.getLogger("auto-attack")
    before, outer = state(), sys.gettrace()
    sys.settrace(tracer)  # as a debugger or a coverage tool does
    try:
        attack = Autoattack(AutoattackConfig(version=version, steps=2, queries=5), THREAT)
        attack.perturb(model, data.pixels, data.labels, 0, torch.arange(4))
        kept = sys.gettrace()
    finally:
        sys.settrace(outer)
    assert kept is tracer
    assert state() == before
    output = capsys.readouterr()
    assert output.out + output.err == ""


def test_what_the_package_warns_of_reaches_the_verdict():
    class Probabilities(Linear):
        def forward(self, x):
            return super().forward(x).softmax(1)

    model = Probabilities(10)
    attack = Autoattack(AutoattackConfig(version="rand", steps=2), Threat(epsilon=0.01))
    found = judge(model, attack, labelled(model), torch.arange(20), seed=0, batch_size=20, device=CPU)
    assert any("probabilit" in text for text in found.warnings)


def test_pixels_outside_the_range_are_refused():
    data = labelled(Linear(10))
    with pytest.raises(AttackError, match=r"pixels in \[0, 1\]"):
        Autoattack(AutoattackConfig(), THREAT).perturb(Linear(10), data.pixels * 255, data.labels, 0, torch.arange(20))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"version": "custom"}, "at least one"),
        ({"attacks": ("apgd_ce",)}, "goes with version: custom"),
        ({"version": "custom", "attacks": ("deepfool",)}, "apgd_ce"),
        ({"version": "custom", "attacks": ("fab", "apgd_ce", "fab")}, "twice"),
        ({"version": "plus"}, "aa10"),
        ({"version": "aa10", "steps": 20}, "leave steps out.* found steps 20"),
        ({"version": "aa10", "steps": 10}, "leave steps out"),
        ({"steps": 0}, "greater than or equal to 1"),
    ],
)
def test_impossible_versions_are_refused(values, words):
    with pytest.raises(ValidationError, match=words):
        AutoattackConfig(**values)
