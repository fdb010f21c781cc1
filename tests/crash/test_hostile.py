"""Storage that is full, read-only or corrupt: a whole sweep in one process (`inline`) meets it and goes on later."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from search_spaces.storage import storage_problem
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.records import State
from tests.crash.disks import ROOM, fill, mounted
from tests.crash.inline import NAME, Nursery, journal


@pytest.fixture(scope="module")
def undisturbed(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    storage = tmp_path_factory.mktemp("undisturbed")
    assert nursery.run(storage, life="untracked") == 0, nursery.said.read_text()
    return outcome(storage)


def outcome(storage: Path) -> dict[str, Any]:
    """What must not depend on what happened on the way; `untracked` is one trial of three epochs without attacks."""
    ledger = Ledger.at(SweepFolder(storage, NAME).ledger)
    try:
        assert ledger.sweep().completed_at is not None
        (trial,) = ledger.trials()
        assert (trial.state, trial.failures) == (State.FINISHED, 0)
        weights = [{k: v for k, v in epoch.items() if not k.startswith("cost/")} for epoch in ledger.history(0)]
        return {"config": trial.config, "clean": trial.clean_acc, "weights": trial.weights_digest, "curve": weights}
    finally:
        ledger.close()


def log_of(storage: Path) -> str:
    return (storage / NAME / "trials" / "00000" / "log.txt").read_text()


def said_since(nursery: Nursery, before: int) -> str:
    return nursery.said.read_text()[before:]


# -- corrupt checkpoints ----------------------------------------------------------------------------------------------


def flip(place: Path) -> None:
    content = bytearray((place / "weights.safetensors").read_bytes())
    content[-5] ^= 1
    (place / "weights.safetensors").write_bytes(content)


def cut(place: Path) -> None:
    os.truncate(place / "state.pt", 100)


def lose(place: Path) -> None:
    (place / "meta.json").unlink()


@pytest.mark.parametrize("damage", [flip, *(pytest.param(damage, marks=pytest.mark.slow) for damage in (cut, lose))])
def test_a_corrupt_newest_checkpoint_costs_one_epoch_and_no_bit(
    nursery: Nursery, undisturbed: dict[str, Any], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    assert nursery.run(tmp_path, life="untracked", kill_at="checkpoint.epoch:after:2") == -9
    newest = max((tmp_path / NAME / "trials" / "00000" / "checkpoints").glob("epoch-*"))
    damage(newest)
    assert nursery.run(tmp_path, life="untracked") == 0, nursery.said.read_text()
    assert f"skipped: {newest}" in log_of(tmp_path)
    assert "continues after epoch 1" in log_of(tmp_path)
    assert [line.split()[-1] for line in journal(tmp_path)] == ["1", "2", "2", "3"]
    assert outcome(tmp_path) == undisturbed


def test_when_both_checkpoints_are_corrupt_the_trial_starts_again_and_says_so(
    nursery: Nursery, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    assert nursery.run(tmp_path, life="untracked", kill_at="checkpoint.epoch:after:2") == -9
    for place in (tmp_path / NAME / "trials" / "00000" / "checkpoints").glob("epoch-*"):
        flip(place)
    assert nursery.run(tmp_path, life="untracked") == 0, nursery.said.read_text()
    assert log_of(tmp_path).count("skipped: ") == 2
    assert "continues after" not in log_of(tmp_path)
    assert [line.split()[-1] for line in journal(tmp_path)] == ["1", "2", "1", "2", "3"]
    assert outcome(tmp_path) == undisturbed


def test_a_final_model_that_is_corrupt_before_it_is_adopted_is_made_again(
    nursery: Nursery, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    assert nursery.run(tmp_path, life="untracked", kill_at="checkpoint.final:after:1") == -9
    flip(tmp_path / NAME / "trials" / "00000" / "final")
    assert nursery.run(tmp_path, life="untracked") == 0, nursery.said.read_text()
    assert "final model not usable" in log_of(tmp_path)
    assert [line.split()[-1] for line in journal(tmp_path)] == ["1", "2", "3"]  # its last checkpoint is there yet
    assert outcome(tmp_path) == undisturbed


# -- a storage that fails ---------------------------------------------------------------------------------------------


@contextmanager
def when(happened: Callable[[], bool], act: Callable[[], None]) -> Iterator[None]:
    """Act in a thread as soon as something has happened."""
    over = threading.Event()

    def wait() -> None:
        while not happened():
            if over.wait(0.002):
                return
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def exists(place: Path) -> Callable[[], bool]:
    return place.exists


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("ledger.db", marks=pytest.mark.slow),
        pytest.param("trials/00000/attempt", marks=pytest.mark.slow),
        "trials/00000/checkpoints/epoch-0001",
    ],
)
def test_a_disk_that_fills_up_stops_the_driver_and_fails_no_trial(
    nursery: Nursery, undisturbed: dict[str, Any], disk: Path, moment: str
) -> None:
    storage, before = disk / "runs", len(nursery.said.read_text())

    def full() -> None:
        with nursery.held():  # or a sweep of a second is over before the disk is full
            fill(disk)

    with when(exists(storage / NAME / moment), full):
        code = nursery.run(storage, life="untracked")
    said = said_since(nursery, before)
    assert code != 0, said
    assert storage_problem(said) == "No space left on device" or "StorageError" in said, said
    whole = sqlite3.connect(storage / NAME / "ledger.db")
    assert whole.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert whole.execute("SELECT count(*) FROM trials WHERE state = 'failed' OR failures > 0").fetchone() == (0,)
    whole.close()
    (disk / "ballast").unlink()
    assert nursery.run(storage, life="untracked") == 0, said_since(nursery, before)
    assert outcome(storage) == undisturbed


@pytest.fixture
def breaking_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None], Callable[[], None]]]:
    """A disk that turns read-only by an error of its own, and one can put right; it takes root and a loop device."""
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(ROOM)
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("there is no mkfs.ext4 here")
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    mounted("-o", "loop,errors=remount-ro", str(image), str(place))
    device = os.stat(place).st_dev
    name = os.path.basename(os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
    trigger = Path(f"/sys/fs/ext4/{name}/trigger_fs_error")
    if not trigger.exists():
        subprocess.run(["umount", str(place)], check=True)
        pytest.skip("the kernel has no way to let a file system fail")

    def repair() -> None:
        subprocess.run(["umount", str(place)], check=True)
        subprocess.run(["fsck.ext4", "-y", str(image)], check=False, capture_output=True)
        mounted("-o", "loop,errors=remount-ro", str(image), str(place))

    def fail() -> None:
        trigger.write_text("1")

    yield place, fail, repair
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_turns_read_only_stops_the_driver_and_a_resume_goes_on(
    nursery: Nursery,
    undisturbed: dict[str, Any],
    breaking_disk: tuple[Path, Callable[[], None], Callable[[], None]],
) -> None:
    disk, fail, repair = breaking_disk
    storage, before = disk / "runs", len(nursery.said.read_text())
    with when(exists(storage / NAME / "trials" / "00000" / "checkpoints" / "epoch-0001"), fail):
        assert nursery.run(storage, life="untracked") != 0
    said = said_since(nursery, before)
    assert "Read-only file system" in said or "disk I/O error" in said, said
    started = time.monotonic()
    assert nursery.run(storage, life="untracked") != 0  # still read-only: refused before anything starts
    assert "nothing can be written into" in said_since(nursery, before)
    assert time.monotonic() - started < 10
    repair()
    assert nursery.run(storage, life="untracked") == 0, said_since(nursery, before)
    assert outcome(storage) == undisturbed
