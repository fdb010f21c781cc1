"""A Ray cluster on this machine whose nodes die as machines do, and sweeps that run on it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from cluster.connect import prepare_environment
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from tests.crash.drivers import PATIENCE_S, ROOT, Driver

EPOCHS = 6
NAME = "s"
SWEEP = f"""
model: {{name: vit_tiny_patch16_224, img_size: 8, patch_size: 2, embed_dim: 24, depth: 1, num_heads: 2}}
data: {{name: digits, train_images: 200, validation_images: 80, test_images: 40}}
training: {{epochs: {EPOCHS}, learning_rate: {{log_uniform: [2.0e-3, 8.0e-3]}}, batch_size: 32}}
plugins: [{ROOT}/tests/crash/noted.py, {ROOT}/tests/crash/noted_pgd.py]
methods:
  - noted: {{}}
attacks:
  epsilon: 0.04
  images: 60
  batch_size: 5
  evaluate: all
  stages: [{{noted_pgd: {{steps: 3}}}}]
  test: null
search: {{sampler: random, seed: 3}}
resources: {{gpus: 1, evaluation: {{gpus: 0}}}}
failures: {{retries: 0}}
tracking: {{enabled: false}}
"""
"""No failure is forgiven: what a lost node costs must not be one."""


class Nodes:
    """A head that takes no trials and nodes that do; `address` is the head's."""

    def __init__(self, notes: Path, pace_s: float, count: int, gpus: int) -> None:
        """Args: notes: beginning of the files' names; pace_s: of an epoch and a unit; gpus: logical, of each node."""
        self._notes = notes
        prepare_environment()
        self._gpus = gpus
        self._environment = {
            "PARETUNE_TEST_PACE_S": str(pace_s),
            "PARETUNE_TEST_NOTES": str(notes),
            "OMP_NUM_THREADS": "1",
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_failure_threshold": "4",
        }
        from ray.cluster_utils import Cluster

        with self._paced():
            self._cluster: Any = Cluster(
                initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
            )
        self.address = str(self._cluster.address)
        self.there: list[Any] = []
        for _ in range(count):
            self.add()

    @contextlib.contextmanager
    def _paced(self) -> Iterator[None]:
        before = dict(os.environ)
        os.environ |= self._environment
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def add(self, gpus: int | None = None) -> Any:
        """Let a node join; return it."""
        gpus = self._gpus if gpus is None else gpus
        with self._paced():
            node = self._cluster.add_node(num_cpus=2, num_gpus=gpus)
        self.there.append(node)
        return node

    def kill(self, node: Any) -> None:
        """A machine loses its power: all that runs on it ends at once, and nothing is told to anybody."""
        die(node)
        self.there.remove(node)

    def kill_head(self) -> None:
        """The same for the head, where the cluster is known."""
        die(self._cluster.head_node)

    def begun(self, what: str, node: Any = None) -> int:
        """Return how many epochs or units have been begun. Args: what: as the notes are called; node: only there."""
        path = self._notes.with_name(f"{self._notes.name}.{what}")
        lines = path.read_text().split() if path.exists() else []
        return len(lines) if node is None else lines.count(str(node.all_processes["raylet"][0].process.pid))

    def close(self) -> None:
        for node in self._cluster.list_all_nodes():
            die(node)
        self.there.clear()
        self._cluster.worker_nodes.clear()
        self._cluster.head_node = None


def die(node: Any) -> None:
    """`kill -9` of all processes of a Ray node. Stopped first, so that none of them sees another die."""
    roots = [psutil.Process(info.process.pid) for infos in node.all_processes.values() for info in infos if alive(info)]
    processes = [*roots, *(child for root in roots for child in root.children(recursive=True))]
    for act in (psutil.Process.suspend, psutil.Process.kill):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                act(process)


def alive(info: Any) -> bool:
    return bool(info.process.poll() is None)


def at_work(node: Any, title: str) -> list[int]:
    """Return the pids of a node's workers that do something, by a word of the title that Ray gives them."""
    found = []
    for info in node.all_processes["raylet"]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(info.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    if title in " ".join(process.cmdline()):
                        found.append(process.pid)
    return found


class Sweep:
    """A sweep on a cluster, driven by a process of its own."""

    def __init__(self, storage: Path, address: str, *settings: str) -> None:
        self.storage = storage
        (storage / f"{NAME}.yaml").write_text(SWEEP)
        changes = [part for one in settings for part in ("--set", one)]
        where = ("--storage", ".", "--address", address)
        self.driver = Driver(storage, "launch", f"{NAME}.yaml", "--name", NAME, *where, *changes)

    def resume(self, address: str) -> None:
        self.driver = Driver(self.storage, "resume", NAME, "--storage", ".", "--address", address)

    @property
    def folder(self) -> Path:
        return self.storage / NAME

    @contextlib.contextmanager
    def ledger(self) -> Iterator[Ledger]:
        ledger = Ledger.at(SweepFolder.existing(self.storage, NAME).ledger)
        try:
            yield ledger
        finally:
            ledger.close()

    def until(self, happened: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
        """Wait until something has happened; fails if the driver ends first."""
        limit = time.monotonic() + patience_s
        while not happened():
            assert self.driver.process.poll() is None, self.driver.text()
            assert time.monotonic() < limit, f"nothing happens any more:\n{self.driver.text()}"
            time.sleep(0.05)

    def epochs(self) -> list[int]:
        """Return how many epochs of each trial are in the ledger."""
        if not (self.folder / "ledger.db").exists():
            return []
        with self.ledger() as ledger:
            return [trial.epochs for trial in ledger.trials(bare=True)]

    def attacked_units(self) -> int:
        """Return how many units of attacks are stored; those of clean passes are not counted."""
        with self.ledger() as ledger:
            digests = {stage.digest for stage in ledger.stages()}
        return sum(path.parent.name in digests for path in (self.folder / "verdicts").rglob("*.npz"))

    def failed_as(self) -> dict[int, dict[str, int]]:
        """Return what failed, by trial."""
        with self.ledger() as ledger:
            return {trial.number: dict(trial.failed_as) for trial in ledger.trials() if trial.failed_as}

    def stop(self) -> None:
        self.driver.process.kill()
        self.driver.process.wait()
