"""Following a cluster while a sweep runs: which nodes are alive, and how many trainings have room on them.

Nodes come and go: spot machines, jobs of a batch system, broken ones. What one training and one attack get is fixed
when the driver starts; how many train at once follows the nodes. Ray itself moves the attacks' reserved share to
another node when its own is lost, as soon as one has room.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from cluster.connect import joined_nodes
from cluster.draining import staying_nodes
from cluster.packing import Node
from cluster.resources import TRAINING, Shares, lay_out

LOOK_S = 3.0
"""Between two looks at the nodes (our choice; Ray takes 15 s to notice that one is lost)."""


@dataclass(frozen=True)
class Change:
    """What a look at the cluster has found."""

    shares: Shares
    nodes: Sequence[Node]
    text: str
    """For people."""


class ClusterWatch:
    """Looks at the nodes of the cluster that this process has joined."""

    def __init__(
        self,
        shares: Shares,
        pinned: int | None,
        known: Callable[[Sequence[Node]], Sequence[Node]] = lambda nodes: nodes,
        planned: Sequence[Node] | None = None,
    ) -> None:
        """Say what to look for.

        Args:
            shares: as planned at the start.
            pinned: most trainings at once that are wanted, None: as fit.
            known: fills in the memory of the nodes' devices.
            planned: the nodes that the shares were planned for, so that those that came or went since then are a
                change; None: those that are alive now.
        """
        self._pinned, self._known = pinned, known
        nodes = joined() if planned is None else planned
        self._seen = {node.name for node in nodes}
        self._looked_at = time.monotonic()
        self.shares = following(shares, trainings_with_room(shares, nodes), pinned)
        """As the nodes are now."""

    def look(self) -> Change | None:
        """Return what has changed; None if nothing has, or if it was looked a moment ago."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_S:
            return None
        self._looked_at = now
        nodes = joined()
        names, before = {node.name for node in nodes}, self._seen
        if names == before:
            return None
        self._seen = names
        room = trainings_with_room(self.shares, nodes)
        self.shares = following(self.shares, room, self._pinned)
        count = self.shares.concurrent if room else 0
        return Change(self.shares, self._known(nodes), describe(sorted(before - names), sorted(names - before), count))


def joined() -> list[Node]:
    """Return the living nodes of the cluster that this process has joined; one that drains takes nothing more."""
    return joined_nodes(staying_nodes())


def trainings_with_room(shares: Shares, nodes: Sequence[Node]) -> int:
    """Return how many trainings fit on these nodes beside the reserved share of the attacks. Pure."""
    most = int(sum(node.cpus for node in nodes) // shares.trial_cpus)
    return lay_out(replace(shares, concurrent=most), nodes).count(TRAINING)


def following(shares: Shares, room: int, pinned: int | None) -> Shares:
    """Return the shares with as many trainings at once as have room, and not more than pinned.

    At least one, which waits where there is no room: an autoscaler starts nodes for what waits, and for nothing else.
    """
    return replace(shares, concurrent=max(1, room if pinned is None else min(room, pinned)))


def describe(lost: Collection[str], joined: Collection[str], count: int) -> str:
    """Say what has changed: "lost node b 1f00: 3 trainings at once". Args: count: of trainings that have room."""
    told = [f"{what} {', '.join(names)}" for what, names in (("lost node", lost), ("joined by node", joined)) if names]
    after = f"{count} training{'' if count == 1 else 's'} at once" if count else "no node can take a training: waiting"
    return f"{'; '.join(told)}: {after}"
