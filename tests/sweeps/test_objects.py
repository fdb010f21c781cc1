"""A sweep whose trials and verdicts are objects: how it is written down, where its parts are, what can go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cluster.object_store import ObjectStore
from cluster.shared_objects import CHALLENGE, SharedObjects, answer_objects, storage_check
from cluster.shared_storage import SharedStorage
from search_spaces.errors import ConfigError, ConfigurationChanged
from search_spaces.faults import durable
from search_spaces.object_uri import ObjectUri
from sweeps.changes import plan_change
from sweeps.config import parse_sweep
from sweeps.disk import TrialBytes, require_room
from sweeps.folder import SweepFolder
from sweeps.mirrored_inputs import _count_remote
from sweeps.pulse import beat
from sweeps.pulse_board import PulseBoard, pulse_board
from sweeps.sweep_files import SweepFiles, SweepObjects, files_of
from tests.object_server import bucket, object_server, place_at
from tests.sweeps.ledgers import empty, folder_at
from trainables.trial_folder import RemoteFolder, open_folder

__all__ = ["bucket", "object_server"]
PLACE = "s3://bucket/sweeps?region=eu-west-1"


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    found = SweepFolder(tmp_path, "s")
    found.root.mkdir()
    return found


def test_without_a_store_everything_is_in_the_folder(folder: SweepFolder) -> None:
    folder.point_to_objects(None, "12345678-9")
    assert list(folder.root.iterdir()) == []
    assert folder.objects is None
    assert folder.trial_place(7) == str(folder.trial(7))
    assert folder.verdict_place == str(folder.verdicts)
    assert type(files_of(folder)) is SweepFiles


def test_a_sweep_has_a_place_of_its_own_whose_names_are_those_of_the_folder(folder: SweepFolder) -> None:
    folder.point_to_objects(PLACE, "12345678-9abc")
    assert folder.objects_file.read_text() == "s3://bucket/sweeps/s-12345678?region=eu-west-1\n"
    assert folder.trial_place(7) == "s3://bucket/sweeps/s-12345678/trials/00007?region=eu-west-1"
    assert folder.trial_place(-1) == "s3://bucket/sweeps/s-12345678/parents/00001?region=eu-west-1"
    assert folder.verdict_place == "s3://bucket/sweeps/s-12345678/verdicts?region=eu-west-1"
    assert isinstance(open_folder(folder.trial_place(7)), RemoteFolder)
    folder.point_to_objects(None, "12345678-9abc")  # a launch that was killed has left it
    assert folder.objects is None


@pytest.mark.parametrize("objects", ["s3://KEY:SECRET@bucket/a", "s3://bucket/a?secret_key=SECRET"])
def test_a_key_in_the_file_is_refused_and_not_repeated(objects: str) -> None:
    with pytest.raises(ConfigError, match=r"storage\.objects.*AWS_ACCESS_KEY_ID") as caught:
        parse_sweep({"storage": {"objects": objects}})
    assert "SECRET" not in str(caught.value)


def test_the_place_cannot_change_and_is_no_part_of_what_is_compared(tmp_path: Path) -> None:
    ledger = empty(folder_at(tmp_path), document={"methods": ["plain"], "attacks": {}})
    sweep = ledger.sweep()
    moved = parse_sweep({**sweep.document, "storage": {"objects": PLACE}})
    assert moved.comparable() == parse_sweep(sweep.document).comparable()
    with pytest.raises(ConfigurationChanged, match=r"storage\.objects"):
        plan_change(sweep, moved, "sweep.yaml")
    ledger.close()


def test_trainings_that_write_elsewhere_need_no_room_here(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.point_to_objects(PLACE, "12345678-9abc")
    monkeypatch.setattr("sweeps.disk.free_bytes", lambda place: 10**12)
    require_room(folder, TrialBytes(10**12, 2, 10**12), [0, 1])


def test_what_can_go_is_found_and_removed_by_the_paths_of_the_folder(bucket: ObjectUri, folder: SweepFolder) -> None:
    folder.point_to_objects(str(bucket), "12345678-9abc")
    assert folder.objects is not None
    store = ObjectStore(folder.objects)
    names = (
        "trials/00000/final/meta.json",
        "trials/00000/checkpoints/epoch-0001/meta.json",
        "verdicts/ab/ab12/0-1.npz",
    )
    for name in names:
        store.put_object(name, b"12345")
    files = files_of(folder)
    assert isinstance(files, SweepObjects)
    assert files.is_dir(folder.trial(0) / "final")
    assert not files.is_dir(folder.trial(1) / "final")
    assert list(files.questions(folder.verdicts)) == [folder.verdicts / "ab" / "ab12"]
    assert files.size(folder.trial(0)) == 10
    folder.scratch.mkdir()
    with durable("gc.remove") as write:
        files.remove(folder.trial(0) / "checkpoints", write)
        files.remove(folder.scratch, write)
    assert sorted(store.sizes()) == sorted(set(names) - {names[1]})
    assert not folder.scratch.exists()


def test_a_models_numbers_are_counted_from_the_head_of_its_object(bucket: ObjectUri, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(3, 5), "mean": torch.zeros(1), "std": torch.zeros(1)}, tmp_path / "w")
    ObjectStore(bucket).upload_file(tmp_path / "w", "final/weights.safetensors")
    assert _count_remote(bucket, "final/weights.safetensors") == 15
    assert _count_remote(bucket, "final/none") is None


def test_signs_of_life_are_heard_through_the_store(bucket: ObjectUri) -> None:
    board, other = pulse_board(bucket), pulse_board(bucket)
    board.prepare()
    place = board.place_of("3")
    assert board.look()(place) == 0
    for _ in range(3):
        beat(place)
    assert board.look()(place) == 3
    assert other.look()(other.place_of("3")) == 0, "another driver's"
    other.prepare()
    assert board.look()(place) == 0


def test_signs_of_life_that_cannot_be_sent_stop_no_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    from search_spaces.errors import ObjectStoreError

    def away(*_: object) -> None:
        raise ObjectStoreError("s3://bucket: away.")

    monkeypatch.setattr(ObjectStore, "put_object", away)
    beat("s3://bucket/pulses/own/1")


def test_in_a_folder_they_are_what_they_were(tmp_path: Path) -> None:
    board = pulse_board(tmp_path)
    assert type(board) is PulseBoard
    board.prepare()
    beat(board.place_of("1"))
    assert board.look()(tmp_path / "pulses" / "1") == 1


def test_a_node_answers_in_the_store_with_the_word_of_the_driver(bucket: ObjectUri) -> None:
    store = ObjectStore(bucket)
    assert answer_objects(str(bucket), "n1") == "cannot read what the driver wrote there (no such object)"
    store.put_object(CHALLENGE, b"word")
    assert answer_objects(str(bucket), "n1") == ""
    assert store.read("n1") == b"word"
    assert sorted(store.sizes()) == [CHALLENGE, "n1"]


def test_a_node_without_a_way_to_the_store_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.object_server import free_port

    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert answer_objects(str(place_at(free_port(), "bucket")), "n1").startswith("is refused there (s3://bucket/sweeps")


def test_the_nodes_are_asked_about_the_store_where_there_is_one(tmp_path: Path) -> None:
    assert isinstance(storage_check(tmp_path, None), SharedStorage)
    check = storage_check(tmp_path, ObjectUri.read(PLACE))
    assert isinstance(check, SharedObjects)
    check.look()  # nobody was asked yet: no Ray and no server here
    check.close()
