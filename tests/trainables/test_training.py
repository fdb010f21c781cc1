"""Training: a pure function of configuration and seed, restorable at every epoch's end."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch

from search_spaces.errors import CheckpointCorrupt, CheckpointMismatch, LossDiverged, Superseded
from trainables.checkpoint import read_final
from trainables.learner import Learner
from trainables.method import MethodStack
from trainables.training import Training, load_final

CPU = torch.device("cpu")
EVERYTHING = {
    "optimizer": "sgd",
    "batch_size": 33,
    "epochs": 3,
    "warmup_epochs": 1,
    "learning_rate": 0.05,
    "label_smoothing": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "mixup_probability": 0.7,
    "crop_padding": 1,
    "flip": True,
    "ema_decay": 0.9,
    "select": "best",
}


def start(config, folder, seed=1, **more):
    return Training(config, seed, folder, device=CPU, **more)


def complete(training):
    while not training.is_done:
        training.run_epoch()
    return training.finish()


@pytest.fixture
def config(tiny_trial):
    return tiny_trial()


@pytest.fixture
def rich(tiny_trial):
    """All that draws random numbers or carries state, at once."""
    return tiny_trial({"jasmin": {"k": 0}, "adversarial": {"steps": 2}}, training=EVERYTHING, model={"drop_path": 0.2})


def test_an_epoch_reports_losses_accuracy_and_cost(config, tmp_path):
    training = start(config, tmp_path)
    metrics = training.run_epoch()
    assert metrics.keys() == {
        "train/loss",
        "train/task_loss",
        "train/learning_rate",
        "val/clean_acc",
        "val/loss",
        "cost/epoch_s",
        "cost/images",
    }
    assert (training.epochs_done, training.is_done, training.history) == (1, False, [metrics])
    assert metrics["cost/images"] == 100


def test_the_loss_with_penalties_is_their_sum(tiny_trial, tmp_path):
    metrics = start(tiny_trial({"jasmin": {"k": 0, "weight": 0.01}}), tmp_path).run_epoch()
    assert metrics["train/jasmin"] < 0
    assert metrics["train/loss"] == pytest.approx(metrics["train/task_loss"] + metrics["train/jasmin"], abs=1e-5)


def test_learning_learns(trained):
    index = torch.arange(len(trained.splits.test.labels))
    predictions = trained.model(trained.splits.test.take(index)).argmax(1)
    assert float((predictions == trained.splits.test.labels).double().mean()) > 0.5


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_an_interruption_at_any_epoch_changes_no_bit(stop_after, rich, tmp_path):
    whole = complete(start(rich, tmp_path / "whole"))
    first = start(rich, tmp_path / "parts")
    for _ in range(stop_after):
        first.run_epoch()
    for seeded in (torch.manual_seed, np.random.seed, random.seed):
        seeded(0)
    second = start(rich, tmp_path / "parts")
    assert second.epochs_done == stop_after
    assert complete(second).weights_digest == whole.weights_digest
    assert [without_time(e) for e in second.history] == [
        without_time(e) for e in read_final(tmp_path / "whole").meta["history"]
    ]


def without_time(metrics):
    return {name: value for name, value in metrics.items() if name != "cost/epoch_s"}


def test_two_trainings_in_one_process_do_not_influence_each_other(rich, config, tmp_path):
    alone = complete(start(rich, tmp_path / "alone"))
    one, other = start(rich, tmp_path / "one"), start(config, tmp_path / "other", seed=9)
    while not one.is_done:
        one.run_epoch()
        if not other.is_done:
            other.run_epoch()
    assert one.finish().weights_digest == alone.weights_digest


def test_the_process_keeps_its_own_random_numbers_and_threads(rich, tmp_path):
    def draws():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]

    for seeded in (torch.manual_seed, np.random.seed, random.seed):
        seeded(3)
    expected = draws()
    for seeded in (torch.manual_seed, np.random.seed, random.seed):
        seeded(3)
    start(rich, tmp_path).run_epoch()
    load_final(complete_folder(rich, tmp_path), device=CPU)
    assert draws() == expected
    assert torch.get_num_threads() == 1


def complete_folder(config, folder):
    complete(start(config, folder))
    return folder


def test_a_damaged_newest_checkpoint_costs_one_epoch_and_no_bit(config, tmp_path):
    whole = complete(start(config, tmp_path / "whole"))
    first = start(config, tmp_path / "parts")
    first.run_epoch(), first.run_epoch()
    (tmp_path / "parts" / "checkpoints" / "epoch-0002" / "state.pt").write_bytes(b"\0" * 100)
    second = start(config, tmp_path / "parts")
    assert second.epochs_done == 1
    assert "epoch-0002" in second.notes[0]
    assert complete(second).weights_digest == whole.weights_digest


def test_another_seed_or_configuration_does_not_continue_from_a_foreign_checkpoint(config, tiny_trial, tmp_path):
    start(config, tmp_path).run_epoch()
    for foreign in ({"seed": 2}, {"config": tiny_trial(training={"learning_rate": 1e-3})}):
        with pytest.raises(CheckpointMismatch):
            start(**{"config": config, "folder": tmp_path, **foreign})


def test_finishing_writes_the_model_once_and_drops_the_checkpoints(config, tmp_path):
    training = start(config, tmp_path)
    outcome = complete(training)
    assert training.finish() == outcome
    assert (outcome.folder, outcome.epoch) == (tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["final"]
    assert outcome.clean_acc == training.history[-1]["val/clean_acc"]


def test_a_finished_training_answers_without_training_again(config, tmp_path, monkeypatch):
    outcome = complete(start(config, tmp_path))
    monkeypatch.setattr(Learner, "__init__", lambda *_: pytest.fail("a finished trial was built again"))
    again = start(config, tmp_path)
    assert again.is_done
    assert again.finish() == outcome
    assert len(again.history) == 2


def test_checkpoints_left_beside_a_good_final_model_go(config, tmp_path):
    complete(start(config, tmp_path))
    (tmp_path / "checkpoints" / "epoch-0002").mkdir(parents=True)
    start(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_damaged_final_model_is_noted_and_trained_again(config, tmp_path):
    outcome = complete(start(config, tmp_path))
    (tmp_path / "final" / "weights.safetensors").write_bytes(b"")
    again = start(config, tmp_path)
    assert "final model not usable" in again.notes[0]
    assert again.epochs_done == 0
    assert complete(again).weights_digest == outcome.weights_digest


def test_finish_before_the_end_and_an_epoch_after_it_are_refused(config, tmp_path):
    training = start(config, tmp_path)
    with pytest.raises(RuntimeError, match="0 of 2 epochs"):
        training.finish()
    complete(training)
    with pytest.raises(RuntimeError, match="all 2 epochs"):
        training.run_epoch()


@pytest.mark.parametrize("moment", ["epoch", "finish"])
def test_a_superseded_attempt_writes_nothing(moment, config, tmp_path):
    current = [True]

    def still_current():
        if not current[0]:
            raise Superseded("replaced")

    training = start(config, tmp_path, still_current=still_current)
    training.run_epoch()
    if moment == "finish":
        training.run_epoch()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    current[0] = False
    with pytest.raises(Superseded):
        training.run_epoch() if moment == "epoch" else training.finish()
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_diverged_loss_is_an_error_that_says_where(tiny_trial, tmp_path):
    training = start(tiny_trial(training={"optimizer": "sgd", "learning_rate": 1e30, "clip_norm": None}), tmp_path)
    with pytest.raises(LossDiverged, match=r"is (nan|inf) in epoch 1, step 2"):
        training.run_epoch()
    assert not (tmp_path / "checkpoints").exists()


def test_batches_are_perturbed_in_eval_mode_and_learned_from_in_train_mode(tiny_trial, tmp_path, monkeypatch):
    modes = []
    for hook in ("perturb", "loss"):
        original = getattr(MethodStack, hook)

        def watched(self, model, *batches, hook=hook, original=original):
            modes.append((hook, model.training))
            return original(self, model, *batches)

        monkeypatch.setattr(MethodStack, hook, watched)
    start(tiny_trial({"adversarial": {"steps": 1}}), tmp_path).run_epoch()
    assert modes == [("perturb", False), ("loss", True)] * 4


def test_the_best_epoch_is_chosen_on_the_selection_split(tiny_trial, tmp_path):
    config = tiny_trial(training={"epochs": 5, "select": "best"}, data={"train_images": None})
    training = start(config, tmp_path)
    outcome = complete(training)
    chosen_by = [epoch["selection/acc"] for epoch in training.history]
    assert outcome.epoch == chosen_by.index(max(chosen_by)) + 1
    assert outcome.clean_acc == training.history[outcome.epoch - 1]["val/clean_acc"]


def test_the_moving_average_is_the_model_that_is_kept(tiny_trial, tmp_path):
    averaged = start(tiny_trial(training={"ema_decay": 0.9}), tmp_path / "average")
    last = start(tiny_trial(), tmp_path / "last")
    assert complete(averaged).weights_digest != complete(last).weights_digest
    trained_weights = averaged._learner.model.state_dict()
    assert all(torch.equal(value, trained_weights[name]) for name, value in last._learner.model.state_dict().items())


def test_the_loaded_model_is_the_one_that_was_validated(config, tmp_path):
    outcome = complete(start(config, tmp_path))
    model, splits, meta = load_final(tmp_path, device=CPU)
    logits = model(splits.validation.take(torch.arange(40)))
    assert float((logits.argmax(1) == splits.validation.labels).double().mean()) == outcome.clean_acc
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert (meta["num_classes"], meta["channels"]) == (10, 1)
    assert meta["data_digest"] == splits.digest()
    assert math.isclose(meta["mean"][0], splits.mean[0])


def test_a_model_that_is_not_finished_cannot_be_loaded(config, tmp_path):
    with pytest.raises(CheckpointCorrupt, match="no final model"):
        load_final(tmp_path, device=CPU)
    complete(start(config, tmp_path))
    meta = tmp_path / "final" / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "clean_acc": 1.0}))
    with pytest.raises(CheckpointCorrupt, match="altered"):
        load_final(tmp_path, device=CPU)


def test_a_trial_may_start_from_the_weights_of_another(tiny_trial, config, tmp_path):
    complete(start(config, tmp_path / "first"))
    weights = tmp_path / "first" / "final" / "weights.safetensors"
    second = tiny_trial(model={"weights": weights}, training={"epochs": 1})
    complete(start(second, tmp_path / "second"))
    weights.unlink()
    model, _, _ = load_final(tmp_path / "second", device=CPU)  # needs nothing but its own folder
    assert model is not None
