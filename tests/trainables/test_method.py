"""How methods stack, and how they are found."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from search_spaces.errors import SweepError
from trainables.config import MethodConfig, TrialConfig
from trainables.method import Batch, Method, MethodStack, build_stack, check_stack, cross_entropy
from trainables.registry import UnknownName, class_name, find, load_plugins, names
from trainables.training import Training

PLUGIN = """
from trainables.config import MethodConfig
from trainables.method import Method, cross_entropy


class {name}(Method[MethodConfig]):
    def loss(self, model, seen, clean):
        return 2 * cross_entropy(model(seen.images), seen.targets)
"""


class Shift(Method[MethodConfig]):
    """Adds its amount to the images and counts epochs."""

    def __init__(self, amount):
        super().__init__(MethodConfig(), 1)
        self.amount, self.epochs = amount, 0

    def perturb(self, model, batch):
        return Batch(batch.images * 2 + self.amount, batch.targets)

    def penalty(self, model, attention):
        return {f"shift{self.amount}": torch.tensor(float(self.amount))}

    def on_epoch_start(self, model, epoch, draw):
        self.epochs = epoch
        self.notes.append(f"{self.amount} in epoch {epoch}")
        return {f"shift{self.amount}/drawn": float(sum(len(part.images) for (part,) in draw("shift")))}

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state):
        self.epochs = state["epochs"]


class OwnLoss(Method[MethodConfig]):
    def loss(self, model, seen, clean):
        return cross_entropy(model(clean.images), clean.targets) * 3


class Grow(Method[MethodConfig]):
    def __init__(self, size):
        super().__init__(MethodConfig(), 1)
        self.size = size

    def wrap(self, model, probe):
        return nn.Sequential(model, nn.Linear(self.size, self.size))


def test_wrap_chains_in_order_and_penalties_add_up():
    stack = MethodStack({"one": Shift(1), "grow2": Grow(2), "grow3": Grow(3)})
    batch = Batch(torch.zeros(1), torch.zeros(1))
    wrapped = stack.wrap(nn.Identity(), batch)
    assert [layer.in_features for layer in wrapped.modules() if isinstance(layer, nn.Linear)] == [2, 3]
    assert stack.perturb(nn.Identity(), batch).images.tolist() == [1]
    two = MethodStack({"one": Shift(1), "ten": Shift(10)})
    assert {name: float(v) for name, v in two.penalty(nn.Identity(), []).items()} == {"shift1": 1, "shift10": 10}
    assert two.on_epoch_start(nn.Identity(), 4, lambda key: [[batch]] * 2) == {"shift1/drawn": 2, "shift10/drawn": 2}
    assert (two.take_notes(), two.take_notes()) == (["1 in epoch 4", "10 in epoch 4"], [])
    other = MethodStack({"one": Shift(1), "ten": Shift(10)})
    other.load_state_dict(two.state_dict())
    assert [method.epochs for method in other.methods.values()] == [4, 4]


def test_the_loss_belongs_to_the_method_that_replaces_it():
    model, batch = nn.Linear(2, 3), Batch(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))
    plain = MethodStack({}).loss(model, batch, batch)
    owned = MethodStack({"shift": Shift(1), "own": OwnLoss(MethodConfig(), 1)}).loss(model, batch, batch)
    assert float((owned - 3 * plain).detach()) == pytest.approx(0, abs=1e-6)


def test_two_owners_of_one_hook_do_not_stack():
    (reason,) = check_stack({"a": OwnLoss, "b": OwnLoss, "c": Shift})
    assert "a and b both replace the loss" in reason
    (reason,) = check_stack({"c": Shift, "d": Shift})
    assert "c and d both replace the perturb" in reason
    assert check_stack({"a": OwnLoss, "c": Shift}) == []


def test_a_stack_reads_the_most_that_one_of_its_methods_reads(tiny_trial):
    cpu = torch.device("cpu")
    assert build_stack(tiny_trial({"adversarial": {}, "jasmin": {"k": 0}})).reads(cpu) == "probabilities"
    assert build_stack(tiny_trial({"jasmin": {"k": 0, "path": "recompute"}})).reads(cpu) == "projections"
    assert build_stack(tiny_trial({"adversarial": {}})).reads(cpu) == "nothing"
    assert build_stack(tiny_trial({})).reads(cpu) == "nothing"


def test_a_stack_is_built_in_the_order_of_the_configuration(tiny_trial):
    config = tiny_trial({"jasmin": {"k": 0}, "adversarial": {}})
    assert config.label == "jasmin+adversarial"
    stack = build_stack(config)
    assert list(stack.methods) == ["jasmin", "adversarial"]
    assert stack.methods["adversarial"].total_epochs == config.training.epochs


def test_names_are_the_files_and_classes_follow_them():
    assert {"plain", "jasmin", "adversarial"} <= set(names("methods"))
    assert {"digits", "arrays", "image_folder"} <= set(names("datasets"))
    assert {"fgsm", "pgd", "autoattack"} <= set(names("attacks"))
    assert class_name("image_folder") == "ImageFolder"
    assert all(find(kind, key).Config for kind in ("methods", "attacks", "datasets") for key in names(kind))


def test_an_unknown_name_says_which_one_was_meant():
    with pytest.raises(UnknownName, match="Did you mean 'jasmin'"):
        find("methods", "jasmine")
    with pytest.raises(ValueError, match="Did you mean 'jasmin'"):
        TrialConfig.model_validate({"methods": {"jasmine": {}}})


def test_a_plugin_file_is_a_method_like_any_other(tiny_trial, tmp_path):
    path = tmp_path / "doubled_loss.py"
    path.write_text(PLUGIN.format(name="DoubledLoss"))
    data = tiny_trial().plain() | {"plugins": [str(path)], "methods": {"doubled_loss": {}}}
    config = TrialConfig.model_validate(data)
    assert "doubled_loss" in names("methods")
    assert "doubled_loss" not in names("attacks")
    metrics = Training(config, 0, tmp_path / "run", device=torch.device("cpu")).run_epoch()
    assert metrics["train/loss"] == pytest.approx(2 * 2.3, abs=0.6)
    with pytest.raises(SweepError, match="both replace the loss"):
        build_stack(
            config.model_copy(update={"methods": {"doubled_loss": MethodConfig(), "other_loss": MethodConfig()}})
        )


@pytest.fixture(autouse=True)
def other_loss(tmp_path_factory, monkeypatch):
    """A second plugin for the test above, and the registry as it was after each test."""
    from trainables import registry

    monkeypatch.setattr(registry, "_plugins", {})
    path = tmp_path_factory.mktemp("plugin") / "other_loss.py"
    path.write_text(PLUGIN.format(name="OtherLoss"))
    load_plugins([path])


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such Python file"), ("x = 1", "must define a class BadOne")]
)
def test_a_plugin_without_its_class_is_refused(content, message, tmp_path):
    path = tmp_path / "bad_one.py"
    if content:
        path.write_text(content)
    with pytest.raises(SweepError, match=message):
        load_plugins([path])
