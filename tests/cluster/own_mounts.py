"""A Ray node on this machine that sees other files: it runs in a mount name space of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def require_mounts(mounts: str) -> None:
    """Skip the test where such a node cannot be. Args: mounts: a shell line."""
    allowed = subprocess.run(["unshare", "-m", "sh", "-c", mounts], capture_output=True, text=True, check=False)
    if allowed.returncode:
        pytest.skip(f"no name space of its own for a node here: {allowed.stderr.strip()}")


@contextmanager
def node_with(mounts: str, address: str, of: int) -> Iterator[None]:
    """Let a node of one CPU join; the caller has joined the cluster before.

    Args: mounts: shell line that the node runs first; address: the cluster's; of: nodes that there are then.
    """
    import ray

    start = f"{Path(sys.executable).parent / 'ray'} start --address={address} --num-cpus=1 --block"
    node = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"{mounts} && exec {start}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 60
        while sum(found["Alive"] for found in ray.nodes()) < of:
            assert node.poll() is None, "the node has not started"
            assert time.monotonic() < end
            time.sleep(0.1)
        yield
    finally:
        node.terminate()
        try:
            node.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(node.pid, 9)
            node.wait()
