"""Verdicts in an object store: what one machine has judged another one knows, and the first verdict stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cluster.object_store import ObjectStore
from search_spaces.object_uri import ObjectUri
from tests.object_server import at_home, bucket, object_server
from tests.trainables.test_verdict_store import verdict
from trainables.remote_verdicts import RemoteVerdicts, open_verdicts
from trainables.verdict_store import VerdictStore

__all__ = ["bucket", "object_server"]
QUESTION = "ab12cd34"
Go = Callable[[str], RemoteVerdicts]


@pytest.fixture
def on(bucket: ObjectUri, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Go:
    """The same store, seen from a machine of that name."""

    def go(node: str) -> RemoteVerdicts:
        at_home(monkeypatch, tmp_path / node)
        found = open_verdicts(str(bucket.joined("verdicts")))
        assert isinstance(found, RemoteVerdicts)
        return found

    return go


def correct(store: VerdictStore, *ids: int) -> list[bool | None]:
    found = store.find(QUESTION, torch.tensor(ids))
    return [bool(right) if known else None for known, right in zip(found.known, found.correct, strict=True)]


def test_a_place_decides_which_store_it_is(tmp_path: Path) -> None:
    assert type(open_verdicts(str(tmp_path))) is VerdictStore
    assert type(open_verdicts("s3://bucket/verdicts")) is RemoteVerdicts


def test_what_one_machine_has_judged_another_one_knows(on: Go, bucket: ObjectUri) -> None:
    on("a").add(QUESTION, verdict([0, 1], [True, False]))
    names = list(ObjectStore(bucket).sizes())
    assert [name.rpartition("/")[0] for name in names] == [f"verdicts/ab/{QUESTION}"]
    there = on("b")
    assert correct(there, 0, 1, 2) == [True, False, None]
    there.add(QUESTION, verdict([2], [True]))
    assert correct(on("a"), 0, 1, 2) == [True, False, True]


def test_images_are_kept_for_other_machines_too(on: Go) -> None:
    on("a").add(QUESTION, verdict([0, 1], [True, False], images=True))
    found = list(on("b").images(QUESTION))
    assert [ids.tolist() for ids, _ in found] == [[1]]
    assert on("b").find(QUESTION, torch.tensor([0, 1]), with_images=True).known.all()


def test_the_first_verdict_that_was_published_stays(on: Go) -> None:
    first, second = on("a"), on("b")
    assert correct(second, 0) == [None]
    first.add(QUESTION, verdict([0, 1], [True, True]))
    VerdictStore.add(second, QUESTION, verdict([0, 1], [False, False]))  # judged at the same time, published later
    at_b = on("b")
    at_b._send(next((at_b.folder / "ab" / QUESTION).glob("*.npz")))
    assert correct(at_b, 0, 1) == [True, True]
    at_b.add(QUESTION, verdict([1, 2], [False, False]))
    assert [correct(on(node), 0, 1, 2) for node in ("a", "b", "c")] == [[True, True, False]] * 3


def test_a_unit_that_was_stored_and_not_published_is_sent_when_it_is_asked_for(on: Go, bucket: ObjectUri) -> None:
    store = on("a")
    VerdictStore.add(store, QUESTION, verdict([0], [False]))  # the process dies here
    assert ObjectStore(bucket).sizes() == {}
    assert correct(on("b"), 0) == [None]
    assert correct(on("a"), 0) == [False]
    assert correct(on("b"), 0) == [False]


def test_a_damaged_unit_is_judged_again_and_replaced(on: Go, bucket: ObjectUri) -> None:
    on("a").add(QUESTION, verdict([0, 1], [True, False]))
    objects = ObjectStore(bucket)
    (name,) = objects.sizes()
    objects.put_object(name, b"half")
    there = on("b")
    found = there.find(QUESTION, torch.tensor([0, 1]))
    assert not found.known.any()
    assert found.damaged == (name.rpartition("/")[2],)
    there.add(QUESTION, verdict([0, 1], [False, False]))
    assert correct(on("c"), 0, 1) == [False, False]


def test_a_damaged_copy_is_never_published(on: Go, bucket: ObjectUri) -> None:
    store = on("a")
    path = VerdictStore.add(store, QUESTION, verdict([0], [True]))
    path.write_bytes(b"half")
    assert correct(store, 0) == [None]
    assert ObjectStore(bucket).sizes() == {}


def test_nothing_but_whole_units_is_left_in_the_folder(on: Go) -> None:
    on("a").add(QUESTION, verdict([0], [True]))
    store = on("b")
    correct(store, 0)
    assert [path.suffix for path in (store.folder / "ab" / QUESTION).iterdir()] == [".npz"]
