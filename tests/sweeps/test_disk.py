"""Room on the disk, and what may be removed from it: decided from figures that can be checked by hand."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search_spaces.errors import LeaseHeld, StorageError, StorageFull, SweepError
from search_spaces.storage import storage_problem
from sweeps import disk
from sweeps.config import parse_sweep
from sweeps.coordinator import Coordinator
from sweeps.disk import MARGIN_BYTES, DiskWatch, TrialBytes, require_room, require_writable, room_needed, used_bytes
from sweeps.folder import SweepFolder
from sweeps.forecast import trial_bytes
from sweeps.halt import Halt
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.records import State
from sweeps.requests import Request
from sweeps.retention import collect, find_unneeded
from sweeps.snapshot import Snapshot
from sweeps.stage_job import StageJob, StageOutcome
from sweeps.summary import status
from tests.sweeps.inline_pool import InlinePool
from tests.sweeps.made import judge_all, make_sweep
from trainables.tune import Report, failure_kind

SIZE = TrialBytes(checkpoint=10_000, kept=2, final=3_000)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Say how many bytes are free."""

    def say(count: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, count))

    return say


def write(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * count)


# -- room -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "needed"),
    [((), 0), ((0,), 33_000), ((0, 20_000), 33_000 + 13_000), ((33_000,), 0), ((90_000, 0), 33_000)],
)
def test_a_training_needs_its_kept_checkpoints_one_more_and_its_final_weights(
    there: tuple[int, ...], needed: int
) -> None:
    assert room_needed(SIZE, there) == MARGIN_BYTES + needed


def test_too_little_room_is_said_with_what_is_free_and_what_is_needed(
    folder: SweepFolder, free: Callable[[int], None]
) -> None:
    write(folder.trial(0) / "checkpoints" / "epoch-0001" / "state.pt", 20_000)
    free(MARGIN_BYTES + 13_000)
    require_room(folder, SIZE, [0])
    free(MARGIN_BYTES + 12_999)
    with pytest.raises(StorageFull, match=r"64 MB are free, and 64 MB are needed: 13 kB that 1 training .*`gc digits`"):
        require_room(folder, SIZE, [0])
    with pytest.raises(StorageFull, match="46 kB that 2 trainings"):
        require_room(folder, SIZE, [0, 1])


def test_the_watch_looks_now_and_then(
    folder: SweepFolder, free: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    folder.root.mkdir(parents=True)
    watch = DiskWatch(folder, SIZE)
    free(10**9)
    watch.look([])
    free(0)
    watch.look([])
    clock[0] += disk.LOOK_S
    with pytest.raises(StorageFull):
        watch.look([])


def test_what_a_training_writes_is_never_more_than_was_foretold(tmp_path: Path) -> None:
    from trainables.training import Training
    from trainables.trial import TrialConfig

    model = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 3, "num_heads": 3}
    document: dict[str, Any] = {
        "model": model,
        "data": {"train_images": 64, "validation_images": 20, "test_images": 20},
        "training": {"epochs": 4, "batch_size": 32, "ema_decay": 0.9, "select": "best"},
        "methods": ["plain"],
    }
    config = parse_sweep({**document, "objectives": ["clean_acc"]})
    size = trial_bytes(config, 10)
    trial = TrialConfig(
        model=config.model.at_defaults(), data=config.data, training=config.training.at_defaults(), methods={}
    )
    training = Training(trial, 0, tmp_path)
    while not training.is_done:
        training.run_epoch()
    written = [used_bytes(place) for place in (tmp_path / "checkpoints").iterdir()]
    assert len(written) == size.kept
    assert 0.5 * size.checkpoint < max(written) <= size.checkpoint
    training.finish()
    assert 0.5 * size.final < used_bytes(tmp_path / "final") <= size.final


# -- errors of the storage --------------------------------------------------------------------------------------------


def raised(act: Callable[[], object]) -> Exception:
    try:
        act()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def _during(first: Exception, then: Exception) -> None:
    try:
        raise first
    except Exception:
        raise then  # noqa: B904


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EROFS, "anything"), "Read-only file system"),
        (ValueError("I/O error: No space left on device (os error 28)"), "No space left on device"),
        (RuntimeError("(sqlite3.OperationalError) database or disk is full"), "No space left on device"),
        (raised(lambda: _during(OSError(errno.EDQUOT, "q"), RuntimeError("unexpected pos 64"))), "Disk quota exceeded"),
        (OSError(errno.ENOENT, "No such file"), ""),
        (ValueError("a loss"), ""),
    ],
)
def test_an_error_of_the_storage_is_told_from_all_others(error: Exception, found: str) -> None:
    assert storage_problem(error) == found
    halt = Halt()
    halt.fail(error)
    assert halt.storage == bool(found)
    assert ("Traceback" in (halt.error or "")) == (not found and error.__traceback__ is not None)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("write", [lambda file: torch.save(torch.zeros(10**6), file), lambda file: np.savez(file, a=1)])
def test_what_the_libraries_make_of_a_full_disk_is_the_storages_and_no_trials(write: Callable[[Any], object]) -> None:
    def full() -> None:
        with Path("/dev/full").open("wb") as file:
            write(file)

    assert failure_kind(raised(full)) == "storage"


def test_a_training_that_cannot_write_stops_the_driver_and_has_not_failed(
    open_ledger: Callable[..., Ledger], folder: SweepFolder
) -> None:
    ledger = open_ledger(requested=1)
    config = parse_sweep({"methods": ["plain"], "objectives": ["clean_acc"], "search": {"trials": 1}})
    with Lease(ledger):
        coordinator = Coordinator(config, ledger, folder)
        job = coordinator.next_training()
        assert job is not None
        report = Report(0, "failed", kind="storage", error="OSError: [Errno 28] No space left on device")
        with pytest.raises(StorageError, match="trial 0 cannot write: No space left on device"):
            coordinator.take_report(report, job.token)
        assert (ledger.trial(0).state, ledger.trial(0).failures) == (State.TRAINING, 0)


def test_the_first_error_of_a_driver_is_the_one_that_is_said() -> None:
    halt = Halt()
    halt.fail(StorageFull("no room."))
    halt.fail(ValueError("what followed"))
    assert halt.error == "no room."
    halt.lose()
    assert halt.lost


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = SweepFolder(tmp_path / "runs", "s")
    require_writable(folder)

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", read_only)
    with pytest.raises(StorageError, match=r"nothing can be written into .*: Read-only file system"):
        require_writable(folder)
    assert list(tmp_path.iterdir()) == []


# -- a corrupt final model --------------------------------------------------------------------------------------------


def test_an_attack_refuses_a_corrupt_final_model_and_a_retry_trains_it_again(trained: Any, folder: SweepFolder) -> None:
    config = make_sweep(trained, folder, [trained.model.state_dict()])
    weights = folder.trial(0) / "final" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    ledger = Ledger.at(folder.ledger)
    with Lease(ledger):
        coordinator = Coordinator(config, ledger, folder)
        pool: Any = RefusingPool()
        coordinator.pool = pool
        while coordinator.evaluation_needed:
            coordinator.poll()
        trial = ledger.trial(0)
        assert (trial.state, trial.error_kind) == (State.FAILED, "checkpoint")
        assert "differs from its digest. If the trial has failed by it, `retry` trains it again" in (trial.error or "")
        ledger.grant(Request.make("retry", trials=(0,)))
        assert ledger.trial(0).state is State.PROPOSED
    ledger.close()


class RefusingPool(InlinePool):
    """Reports what a stage raises, as the pool of a driver does."""

    def done(self) -> list[tuple[StageJob, StageOutcome | str]]:
        try:
            return super().done()
        except Exception:
            return [(self.running.pop(), traceback.format_exc())]


# -- gc ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def judged(trained: Any, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """A finished sweep of three trials, the last of which another dominates, with its verdicts."""
    weak = {name: tensor * 0.3 for name, tensor in trained.model.state_dict().items()}
    states = [trained.model.state_dict(), trained.model.state_dict(), weak]
    config = make_sweep(trained, folder, states)
    ledger = Ledger.at(folder.ledger)
    judge_all(config, ledger, folder)
    return ledger


def kinds(ledger: Ledger, folder: SweepFolder, **options: bool) -> dict[str, list[str]]:
    found = find_unneeded(ledger, folder, **options)
    return {kind.what.split()[0]: [str(path.relative_to(folder.root)) for path in kind.paths] for kind in found}


def test_of_a_finished_sweep_nothing_goes_that_anything_needs(judged: Ledger, folder: SweepFolder) -> None:
    assert kinds(judged, folder) == {}
    assert len(list(folder.verdicts.glob("*/*"))) > 2


def test_what_goes_is_shown_first_and_then_removed_and_the_sweep_stays_whole(
    judged: Ledger, folder: SweepFolder
) -> None:
    dead = dead_pid()
    write(folder.trial(0) / "checkpoints" / "epoch-0003" / "state.pt", 1000)
    write(folder.trial(1) / f".final.{dead}.tmp" / "weights.safetensors", 500)
    write(folder.root / f".ledger.{dead}.tmp-wal", 30)
    write(folder.root / f".report.{os.getpid()}.tmp", 7)  # its writer lives
    write(folder.scratch / "20260101" / "x.json", 200)
    write(folder.verdicts / "ab" / "ab12" / "0000000-00000000.npz", 100)
    for path in (*folder.root.glob(".*"), folder.trial(1) / f".final.{dead}.tmp"):
        os.utime(path, (0, 0))
    before = (status(judged), Snapshot.read(judged).stages, used_bytes(folder.root))
    assert kinds(judged, folder) == {
        "checkpoints": ["trials/00000/checkpoints"],
        "half-written": [f".ledger.{dead}.tmp-wal", f"trials/00001/.final.{dead}.tmp"],
        "Ray": ["scratch"],
        "verdicts": ["verdicts/ab/ab12"],
    }
    assert used_bytes(folder.root) == before[2]
    removed = collect(judged, folder)
    assert sum(kind.size for kind in removed) == 1000 + 500 + 30 + 200 + 100
    assert kinds(judged, folder) == {}
    assert (status(judged), Snapshot.read(judged).stages) == before[:2]
    assert judged.events()[-1].kind == "gc"
    assert (folder.root / f".report.{os.getpid()}.tmp").exists()
    assert all((folder.trial(n) / "final").is_dir() for n in range(3))


def test_final_weights_go_only_on_demand_and_only_of_dominated_trials(judged: Ledger, folder: SweepFolder) -> None:
    assert kinds(judged, folder, weights=True) == {"final": ["trials/00002/final"]}
    collect(judged, folder, weights=True)
    assert [(folder.trial(n) / "final").is_dir() for n in range(3)] == [True, True, False]


def test_before_the_end_no_weights_go(unfinished: Ledger, folder: SweepFolder) -> None:
    with pytest.raises(SweepError, match=r"front may still need.*resume digits"):
        find_unneeded(unfinished, folder, weights=True)


def test_checkpoints_of_what_is_open_or_may_be_tried_again_stay(unfinished: Ledger, folder: SweepFolder) -> None:
    states = {}
    for trial in unfinished.trials():
        write(folder.trial(trial.number) / "checkpoints" / "epoch-0001" / "state.pt", 10)
        write(folder.trial(trial.number) / "final" / "meta.json", 10)
        states[f"trials/{trial.number:05d}/checkpoints"] = trial.state
    found = kinds(unfinished, folder)["checkpoints"]
    assert {states[path] for path in states if path not in found} == {State.PROPOSED, State.TRAINING, State.FAILED}
    shutil.rmtree(folder.trial(0) / "final")
    assert len(kinds(unfinished, folder)["checkpoints"]) == len(found) - 1  # they are all that the trial has left


def test_while_a_driver_runs_nothing_is_removed(unfinished: Ledger, folder: SweepFolder) -> None:
    write(folder.scratch / "x.json", 10)
    driver = Ledger.at(folder.ledger)
    with Lease(driver), pytest.raises(LeaseHeld):
        collect(unfinished, folder)
    driver.close()
    assert folder.scratch.exists()


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid
