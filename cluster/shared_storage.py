"""Whether every node of a cluster sees the sweep's folder: each one reads, writes and renames a file there.

A node that does not would train into a folder of its own, and its trials would be lost one by one. It is refused by
name before any trial starts; one that joins later stops the driver, which loses nothing.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from cluster.every_node import PATIENCE_S, Answer, EveryNode, NodeCheck
from search_spaces.errors import StorageNotShared

CHALLENGE = "driver"


class SharedStorage(NodeCheck):
    """Every node reads, writes and renames in the folder; StorageNotShared names the first that does not."""

    def __init__(self, folder: Path, patience_s: float = PATIENCE_S) -> None:
        """Args: folder: of the sweep; a folder for the probes is made in it, and removed by `close`."""
        self._folder = folder
        self._place = folder / f".shared.{uuid.uuid4().hex[:8]}"
        self._word = uuid.uuid4().hex
        super().__init__(EveryNode(answer_probe, self._challenge, patience_s=patience_s))

    def close(self) -> None:
        """Remove the probes."""
        shutil.rmtree(self._place, ignore_errors=True)

    def _challenge(self, node: str) -> tuple[str, str]:
        if not self._place.exists():
            self._place.mkdir(parents=True)
            (self._place / CHALLENGE).write_text(self._word)
        return str(self._place), node

    def _judge(self, answers: Iterable[Answer]) -> None:
        for answer in answers:
            what = answer.problem or answer.value
            if what or not self._has_answered(answer.identity):
                self.close()
                raise StorageNotShared(
                    f"node {answer.node} does not share {self._folder}: it "
                    f"{what or 'wrote a file that is not seen here'}. Every node needs the same folder under the same "
                    "path (NFS, Lustre, a shared volume): choose one with --storage, mount it on that node, or take "
                    "the node out of the cluster."
                )

    def _has_answered(self, file: str) -> bool:
        try:
            return (self._place / file).read_text() == self._word
        except OSError:
            return False


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
