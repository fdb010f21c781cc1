"""Whether every node of a cluster sees the sweep's folder: each one reads, writes and renames a file there.

A node that does not would train into a folder of its own, and its trials would be lost one by one. It is refused by
name before any trial starts; one that joins later stops the driver, which loses nothing.
"""

from __future__ import annotations

import os
import shutil
import uuid
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path

from cluster.every_node import PATIENCE_S, Answer, EveryNode, NodeCheck
from search_spaces.errors import StorageNotShared
from search_spaces.object_uri import ObjectUri

CHALLENGE = "driver"


class StorageCheck(NodeCheck):
    """Every node copies what the driver wrote at a place; StorageNotShared names the first whose copy is not seen."""

    place: Path | ObjectUri
    """Of the sweep."""
    unseen: str
    """What the error says of a node whose copy is not there."""
    message: str
    """Of the error, with the fields node, place and what."""

    @abstractmethod
    def close(self) -> None:
        """Remove the probes."""

    @abstractmethod
    def _has_answered(self, node: str) -> bool:
        """Whether that node's copy is seen here. Args: node: Ray's id of it."""

    def _judge(self, answers: Iterable[Answer]) -> None:
        for answer in answers:
            what = answer.problem or answer.value
            if what or not self._has_answered(answer.identity):
                self.close()
                text = self.message.format(node=answer.node, place=self.place, what=what or self.unseen)
                raise StorageNotShared(text)


class SharedStorage(StorageCheck):
    """Every node reads, writes and renames in the folder."""

    unseen = "wrote a file that is not seen here"
    message = (
        "node {node} does not share {place}: it {what}. Every node needs the same folder under the same path (NFS, "
        "Lustre, a shared volume): choose one with --storage, mount it on that node, or take the node out of the "
        "cluster."
    )

    def __init__(self, folder: Path, patience_s: float = PATIENCE_S) -> None:
        """Args: folder: of the sweep; a folder for the probes is made in it, and removed by `close`."""
        self.place = folder
        self._probes = folder / f".shared.{uuid.uuid4().hex[:8]}"
        self._word = uuid.uuid4().hex
        super().__init__(EveryNode(answer_probe, self._challenge, patience_s=patience_s))

    def close(self) -> None:
        """Remove the probes."""
        shutil.rmtree(self._probes, ignore_errors=True)

    def _challenge(self, node: str) -> tuple[str, str]:
        if not self._probes.exists():
            self._probes.mkdir(parents=True)
            (self._probes / CHALLENGE).write_text(self._word)
        return str(self._probes), node

    def _has_answered(self, node: str) -> bool:
        try:
            return (self._probes / node).read_text() == self._word
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
