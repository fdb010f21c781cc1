"""What `doctor` finds: each fault made for real where that is possible, and a remedy that names what to do."""

from __future__ import annotations

import json
import socket
import sqlite3
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from sweeps import disk, doctor_facts
from sweeps.doctor import (
    Accelerators,
    Device,
    Finding,
    RayFacts,
    StorageFacts,
    judge_devices,
    judge_packages,
    judge_python,
    judge_ray,
    judge_sharing,
    judge_storage,
    judge_tracking,
    judge_weights,
    line,
)
from sweeps.doctor_facts import (
    constraints,
    installed,
    kind_of,
    required,
    try_ray,
    try_storage,
    try_tracking,
    weights_cache,
    without_credentials,
)
from tests.test_cli import Run, run

__all__ = ["run"]
ROOT = Path(__file__).resolve().parents[2]
H200 = Device("NVIDIA H200", 139 * 2**30)
Usage = namedtuple("Usage", "total used free")


def test_an_old_python_is_in_the_way() -> None:
    assert judge_python((3, 11, 0)).state == "good"
    found = judge_python((3, 10, 14))
    assert (found.state, found.remedy) == ("bad", "make .venv with Python 3.11")


def test_another_version_on_the_path_is_found_with_the_one_that_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = constraints(ROOT / "constraints.txt")
    fake = tmp_path / "timm-0.0.1.dist-info"
    fake.mkdir()
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: timm\nVersion: 0.0.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = judge_packages(wanted, installed(), required())
    assert found.state == "warning"
    assert f"timm 0.0.1 instead of {wanted['timm']}" in found.found
    assert found.remedy == "pip install -c constraints.txt -e ."


def test_packages_missing_or_not_to_be_compared_are_said(tmp_path: Path) -> None:
    missing = judge_packages({"ray": "1"}, {"ray": "1"}, ["ray", "torch"])
    assert (missing.state, missing.found) == ("bad", "missing: torch")
    assert constraints(tmp_path / "constraints.txt") == {}
    assert judge_packages({}, {"ray": "1"}, ["ray"]).state == "warning"
    assert judge_packages({"torch": "2", "ruff": "1"}, {"torch": "2+cu130"}, []).found.startswith("1 in the versions")
    many = judge_packages(dict.fromkeys("abcdef", "1"), dict.fromkeys("abcdef", "2"), [])
    assert many.found.endswith("d 2 instead of 1 and 2 more")


def test_gpus_that_torch_cannot_use_are_in_the_way_and_none_are_not() -> None:
    none = judge_devices(Accelerators(cores=2))
    assert (none.state, none.found) == ("good", "no GPU: trials run on CPU cores, of which there are 2")
    there = judge_devices(Accelerators(16, (H200,), "580.1", "13.2", 1))
    assert there == Finding("GPUs", "good", "1: NVIDIA H200 (139 GB); driver 580.1, torch with CUDA 13.2")
    assert "install torch's CUDA build" in judge_devices(Accelerators(16, (H200,), "580.1")).remedy
    old = judge_devices(Accelerators(16, (H200, H200), "470.1", "13.2", 0))
    assert old.state == "bad"
    assert old.remedy.startswith("update the driver to one for CUDA 13.2")
    assert judge_devices(Accelerators(16, (H200, H200), "580.1", "13.2", 1, hidden=True)).state == "good"
    broken = judge_devices(Accelerators(16, problem="Driver/library version mismatch"))
    assert (broken.state, "restart the machine" in broken.remedy) == ("bad", True)


def test_sharing_a_gpu_is_judged_only_where_there_is_one() -> None:
    assert judge_sharing(0, server=False, running=False).state == "good"
    assert "running: trials" in judge_sharing(1, server=True, running=True).found
    assert "take turns" in judge_sharing(1, server=True, running=False).found
    assert judge_sharing(1, server=False, running=False).remedy.endswith("(resources.gpus: 1)")


def test_a_good_folder_is_tried_and_nothing_is_left(tmp_path: Path) -> None:
    facts = try_storage(tmp_path / "not" / "yet")
    assert (facts.place, facts.problem, facts.locks) == (str(tmp_path), "", True)
    assert abs(facts.clock_ahead_s) < 2
    assert [finding.state for finding in judge_storage(facts)][::2] == ["good", "good"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_where_nothing_can_be_written_is_in_the_way() -> None:
    found = list(judge_storage(try_storage(Path("/proc/self/sweeps"))))
    assert [finding.name for finding in found] == ["storage"]
    assert found[0].state == "bad"
    assert found[0].found.startswith("/proc/self: a file cannot be written there: ")
    assert "--storage" in found[0].remedy


def test_little_room_is_said_and_too_little_is_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def room(free: int) -> Finding:
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda place: Usage(10**12, 0, free))
        return next(finding for finding in judge_storage(try_storage(tmp_path)) if finding.name == "disk")

    assert room(10**11).state == "good"
    assert room(10**9).state == "warning"
    low = room(10**6)
    assert (low.state, low.remedy.startswith("make room (`gc NAME`")) == ("bad", True)
    assert low.found == f"1 MB free in {tmp_path}; no driver starts with less than 64 MB"


def test_network_file_systems_broken_locks_and_clocks_are_said(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    nested = tmp_path / "a b" / "c"
    nested.mkdir(parents=True)
    name = str(tmp_path / "a b").replace(" ", "\\040")
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {name} nfs4 rw 0 0\ntmpfs {tmp_path}/a tmpfs rw 0 0\n")
    assert kind_of(nested, mounts) == "nfs4"
    assert kind_of(tmp_path, mounts) == "ext4"
    assert kind_of(tmp_path, tmp_path / "none") == ""
    nfs, *_ = judge_storage(StorageFacts("/shared", free_bytes=10**12, kind="nfs4"))
    assert (nfs.state, "ledger.url" in nfs.remedy) == ("warning", True)
    unlocked, *_ = judge_storage(StorageFacts("/shared", locks=False, free_bytes=10**12, kind="nfs"))
    assert (unlocked.state, "ledger.url" in unlocked.remedy) == ("bad", True)
    *_, clock = judge_storage(StorageFacts("/shared", free_bytes=10**12, clock_ahead_s=-90.0))
    assert (clock.state, clock.found) == ("warning", "the storage's clock is 90 s behind this machine's")
    assert "NTP" in clock.remedy


@pytest.fixture
def serve() -> Iterator[Callable[[bytes, int], str]]:
    """Start a server on 127.0.0.1 that answers everything with these bytes and this code; returns its address."""
    servers: list[HTTPServer] = []

    def start(body: bytes, code: int = 200) -> str:
        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(code if self.headers.get("Authorization") is None else 200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        servers.append(HTTPServer(("127.0.0.1", 0), Answers))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_of_mlflow_is_asked_for_its_version(tmp_path: Path, serve: Callable[..., str]) -> None:
    import mlflow

    address = serve(mlflow.__version__.encode())
    assert judge_tracking(*try_tracking(address, tmp_path)) == Finding(
        "MLflow", "good", f"{address} answers, version {mlflow.__version__}"
    )
    old = judge_tracking(*try_tracking(serve(b"1.30.0"), tmp_path))
    assert (old.state, old.remedy) == ("warning", "install mlflow 1 here, or update the server")
    other = judge_tracking(*try_tracking(serve(b"<html>hello</html>"), tmp_path))
    assert (other.state, other.found.endswith("what answers is no MLflow server")) == ("bad", True)


def test_a_server_that_wants_a_password_gets_it_and_nobody_sees_it(
    tmp_path: Path, serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
    address = serve(mlflow.__version__.encode(), 401)
    assert judge_tracking(*try_tracking(address, tmp_path)).found == f"{address}: answers 401 Unauthorized"
    found = judge_tracking(*try_tracking(address.replace("//", "//me:secret@"), tmp_path))
    assert (found.state, "secret" in repr(found)) == ("good", False)
    assert without_credentials("postgresql://me:secret@host/db") == "postgresql://host/db"


def test_a_dead_server_and_a_damaged_database_are_in_the_way(tmp_path: Path) -> None:
    dead = judge_tracking(*try_tracking(f"http://127.0.0.1:{free_port()}", tmp_path))
    assert dead.state == "bad"
    assert "no server answers (" in dead.found
    assert dead.remedy.startswith("start it, or correct tracking.uri")
    assert judge_tracking(*try_tracking(None, tmp_path)).found.endswith("mlflow.db, made by the first sweep")
    (tmp_path / "mlflow.db").write_bytes(b"no database at all, but long enough to be one" * 10)
    assert "cannot be opened (file is not a database)" in judge_tracking(*try_tracking(None, tmp_path)).found
    (tmp_path / "mlflow.db").unlink()
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
    database.close()
    assert judge_tracking(*try_tracking(None, tmp_path)).found.endswith("mlflow.db opens")


def test_a_cache_that_cannot_be_written_is_in_the_way_unless_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/proc/self/hub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    found = judge_weights(*weights_cache())
    assert (found.state, "HF_HOME" in found.remedy) == ("bad", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert judge_weights(*weights_cache()).state == "good"


def test_a_dead_head_is_said_with_where_to_look() -> None:
    facts = try_ray(f"127.0.0.1:{free_port()}")
    assert "no Ray cluster answers there" in facts.problem
    assert judge_ray(facts).remedy.startswith("take HOST:PORT and the token from the head node (`ray start --head`")


def test_a_ray_that_does_not_answer_is_ended_in_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "python").chmod(0o755)
    assert try_ray(None, patience_s=0.2).problem == "has not answered in 0.2 s"
    (tmp_path / "python").write_text("#!/bin/sh\necho 'ray is not installed' >&2\nexit 1\n")
    failed = judge_ray(try_ray(None))
    assert (failed.state, failed.found) == ("bad", "a local Ray: ray is not installed")


def test_a_ray_without_a_token_is_a_warning() -> None:
    found = judge_ray(RayFacts("head:6379", 0.4, nodes=2))
    assert (found.state, "RAY_AUTH_MODE=token" in found.remedy) == ("warning", True)
    assert judge_ray(RayFacts(None, 4.0, nodes=1, token="~/.ray/auth_token")).state == "good"


def test_a_line_has_a_sign_and_its_remedy() -> None:
    assert str(line(Finding("disk", "bad", "full", "make room"), 8)) == "✗ disk      full\n            → make room"
    assert str(line(Finding("disk", "good", "much"), 8)) == "✓ disk      much"


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_ray_is_started_asks_for_a_token_and_is_gone_again() -> None:
    facts = try_ray(None)
    assert (facts.problem, facts.nodes, bool(facts.token)) == ("", 1, True)
    assert judge_ray(facts).state == "good"


def test_the_command_says_a_line_for_each_thing_and_only_faults_end_it_with_2(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = RayFacts(None, 4.0, nodes=1, token="~/.ray/auth_token")
    monkeypatch.setattr(doctor_facts, "try_ray", lambda address: answer)
    printed = json.loads(run("doctor", "--storage", str(tmp_path), "--json", cwd=tmp_path))
    names = [finding["name"] for finding in printed]
    assert names[:4] == ["Python", "packages", "GPUs", "CUDA MPS"]
    assert names[4:] == ["storage", "disk", "clock", "MLflow", "weights", "browser", "Ray"]
    assert {finding["state"] for finding in printed} <= {"good", "warning"}, printed
    assert list(tmp_path.iterdir()) == []
    answer = RayFacts(None, problem="no answer")
    failed = run("doctor", "--storage", str(tmp_path), cwd=tmp_path, code=2)
    assert "✗ Ray       a local Ray: no answer\n            → " in failed
