"""What every registered method, and every legal stack of them, must keep.

A new file in trainables/methods is tested here without being named, and so is one in examples, though in no stack.
"""

from __future__ import annotations

import io
import json
import math
from copy import deepcopy
from itertools import combinations

import pytest
import torch

from search_spaces.space import read_space
from trainables.attention import attention_layers, record_attention
from trainables.checkpoint import read_final, weights_digest
from trainables.config import TrialConfig, method_config_type
from trainables.learner import Learner
from trainables.method import Batch, build_stack, check_stack
from trainables.registry import built_in_names, find, names
from trainables.training import Training, load_final
from trainables.trial import find_splits
from trainables.vit import build_model, model_facts

METHODS = names("methods")
CPU = torch.device("cpu")
BRIEF = {
    "robustness_tokens": {"steps": 2, "measured_images": 8},
    "safer": {"steps": 2, "score_batches": 2},
}
"""Settings of methods that would take long at their defaults."""


def legal_stacks():
    """Every method alone, every pair that may be stacked, and the largest stack; plain has nothing to stack."""
    kinds = {key: find("methods", key) for key in built_in_names("methods") if key != "plain"}
    sets = [chosen for size in range(1, len(kinds) + 1) for chosen in combinations(kinds, size)]
    legal = [chosen for chosen in sets if not check_stack({key: kinds[key] for key in chosen})]
    examples = [(key,) for key in METHODS if key not in {*kinds, "plain"}]
    return [("plain",), *examples, *(chosen for chosen in legal if len(chosen) <= 2), max(legal, key=len)]


FREEZING = {key for key in METHODS if find("methods", key).freezes}
"""Methods that train some of the weights and leave the others alone, so that no setting of them is plain."""


@pytest.fixture(scope="module", params=METHODS)
def key(request):
    return request.param


@pytest.fixture(scope="module", params=legal_stacks(), ids="+".join)
def stacked(request):
    return request.param


@pytest.fixture(scope="module")
def config(stacked, tiny_trial):
    return tiny_trial({name: BRIEF.get(name, {}) for name in stacked})


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
    stack.on_epoch_start(model, 1, lambda key, share=1.0: iter([[batch]]))
    return stack, model, batch


def digest(training):
    return training.finish().weights_digest


def test_its_defaults_fit_a_tiny_model(stacked, config):
    facts = model_facts(config.model, 1, 10)
    assert [list(find("methods", key).check(config.methods[key], facts)) for key in stacked] == [[]] * len(stacked)


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
    with record_attention(model, stack.reads(CPU)) as attention:
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


def test_its_penalties_are_named_scalars(stacked, parts):
    stack, model, batch = parts
    with record_attention(model, stack.reads(CPU)) as attention:
        stack.loss(model, batch, batch)
    for name, value in stack.penalty(model, attention).items():
        assert value.shape == (), name
        assert value.requires_grad or FREEZING & set(stacked), name  # what it reads may lie below all that is trained


def five_steps(tiny_trial, methods, folder):
    """Weights after five steps of plain SGD, which does not turn rounding into steps as Adam does near zero."""
    recipe = {"epochs": 1, "batch_size": 20, "optimizer": "sgd", "learning_rate": 0.05}
    training = Training(tiny_trial(methods, training=recipe), 5, folder, device=CPU)
    training.run_epoch()
    training.finish()
    return read_final(folder).weights


def at_strength(stacked, value):
    """The stack with every strength at a value; what freezes has none, and is only kept from attacking."""
    return alone(stacked) | {
        key: dict.fromkeys(find("methods", key).strengths, value) for key in stacked if key not in FREEZING
    }


def alone(stacked):
    """What is left of a stack whose strengths are 0: plain fine-tuning, of some of the weights if a method freezes."""
    return {key: BRIEF.get(key, {}) | {"epsilon": 0} for key in stacked if key in FREEZING}


def test_a_method_can_be_switched_off_unless_it_freezes(key):
    kind = find("methods", key)
    assert bool(kind.strengths) != (kind.freezes or key == "plain")
    assert set(kind.strengths) <= kind.Config.model_fields.keys()


def test_at_strength_zero_it_is_plain_fine_tuning_bit_by_bit(stacked, tiny_trial, tmp_path):
    if set(stacked) <= FREEZING:
        pytest.skip(f"{'+'.join(stacked)} cannot be switched off: the test of frozen weights stands in its place")
    off = five_steps(tiny_trial, at_strength(stacked, 0), tmp_path / "off")
    plain = five_steps(tiny_trial, alone(stacked), tmp_path / "plain")
    assert weights_digest(off) == weights_digest(plain)


def test_a_frozen_weight_is_bit_identical_after_an_epoch_and_a_trained_one_is_not(stacked, tiny_trial):
    """Through weight decay, momentum and the moving average of the weights."""
    recipe = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.1, "decay_everything": True, "ema_decay": 0.9}
    config = tiny_trial({name: BRIEF.get(name, {}) for name in stacked}, training=recipe)
    torch.manual_seed(0)
    learner = Learner(config, 1, find_splits(config), CPU)
    for epoch in range(2):
        before, average = deepcopy(learner.model.state_dict()), deepcopy(learner.kept_model.state_dict())
        learner.train_epoch(epoch)
        after, flags = learner.model.state_dict(), {n: p.requires_grad for n, p in learner.model.named_parameters()}
        assert set(flags.values()) == ({True, False} if FREEZING & set(stacked) else {True})
        assert {name: not torch.equal(after[name], before[name]) for name in flags} == flags
        if epoch == 0:
            assert {n: not torch.equal(learner.kept_model.state_dict()[n], average[n]) for n in flags} == flags


@pytest.mark.parametrize("more", [{}, {"path": "recompute"}], ids=["", "recompute"])
def test_at_strength_almost_zero_its_own_path_runs_and_gives_plain_weights(stacked, more, tiny_trial, tmp_path):
    if set(stacked) <= FREEZING:
        pytest.skip(f"{'+'.join(stacked)} cannot be switched off")
    if more and "jasmin" not in stacked:
        pytest.skip("only jasmin has two paths")
    barely = at_strength(stacked, 1e-12)
    if more:
        barely["jasmin"] |= more
    found = five_steps(tiny_trial, barely, tmp_path / "barely")
    plain = five_steps(tiny_trial, alone(stacked), tmp_path / "plain")
    for name, expected in plain.items():
        assert float((found[name] - expected).norm()) <= 1e-5 * float(expected.norm()), name


def test_the_finished_model_judges_as_the_one_that_was_trained(run):
    """Nothing that training hung on the model, such as a recording, reaches evaluation."""
    model, splits, _ = load_final(run.folder, device=CPU)
    images = splits.test.take(torch.arange(20))
    with torch.no_grad():
        assert torch.equal(model(images), run._learner.kept_model.eval()(images))


def test_nothing_of_the_recording_is_left_in_the_model(config, run):
    fresh = build_model(config.model, num_classes=10, channels=1, mean=(0.3,), std=(0.4,))
    fused = {layer.fused_attn for layer in attention_layers(fresh)}
    model = run._learner.model
    assert {layer.fused_attn for layer in attention_layers(model)} == fused
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_attacks_inside_training_are_not_recorded(parts, monkeypatch):
    """perturb runs while no hook is on the model."""
    stack, model, batch = parts
    seen = []
    original = type(model).forward

    def forward(self, images):
        seen.append(any(m._forward_hooks or m._forward_pre_hooks for m in self.modules()))
        return original(self, images)

    monkeypatch.setattr(type(model), "forward", forward)
    stack.perturb(model.eval(), batch)
    assert not any(seen)


def test_micro_batches_add_up_to_the_whole_batch(stacked, tiny_trial, tmp_path):
    """Without random numbers in it, a step in parts is the same step; the last part is smaller."""
    calm = {key: BRIEF.get(key, {}) for key in stacked}
    calm |= {key: calm[key] | {"random_start": False} for key in ("adversarial", "safer") if key in calm}
    if "trades" in calm:
        calm["trades"] = {"epsilon": 0}  # its start is always random
    if "robustness_tokens" in calm:
        calm["robustness_tokens"] = {"epsilon": 0}  # so is this one's
    recipe = {"epochs": 1, "batch_size": 50, "optimizer": "sgd", "learning_rate": 0.05}
    found = []
    for name, size in (("whole", None), ("parts", 16)):
        config = tiny_trial(calm, training={**recipe, "micro_batch": size})
        training = Training(config, 5, tmp_path / name, device=CPU)
        metrics = training.run_epoch()
        training.finish()
        found.append((metrics, read_final(tmp_path / name).weights))
    (whole, weights), (parts, others) = found
    assert parts["train/loss"] == pytest.approx(whole["train/loss"], rel=1e-5)
    for name, expected in weights.items():
        assert torch.allclose(others[name], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())), name


def test_the_final_model_states_where_it_comes_from(config, run):
    final = read_final(run.folder)
    assert TrialConfig.model_validate(final.meta["config"]) == config
    assert (final.meta["seed"], final.meta["epoch"]) == (3, 2)
    assert not (run.folder / "checkpoints").exists()
