"""What four workers of a node take in memory and in time for their images: each its own, against one for all.

    python -m benchmarks.run node_data

60,000 random images of CIFAR's size in an .npz file. Four workers load them for themselves; then four others take what
the driver has put into Ray's object store. Memory is what the proportional set size grows by, in which a page that
several processes share counts once, summed over the workers, the driver and Ray's process that owns the store.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, measured

COMMAND = "python -m benchmarks.run node_data"
WORKERS = 4
ROUNDS = 3
IMAGES = (50_000, 10_000)
SIZE = 32


def rows() -> Iterator[Row]:
    """Ratios of memory and of time, loaded by each worker against held by the node."""
    import ray

    from cluster.connect import prepare_environment

    prepare_environment()
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    with tempfile.TemporaryDirectory() as folder:
        path = _write(Path(folder))
        found = []
        for _ in range(ROUNDS):
            ray.init("local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            try:
                found.append(_compare(path))
            finally:
                ray.shutdown()
    middle = sorted(found, key=lambda one: one["own_mb"] / one["held_mb"])[ROUNDS // 2]
    memory = f"{middle['own_mb']:.0f} MB for {WORKERS} workers that load, {middle['held_mb']:.0f} MB held once"
    ratios = [one["own_mb"] / one["held_mb"] for one in found]
    yield measured("node_data_memory", ratios, "ratio", COMMAND, at_least=3, peer=memory)
    speedups = [one["own_s"] / one["held_s"] for one in found]
    seconds = f"{middle['own_s']:.2f} s until the last worker has loaded, {middle['held_s']:.3f} s to map what is held"
    said = f"{seconds}; the driver puts it there in {middle['put_s']:.2f} s"
    yield measured("node_data_load", speedups, "ratio", COMMAND, at_least=1, peer=said)


def _write(folder: Path) -> Path:
    import numpy as np

    random = np.random.default_rng(0)
    parts: dict[str, Any] = {}
    for name, count in zip(("train", "test"), IMAGES, strict=True):
        parts[f"x_{name}"] = random.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
        parts[f"y_{name}"] = np.arange(count) % 10
    np.savez(folder / "images.npz", **parts)
    return folder / "images.npz"


class Worker:
    """A process that trains or attacks, as far as its images go."""

    def __init__(self) -> None:
        import torch

        import trainables.training  # noqa: F401

        torch.set_num_threads(1)
        self._images: Any = None

    def take(self, path: Path, held: Any) -> float:
        """Take the images; returns the time of day when it has them. Only then every page of them is touched."""
        from trainables.dataset import load_splits
        from trainables.datasets.arrays import ArraysConfig

        config = ArraysConfig(path=path)
        if held is None:
            self._images = load_splits(config, SIZE, with_selection=False)
        else:
            self._images = held.splits(config, SIZE, with_selection=False)
        at = time.time()
        for part in (self._images.train, self._images.test):
            part.images.pixels.numpy().max()
        return at

    def pid(self) -> int:
        """Return the process."""
        return os.getpid()


def _compare(path: Path) -> dict[str, float]:
    """Return megabytes and seconds of both ways."""
    from trainables.dataset import load_splits
    from trainables.datasets.arrays import ArraysConfig
    from trainables.node_data import hold, key_of

    config = ArraysConfig(path=path)
    splits = load_splits(config, SIZE, with_selection=False)
    own_mb, own_s = _taken(path, lambda: None)
    put_s = 0.0

    def put() -> Any:
        nonlocal put_s
        started = time.perf_counter()
        held = hold(key_of(config, SIZE, with_selection=False), splits)
        put_s = time.perf_counter() - started
        assert held is not None
        return held

    held_mb, held_s = _taken(path, put)
    return {"own_mb": own_mb, "held_mb": held_mb, "own_s": own_s, "held_s": held_s, "put_s": put_s}


def _taken(path: Path, hold: Callable[[], Any]) -> tuple[float, float]:
    """Return by how many megabytes fresh workers, driver and store grow, and the seconds until the last worker has its
    images. Args: hold: gives what the node holds, and is part of the growth."""
    import ray

    workers = [ray.remote(num_cpus=1)(Worker).remote() for _ in range(WORKERS)]
    processes = [*ray.get([worker.pid.remote() for worker in workers]), *_ray_processes(), os.getpid()]
    before = _megabytes(processes)
    held = hold()
    began = time.time()
    seconds = max(ray.get([worker.take.remote(path, held) for worker in workers])) - began
    grown = _megabytes(processes) - before
    for worker in workers:
        ray.kill(worker)
    return grown, seconds


def _ray_processes() -> list[int]:
    """Return the process of this Ray that owns the object store."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        lines = status.read_text().splitlines()
        facts = dict(line.partition(":")[::2] for line in lines)
        if facts["Name"].strip() == "raylet" and int(facts["PPid"]) == os.getpid():
            found.append(int(facts["Pid"]))
    return found


def _megabytes(processes: list[int]) -> float:
    """Return the sum of the proportional set sizes."""
    total = 0
    for pid in processes:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024
