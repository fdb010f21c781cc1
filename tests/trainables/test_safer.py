"""SAFER: which layers are trained when, SAM, and what a step without SAM is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from search_spaces.errors import LossDiverged
from trainables.checkpoint import weights_digest
from trainables.learner import Learner
from trainables.method import check_stack
from trainables.methods import safer
from trainables.methods.safer import Safer, SaferConfig, climb_and_step, is_due, renew_state
from trainables.registry import find
from trainables.sharpness import head_layers, linear_layers, train_only
from trainables.training import Training
from trainables.trial import find_splits

CPU = torch.device("cpu")
QUICK = {"steps": 1, "score_batches": 1}
RECIPE = {"epochs": 6, "optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 0.05, "decay_everything": True}


@pytest.fixture
def learner(tiny_trial):
    def build(methods, **sections):
        torch.manual_seed(1)
        config = tiny_trial(methods, training=RECIPE | sections.pop("training", {}), **sections)
        return Learner(config, 1, find_splits(config), CPU)

    with torch.random.fork_rng():
        yield build


def trained(learner):
    return {name for name, parameter in learner.model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("fraction", [0.1, 1])
@pytest.mark.parametrize("inner", ["pgd", "trades"])
def test_without_sam_it_is_adversarial_training_of_the_selected_layers_bit_by_bit(learner, inner, fraction):
    """The measuring of scores disturbs neither random numbers nor weights."""
    found = learner({"safer": {**QUICK, "rho": 0, "fraction": fraction, "inner": inner, "head": "trained"}})
    reference = learner({"adversarial" if inner == "pgd" else "trades": {"steps": 1}})
    torch.manual_seed(2)
    metrics = found.train_epoch(0)
    (note,) = found.take_notes()
    layers = linear_layers(reference.model)
    chosen = [p for name, members in layers.items() if f" {name} (" in note for p in members]
    assert len(chosen) == 2 * (13 if fraction == 1 else 2)
    train_only(reference.model, chosen + head_layers(reference.model)["head"])
    torch.manual_seed(2)
    expected = reference.train_epoch(0)
    assert metrics["train/loss"] == expected["train/loss"]
    assert weights_digest(found.model.state_dict()) == weights_digest(reference.model.state_dict())


@pytest.mark.parametrize(
    ("fields", "others"),
    [
        ({}, set()),
        ({"head": "trained"}, {"vit.head.weight", "vit.head.bias"}),
        ({"head": "candidate", "fraction": 1}, {"vit.head.weight", "vit.head.bias"}),
        ({"granularity": "block", "fraction": 0.34}, set()),
    ],
)
def test_the_selected_layers_are_trained_and_norms_positions_and_tokens_never(learner, fields, others):
    run = learner({"safer": {**QUICK, **fields}})
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    metrics = run.train_epoch(0)
    moved = {name for name, tensor in run.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == trained(run)
    assert others <= moved
    assert not [name for name in moved if any(part in name for part in ("norm", "pos_embed", "token"))]
    size = 8 if fields.get("granularity") == "block" else 2
    beside = 2 if fields.get("head") == "trained" else 0
    assert len(moved) == size * metrics["safer/layers"] + beside
    assert metrics["safer/new_layers"] == metrics["safer/layers"]


@pytest.mark.parametrize(("every", "due"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4]), (5, [0, 5]), (None, [0])], ids=str)
def test_layers_are_selected_every_so_many_epochs(every, due):
    assert [epoch for epoch in range(6) if is_due(epoch, every)] == due


@pytest.fixture
def taking_turns(monkeypatch):
    """Selections that are known in advance, whatever the scores say."""
    turns = iter([["blocks.0.mlp.fc1"], ["blocks.2.attn.qkv"], ["blocks.0.mlp.fc1"]])
    monkeypatch.setattr(safer, "sharpest", lambda scores, fraction: next(turns))


@pytest.mark.usefixtures("taking_turns")
def test_a_new_selection_freezes_the_old_one_and_the_optimizer_forgets_it(learner):
    run = learner({"safer": {**QUICK, "reselect_epochs": 2}})
    optimizer = run._optimizer
    names = {parameter: name for name, parameter in run.model.named_parameters()}
    rates, new = [], []
    for epoch in range(5):
        old = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
        metrics = run.train_epoch(epoch)
        rates.append(metrics["train/learning_rate"])
        new.append(metrics["safer/new_layers"])
        layer = "vit.blocks.2.attn.qkv" if epoch in (2, 3) else "vit.blocks.0.mlp.fc1"
        assert {names[p] for p in optimizer.state} == {f"{layer}.weight", f"{layer}.bias"}
        changed = {name for name, tensor in run.model.state_dict().items() if not torch.equal(tensor, old[name])}
        assert changed == {f"{layer}.weight", f"{layer}.bias"}
    assert new == [1, 0, 1, 0, 1]
    assert len(run.take_notes()) == 3
    plain = learner({})
    assert rates == [plain.train_epoch(epoch)["train/learning_rate"] for epoch in range(5)]


@pytest.mark.parametrize("fused", [False, True])
def test_a_thawed_layer_starts_without_momentum_beside_one_that_goes_on(fused):
    one, other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([one, other], lr=1.0, momentum=0.5, fused=fused)

    def closure():
        optimizer.zero_grad()
        loss = (one + other).sum()
        loss.backward()
        return loss

    for other_is_trained in (True, False, True):
        other.requires_grad_(other_is_trained)
        renew_state(optimizer)
        climb_and_step(optimizer, closure, 0)
    assert one.item() == -1 - 1.5 - 1.75
    assert other.item() == -1 - 1  # with its momentum of before it would be −1 − 1.5


def test_an_interruption_between_selections_changes_no_bit(tiny_trial, tmp_path):
    config = tiny_trial({"safer": {**QUICK, "reselect_epochs": 2, "fraction": 0.2}}, training=RECIPE | {"epochs": 4})
    whole = Training(config, 3, tmp_path / "whole", device=CPU)
    while not whole.is_done:
        whole.run_epoch()
    for _ in range(4):
        Training(config, 3, tmp_path / "parts", device=CPU).run_epoch()
    parts = Training(config, 3, tmp_path / "parts", device=CPU)
    assert parts.finish().weights_digest == whole.finish().weights_digest
    figures = [[epoch["safer/highest_score"] for epoch in run.history] for run in (whole, parts)]
    assert figures[0] == figures[1]
    assert [a == b for a, b in zip(figures[0], figures[0][1:], strict=False)] == [True, False, True]
    assert [note.split(":")[0] for note in whole.notes] == [
        f"safer trains 3 of 13 layers from epoch {epoch}" for epoch in (1, 3)
    ]


def test_scores_are_those_of_the_model_in_eval_mode_on_the_same_examples_each_time(learner):
    """Nothing random is left in them: stochastic depth is off, and PGD starts where it started before."""
    run = learner({"safer": {**QUICK, "reselect_epochs": 1}}, model={"drop_path": 0.5})
    method = run._stack.methods["safer"]
    scores, states = [], []
    for epoch in (0, 1):
        torch.manual_seed(epoch)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        method.on_epoch_start(run.model, epoch, run._draw)
        states.append(torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all())
        scores.append(method.state_dict()["scores"])
    assert scores[0] == scores[1]
    assert all(states)
    assert run.model.training


def test_scores_are_measured_on_so_many_adversarial_batches(learner, monkeypatch):
    seen = {}
    original = safer.sharpness

    def watched(model, layers, batches, **how):
        seen["batches"], seen["how"] = batches, how
        return original(model, layers, batches, **how)

    monkeypatch.setattr(safer, "sharpness", watched)
    run = learner({"safer": {"steps": 2, "epsilon": 0.1, "score_batches": 2, "relative": False, "score_radius": 0.2}})
    run._stack.methods["safer"].on_epoch_start(run.model, 0, run._draw)
    clean = [part for (part,) in run._draw("safer")]
    assert [len(batch.images) for batch in seen["batches"]] == [32, 32]
    for attacked, original_batch in zip(seen["batches"], clean, strict=False):
        assert torch.equal(attacked.targets, original_batch.targets)
        change = (attacked.images - original_batch.images).abs().max()
        assert 0.09 < float(change) <= 0.1 + 1e-6
    assert seen["how"] == {"radius": 0.2, "relative": False, "exact": True}


def test_sam_steps_with_the_gradient_from_uphill():
    """w − η ∇L(w + ρ ∇L(w)/‖∇L(w)‖), worked out on a loss whose gradient is known; a frozen weight stays."""
    start = [torch.tensor([1.0, -2.0, 0.5]), torch.tensor([3.0]), torch.tensor([7.0])]
    a, b, frozen = (nn.Parameter(value.clone()) for value in start)
    frozen.requires_grad_(False)
    optimizer = torch.optim.SGD([a, b, frozen], lr=0.1, weight_decay=0.5)
    calls = []

    def closure():
        calls.append(torch.rand(2))
        optimizer.zero_grad()
        loss = (a**3).sum() + (b**3).sum() + frozen.sum()
        loss.backward()
        return loss

    torch.manual_seed(5)
    climb_and_step(optimizer, closure, 0.3)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    torch.rand(2)
    assert torch.equal(after, torch.get_rng_state())  # as many numbers as one pass draws
    assert torch.equal(*calls)
    gradient = [3 * value**2 for value in start[:2]]
    norm = torch.cat(gradient).norm()
    for parameter, value, slope in zip((a, b), start, gradient, strict=False):
        uphill = value + 0.3 * slope / norm
        expected = value - 0.1 * (3 * uphill**2 + 0.5 * value)
        assert torch.allclose(parameter, expected, rtol=1e-6)
    assert torch.equal(frozen, start[2])


def test_both_passes_see_the_same_adversarial_batch_and_the_same_stochastic_depth(learner):
    run = learner({"safer": {**QUICK, "rho": 1e-12}}, model={"drop_path": 0.5}, training={"epochs": 1})
    losses, seen = [], []
    method = run._stack.methods["safer"]
    original = method.loss

    def watched(model, attacked, clean):
        loss = original(model, attacked, clean)
        losses.append(float(loss.detach()))
        seen.append(attacked.images)
        return loss

    method.loss = watched
    run.train_epoch(0)
    assert len(losses) == 2 * 4
    assert losses[::2] == pytest.approx(losses[1::2], rel=1e-6)
    assert all(first is second for first, second in zip(seen[::2], seen[1::2], strict=True))
    assert len(set(losses[::2])) == 4


def test_without_rho_a_step_is_one_pass():
    weight, passes = nn.Parameter(torch.ones(1)), []
    optimizer = torch.optim.SGD([weight], lr=1.0)
    climb_and_step(optimizer, lambda: passes.append(1), 0)
    assert passes == [1]
    climb_and_step(optimizer, lambda: weight.sum().backward() or passes.append(1), 0.1)
    assert passes == [1, 1, 1]


def test_a_score_that_is_not_finite_is_a_diverged_loss(learner):
    run = learner({"safer": QUICK})
    nn.init.constant_(run.model.vit.head.weight, float("nan"))
    with pytest.raises(LossDiverged, match=r"the sharpness of patch_embed\.proj is nan"):
        run.train_epoch(0)


@pytest.mark.parametrize("other", ["adversarial", "trades"])
def test_it_has_an_inner_attack_of_its_own_and_stacks_with_no_other(other):
    reasons = check_stack({"safer": Safer, other: find("methods", other)})
    assert f"safer and {other} both replace the perturb of a step; only one of a stack may" in reasons


@pytest.mark.parametrize("other", ["jasmin", "msvp"])
def test_penalties_stack_on_it(other):
    assert check_stack({"safer": Safer, other: find("methods", other)}) == []


@pytest.mark.parametrize(
    "values", [{"fraction": 0}, {"fraction": 1.1}, {"reselect_epochs": 0}, {"rho": -0.1}, {"score_radius": 0}]
)
def test_impossible_settings_are_refused(values):
    with pytest.raises(ValidationError):
        SaferConfig(**values)
