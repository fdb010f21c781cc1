"""The hook at a driver's end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sweeps.notify
from sweeps.config import parse_sweep
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.notify import notify
from sweeps.summary import status


def test_the_command_learns_what_ended_how_and_where(finished: Ledger, folder: SweepFolder, tmp_path: Path) -> None:
    said: list[str] = []
    notify(f'env > "{tmp_path}/env"; cat > "{tmp_path}/status"', folder, "finished", said.append)
    assert said == []
    environment = (tmp_path / "env").read_text().splitlines()
    assert f"PARETUNE_SWEEP={folder.name}" in environment
    assert f"PARETUNE_FOLDER={folder.root}" in environment
    assert "PARETUNE_EVENT=finished" in environment
    assert json.loads((tmp_path / "status").read_text()) == json.loads(json.dumps(status(finished)))


@pytest.mark.parametrize(
    ("command", "expected"), [("echo no >&2; exit 7", "code 7. no"), ("/no/such", "code 127"), ("sleep 5", "after 0 s")]
)
def test_a_command_that_fails_is_said_and_nothing_else(
    finished: Ledger, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, command: str, expected: str
) -> None:
    if "sleep" in command:
        monkeypatch.setattr(sweeps.notify, "LONGEST_S", 0.2)
    said: list[str] = []
    notify(command, folder, "failed", said.append)
    (line,) = said
    assert expected in line


def test_without_a_command_nothing_is_read(tmp_path: Path) -> None:
    notify(None, SweepFolder(tmp_path, "none"), "finished", print)


def test_another_command_leaves_results_comparable() -> None:
    one, other = (parse_sweep({"attacks": {}, "notify": command}) for command in ("a", "b"))
    assert one.comparable() == other.comparable()
    assert one.adjustable() != other.adjustable()
