"""The verdict store: whole units or none, the first verdict for good, and no other question's files read."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainables.verdict_store import VerdictStore
from trainables.verdicts import CleanVerdict, Verdict

DIGEST = "ab" * 8


def verdict(ids, correct, *, images=False, flat=0, said=(), seconds=1.0):
    """A verdict on images whose adversarial version is filled with their id."""
    ids, correct = torch.tensor(ids), torch.tensor(correct, dtype=torch.bool)
    marks = torch.zeros(len(ids), dtype=torch.bool)
    kept = ids[~correct].float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2) if images else None
    flats = marks.clone()
    flats[:flat] = True
    return Verdict(ids, correct, tuple(said), 10 * len(ids), 3 * len(ids), seconds, marks, flats, kept)


@pytest.fixture
def store(tmp_path):
    return VerdictStore(tmp_path / "verdicts")


def files(store, digest=DIGEST):
    return sorted((store.folder / digest[:2] / digest).iterdir())


def test_what_was_stored_is_found_by_image_in_any_order(store):
    store.add(DIGEST, verdict([4, 2, 9], [1, 0, 1]))
    store.add(DIGEST, verdict([7, 1], [0, 1]))
    found = store.find(DIGEST, torch.tensor([1, 3, 2, 7, 4]))
    assert found.known.tolist() == [True, False, True, True, True]
    assert found.correct[found.known].tolist() == [True, False, False, True]
    assert found.damaged == ()


def test_an_empty_store_knows_nothing_and_makes_no_folder(store):
    found = store.find(DIGEST, torch.arange(3))
    assert not found.known.any()
    assert set(found.facts) == {"forwards", "backwards", "seconds", "mismatches", "flat", "logit_scale_sum"}
    assert set(found.facts.values()) == {0}
    assert not store.folder.exists()
    assert list(store.images(DIGEST)) == []
    assert [len(part) for part in store.everything(DIGEST)] == [0, 0]


def test_questions_are_kept_apart_and_only_the_folder_of_one_is_read(store, monkeypatch):
    other = "cd" * 8
    store.add(DIGEST, verdict([1], [1]))
    store.add(other, verdict([2], [0]))
    listed = []
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(Path(path)) or real(path))
    assert store.find(DIGEST, torch.tensor([1, 2])).known.tolist() == [True, False]
    assert listed == [store.folder / "ab" / DIGEST]


def test_costs_and_facts_of_parts_add_up_to_those_of_the_whole(store):
    store.add(DIGEST, verdict(list(range(8)), [1] * 8, flat=3, said=["a"], seconds=2.0))
    store.add(DIGEST, verdict(list(range(8, 12)), [0] * 4, flat=1, said=["b", "a"]))
    store.add(DIGEST, verdict([20, 21], [1, 1], flat=2, said=["never asked for"]))
    whole = store.find(DIGEST, torch.arange(12))
    assert whole.facts == {
        "forwards": 120,
        "backwards": 36,
        "seconds": 3.0,
        "mismatches": 0,
        "flat": 4,
        "logit_scale_sum": 0,
    }
    assert whole.warnings == ("a", "b")
    parts = [store.find(DIGEST, torch.tensor(ids)) for ids in ([0, 9, 2, 11], [1, 3, 10, 4], [5, 6, 7, 8])]
    for name, value in whole.facts.items():
        assert sum(part.facts[name] for part in parts) == pytest.approx(value)
    assert [part.facts["flat"] for part in parts] == [2, 1, 1]


def test_clean_verdicts_keep_the_scale_of_the_logits(store):
    scales = torch.tensor([1.5, 2.0, 4.25], dtype=torch.float64)
    clean = CleanVerdict(torch.tensor([3, 5, 8]), torch.tensor([True, False, True]), scales, ("tiny",), 32, 0.5)
    store.add(DIGEST, clean)
    found = store.find(DIGEST, torch.tensor([8, 3]))
    assert found.facts["logit_scale_sum"] == 5.75
    assert found.facts["backwards"] == 0
    assert found.warnings == ("tiny",)


def test_the_first_verdict_on_an_image_stays(store, monkeypatch):
    clock = iter([300, 100, 200])  # the clock goes back; neither it nor the order of the files' names decides
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    store.add(DIGEST, verdict([1, 2, 3], [0, 0, 0]))
    store.add(DIGEST, verdict([2, 3, 4], [1, 1, 1], said=["first"]))
    store.add(DIGEST, verdict([0, 3, 4], [0, 0, 0], said=["second"]))
    found = store.find(DIGEST, torch.arange(5))
    assert found.correct.tolist() == [False, False, False, False, True]
    assert found.warnings == ("first", "second")
    assert found.facts["forwards"] == 30 + 10 + 10


def test_the_same_unit_twice_is_one_file_and_with_images_another(store):
    assert store.add(DIGEST, verdict([1, 2], [0, 1])) == store.add(DIGEST, verdict([1, 2], [0, 1]))
    assert store.add(DIGEST, verdict([1, 2], [0, 1], images=True)) != store.add(DIGEST, verdict([1, 3], [0, 1]))
    assert len(files(store)) == 3


def test_who_asks_for_images_is_told_only_of_units_that_kept_them(store):
    store.add(DIGEST, verdict([1, 2, 3], [0, 1, 0]))
    store.add(DIGEST, verdict([3, 4, 5], [0, 0, 1], images=True))
    ids = torch.arange(1, 7)
    assert store.find(DIGEST, ids).known.tolist() == [True, True, True, True, True, False]
    assert store.find(DIGEST, ids, with_images=True).known.tolist() == [False, False, True, True, True, False]


def test_a_verdict_without_images_outlives_a_later_one_with_them(store):
    store.add(DIGEST, verdict([1, 2], [1, 0]))
    store.add(DIGEST, verdict([1, 2], [0, 0], images=True))
    for with_images in (False, True):
        assert store.find(DIGEST, torch.tensor([1, 2]), with_images=with_images).correct.tolist() == [True, False]


def test_images_come_back_bit_by_bit_each_once(store):
    kept = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    store.add(DIGEST, replace(verdict([6, 1, 3], [0, 1, 0]), attacked=kept))
    store.add(DIGEST, verdict([7, 3, 8], [0, 0, 0], images=True))
    store.add(DIGEST, verdict([9], [0]))
    pairs = [(int(i), image) for ids, images in store.images(DIGEST) for i, image in zip(ids, images, strict=True)]
    assert [i for i, _ in pairs] == [6, 3, 7, 8]
    assert torch.equal(torch.stack([pairs[0][1], pairs[1][1]]), kept)
    assert float(pairs[3][1].mean()) == 8
    ids, correct = store.everything(DIGEST)
    assert ids.tolist() == [1, 3, 6, 7, 8, 9]
    assert correct.tolist() == [True, False, False, False, False, False]


def test_a_unit_that_was_cut_short_is_left_out_and_named(store):
    store.add(DIGEST, verdict([1, 2], [1, 0]))
    store.add(DIGEST, verdict([5, 6], [1, 1], said=["lost"]))
    damaged = files(store)[1]
    content = damaged.read_bytes()
    for length in (0, 1, len(content) // 2, len(content) - 1):
        damaged.write_bytes(content[:length])
        found = store.find(DIGEST, torch.tensor([1, 5]))
        assert found.known.tolist() == [True, False]
        assert found.damaged == (damaged.name,)
        assert found.warnings == ()


def test_no_altered_byte_alters_a_verdict(store):
    store.add(DIGEST, verdict([5, 6, 7], [1, 0, 1], images=True, flat=1, said=["text"]))
    (path,) = files(store)
    content = path.read_bytes()
    ids = torch.tensor([5, 6, 7])
    good = store.find(DIGEST, ids, with_images=True)
    outcomes = set()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 0x41
        path.write_bytes(bytes(changed))
        found = store.find(DIGEST, ids, with_images=True)
        outcomes.add(bool(found.known.any()))
        if found.known.any():
            assert found.correct.tolist() == good.correct.tolist()
            assert (found.facts, found.warnings) == (good.facts, good.warnings)
        else:
            assert found.damaged == (path.name,)
    assert outcomes == {False, True}  # bytes that are no content, a date for one, may change


def test_a_file_under_another_units_name_is_left_out(store):
    store.add(DIGEST, verdict([1, 2], [1, 1]))
    store.add(DIGEST, verdict([5, 6], [0, 0]))
    first, second = files(store)
    second.write_bytes(first.read_bytes())
    assert store.find(DIGEST, torch.tensor([1, 5])).known.tolist() == [True, False]


def test_damaged_images_count_only_for_those_who_ask_for_them(store):
    store.add(DIGEST, verdict([5, 6], [0, 1], images=True))
    (path,) = files(store)
    content = path.read_bytes()
    pixels = torch.full((4,), 5.0).numpy().tobytes()
    path.write_bytes(content.replace(pixels, torch.full((4,), 6.0).numpy().tobytes()))
    ids = torch.tensor([5, 6])
    assert store.find(DIGEST, ids).known.all()
    assert not store.find(DIGEST, ids, with_images=True).known.any()
    assert list(store.images(DIGEST)) == []


def test_a_writer_that_dies_leaves_nothing_that_is_read(store, monkeypatch):
    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        store.add(DIGEST, verdict([1], [1]))
    monkeypatch.undo()
    (left,) = files(store)
    assert str(os.getpid()) in left.name
    found = store.find(DIGEST, torch.tensor([1]))
    assert not found.known.any()
    assert found.damaged == ()
    store.add(DIGEST, verdict([1], [1]))
    assert store.find(DIGEST, torch.tensor([1])).known.all()
