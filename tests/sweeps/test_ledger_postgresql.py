"""The ledger on a real PostgreSQL server, started here from the distribution's packages."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL

import pytest

from search_spaces.errors import LeaseHeld, LeaseLost
from sweeps.export import export_json
from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger, pointer
from sweeps.records import LeaseRecord
from tests.sweeps.ledgers import attack, folder_at, propose, sweep_record, train

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def server_folder() -> Path | None:
    """Where the newest server's programs are."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server of our own, without a password."""
    programs = server_folder()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (apt-get install postgresql)")
    pytest.importorskip("psycopg")
    root = Path("/tmp") / f"paretune-postgresql-{uuid.uuid4().hex[:8]}"  # its user must reach it
    root.mkdir(mode=0o755)
    as_user: list[str] = []
    user = getpass.getuser()
    if os.geteuid() == 0:  # the server refuses to run as root
        user, as_user = "postgres", ["runuser", "-u", "postgres", "--"]
        shutil.chown(root, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = root / "data"
    control = [*as_user, str(programs / "pg_ctl"), "-D", str(data), "-w"]
    subprocess.run([*as_user, str(programs / "initdb"), "-A", "trust", "-D", str(data)], check=True, stdout=DEVNULL)
    options = f"-h 127.0.0.1 -p {port} -k {root}"
    subprocess.run([*control, "start", "-l", str(root / "log"), "-o", options], check=True, stdout=DEVNULL)
    try:
        yield f"postgresql+psycopg://{user}@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "stop", "-m", "fast"], check=True, stdout=DEVNULL)
        shutil.rmtree(root, ignore_errors=True)


def ledger_at(folder: SweepFolder, url: str | None) -> Ledger:
    """A new ledger with a sweep, on the server or, without a URL, in a file."""
    folder.root.mkdir(parents=True)
    sweep = sweep_record(name=folder.name)
    if url is not None:
        folder.ledger.write_text(pointer(url, sweep.id))
    ledger = Ledger.at(folder.ledger)
    ledger.create(sweep)
    return ledger


def live(ledger: Ledger) -> None:
    for number, label in enumerate(("plain", "jasmin", "adversarial")):
        propose(ledger, number, label)
        train(ledger, number, 0.9 - number / 10)
        attack(ledger, number, 100 + 20 * number)
    attack(ledger, 2, 130, position=1, exact=True)
    ledger.note_failure(1, "crash", "gone")
    propose(ledger, 3)
    ledger.start_training(3)
    ledger.fail(3, "nan", "the loss is nan")


def without_what_differs(exported: dict[str, object]) -> str:
    import json

    text = json.loads(json.dumps(exported))
    for key in ("id", "created_at", "environment"):
        text["sweep"].pop(key)
    return json.dumps(text, sort_keys=True)


def test_the_same_life_leaves_the_same_export_in_a_file_and_on_a_server(server: str, tmp_path: Path) -> None:
    exports = []
    for name, url in (("file", None), ("server", server)):
        ledger = ledger_at(folder_at(tmp_path / name), url)
        with Lease(ledger):
            live(ledger)
        ledger.close()
        again = Ledger.at(folder_at(tmp_path / name).ledger)
        exports.append(without_what_differs(export_json(again)))
        assert [event.kind for event in again.events()][:2] == ["created", "proposed"]
        assert again.stages(2)[1].verdicts is not None
        again.close()
    assert exports[0] == exports[1]


def test_two_sweeps_share_a_database_without_meeting(server: str, tmp_path: Path) -> None:
    first, second = (ledger_at(folder_at(tmp_path / name), server) for name in ("a", "b"))
    with Lease(first), Lease(second):
        propose(first, 0)
        assert [len(ledger.trials()) for ledger in (first, second)] == [1, 0]
    first.close()
    second.close()


def test_one_driver_writes_and_who_lost_the_lease_writes_nothing_more(server: str, tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    ledger, other = ledger_at(folder, server), Ledger.at(folder.ledger)
    with Lease(ledger):
        with pytest.raises(LeaseHeld), Lease(other):
            pass
        held = ledger.lease()
        now = time.time()
        assert other.take_lease(LeaseRecord("usurper", "elsewhere", 1, "", now, now), replacing=held)
        with pytest.raises(LeaseLost):
            propose(ledger, 0)
        assert ledger.trials() == []
    ledger.close()
    other.close()


def test_of_many_who_take_a_free_lease_at_once_one_gets_it(server: str, tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    ledger_at(folder, server).close()
    ledgers = [Ledger.at(folder.ledger) for _ in range(8)]
    got: list[bool] = []
    gate = threading.Barrier(len(ledgers))

    def take(ledger: Ledger) -> None:
        gate.wait()
        now = time.time()
        got.append(ledger.take_lease(LeaseRecord(uuid.uuid4().hex, "here", 1, "", now, now), replacing=None))

    threads = [threading.Thread(target=take, args=(ledger,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]
    for ledger in ledgers:
        ledger.close()


def test_a_sweep_runs_is_killed_and_goes_on_with_its_ledger_on_a_server(server: str, tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "run_sweep.py")]
    storage = ["--storage", str(tmp_path / "runs")]
    preset = str(ROOT / "sweeps" / "presets" / "quickstart.yaml")
    changes = ["--set", f"ledger.url={server}", "--set", "attacks.test=null", "--scale", "smoke"]
    environment = {**os.environ, "PARETUNE_KILL_AT": "trained.commit:2"}
    launch = [*program, "launch", preset, "--name", "served", *storage, *changes]
    killed = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=240)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = subprocess.run([*program, "resume", "served", *storage], capture_output=True, text=True, timeout=240)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    status = subprocess.run([*program, "status", "served", *storage], capture_output=True, text=True, timeout=60)
    assert "finished" in status.stdout
    assert (tmp_path / "runs" / "served" / "ledger.db").read_text().startswith("postgresql")
