"""Whether every node of a cluster reaches the sweep's object store, and the same one as the driver.

An address such as localhost:9000 is another server on each node; so each reads what the driver wrote there, and the
driver looks for the answer.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from cluster.every_node import PATIENCE_S, EveryNode
from cluster.object_store import ObjectStore
from cluster.shared_storage import CHALLENGE, SharedStorage, StorageCheck
from search_spaces.errors import ObjectStoreError
from search_spaces.object_uri import ObjectUri


class SharedObjects(StorageCheck):
    """Every node reads, writes, lists and deletes there."""

    unseen = "wrote an object that is not seen here"
    message = (
        "node {node} does not share {place}: it {what}. Every node needs the same server under the same address, and "
        "credentials (AWS_ACCESS_KEY_ID … in its environment, or the machine's role) that may put, get, list and "
        "delete there: give it those, or take the node out of the cluster."
    )

    def __init__(self, place: ObjectUri, patience_s: float = PATIENCE_S) -> None:
        """Args: place: of the sweep; objects for the probes are made there, and removed by `close`."""
        self.place = place
        self._probes = place.joined(f".shared.{uuid.uuid4().hex[:8]}")
        self._store = ObjectStore(self._probes)
        self._word = uuid.uuid4().hex.encode()
        self._has_asked = False
        super().__init__(EveryNode(answer_objects, self._challenge, patience_s=patience_s))

    def close(self) -> None:
        """Remove the probes."""
        if self._has_asked:
            self._has_asked = False
            self._store.delete_folder("")

    def _challenge(self, node: str) -> tuple[str, str]:
        if not self._has_asked:
            self._store.put_object(CHALLENGE, self._word)
            self._has_asked = True
        return str(self._probes), node

    def _has_answered(self, node: str) -> bool:
        return self._store.read(node) == self._word


def answer_objects(place: str, name: str) -> str:
    """Copy the driver's word into an object of this node's own, and list and delete another one. Runs on the node.

    Returns: what is wrong, as the end of a sentence about the node; empty if nothing is.
    """
    store = ObjectStore(ObjectUri.read(place))
    try:
        word = store.read(CHALLENGE)
        if word is None:
            return "cannot read what the driver wrote there (no such object)"
        store.put_object(f"{name}.gone", word)
        store.delete_object(f"{name}.gone")
        store.put_object(name, word)
        return "" if name in store.sizes() else "does not list what it wrote"
    except ObjectStoreError as error:
        return f"is refused there ({error})"


def storage_check(folder: Path, objects: ObjectUri | None) -> StorageCheck:
    """Return what asks the nodes about a sweep's storage. Args: folder: for probes; objects: instead of it, if any."""
    return SharedStorage(folder) if objects is None else SharedObjects(objects)


def require_storage(folder: Path, objects: ObjectUri | None) -> None:
    """Ask every node once. Args: as `storage_check`. Raises: StorageNotShared."""
    probe = storage_check(folder, objects)
    try:
        probe.require()
    finally:
        probe.close()
