"""A trial's folder in an object store: what one machine has published another one goes on from, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.object_store import ObjectStore
from search_spaces.errors import ObjectStoreError, Superseded
from search_spaces.object_uri import ObjectUri
from tests.object_server import at_home, bucket, object_server
from tests.trainables.test_tune import actor, run
from trainables.checkpoint import Checkpoint, Identity, newest_good, read_final, write_checkpoint, write_final
from trainables.trial_folder import RemoteFolder, fetched_final, open_folder
from trainables.tune import Report, TrainingJob, write_token

__all__ = ["bucket", "object_server"]
ROOT = Path(__file__).resolve().parents[2]
WHOSE = Identity("c", 1)


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((3,), value)}


def write_epoch(folder: RemoteFolder, epoch: int, value: float = 0.0) -> None:
    write_checkpoint(folder.path, Checkpoint(epoch, weights(value or epoch), {}, [{}] * epoch), WHOSE)


def current() -> None:
    """Nobody has taken over."""


@pytest.fixture
def place(bucket: ObjectUri) -> ObjectUri:
    return bucket.joined("s-12345678", "trials", "00007")


@pytest.fixture
def here(place: ObjectUri) -> RemoteFolder:
    folder = RemoteFolder(place)
    assert folder.fetch() == []
    return folder


@pytest.fixture
def elsewhere(place: ObjectUri, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], RemoteFolder]:
    """Move to another machine: the same place, and none of its copies."""

    def move(node: str = "node-b") -> RemoteFolder:
        at_home(monkeypatch, tmp_path / node)
        return RemoteFolder(place)

    return move


def newest(folder: RemoteFolder) -> float | None:
    found, _ = newest_good(folder.path, WHOSE)
    return None if found is None else float(found.weights["w"][0])


def test_nothing_is_asked_or_made_by_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_home(monkeypatch, tmp_path / "home")
    folder = open_folder("s3://bucket/s/trials/00001?endpoint_override=127.0.0.1:1")
    assert isinstance(folder, RemoteFolder)
    assert not folder.path.exists()
    assert open_folder(str(tmp_path)).path == tmp_path


def test_a_checkpoint_is_found_on_another_machine_and_older_ones_go(
    here: RemoteFolder, place: ObjectUri, elsewhere: Callable[..., RemoteFolder]
) -> None:
    for epoch in (1, 2, 3):
        write_epoch(here, epoch)
        here.publish(current)
    store = ObjectStore(place)
    assert {name.split("/")[1] for name in store.sizes()} == {"epoch-0002", "epoch-0003"}
    there = elsewhere()
    assert there.path != here.path
    assert there.fetch() == []
    assert newest(there) == 3.0
    write_epoch(there, 4)
    there.publish(current)
    assert {name.split("/")[1] for name in store.sizes()} == {"epoch-0003", "epoch-0004"}


def test_the_newest_of_the_store_wins_over_what_a_machine_has_had(
    here: RemoteFolder, elsewhere: Callable[..., RemoteFolder]
) -> None:
    write_epoch(here, 1)
    here.publish(current)
    write_epoch(here, 2, value=20)  # and is lost before it is published
    there = elsewhere()
    there.fetch()
    for epoch in (2, 3):
        write_epoch(there, epoch)
        there.publish(current)
    back = elsewhere("node-a")
    back.fetch()
    assert newest(back) == 3.0
    assert not (back.path / "checkpoints" / "epoch-0002").exists(), "another line of epochs"


def test_an_epoch_that_was_written_and_not_published_is_not_trained_again(here: RemoteFolder, place: ObjectUri) -> None:
    write_epoch(here, 1)
    here.publish(current)
    write_epoch(here, 2)
    again = RemoteFolder(place)
    again.fetch()
    assert newest(again) == 2.0
    again.publish(current)
    assert "checkpoints/epoch-0002/meta.json" in ObjectStore(place).sizes()


def test_without_its_meta_a_checkpoint_does_not_exist_and_a_damaged_one_is_skipped(
    here: RemoteFolder, place: ObjectUri, elsewhere: Callable[..., RemoteFolder]
) -> None:
    for epoch in (1, 2):
        write_epoch(here, epoch)
        here.publish(current)
    store = ObjectStore(place)
    store.put_object("checkpoints/epoch-0003/weights.safetensors", b"half")
    store.put_object("checkpoints/epoch-0002/state.pt", b"other bytes")
    there = elsewhere()
    assert [note.partition(": ")[2].rpartition("/")[2] for note in there.fetch()] == [
        f"epoch-0002?{place.__str__().partition('?')[2]} is incomplete or differs from its digest."
    ]
    assert newest(there) == 1.0
    write_epoch(there, 2, value=2.5)
    there.publish(current)
    further = elsewhere("node-c")
    assert further.fetch() == []
    assert newest(further) == 2.5


def test_the_final_model_replaces_the_checkpoints_and_is_brought_once(
    here: RemoteFolder, place: ObjectUri, elsewhere: Callable[..., RemoteFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_epoch(here, 1)
    here.publish(current)
    assert not here.has_final()
    write_final(here.path, weights(9), {"x": 1}, WHOSE)
    shutil.rmtree(here.path / "checkpoints")
    here.publish(current)
    assert here.has_final()
    assert sorted(ObjectStore(place).sizes()) == ["final/meta.json", "final/weights.safetensors"]
    elsewhere()
    final = read_final(fetched_final(str(place)), WHOSE)
    assert final is not None
    assert float(final.weights["w"][0]) == 9.0
    (place.mirror / "final" / "weights.safetensors").write_bytes(b"half")
    assert read_final(fetched_final(str(place)), WHOSE) is not None, "a damaged copy is brought again"
    monkeypatch.setattr(ObjectStore, "download", None)  # it would fail now
    fetched_final(str(place))


def test_a_superseded_worker_publishes_nothing(here: RemoteFolder, place: ObjectUri) -> None:
    def superseded() -> None:
        raise Superseded("another attempt")

    write_epoch(here, 1)
    here.append_log("epoch 1\n")
    for publish in (here.publish, here.publish_log):
        with pytest.raises(Superseded):
            publish(superseded)
    assert ObjectStore(place).sizes() == {}


def test_the_token_is_an_object_and_one_that_is_gone_is_the_storages_error(
    here: RemoteFolder, place: ObjectUri
) -> None:
    with pytest.raises(ObjectStoreError, match="attempt is gone"):
        here.attempt()
    write_token(str(place), "driver/3")
    assert here.attempt() == "driver/3"


def test_the_log_goes_on_on_another_machine(
    here: RemoteFolder, place: ObjectUri, elsewhere: Callable[..., RemoteFolder]
) -> None:
    here.append_log("one\n")
    here.publish(current)
    here.append_log("lost with the machine\n")
    there = elsewhere()
    there.append_log("two\n")
    there.publish_log(current)
    assert ObjectStore(place).read("log.txt") == b"one\ntwo\n"
    reader = elsewhere("node-c")
    reader.fetch_log()
    with (reader.path / "log.txt").open() as followed:
        assert followed.read() == "one\ntwo\n"
        there.append_log("three\n")
        there.publish_log(current)
        reader.fetch_log()
        assert followed.read() == "three\n", "who follows it keeps the file open"


SCRIPT = """
import shutil, sys
import torch
from search_spaces.object_uri import ObjectUri
from trainables.checkpoint import Checkpoint, Identity, newest_good, read_final, write_checkpoint, write_final
from trainables.trial_folder import RemoteFolder
folder, whose = RemoteFolder(ObjectUri.read(sys.argv[1])), Identity("c", 1)
weights = {"w": torch.zeros(3)}
folder.fetch()
found, _ = newest_good(folder.path, whose)
print(found.epoch if found else 0)
for epoch in range(1 + (found.epoch if found else 0), 4):
    write_checkpoint(folder.path, Checkpoint(epoch, weights, {}, [{}] * epoch), whose)
    folder.publish(lambda: None)
if read_final(folder.path) is None:
    write_final(folder.path, weights, {}, whose)
    shutil.rmtree(folder.path / "checkpoints")
folder.publish(lambda: None)
"""


def attempt(place: ObjectUri, kill_at: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | ({"PARETUNE_KILL_AT": kill_at} if kill_at else {})
    command = [sys.executable, "-c", SCRIPT, str(place)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "same_machine", "at_least"),
    [
        ("objects.checkpoint:before:2", False, 1),
        ("objects.checkpoint:before:2", True, 2),
        ("objects.checkpoint:torn:2", False, 0),
        ("objects.checkpoint:after:2", False, 2),
        ("objects.retire:torn:1", False, 3),
        ("objects.final:before:1", False, 3),
        ("objects.final:before:1", True, 3),
    ],
)
def test_a_kill_anywhere_loses_no_published_epoch(
    place: ObjectUri, elsewhere: Callable[..., RemoteFolder], point: str, same_machine: bool, at_least: int
) -> None:
    died = attempt(place, point)
    assert died.returncode == -signal.SIGKILL, died.stderr
    if not same_machine:
        elsewhere()
    ended = attempt(place)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) == at_least
    assert sorted(ObjectStore(place).sizes()) == ["final/meta.json", "final/weights.safetensors"]
    final = elsewhere("node-c")
    final.fetch_final()
    assert read_final(final.path, WHOSE) is not None


@pytest.fixture
def job(tiny_trial: Callable[..., Any], bucket: ObjectUri) -> Callable[..., TrainingJob]:
    def build(number: int, token: str = "driver/1", **sections: Any) -> TrainingJob:
        place = str(bucket.joined("trials", str(number)))
        write_token(place, token)
        return TrainingJob(number, tiny_trial(**sections).plain(), 1, place, token)

    return build


def test_a_training_goes_on_on_another_machine_bit_for_bit(
    job: Callable[..., TrainingJob], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    straight = run(actor(job(1)))[-1]
    first = job(2)
    assert Report.read(actor(first).step()).status == "training"
    at_home(monkeypatch, tmp_path / "node-b")
    moved = run(actor(job(2, token="driver/2")))
    assert [report.status for report in moved] == ["trained"]
    assert moved[-1].weights_digest == straight.weights_digest
    log = ObjectStore(ObjectUri.read(first.folder)).read("log.txt")
    assert log is not None
    assert b"continues after epoch 1" in log
    assert log.count(b"attempt driver/") == 2


def test_an_attempt_that_was_replaced_stops_before_it_publishes(job: Callable[..., TrainingJob]) -> None:
    old = actor(job(3))
    assert Report.read(old.step()).status == "training"
    job(3, token="driver/2")
    before = ObjectStore(ObjectUri.read(job(3, token="driver/2").folder)).sizes()
    assert Report.read(old.step()).status == "superseded"
    assert ObjectStore(ObjectUri.read(job(3, token="driver/2").folder)).sizes() == before


def test_a_store_that_is_gone_is_no_failure_of_the_trial(
    job: Callable[..., TrainingJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainable = actor(job(4))
    error = ObjectStoreError("s3://b: AWS Error NETWORK_CONNECTION.")

    def away(*_: object) -> None:
        raise error

    for verb in ("put_object", "upload_file"):
        monkeypatch.setattr(ObjectStore, verb, away)
    report = Report.read(trainable.step())
    assert (report.status, report.kind) == ("failed", "storage")
    assert "NETWORK_CONNECTION" in report.error
