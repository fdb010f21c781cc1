"""Checkpoints: all or nothing, verified, and never another trial's."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

from search_spaces.errors import CheckpointCorrupt, CheckpointMismatch
from trainables import checkpoint
from trainables.checkpoint import Checkpoint, Identity, newest_good, read_final, write_checkpoint, write_final

OWN = Identity("0123456789abcdef", 7)


def after(epoch, selected=None):
    return Checkpoint(
        epoch,
        {"w": torch.full((2, 3), float(epoch)), "b": torch.zeros(3)},
        {"optimizer": {"step": epoch, "momentum": [torch.ones(2)]}, "best": [-1.0, 0]},
        [{"val/clean_acc": 0.1 * (n + 1)} for n in range(epoch)],
        selected,
    )


def write(folder, *epochs):
    return [write_checkpoint(folder, after(epoch), OWN) for epoch in epochs][-1]


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    place = write_checkpoint(tmp_path, after(4, selected={"w": torch.ones(1)}), OWN)
    found, notes = newest_good(tmp_path, OWN)
    assert place == tmp_path / "checkpoints" / "epoch-0004"
    assert notes == []
    assert (found.epoch, found.history, found.state["best"]) == (4, after(4).history, [-1.0, 0])
    assert torch.equal(found.weights["w"], torch.full((2, 3), 4.0))
    assert torch.equal(found.selected["w"], torch.ones(1))


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert newest_good(tmp_path, OWN) == (None, [])
    assert read_final(tmp_path) is None


def test_the_last_two_are_kept(tmp_path):
    write(tmp_path, 1, 2, 9, 10)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["epoch-0009", "epoch-0010"]


def test_what_a_killed_writer_left_half_written_goes_with_the_next_checkpoint(tmp_path):
    for place in (tmp_path / "checkpoints" / ".epoch-0002.4711.tmp", tmp_path / ".final.4711.tmp"):
        place.mkdir(parents=True)
        (place / "weights.safetensors").write_bytes(b"half")
    write(tmp_path, 1)
    assert os.listdir(tmp_path / "checkpoints") == ["epoch-0001"]
    write_final(tmp_path, {"w": torch.ones(1)}, {}, OWN)
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "final"]


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "meta.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before_it(name, damage, tmp_path):
    file = write(tmp_path, 1, 2) / name
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content if damage == "flip" else content[:-5])
    found, notes = newest_good(tmp_path, OWN)
    assert found.epoch == 1
    assert len(notes) == 1
    assert "epoch-0002" in notes[0]


def test_when_all_are_damaged_there_is_none_and_each_is_noted(tmp_path):
    write(tmp_path, 1, 2)
    for place in (tmp_path / "checkpoints").iterdir():
        (place / "state.pt").write_bytes(b"")
    found, notes = newest_good(tmp_path, OWN)
    assert found is None
    assert len(notes) == 2


def test_an_edited_history_is_noticed(tmp_path):
    meta = write(tmp_path, 1) / "meta.json"
    content = json.loads(meta.read_text())
    content["history"][0]["val/clean_acc"] = 0.99
    meta.write_text(json.dumps(content))
    assert newest_good(tmp_path, OWN)[0] is None


@pytest.mark.parametrize("other", [Identity("fedcba9876543210", 7), Identity("0123456789abcdef", 8)])
def test_another_trials_checkpoint_is_refused_and_not_skipped(other, tmp_path):
    write(tmp_path, 1)
    with pytest.raises(CheckpointMismatch, match="0123456789abcdef with seed 7"):
        newest_good(tmp_path, other)


def test_a_write_that_fails_leaves_the_old_checkpoint_and_no_rubbish(tmp_path, monkeypatch):
    write(tmp_path, 1)
    monkeypatch.setattr(checkpoint.torch, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, 2)
    assert os.listdir(tmp_path / "checkpoints") == ["epoch-0001"]


def test_what_a_killed_writer_left_is_ignored_and_goes_with_the_rest(tmp_path):
    write(tmp_path, 1)
    leftover = tmp_path / "checkpoints" / ".epoch-0002.99999.tmp"
    shutil.copytree(tmp_path / "checkpoints" / "epoch-0001", leftover)
    assert newest_good(tmp_path, OWN)[0].epoch == 1
    checkpoint.drop_checkpoints(tmp_path)
    assert not leftover.exists()


def test_a_damaged_checkpoint_is_replaced_by_the_same_epoch(tmp_path):
    (write(tmp_path, 1) / "state.pt").write_bytes(b"x")
    write(tmp_path, 1)
    found, notes = newest_good(tmp_path, OWN)
    assert (found.epoch, notes) == (1, [])


def test_the_final_model_comes_back_with_its_digest(tmp_path):
    weights = after(3).weights
    write_final(tmp_path, weights, {"clean_acc": 0.5}, OWN)
    final = read_final(tmp_path, OWN)
    assert torch.equal(final.weights["w"], weights["w"])
    assert final.meta["weights_digest"] == checkpoint.weights_digest(weights)
    assert (final.meta["clean_acc"], final.meta["seed"]) == (0.5, 7)
    with pytest.raises(CheckpointMismatch):
        read_final(tmp_path, Identity("fedcba9876543210", 7))


def test_a_damaged_final_model_is_refused(tmp_path):
    file = write_final(tmp_path, after(3).weights, {}, OWN) / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match=r"weights\.safetensors"):
        read_final(tmp_path)


def test_weights_that_were_swapped_with_a_fitting_file_digest_are_refused(tmp_path):
    place = write_final(tmp_path, after(3).weights, {}, OWN)
    other = write_final(tmp_path / "other", after(4).weights, {}, OWN)
    shutil.copy(other / "weights.safetensors", place)
    meta, donor = (json.loads((folder / "meta.json").read_text()) for folder in (place, other))
    meta["files"] = donor["files"]
    meta["meta_digest"] = checkpoint._text_digest({key: meta[key] for key in meta if key != "meta_digest"})
    (place / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointCorrupt, match="differ from their digest"):
        read_final(tmp_path)


def test_the_digest_of_weights_names_content_and_not_order():
    one, two = torch.arange(4.0), torch.ones(2)
    digest = checkpoint.weights_digest({"a": one, "b": two})
    assert digest == checkpoint.weights_digest({"b": two.clone(), "a": one})
    others = [
        {"a": one, "c": two},
        {"a": one.reshape(2, 2), "b": two},
        {"a": one.double(), "b": two},
        {"a": one + 1e-6, "b": two},
    ]
    assert len({digest, *map(checkpoint.weights_digest, others)}) == 5
