"""What every registered attack must keep; a new file in trainables/attacks is tested here without being named.

So is one in examples.
"""

from __future__ import annotations

import warnings
from copy import deepcopy

import pytest
import torch
from torch.nn.functional import one_hot

from trainables.ascent import distance
from trainables.attack import Threat, find_attack
from trainables.checkpoint import weights_digest
from trainables.config import attack_config_type
from trainables.registry import find, names
from trainables.verdicts import clean_correct, judge
from trainables.worst_case import WorstCase

ATTACKS = names("attacks")
WITHOUT_GRADIENTS = {"square", "random_noise"}
FOOLS_AT = {"random_noise": 1.0}
"""ε at which an attack that knows nothing of the model fools half of the images; the others do at 0.1."""
CPU = torch.device("cpu")
QUICK = {"steps": 4, "queries": 15}


def quick_config(key):
    """The attack's defaults, shortened where it has steps or queries."""
    config_type = attack_config_type(key)
    return config_type(**{name: value for name, value in QUICK.items() if name in config_type.model_fields})


def build(key, norm="linf", epsilon=0.05):
    return find_attack(key, quick_config(key), Threat(norm=norm, epsilon=epsilon))


def perturb(attack, trained, images, labels, ids, seed=0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what an attack has to say is tested with the verdicts
        return attack.perturb(trained.model, images, labels, seed, ids)


@pytest.fixture(scope="module")
def victims(trained):
    """Twelve test images that the model classifies correctly, with labels and positions."""
    test = trained.splits.test
    ids = torch.arange(60)
    ids = ids[clean_correct(trained.model, test, ids, 20, CPU)][:12]
    return test.take(ids), test.labels[ids], ids


@pytest.mark.parametrize("epsilon", [0.02, 0.4])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("key", ATTACKS)
def test_its_images_stay_in_the_ball_and_in_the_pixel_range(key, norm, epsilon, trained, victims):
    if norm not in find("attacks", key).norms:
        pytest.skip(f"{key} has no {norm}")
    images, labels, ids = victims
    untouched = images.clone()
    attacked = perturb(build(key, norm, epsilon), trained, images, labels, ids)
    assert attacked.shape == images.shape
    assert torch.equal(images, untouched)
    assert float(distance(attacked, images, norm).max()) <= epsilon + 1e-6
    assert float(attacked.min()) >= 0
    assert float(attacked.max()) <= 1


@pytest.mark.parametrize("key", ATTACKS)
def test_it_fools_a_plain_model(key, trained, victims):
    images, labels, ids = victims
    attacked = perturb(build(key, epsilon=FOOLS_AT.get(key, 0.1)), trained, images, labels, ids)
    assert (trained.model(attacked).argmax(1) != labels).float().mean() > 0.5


@pytest.mark.parametrize("key", ATTACKS)
def test_the_same_seed_gives_the_same_images(key, trained, victims):
    images, labels, ids = victims
    first, second = (perturb(build(key), trained, images, labels, ids, seed=7) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("key", ATTACKS)
def test_global_random_numbers_neither_matter_nor_change(key, trained, victims):
    images, labels, ids = victims
    torch.manual_seed(1)
    first = perturb(build(key), trained, images, labels, ids)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = perturb(build(key), trained, images, labels, ids)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("key", ATTACKS)
def test_the_model_is_left_as_it_was(key, trained, victims):
    images, labels, ids = victims
    model = deepcopy(trained.model)
    model.requires_grad_(True)
    model.vit.head.bias.requires_grad_(False)
    before = weights_digest(model.state_dict())
    in_graph = []
    model.register_forward_hook(lambda *_: in_graph.append(any(p.requires_grad for p in model.vit.blocks.parameters())))
    perturb(build(key), trained._replace(model=model), images, labels, ids)
    assert in_graph[-1] is False  # during the attack no pass is paid for gradients of weights
    assert weights_digest(model.state_dict()) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["vit.head.bias"]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("key", ATTACKS)
def test_order_and_batching_do_not_matter(key, norm, trained, victims):
    images, labels, ids = (part.double() if part.is_floating_point() else part for part in victims)
    model = trained._replace(model=deepcopy(trained.model).double())  # float64: no rounding differs between shapes
    attack = build(key, norm)
    together = perturb(attack, model, images, labels, ids)
    for index in (torch.tensor([5]), torch.tensor([3, 11, 0])):
        alone = perturb(attack, model, images[index], labels[index], ids[index])
        assert torch.allclose(alone, together[index], rtol=0, atol=1e-9)


@pytest.mark.parametrize("key", ATTACKS)
def test_it_says_which_norms_it_supports(key):
    attack_type = find("attacks", key)
    for norm in ("linf", "l2"):
        reasons = list(attack_type.check(quick_config(key), Threat(norm=norm), 10))
        assert reasons == [] if norm in attack_type.norms else "norms" in reasons[0]


@pytest.mark.parametrize("key", ATTACKS)
def test_its_verdict_repeats_and_counts_what_it_cost(key, trained, victims):
    ids = victims[2]
    first, second = (
        judge(trained.model, build(key), trained.splits.test, ids, seed=1, batch_size=16, device=CPU) for _ in range(2)
    )
    assert torch.equal(first.correct, second.correct)
    assert first.forward_images == second.forward_images > 12
    assert first.backward_images == second.backward_images
    assert (first.backward_images >= 12) == (key not in WITHOUT_GRADIENTS)


@pytest.mark.parametrize("key", ATTACKS)
def test_it_leaves_alone_who_has_surely_fallen(key, trained, victims):
    images, labels, ids = victims
    attack, worst, alone = build(key), WorstCase(images, labels), WorstCase(images[4:], labels[4:])
    worst.offer(torch.arange(4), torch.ones_like(images[:4]), one_hot((labels[:4] + 1) % 10, 10).float())
    attack.run(trained.model, worst, 0, ids)
    attack.run(trained.model, alone, 0, ids[4:])
    assert bool((worst.images[:4] == 1).all())
    assert torch.equal(worst.images[4:], alone.images)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("key", ATTACKS)
def test_its_parts_are_attacks_that_may_run_so(key, norm):
    threat = Threat(norm=norm)
    parts = find("attacks", key).parts(quick_config(key), 10)
    assert len({part.label for part in parts}) == len(parts)
    for part in parts:
        found = find("attacks", part.attack)
        assert type(part.config) is found.Config
        assert list(found.check(part.config, threat, 10)) == []
        assert found.parts(part.config, 10) == ()
    if parts:
        assert find("attacks", key).passes(quick_config(key), 10)[1] == sum(
            find("attacks", part.attack).passes(part.config, 10)[1] for part in parts
        )
