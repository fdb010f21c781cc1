"""FAB: the verdicts of the authors' own loop, batches no larger than the model's, its cost."""

from __future__ import annotations

import pytest
import torch
from pyautoattack.fab_pt import FABAttack_PT

from tests.trainables.victims import Linear, correct, hardened, labelled, passes_of
from trainables.ascent import distance, frozen
from trainables.attack import Threat
from trainables.attacks.fab import Fab, FabConfig
from trainables.attacks.fab_t import FabT, FabTConfig
from trainables.dataset import InMemory
from trainables.verdicts import clean_correct
from trainables.worst_case import WorstCase


def theirs(model, data, threat, steps, targets):
    """Run the authors' whole attack on all images at once."""
    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    package = FABAttack_PT(
        model, norm, 1, steps, threat.epsilon, targeted=targets is not None, n_target_classes=targets or 0
    )
    with frozen(model), torch.random.fork_rng():
        return package.perturb(data.pixels, data.labels)


@pytest.mark.parametrize(("norm", "epsilons"), [("linf", (0.01, 0.03, 0.05)), ("l2", (0.05, 0.15, 0.3))])
@pytest.mark.parametrize("targets", [None, 1, 9])
def test_the_verdicts_are_those_of_the_authors_code(norm, epsilons, targets, trained):
    model, test, ids = trained.model, trained.splits.test, torch.arange(50)
    ids = ids[clean_correct(model, test, ids, 50, torch.device("cpu"))]
    data = InMemory(test.take(ids), test.labels[ids])
    stood = []
    for epsilon in epsilons:
        threat = Threat(norm=norm, epsilon=epsilon)
        aimed = targets is not None
        attack = FabT(FabTConfig(steps=8, targets=targets), threat) if aimed else Fab(FabConfig(steps=8), threat)
        found = attack.perturb(model, data.pixels, data.labels, 0, ids)
        expected = theirs(model, data, threat, 8, targets)
        with torch.no_grad():
            verdicts = model(found).argmax(1) == data.labels
            assert torch.equal(verdicts, model(expected).argmax(1) == data.labels)
        assert float(distance(found, data.pixels, norm).max()) <= epsilon
        stood += verdicts.tolist()
    assert 0 < sum(stood) < len(stood)


def test_batches_are_no_larger_than_the_models_own_and_survivors_fill_them():
    model, batches = Linear(6), []
    data = labelled(model)
    model.batch_size = 8
    model.register_forward_hook(lambda _module, inputs, _output: batches.append(len(inputs[0])))
    threat = Threat(epsilon=0.03)
    split = FabT(FabTConfig(steps=3), threat).perturb(model, data.pixels, data.labels, 0, torch.arange(20))
    assert max(batches) == 8
    del model.batch_size
    whole = FabT(FabTConfig(steps=3), threat).perturb(model, data.pixels, data.labels, 0, torch.arange(20))
    assert torch.allclose(split, whole, rtol=0, atol=1e-6)


def both(epsilon):
    return Fab(FabConfig(steps=5), Threat(epsilon=epsilon)), FabT(FabTConfig(steps=5), Threat(epsilon=epsilon))


@pytest.mark.parametrize(("attack", "walks"), list(zip(both(1e-6), (1, 5), strict=True)))
def test_who_withstands_costs_what_it_says_but_for_candidates_that_lie_outside_the_ball(attack, walks):
    model = Linear(6)
    data = labelled(model, 1)
    counted = passes_of(model, lambda: attack.perturb(model, data.pixels, data.labels, 0, torch.arange(1)))
    assert counted == attack.passes(attack.config, 6)[1] - walks  # each would be one pass


@pytest.mark.parametrize("attack", both(0.2))
def test_who_falls_on_the_first_walk_pays_for_no_other_and_is_left_alone_afterwards(attack):
    model = Linear(6)
    data = labelled(model, 1)
    worst = WorstCase(data.pixels, data.labels)
    fewest, most = attack.passes(attack.config, 6)
    counted = passes_of(model, lambda: attack.run(model, worst, 0, torch.arange(1)))
    assert counted == (most if isinstance(attack, Fab) else fewest)  # FAB's one walk and a look at what it found
    assert not len(worst.standing)
    assert passes_of(model, lambda: attack.run(model, worst, 0, torch.arange(1))) == 0


@pytest.mark.slow
def test_the_verdicts_are_those_of_the_authors_code_at_full_length_on_plain_and_hardened_models(trained):
    stood = []
    for model in (trained.model, hardened(trained, 0.05)):
        images, labels = correct(trained, model, 60)
        data = InMemory(images, labels)
        for threat in (Threat(epsilon=0.03), Threat(epsilon=0.1), Threat(norm="l2", epsilon=0.3)):
            found = FabT(FabTConfig(), threat).perturb(model, images, labels, 0, torch.arange(len(images)))
            expected = theirs(model, data, threat, 100, 9)
            with torch.no_grad():
                verdicts = model(found).argmax(1) == labels
                assert torch.equal(verdicts, model(expected).argmax(1) == labels)
            stood += verdicts.tolist()
    assert 0.1 < sum(stood) / len(stood) < 0.9
