"""Whether every node of a cluster sees the sweep's folder: each one reads, writes and renames a file there.

A node that does not would train into a folder of its own, and its trials would be lost one by one. It is refused by
name before any trial starts; one that joins later stops the driver, which loses nothing.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces.errors import StorageNotShared

PATIENCE_S = 60.0
"""A node may take so long to start a worker and to answer (our choice)."""
LOOK_S = 30.0
"""Between two looks for nodes that have joined."""
CHALLENGE = "driver"


@dataclass(frozen=True)
class _Asked:
    """A node that has been asked."""

    name: str
    answer: str
    """The file that it is to write."""
    at: float
    """By the clock that never goes back."""


class SharedStorage:
    """Asks the nodes of the cluster that this process has joined."""

    def __init__(self, folder: Path, patience_s: float = PATIENCE_S) -> None:
        """Args: folder: of the sweep; a folder for the probes is made in it, and removed by `close`."""
        self._folder = folder
        self._place = folder / f".shared.{uuid.uuid4().hex[:8]}"
        self._word = uuid.uuid4().hex
        self._patience_s = patience_s
        self._known: set[str] = set()
        self._asked: dict[Any, _Asked] = {}
        self._looked_at: float | None = None
        """When it was last looked for new nodes; None before `require`."""

    def require(self) -> None:
        """Return once every node has shown that it shares the folder; StorageNotShared names the first that does not.

        A cluster of one node is not asked.
        """
        self._looked_at = float("-inf")
        self.look()
        while self._asked:
            time.sleep(0.05)
            self._hear()

    def look(self) -> None:
        """Ask the nodes that are new since `require`, and hear the answers that have come; most calls return at once.

        Raises: StorageNotShared.
        """
        now = time.monotonic()
        if self._looked_at is None:
            return
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._ask_new()
        if self._asked:
            self._hear()

    def close(self) -> None:
        """Remove the probes."""
        shutil.rmtree(self._place, ignore_errors=True)

    def _ask_new(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        mine = ray.get_runtime_context().get_node_id()
        new = [node for node in nodes if node not in self._known and node != mine]
        if new and not self._place.exists():
            self._place.mkdir(parents=True)
            (self._place / CHALLENGE).write_text(self._word)
        for node in new:
            pinned = NodeAffinitySchedulingStrategy(node, soft=False)
            task = ray.remote(max_retries=0, num_cpus=0, scheduling_strategy=pinned)(answer_probe)
            asked = _Asked(f"{nodes[node]} ({node[:8]})", node, time.monotonic())
            self._asked[task.remote(str(self._place), node)] = asked
            self._known.add(node)

    def _hear(self) -> None:
        import ray

        ready, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
        for reference in ready:
            asked = self._asked.pop(reference)
            try:
                problem = ray.get(reference)
            except ray.exceptions.RayError as error:
                raise self._refusal(asked, f"could not be asked: {str(error).splitlines()[0]}") from error
            if problem or not self._has_answered(asked):
                raise self._refusal(asked, problem or "wrote a file that is not to be seen here")
        for reference, asked in list(self._asked.items()):
            if time.monotonic() - asked.at > self._patience_s:
                ray.cancel(reference, force=True)
                del self._asked[reference]
                raise self._refusal(asked, f"has not answered in {self._patience_s:g} s")

    def _has_answered(self, asked: _Asked) -> bool:
        try:
            return (self._place / asked.answer).read_text() == self._word
        except OSError:
            return False

    def _refusal(self, asked: _Asked, what: str) -> StorageNotShared:
        self.close()
        return StorageNotShared(
            f"node {asked.name} does not share {self._folder}: it {what}. Every node needs the same folder under the "
            "same path (NFS, Lustre, a shared volume): choose one with --storage, mount it on that node, or take the "
            "node out of the cluster."
        )


def require_shared(folder: Path, patience_s: float = PATIENCE_S) -> None:
    """Ask every node once. Args: folder: of the sweep. Raises: StorageNotShared."""
    probe = SharedStorage(folder, patience_s)
    try:
        probe.require()
    finally:
        probe.close()


def answer_probe(place: str, name: str) -> str:
    """Copy the driver's word into a file of this node's own, renamed when whole. Runs on the node.

    Returns: what is wrong, as the end of a sentence about the node; empty if nothing is.
    """
    folder = Path(place)
    try:
        word = (folder / CHALLENGE).read_text()
    except OSError as error:
        return f"cannot read what the driver wrote there ({error.strerror})"
    try:
        temporary = folder / f".{name}.tmp"
        temporary.write_text(word)
        os.replace(temporary, folder / name)
    except OSError as error:
        return f"can read it and not write there ({error.strerror})"
    return ""
