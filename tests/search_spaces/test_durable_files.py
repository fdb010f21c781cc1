from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from search_spaces import durable_files
from search_spaces.durable_files import make_folder, name_once, write_whole
from search_spaces.faults import durable


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synced and renamed, in order."""
    done: list[str] = []
    replace = os.replace

    def renaming(source: Path, target: Path) -> None:
        done.append(f"rename {target.name}")
        replace(source, target)

    monkeypatch.setattr(durable_files, "sync", lambda path: done.append(f"sync {path.name}"))
    monkeypatch.setattr(os, "replace", renaming)
    return done


def test_a_new_folder_is_known_to_the_disk_with_all_that_it_is_in(tmp_path: Path, done: list[str]) -> None:
    make_folder(tmp_path / "a" / "b" / "c")
    assert done == [f"sync {tmp_path.name}", "sync a", "sync b"]
    make_folder(tmp_path / "a" / "b" / "c")
    assert len(done) == 3


def test_a_file_has_its_bytes_on_the_disk_before_it_has_its_name(tmp_path: Path, done: list[str]) -> None:
    with durable("trial.attempt") as write:
        write_whole(tmp_path / "attempt", "driver/1", write)
    assert done == [f"sync .attempt.{os.getpid()}.tmp", "rename attempt", f"sync {tmp_path.name}"]
    assert (tmp_path / "attempt").read_text() == "driver/1"


def test_a_file_is_as_it_was_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "attempt").write_text("driver/1")

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable_files, "sync", full)
    with pytest.raises(OSError, match="No space"), durable("trial.attempt") as write:
        write_whole(tmp_path / "attempt", "driver/2", write)
    assert (tmp_path / "attempt").read_text() == "driver/1"


def test_a_name_that_is_taken_stays_with_whom_it_belongs_to(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).write_text(name)
    with durable("sweep.ledger") as write:
        name_once(tmp_path / "first", tmp_path / "ledger.db", write)
    with pytest.raises(FileExistsError), durable("sweep.ledger") as write:
        name_once(tmp_path / "second", tmp_path / "ledger.db", write)
    assert (tmp_path / "ledger.db").read_text() == "first"
    assert not (tmp_path / "first").exists()


def test_a_file_system_without_links_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: list[str]) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    (tmp_path / "new").write_text("ledger")
    with durable("sweep.ledger") as write:
        name_once(tmp_path / "new", tmp_path / "ledger.db", write)
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.db"]
    assert done == ["sync new", "rename ledger.db", f"sync {tmp_path.name}"]
