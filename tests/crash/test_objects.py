"""Sweeps whose trials and verdicts are objects: killed, moved between machines that share no folder, and finished."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.object_store import ObjectStore
from search_spaces.object_uri import ObjectUri
from sweeps.folder import SweepFolder
from sweeps.records import State
from sweeps.retention import find_unneeded
from sweeps.verify import verify_trial
from tests.crash.drivers import ROOT, launch, ledger_says, open_ledger, resume
from tests.crash.evidence import assert_judged_once, assert_nothing_twice, results
from tests.crash.nodes import NAME, Nodes, Sweep
from tests.object_server import bucket, free_port, object_server, place_at

__all__ = ["bucket", "object_server"]
FEW = ("search.trials=3", "tracking.enabled=false", "attacks.keep_images=true")


def objects_of(storage: Path) -> ObjectUri:
    found = SweepFolder.existing(storage, "s").objects
    assert found is not None
    return found


def brought(place: ObjectUri, to: Path) -> Path:
    """Return a folder with all objects of a sweep."""
    store = ObjectStore(place)
    for name in store.sizes():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        store.download(name, to / name)
    return to


def assert_whole(storage: Path, place: ObjectUri, to: Path) -> None:
    """Everything was done once, and lies in the object store alone."""
    root = brought(place, to)
    ledger = open_ledger(storage)
    try:
        assert {trial.state for trial in ledger.trials()} == {State.FINISHED}
        assert_nothing_twice(ledger, root)
        assert_judged_once(root)
        names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        assert not [name for name in names if "checkpoints/" in name]
        assert not {"trials", "parents", "verdicts"} & {path.name for path in (storage / "s").iterdir()}
    finally:
        ledger.close()


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_sweep_goes_on_on_a_machine_that_has_none_of_its_files(bucket: ObjectUri, tmp_path: Path) -> None:
    here, there = tmp_path / "folder", tmp_path / "objects"
    here.mkdir()
    there.mkdir()
    assert launch(here, *FEW).wait() == 0
    driver = launch(there, *FEW, f"storage.objects={bucket}")
    driver.signal_when(
        signal.SIGKILL, ledger_says(there, lambda ledger: sum(t.epochs for t in ledger.trials(bare=True)) >= 3)
    )
    driver.wait()
    shutil.rmtree(bucket.mirror.parents[2])
    place = objects_of(there)
    goes_on = resume(there)
    assert goes_on.wait() == 0, goes_on.text()
    assert_whole(there, place, tmp_path / "brought")
    plain, remote = open_ledger(here), open_ledger(there)
    assert results(remote) == results(plain)
    shutil.rmtree(bucket.mirror.parents[2])
    folder = SweepFolder.existing(there, "s")
    replayed = verify_trial(remote, folder, 0)
    assert sum(one.found.kept for one in replayed) > 0
    assert not any(one.found.failed for one in replayed)
    assert find_unneeded(remote, folder) == []
    logs = subprocess.run(
        [sys.executable, ROOT / "run_sweep.py", "logs", "s", "0", "--storage", "."],
        cwd=there,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "trained: clean_acc" in logs.stdout
    plain.close()
    remote.close()
    assert "a-secret-of-nobody" not in "".join(
        path.read_text(errors="replace") for path in there.rglob("*") if path.is_file()
    )


class Machine:
    """A node of the cluster in a name space of its own, in which the driver's folders are not."""

    def __init__(self, address: str, home: Path, hidden: Path, pace_s: float) -> None:
        home.mkdir()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(home), "OMP_NUM_THREADS": "1"}
        environment |= {"PARETUNE_TEST_PACE_S": str(pace_s)}
        start = f"{Path(sys.executable).parent / 'ray'} start --address={address} --num-cpus=2 --num-gpus=1 --block"
        script = f"mount -t tmpfs none {hidden} && exec {start}"
        self.mirrors = home / f"paretune-{os.getuid()}"
        self._process = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )

    def has_trained(self) -> bool:
        """Whether a trial has begun here; what vanishes while one looks does not matter."""
        return any("log.txt" in files for _, _, files in os.walk(self.mirrors))

    def kill(self) -> None:
        """A machine loses its power."""
        processes = [psutil.Process(self._process.pid)]
        processes += processes[0].children(recursive=True)
        for act in (psutil.Process.suspend, psutil.Process.kill):
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    act(process)
        self._process.wait()


def wait_for_nodes(head: Nodes, count: int) -> None:
    limit = time.monotonic() + 60
    while sum(node["Alive"] for node in head._cluster.global_state.node_table()) < count:
        assert time.monotonic() < limit, "a node has not joined"
        time.sleep(0.2)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Nodes]:
    allowed = subprocess.run(["unshare", "-m", "true"], capture_output=True, text=True, check=False)
    if allowed.returncode:
        pytest.skip(f"no name space of its own for a node here: {allowed.stderr.strip()}")
    nodes = Nodes(tmp_path / "notes", 0.0, count=0, gpus=0)
    yield nodes
    nodes.close()


@pytest.mark.slow
@pytest.mark.ray
def test_nodes_that_share_no_folder_finish_a_sweep_though_one_of_them_dies(
    bucket: ObjectUri, head: Nodes, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    machines: list[Machine] = []
    sweep: Sweep | None = None
    try:
        for name in ("m1", "m2"):  # one after the other: two that start at once may want the same ports
            machines.append(Machine(head.address, tmp_path / name, runs, pace_s=1.0))
            wait_for_nodes(head, 1 + len(machines))
        wanted = ("search.trials=6", "failures.hang_after_s=60", f"storage.objects={bucket}")
        sweep = Sweep(runs, head.address, *wanted)
        sweep.until(lambda: all(machine.has_trained() for machine in machines))
        machines.pop(0).kill()
        assert sweep.driver.wait() == 0, sweep.driver.text()
        with sweep.ledger() as ledger:
            failed = [dict(trial.failed_as) for trial in ledger.trials()]
        assert all(one in ({}, {"node": 1}) for one in failed)
        place = SweepFolder.existing(runs, NAME).objects
        assert place is not None
        assert_whole(runs, place, tmp_path / "brought")
    finally:
        if sweep is not None:
            sweep.stop()
        for machine in machines:
            machine.kill()


@pytest.mark.slow
@pytest.mark.ray
def test_a_server_that_goes_away_stops_the_driver_and_fails_no_trial(bucket: ObjectUri, tmp_path: Path) -> None:
    port = free_port()
    through = place_at(port, bucket.path.partition("/")[0])
    wire = Wire(port, int(dict(bucket.options)["endpoint_override"].rpartition(":")[2]))
    driver = launch(tmp_path, *FEW, f"storage.objects={through}")
    driver.wait_until(ledger_says(tmp_path, lambda ledger: any(t.epochs for t in ledger.trials(bare=True))))
    wire.cut()
    assert driver.wait() == 3
    said = " ".join(driver.text().split())
    assert "NETWORK_CONNECTION" in said
    assert "Nothing is lost. When that is put right: python run_sweep.py resume s" in said
    refused = resume(tmp_path)
    assert refused.wait() == 3, "there is still no server"
    assert "Nothing was started." in " ".join(refused.text().split())
    wire = Wire(port, wire.to)
    try:
        goes_on = resume(tmp_path)
        assert goes_on.wait() == 0, goes_on.text()
    finally:
        wire.cut()
    ledger = open_ledger(tmp_path)
    assert [dict(trial.failed_as) for trial in ledger.trials()] == [{}] * 3
    ledger.close()


class Wire:
    """A port that leads to a server, until it is cut."""

    def __init__(self, port: int, to: int) -> None:
        self.to = to
        self._ends: list[socket.socket] = []
        self._door = socket.create_server(("127.0.0.1", port), reuse_port=True)
        threading.Thread(target=self._let_in, daemon=True).start()

    def _let_in(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                inside, _ = self._door.accept()
                outside = socket.create_connection(("127.0.0.1", self.to))
                self._ends += [inside, outside]
                for source, sink in ((inside, outside), (outside, inside)):
                    threading.Thread(target=_carry, args=(source, sink), daemon=True).start()

    def cut(self) -> None:
        for end in (self._door, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _carry(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while content := source.recv(65536):
            sink.sendall(content)
        sink.shutdown(socket.SHUT_WR)


@pytest.mark.slow
@pytest.mark.ray
def test_a_launch_without_a_bucket_is_refused_and_leaves_nothing(bucket: ObjectUri, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    storage.mkdir()
    missing = ObjectUri(bucket.scheme, "no-such-bucket/a", bucket.options)
    refused = launch(storage, "tracking.enabled=false", f"storage.objects={missing}")
    assert refused.wait() == 3
    said = " ".join(refused.text().split())
    assert "NO_SUCH_BUCKET" in said
    assert "Nothing was started. The bucket must exist" in said
    assert not (storage / "s").exists()
