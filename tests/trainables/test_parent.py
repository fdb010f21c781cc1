"""Trials that start from a parent: its weights and nothing else, verified, and needed for the training alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from search_spaces.errors import ModelError, ParentChanged
from trainables.checkpoint import weights_digest
from trainables.config import TrialConfig
from trainables.method import build_stack
from trainables.parent import ParentFile, read_parent, sha256_of
from trainables.registry import built_in_names, find
from trainables.training import Training, load_final
from trainables.trial import find_splits, new_model, wrap_model
from trainables.tune import failure_kind
from trainables.weights import without_wrapping

CPU = torch.device("cpu")
START = {"name": "robust", "identity": "0"}
Build = Callable[..., TrialConfig]


@pytest.fixture
def parent(trained: Any) -> ParentFile:
    """The model that the session has trained, as a parent."""
    meta = json.loads((trained.folder / "final" / "meta.json").read_text())
    return ParentFile(str(trained.folder), weights_digest=meta["weights_digest"])


@pytest.fixture
def child(tiny_trial: Build) -> Build:
    def build(methods: Any = None, **sections: Any) -> TrialConfig:
        plain = tiny_trial(methods, **sections).plain()
        return TrialConfig.model_validate({**plain, "start_from": START})

    return build


def complete(training: Training) -> dict[str, torch.Tensor]:
    while not training.is_done:
        training.run_epoch()
    training.finish()
    return load_file(training.folder / "final" / "weights.safetensors")


def bare(parent: ParentFile) -> dict[str, torch.Tensor]:
    """The weights of timm's model alone, as others would keep them."""
    return without_wrapping(read_parent(parent, "robust"))


def checkpoint_of(parent: ParentFile) -> ParentFile:
    path = Path(parent.path) / "final" / "weights.safetensors"
    return ParentFile(str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("given", [False, True])
def test_a_child_starts_with_its_parents_weights_in_place_of_pretrained_ones(
    child: Build, parent: ParentFile, trained: Any, given: bool
) -> None:
    config = child(model={"weights": "/no/such/file"})
    file = checkpoint_of(parent) if given else parent
    model = new_model(config, find_splits(config), read_parent(file, "robust"))
    own, wanted = model.vit.state_dict(), trained.model.vit.state_dict()
    assert own.keys() == wanted.keys()
    assert all(torch.equal(own[name], wanted[name]) for name in own)
    assert torch.equal(model.mean, trained.model.mean)  # the function of pixels that it was
    assert not torch.equal(model.mean, new_model(child(), find_splits(child()), bare(parent)).mean)
    assert model.notes == ()


def test_a_frozen_weight_of_a_child_is_its_parents_after_the_training(
    child: Build, parent: ParentFile, trained: Any, tmp_path: Path
) -> None:
    method = {"safer": {"steps": 1, "fraction": 0.01, "reselect_epochs": None, "score_batches": 1, "rho": 0.0}}
    final = complete(Training(child(method), 0, tmp_path, device=CPU, parent=parent))
    before = trained.model.state_dict()
    moved = {name for name, tensor in final.items() if not torch.equal(tensor, before[name])}
    assert moved
    assert len({name.rpartition(".")[0] for name in moved}) == 1  # weight and bias of one layer of 13


def test_a_child_that_goes_on_is_the_same_bit_for_bit(child: Build, parent: ParentFile, tmp_path: Path) -> None:
    config = child()
    whole = complete(Training(config, 1, tmp_path / "whole", device=CPU, parent=parent))
    Training(config, 1, tmp_path / "parts", device=CPU, parent=parent).run_epoch()
    parts = complete(Training(config, 1, tmp_path / "parts", device=CPU, parent=parent))
    assert weights_digest(whole) == weights_digest(parts)


def test_a_finished_child_needs_its_parent_no_more(child: Build, parent: ParentFile, tmp_path: Path) -> None:
    final = complete(Training(child(), 0, tmp_path, device=CPU, parent=parent))
    gone = ParentFile(str(tmp_path / "gone"), weights_digest=parent.weights_digest)
    assert Training(child(), 0, tmp_path, device=CPU, parent=gone).is_done
    model, _, _ = load_final(tmp_path, device=CPU)
    assert weights_digest(model.state_dict()) == weights_digest(final)


def test_a_child_without_its_parents_weights_is_refused(child: Build, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="plain@robust: the weights of parent robust are needed; found none"):
        Training(child(), 0, tmp_path, device=CPU)


def test_a_parent_of_other_images_is_refused(child: Build, parent: ParentFile) -> None:
    colours = read_parent(parent, "robust") | {"mean": torch.zeros(3, 1, 1)}
    with pytest.raises(ModelError, match="parent robust: its mean has 3 values, not 1"):
        new_model(child(), find_splits(child()), colours)


def test_weights_that_are_gone_or_others_are_no_failure_of_the_child(parent: ParentFile, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(parent)
    changed = [
        (ParentFile(str(tmp_path), weights_digest="0"), "no final weights"),
        (ParentFile(parent.path, weights_digest="0" * 16), "holds the weights"),
        (ParentFile(str(tmp_path / "none"), sha256="0" * 64), "no file"),
        (ParentFile(checkpoint.path, sha256="0" * 64), "has changed: its SHA-256 is"),
    ]
    for file, said in changed:
        with pytest.raises(ParentChanged, match=f"parent robust: .*{said}") as caught:
            read_parent(file, "robust")
        assert failure_kind(caught.value) == "parent"


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "w"
    file.write_bytes(b"one")
    assert sha256_of(file) == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"two")
    os.utime(file, ns=(0, 1))
    assert sha256_of(file) == hashlib.sha256(b"two").hexdigest()


@pytest.mark.parametrize("name", built_in_names("methods"))
def test_a_method_says_whether_it_adds_weights(name: str, tiny_trial: Build) -> None:
    config = tiny_trial({name: {}})
    splits = find_splits(config)
    model = new_model(config, splits)
    before = set(model.state_dict())
    after = set(wrap_model(build_stack(config), model, config, splits).state_dict())
    assert (after != before) == find("methods", name).adds_weights
