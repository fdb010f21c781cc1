"""What every registered method must keep; a new file in trainables/methods is tested here without being named."""

from __future__ import annotations

import io
import json
import math
from copy import deepcopy

import pytest
import torch

from search_spaces.space import read_space
from trainables.attention import attention_layers, record_attention
from trainables.checkpoint import read_final, weights_digest
from trainables.config import TrialConfig, method_config_type
from trainables.method import Batch, build_stack
from trainables.registry import find, names
from trainables.training import Training, load_final
from trainables.vit import build_model, model_facts

METHODS = names("methods")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=METHODS)
def key(request):
    return request.param


@pytest.fixture(scope="module")
def config(key, tiny_trial):
    return tiny_trial({key: {}})


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """A training of two epochs without an interruption, kept in memory to look at."""
    training = Training(config, 3, tmp_path_factory.mktemp("run"), device=CPU)
    while not training.is_done:
        training.run_epoch()
    training.finish()
    return training


@pytest.fixture
def parts(config):
    """A fresh model and the stack of this one method, before any wrapping, and a batch."""
    torch.manual_seed(0)
    model = build_model(config.model, num_classes=10, channels=1, mean=(0.3,), std=(0.4,))
    batch = Batch(torch.rand(8, 1, 8, 8), torch.arange(8))
    stack = build_stack(config)
    model = stack.wrap(model, batch)
    stack.on_epoch_start(model, 1)
    return stack, model, batch


def digest(training):
    return training.finish().weights_digest


def test_its_defaults_fit_a_tiny_model(key, config):
    facts = model_facts(config.model, 1, 10)
    assert list(find("methods", key).check(config.methods[key], facts)) == []


def test_its_configuration_travels_as_json(config):
    assert TrialConfig.model_validate(json.loads(json.dumps(config.plain()))) == config


def test_its_own_domains_are_allowed_values(key):
    space, problems = read_space(method_config_type(key), {}, ("methods", key), search_by_default=True)
    assert problems == []
    assert len(list(space.corners())) >= 1


def test_every_metric_is_finite(run):
    assert len(run.history) == 2
    assert all(math.isfinite(value) for epoch in run.history for value in epoch.values())
    assert {"train/loss", "train/task_loss", "val/clean_acc", "val/loss", "cost/epoch_s"} <= run.history[0].keys()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(config, run, tmp_path):
    again, other = Training(config, 3, tmp_path / "a", device=CPU), Training(config, 4, tmp_path / "b", device=CPU)
    for training in (again, other):
        training.run_epoch()
        training.run_epoch()
    assert digest(again) == digest(run)
    assert digest(other) != digest(run)


def test_an_interruption_between_epochs_changes_no_bit(config, run, tmp_path):
    Training(config, 3, tmp_path, device=CPU).run_epoch()
    torch.manual_seed(12345)
    continued = Training(config, 3, tmp_path, device=CPU)
    assert continued.epochs_done == 1
    continued.run_epoch()
    assert digest(continued) == digest(run)


def test_its_state_survives_torch_save(parts):
    stack, model, batch = parts
    stack.perturb(model, batch)
    saved = io.BytesIO()
    torch.save(stack.state_dict(), saved)
    saved.seek(0)
    before = deepcopy(stack.state_dict())
    stack.load_state_dict(torch.load(saved, weights_only=True))
    for name, state in before.items():
        assert flat(stack.state_dict()[name]) == flat(state)


def flat(state):
    return {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in state.items()}


def test_the_finished_model_loads_with_the_weights_that_were_kept(run):
    model, splits, meta = load_final(run.folder, device=CPU)
    assert weights_digest(model.state_dict()) == meta["weights_digest"] == digest(run)
    assert not model.training
    assert model(splits.test.take(torch.arange(3))).shape == (3, 10)


def test_perturb_leaves_the_model_as_it_was(parts):
    stack, model, batch = parts
    model.eval()
    flags = [parameter.requires_grad for parameter in model.parameters()]
    before = weights_digest(model.state_dict())
    images = batch.images.clone()
    seen = stack.perturb(model, batch)
    assert weights_digest(model.state_dict()) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert torch.equal(batch.images, images)
    assert seen.images.shape == images.shape
    assert float(seen.images.min()) >= 0
    assert float(seen.images.max()) <= 1


def test_gradients_reach_every_trainable_parameter_and_no_frozen_one(parts):
    stack, model, batch = parts
    model.eval()
    seen = stack.perturb(model, batch)
    model.train()
    with record_attention(model) as attention:
        loss = stack.loss(model, seen, batch)
    total = loss + sum(stack.penalty(model, attention).values())
    total.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert bool(torch.isfinite(parameter.grad).all()), name
            assert float(parameter.grad.abs().sum()) > 0, name
        else:
            assert parameter.grad is None, name


def test_its_penalties_are_named_scalars(parts):
    stack, model, batch = parts
    with record_attention(model) as attention:
        stack.loss(model, batch, batch)
    for name, value in stack.penalty(model, attention).items():
        assert value.shape == (), name
        assert value.requires_grad, name


def test_switched_off_it_is_plain_fine_tuning_bit_by_bit(key, tiny_trial, tmp_path):
    off = dict.fromkeys(find("methods", key).strengths, 0)
    if not off and key != "plain":
        pytest.skip(f"{key} cannot be switched off")
    digests = set()
    for name, methods in (("off", {key: off}), ("plain", {})):
        training = Training(tiny_trial(methods, training={"epochs": 1}), 5, tmp_path / name, device=CPU)
        training.run_epoch()
        digests.add(digest(training))
    assert len(digests) == 1


def test_nothing_of_the_recording_is_left_in_the_model(key, config, tmp_path):
    training = Training(config, 3, tmp_path, device=CPU)
    training.run_epoch()
    fresh = build_model(config.model, num_classes=10, channels=1, mean=(0.3,), std=(0.4,))
    fused = {layer.fused_attn for layer in attention_layers(fresh)}
    layers = attention_layers(training._learner.model)
    assert {layer.fused_attn for layer in layers} == fused
    assert all(not layer.attn_drop._forward_pre_hooks for layer in layers)


def test_the_final_model_states_where_it_comes_from(config, run):
    final = read_final(run.folder)
    assert TrialConfig.model_validate(final.meta["config"]) == config
    assert (final.meta["seed"], final.meta["epoch"]) == (3, 2)
    assert not (run.folder / "checkpoints").exists()
