"""CUDA MPS with a stand-in for NVIDIA's control program, which keeps a process alive until it is told to quit."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import mps as module
from cluster.mps import LOGS, PIPES, PROGRAM, counts_alike, home_of, mps, variables
from sweeps.resources_section import ResourcesSection

STUB = """#!{python} -IS
import os, signal, subprocess, sys, time
pipes = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "{foreign}")
said = "-d" if "-d" in sys.argv else sys.stdin.read().strip()
with open("{record}", "a") as record:
    record.write(f"{{said}} {{pipes}} {{os.environ.get('CUDA_VISIBLE_DEVICES', '')}}\\n")
if said == "-d":
    if {broken}:
        sys.exit(1)
    daemon = subprocess.Popen(["sleep", "120"], start_new_session=True)
    with open(pipes + "/control", "w") as control:
        control.write(str(daemon.pid))
    sys.exit(0)
try:
    pid = int(open(pipes + "/control").read())
    os.kill(pid, signal.SIGKILL if said == "quit" else 0)
except OSError:
    sys.exit(1)
if said == "quit":
    os.unlink(pipes + "/control")
"""


class Stub:
    """The stand-in, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.record = folder, folder / "record"
        self.foreign = folder / "foreign"
        self.foreign.mkdir()
        self.write(broken=False)

    def write(self, broken: bool) -> None:
        program = self.folder / PROGRAM
        program.write_text(STUB.format(python=sys.executable, record=self.record, foreign=self.foreign, broken=broken))
        program.chmod(0o755)

    def asked(self) -> list[str]:
        """What it was told to do; questions whether it is there left out."""
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        return [line.split()[0] for line in lines if not line.startswith("get_server_list")]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in (PIPES, LOGS, module.VISIBLE):
        monkeypatch.delenv(name, raising=False)
    made = Stub(tmp_path)
    yield made
    for control in tmp_path.rglob("control"):  # a daemon that a test has left
        os.kill(int(control.read_text()), signal.SIGKILL)


def daemon(home: Path) -> int:
    return int((home / "pipe" / "control").read_text())


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_the_daemon_lives_as_long_as_the_block_and_what_starts_in_it_finds_it(stub: Stub, tmp_path: Path) -> None:
    home, said = home_of(tmp_path / "sweep"), []
    with mps(tmp_path / "sweep", wanted=True, say=said.append) as found:
        assert found == variables(home)
        assert {name: os.environ[name] for name in found} == found
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        pid = daemon(home)
        assert lives(pid)
    assert not lives(pid)
    assert not home.exists()
    assert PIPES not in os.environ
    assert stub.asked() == ["-d", "quit"]
    assert len(said) == 1


def test_the_daemon_ends_after_an_exception_too(stub: Stub, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), mps(tmp_path / "sweep", wanted=True):
        raise RuntimeError
    assert stub.asked() == ["-d", "quit"]


def test_unwanted_or_not_installed_nothing_is_started(stub: Stub, tmp_path: Path) -> None:
    with mps(tmp_path / "sweep", wanted=False) as found:
        assert found == {}
    (stub.folder / PROGRAM).unlink()
    with mps(tmp_path / "sweep", wanted=True) as found:
        assert found == {}
    assert stub.asked() == []


def test_the_daemon_of_a_killed_driver_is_used_and_then_stopped(stub: Stub, tmp_path: Path) -> None:
    killed, said = mps(tmp_path / "sweep", wanted=True), []
    killed.__enter__()
    pid = daemon(home_of(tmp_path / "sweep"))
    with mps(tmp_path / "sweep", wanted=True, say=said.append) as found:
        assert found
        assert daemon(home_of(tmp_path / "sweep")) == pid
    assert "a driver that ended before" in said[0]
    assert not lives(pid)
    assert stub.asked() == ["-d", "quit"]


def test_the_daemon_of_a_killed_driver_is_stopped_when_it_is_not_wanted_any_more(stub: Stub, tmp_path: Path) -> None:
    killed = mps(tmp_path / "sweep", wanted=True)
    killed.__enter__()
    pid = daemon(home_of(tmp_path / "sweep"))
    for name in (PIPES, LOGS):  # the driver's environment died with it
        del os.environ[name]
    with mps(tmp_path / "sweep", wanted=False) as found:
        assert found == {}
        assert not lives(pid)


def test_a_daemon_of_somebody_else_is_used_and_left_alone(stub: Stub, tmp_path: Path) -> None:
    (stub.foreign / "control").write_text(str(os.getpid()))
    said: list[str] = []
    with mps(tmp_path / "sweep", wanted=True, say=said.append) as found:
        assert found == {}  # CUDA finds it where it looks
    assert stub.asked() == []
    assert "left as it is" in said[0]
    (stub.foreign / "control").unlink()


def test_a_daemon_that_does_not_start_is_said_and_no_error(stub: Stub, tmp_path: Path) -> None:
    stub.write(broken=True)
    said: list[str] = []
    with mps(tmp_path / "sweep", wanted=True, say=said.append) as found:
        assert found == {}
    assert "CUDA MPS is not used" in said[0]
    assert stub.asked()[0] == "-d"


def test_a_folder_of_somebody_else_is_not_used(stub: Stub, tmp_path: Path) -> None:
    home_of(tmp_path / "sweep").symlink_to(tmp_path)
    said: list[str] = []
    with mps(tmp_path / "sweep", wanted=True, say=said.append) as found:
        assert found == {}
    assert "belongs to somebody else" in said[0]
    assert stub.asked() == []


def test_devices_that_mps_would_number_anew_keep_it_from_being_used(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(module.VISIBLE, "2,3")
    said: list[str] = []
    with mps(tmp_path / "sweep", wanted=True, say=said.append) as found:
        assert found == {}
    assert "CUDA_VISIBLE_DEVICES is 2,3" in said[0]
    assert stub.asked() == []


@pytest.mark.parametrize(
    ("visible", "alike"),
    [(None, True), ("0", True), ("0,1", True), ("GPU-5f3a,MIG-1", True), ("1", False), ("1,0", False), ("", False)],
)
def test_devices_count_alike_from_zero_or_by_their_uuids(visible: str | None, alike: bool) -> None:
    assert counts_alike(visible) is alike


@pytest.mark.parametrize(
    ("resources", "wanted"),
    [
        ({}, True),
        ({"mps": "off"}, False),
        ({"gpus": 0.25}, True),
        ({"gpus": 1, "evaluation": {"gpus": 1}}, False),
        ({"gpus": 0, "evaluation": {"gpus": 0}}, False),
        ({"memory_gb": 8, "evaluation": {"gpus": 1}}, True),
    ],
)
def test_mps_is_wanted_where_processes_may_share_a_gpu(resources: dict[str, object], wanted: bool) -> None:
    assert ResourcesSection.model_validate(resources).wants_mps is wanted
