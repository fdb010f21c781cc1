"""The monitor: what it measures, when it looks, and that it changes nothing."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from trainables.attack import Threat
from trainables.attacks.pgd import Pgd, PgdConfig
from trainables.config import MonitorConfig, TrialConfig
from trainables.monitor import SEED, Monitor, is_due
from trainables.training import Training
from trainables.verdicts import clean_correct

CPU = torch.device("cpu")
KEYS = {"train/robust_acc", "val/robust_acc", "val/robust_gap"}


def config(**values):
    return MonitorConfig(**{"images": 30, "steps": 5, "norm": "linf", "epsilon": 0.06, **values})


def monitored(trial, **values):
    return TrialConfig.model_validate({**trial.plain(), "monitor": config(**values).plain()})


@pytest.fixture
def rich(tiny_trial):
    """A trial that draws random numbers wherever one can."""
    training = {"epochs": 3, "flip": True, "mixup": 0.8, "ema_decay": 0.9, "select": "best"}
    return tiny_trial({"adversarial": {"steps": 1}}, training=training, model={"drop_path": 0.2})


def complete(trial, folder):
    training = Training(trial, 1, folder, device=CPU)
    while not training.is_done:
        training.run_epoch()
    return training


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_each_accuracy_is_that_of_the_attack_image_by_image(norm, trained):
    threat = Threat(norm=norm, epsilon=0.06 if norm == "linf" else 0.4)
    monitor = Monitor(config(norm=norm, epsilon=threat.epsilon), trained.splits, 64, CPU)
    measured = monitor.measure(trained.model)
    accuracies = []
    for images, ids in ((trained.splits.train, monitor._train), (trained.splits.validation, monitor._validation)):
        held = 0
        for number in ids.tolist():
            one, label = images.take(torch.tensor([number])), images.labels[number : number + 1]
            if bool(trained.model(one).argmax(1) == label):
                attack = Pgd(PgdConfig(steps=5), threat)
                attacked = attack.perturb(trained.model, one, label, SEED, torch.tensor([number]))
                held += int(trained.model(attacked).argmax(1) == label)
        accuracies.append(held / len(ids))
    assert measured.keys() == KEYS
    assert [measured["train/robust_acc"], measured["val/robust_acc"]] == pytest.approx(accuracies)
    assert measured["val/robust_gap"] == measured["train/robust_acc"] - measured["val/robust_acc"]
    clean = clean_correct(trained.model, trained.splits.train, monitor._train, 64, CPU).double().mean()
    assert 0 < measured["train/robust_acc"] < float(clean)


def test_its_images_are_fixed_balanced_and_at_most_those_there_are(trained):
    first, again = (Monitor(config(), trained.splits, 64, CPU) for _ in range(2))
    for chosen in ("_train", "_validation"):
        assert torch.equal(getattr(first, chosen), getattr(again, chosen))
    assert trained.splits.train.labels[first._train].bincount().tolist() == [3] * 10
    assert trained.splits.validation.labels[first._validation].bincount().tolist() == [3] * 10
    everything = Monitor(config(images=10**6), trained.splits, 64, CPU)
    assert len(everything._validation) == len(trained.splits.validation.labels)


def test_it_changes_no_bit_of_the_training(rich, tmp_path):
    off, on = complete(rich, tmp_path / "off"), complete(monitored(rich), tmp_path / "on")
    assert off.finish().weights_digest == on.finish().weights_digest
    for without, with_monitor in zip(off.history, on.history, strict=True):
        assert with_monitor.keys() - without.keys() == KEYS
        del without["cost/epoch_s"]
        assert without.items() <= with_monitor.items()


def test_it_measures_the_model_that_is_kept(tiny_trial, tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(Monitor, "measure", lambda _, model: measured.append(model) or {})
    training = complete(monitored(tiny_trial(training={"ema_decay": 0.9})), tmp_path)
    assert [model is training._learner.kept_model for model in measured] == [True, True]
    assert training._learner.kept_model is not training._learner.model


def test_modes_flags_and_random_numbers_come_back(trained):
    trained.model.train()
    before = torch.get_rng_state()
    try:
        Monitor(config(), trained.splits, 64, CPU).measure(trained.model)
        assert all(module.training for module in trained.model.modules())
    finally:
        trained.model.eval()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in trained.model.parameters())


@pytest.mark.parametrize(("every", "epochs", "looks"), [(1, 3, [1, 2, 3]), (2, 5, [2, 4, 5]), (4, 4, [4]), (9, 3, [3])])
def test_it_looks_every_so_many_epochs_and_after_the_last(every, epochs, looks):
    assert [epoch for epoch in range(1, epochs + 1) if is_due(config(every=every), epoch, epochs)] == looks
    assert not any(is_due(MonitorConfig(), epoch, epochs) for epoch in range(1, epochs + 1))


def test_epochs_between_two_looks_have_no_figure(tiny_trial, tmp_path):
    history = complete(monitored(tiny_trial(training={"epochs": 3}), every=2), tmp_path).history
    assert [epoch.keys() >= KEYS for epoch in history] == [False, True, True]
    assert KEYS.isdisjoint(history[0])


def test_the_digest_of_a_trial_does_not_depend_on_it(tiny_trial):
    trial = tiny_trial()
    assert monitored(trial).digest() == trial.digest()
    assert monitored(trial) != trial
    assert tiny_trial(training={"epochs": 3}).digest() != trial.digest()


@pytest.mark.parametrize("missing", ["norm", "epsilon"])
def test_a_trial_with_a_monitor_needs_its_ball(missing):
    with pytest.raises(ValidationError, match="a monitor needs a norm and an epsilon"):
        TrialConfig(monitor=config(**{missing: None}))
