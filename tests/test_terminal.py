"""A launch on a real terminal: what a person sees is ours, line by line, and everything else is in the log."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from tests.test_cli import ROOT, YAML

ROWS, COLUMNS = 24, 80
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\]8;[^\x1b]*\x1b\\")
OURS = (
    r"sweep t in .*",
    r". starting Ray",
    r"\d+ trials at once .*",
    r"[━╌]+  \d of 2 trials done .*",
    r"(training|attacking|front|pace|notes) .*",
    r" {10}.*",
    r"\d\d:\d\d (trial \d|front: ).*",
)
NOISE = re.compile(r"WARNING|INFO|Traceback|raylet|\bpid=|alembic|\d{4}[-/]\d\d[-/]\d\d|Tune |\[2m", re.IGNORECASE)


def on_a_terminal(arguments: list[str], cwd: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Run a command on a terminal of its own; returns its exit code and every byte that came out, as text."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        arguments, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not more:
            break
        said += more
    os.close(ours)
    return process.wait(timeout=60), said.decode()


@pytest.mark.ray
def test_a_launch_on_a_terminal_shows_its_own_lines_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(YAML)
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    command = [sys.executable, str(ROOT / "run_sweep.py"), "launch", "t.yaml"]
    code, said = on_a_terminal(command, tmp_path, {**environment, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"})
    assert code == 0, said
    assert "\x1b[2J" not in said  # the screen is never cleared
    plain = CONTROL.sub("", said).replace("\r", "\n")
    live, _, end = plain.partition("Pareto front")
    lines = [line.rstrip() for line in live.splitlines() if line.strip()]
    picture = next(i for i, line in enumerate(lines) if line == "robust")
    foreign = [line for line in lines[:picture] if not any(re.fullmatch(pattern, line) for pattern in OURS)]
    assert foreign == []
    assert not NOISE.search(end), end
    assert any("epoch 0/1" in line for line in lines)
    assert said.count("finished: clean") == 2  # said once each, and never drawn again
    folder = SweepFolder(tmp_path / "runs", "t")
    assert "WARNING" in folder.log.read_text() or "INFO" in folder.log.read_text()
    ledger = Ledger.at(folder.ledger)
    steps = [event.detail["first_step_at"] for event in ledger.events() if "first_step_at" in event.detail]
    created = ledger.sweep().created_at
    ledger.close()
    assert len(steps) == 2
    assert all(step > created for step in steps), json.dumps(steps)
