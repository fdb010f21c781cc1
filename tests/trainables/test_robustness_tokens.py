"""Robustness tokens: the loss by its definition, what moves and what does not, and what is measured."""

from __future__ import annotations

from copy import deepcopy

import pytest
import timm
import torch
import torch.nn.functional as F

from trainables.appended_tokens import backbone_of
from trainables.ascent import distance
from trainables.checkpoint import read_final, weights_digest
from trainables.features import Features, cosine
from trainables.method import Batch, check_stack
from trainables.methods.robustness_tokens import RobustnessTokens, RobustnessTokensConfig
from trainables.registry import find, names
from trainables.training import Training, load_final
from trainables.vit import PixelVit, model_facts

pytestmark = pytest.mark.usefixtures("_same_numbers")
CPU = torch.device("cpu")
SHORT = {"steps": 2, "epsilon": 0.1}
TOKENS = "vit.blocks.appended.tokens"


def method(**values):
    return RobustnessTokens(RobustnessTokensConfig(**{**SHORT, **values}), total_epochs=10)


@pytest.fixture
def model(trained):
    return deepcopy(trained.model)


def test_the_loss_is_two_less_both_cosines_to_the_clean_backbone(model, batch):
    backbone = deepcopy(model)
    tokens = method()
    model = tokens.wrap(model, batch)
    seen = tokens.perturb(model.eval(), batch)
    loss = tokens.loss(model.train(), seen, batch)
    with torch.no_grad():
        target = backbone.vit.forward_features((batch.images - backbone.mean) / backbone.std)
        cosines = [
            F.cosine_similarity(model.eval().vit.forward_features((images - model.mean) / model.std), target, dim=-1)
            for images in (batch.images, seen.images)
        ]
    expected = [float(part.mean()) for part in cosines]
    assert {name: float(value) for name, value in tokens.observed().items()} == pytest.approx(
        dict(zip(("invariance", "robustness"), expected, strict=True)), abs=1e-6
    )
    assert float(loss.detach()) == pytest.approx(2 - sum(expected), abs=1e-6)


def test_the_attack_is_on_the_features_of_the_model_without_tokens(model, batch):
    """Whatever the tokens are, it finds the same images."""
    tokens = method()
    model = tokens.wrap(model, batch).eval()
    found = []
    for scale in (1.0, 50.0):
        with torch.no_grad():
            model.vit.blocks.appended.tokens.mul_(scale)
        torch.manual_seed(0)
        found.append(tokens.perturb(model, batch).images)
    assert torch.equal(*found)
    assert 0.05 < float(distance(found[0], batch.images, "linf").max()) <= 0.1 + 1e-6


def test_the_cosine_to_clean_features_rises_within_fifty_steps(model, batch):
    tokens = method(count=50)
    model = tokens.wrap(model, batch)
    with torch.no_grad():
        model.vit.blocks.appended.tokens.mul_(100)  # as small as they start, a small model hardly notices them
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    history = []
    for _ in range(50):
        optimizer.zero_grad()
        tokens.loss(model, batch, batch).backward()
        optimizer.step()
        history.append(float(tokens.observed()["invariance"]))
    assert max(history[-5:]) <= 1
    assert min(history[-5:]) > history[0] + 0.03


def test_the_backbone_has_no_gradient_and_tokens_alone_learn(model, batch):
    tokens = method()
    model = tokens.wrap(model, batch)
    tokens.loss(model, batch, batch).backward()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {TOKENS}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {TOKENS}


def test_nothing_is_drawn_at_random_in_training_mode(tiny_trial, tmp_path, batch):
    training = Training(tiny_trial({"robustness_tokens": SHORT}, model={"drop_path": 0.5}), 0, tmp_path, device=CPU)
    model = training._learner.model.train()
    tokens = method()
    first, second = (tokens.loss(model, batch, batch) for _ in range(2))
    assert torch.equal(first, second)
    assert all(module.training for module in model.modules())


def run(tiny_trial, folder, method, epochs=2, **training):
    recipe = {"epochs": epochs, "batch_size": 20, "learning_rate": 1e-2, "clip_norm": None, **training}
    done = Training(tiny_trial({"robustness_tokens": {**SHORT, **method}}, training=recipe), 3, folder, device=CPU)
    before = {name: tensor.clone() for name, tensor in done._learner.model.state_dict().items()}
    while not done.is_done:
        done.run_epoch()
    done.finish()
    return done, before, read_final(folder).weights


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    "more", [{"weight_decay": 0.1, "decay_everything": True}, {"ema_decay": 0.9}, {"optimizer": "sgd", "epochs": 1}]
)
def test_frozen_weights_are_bit_identical_after_training(tiny_trial, tmp_path, more):
    _, before, after = run(tiny_trial, tmp_path, {}, **more)
    assert moved(before, after) == {TOKENS}


def test_the_finished_model_has_its_tokens(tiny_trial, tmp_path):
    training, _, _ = run(tiny_trial, tmp_path, {})
    model, splits, _ = load_final(tmp_path, device=CPU)
    images = splits.test.take(torch.arange(10))
    assert torch.equal(model(images), training._learner.kept_model.eval()(images))
    assert not torch.equal(model(images), backbone_of(model)(images))


def test_a_fitted_head_learns_what_it_learns_without_tokens_and_they_what_they_learn_without_it(tiny_trial, tmp_path):
    plain = {"optimizer": "sgd", "weight_decay": 0}
    _, before, both = run(tiny_trial, tmp_path / "both", {"head": "fitted", "epsilon": 0}, **plain)
    _, _, probe = run(tiny_trial, tmp_path / "probe", {"head": "fitted", "count": 0}, **plain)
    _, _, tokens = run(tiny_trial, tmp_path / "tokens", {"epsilon": 0}, **plain)
    head = {name for name in both if name.startswith("vit.head.")}
    assert moved(before, both) == {TOKENS, *head}
    assert TOKENS not in probe
    for name in head:
        torch.testing.assert_close(both[name], probe[name])
    torch.testing.assert_close(both[TOKENS], tokens[TOKENS])


def test_tokens_rest_after_their_last_update_and_the_head_goes_on(tiny_trial, tmp_path):
    training, _, after = run(tiny_trial, tmp_path / "a", {"updates": 3, "head": "fitted"})
    _, _, short = run(tiny_trial, tmp_path / "b", {"updates": 3, "head": "fitted"}, epochs=1, schedule="constant")
    _, _, same = run(tiny_trial, tmp_path / "c", {"updates": 3, "head": "fitted"}, epochs=2, schedule="constant")
    assert torch.equal(short[TOKENS], same[TOKENS])
    assert not torch.equal(short["vit.head.weight"], same["vit.head.weight"])
    first, second = training.history
    assert {"train/invariance", "train/robustness"} <= first.keys()
    assert not {"train/invariance", "train/robustness"} & second.keys()
    assert second["train/loss"] < first["train/loss"]
    assert set(after) == set(same)


def test_with_a_kept_head_nothing_moves_after_the_last_update(tiny_trial, tmp_path):
    options = {"schedule": "constant", "weight_decay": 0.1, "decay_everything": True}
    _, _, one = run(tiny_trial, tmp_path / "a", {"updates": 5}, epochs=1, **options)
    training, _, three = run(tiny_trial, tmp_path / "b", {"updates": 5}, epochs=3, **options)
    assert weights_digest(one) == weights_digest(three)
    assert training.history[2]["train/loss"] == 0


def test_an_interruption_between_epochs_forgets_no_update(tiny_trial, tmp_path):
    config = tiny_trial({"robustness_tokens": {**SHORT, "updates": 7}}, training={"batch_size": 20})
    _, _, whole = run(tiny_trial, tmp_path / "whole", {"updates": 7})
    recipe = {"epochs": 2, "batch_size": 20, "learning_rate": 1e-2, "clip_norm": None}
    config = tiny_trial({"robustness_tokens": {**SHORT, "updates": 7}}, training=recipe)
    Training(config, 3, tmp_path / "parts", device=CPU).run_epoch()
    continued = Training(config, 3, tmp_path / "parts", device=CPU)
    assert continued.epochs_done == 1
    continued.run_epoch()
    continued.finish()
    assert weights_digest(read_final(tmp_path / "parts").weights) == weights_digest(whole)


def test_what_is_measured_are_cosines_under_the_attack_and_leaves_no_trace(trained, batch):
    model = deepcopy(trained.model)
    tokens = method(measured_images=20)
    model = tokens.wrap(model, batch).train()
    torch.manual_seed(5)
    before, drawn = weights_digest(model.state_dict()), torch.random.get_rng_state()
    found = tokens.measure(model, trained.splits.validation, 7, CPU)
    assert found == tokens.measure(model, trained.splits.validation, 7, CPU)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert weights_digest(model.state_dict()) == before
    assert all(module.training for module in model.modules())
    assert all(-1 <= value < 1 for value in found.values())
    assert found["val/feature_cosine_backbone"] < 0.99
    assert method(measured_images=0).measure(model, trained.splits.validation, 7, CPU) == {}


def test_without_an_attack_the_backbone_is_true_to_itself_and_both_kinds_agree(trained, batch):
    tokens = method(epsilon=0, measured_images=20)
    model = tokens.wrap(deepcopy(trained.model), batch)
    found = tokens.measure(model, trained.splits.validation, 20, CPU)
    images = trained.splits.validation.take(torch.arange(len(trained.splits.validation.labels)))
    with torch.no_grad():
        everything = cosine(Features(model)(images), Features(backbone_of(model))(images), -1)
    assert found["val/feature_cosine_backbone"] == pytest.approx(1, abs=1e-5)
    assert found["val/feature_cosine"] == found["val/feature_cosine_adaptive"]
    assert float(everything.min()) <= found["val/feature_cosine"] <= float(everything.max())


def test_learning_raises_the_feature_cosine_under_the_attack(trained, batch):
    """On a model that is worth defending: features under the attack come back toward the clean ones."""
    tokens = method(count=20, epsilon=0.15, measured_images=64)
    model = tokens.wrap(deepcopy(trained.model), batch)
    with torch.no_grad():
        model.vit.blocks.appended.tokens.normal_()
    before = tokens.measure(model, trained.splits.validation, 64, CPU)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2, weight_decay=0)
    for step in range(25):
        index = torch.arange(32 * step, 32 * (step + 1)) % len(trained.splits.train.labels)
        clean = Batch(trained.splits.train.take(index), trained.splits.train.labels[index])
        seen = tokens.perturb(model.eval(), clean)
        optimizer.zero_grad()
        tokens.loss(model, seen, clean).backward()
        optimizer.step()
    after = tokens.measure(model, trained.splits.validation, 64, CPU)
    assert after["val/feature_cosine"] > before["val/feature_cosine"] + 0.02
    assert after["val/feature_cosine_backbone"] == before["val/feature_cosine_backbone"]


def test_no_tokens_and_a_kept_head_are_refused(tiny_trial):
    facts = model_facts(tiny_trial().model, 1, 10)
    assert list(RobustnessTokens.check(RobustnessTokensConfig(), facts)) == []
    assert list(RobustnessTokens.check(RobustnessTokensConfig(count=0, head="fitted"), facts)) == []
    ((field, reason),) = RobustnessTokens.check(RobustnessTokensConfig(count=0), facts)
    assert (field, "head: fitted" in reason) == ("count", True)


@pytest.mark.parametrize("other", [name for name in names("methods") if name not in ("robustness_tokens", "plain")])
def test_every_stack_with_it_is_refused_with_the_reason(other):
    reasons = check_stack({name: find("methods", name) for name in (other, "robustness_tokens")})
    assert f"robustness_tokens {RobustnessTokens.alone}; found it with {other}" in reasons
    assert "where penalties and other losses have nothing to move" in RobustnessTokens.alone


def test_all_heads_of_a_distilled_model_are_fitted(batch):
    sizes = {"embed_dim": 24, "depth": 1, "num_heads": 2, "img_size": 8, "patch_size": 4, "num_classes": 10}
    vit = timm.create_model("deit_tiny_distilled_patch16_224", in_chans=1, **sizes)
    model = method(head="fitted").wrap(PixelVit(vit, (0.3,), (0.4,)), batch)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {
        TOKENS,
        *(f"vit.{head}.{part}" for head in ("head", "head_dist") for part in ("weight", "bias")),
    }
