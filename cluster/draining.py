"""Leaving a node that ends: Ray is told to start nothing new there, and what runs goes on until it comes to a break.

Whoever notices first that the next piece of work would not fit tells Ray: a training before an epoch, an attack before
a unit of images. Else Ray would give the place that has become free to the next of them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from typing import Any

from cluster.ending import ends_at, fits
from search_spaces.errors import NodeEnding

ANSWER_S = 5
"""The head answers within so many seconds, or the next piece of work asks again (our choice)."""


class Units:
    """Pieces of work of about one size, one after the other, of which none begins that could not end on this node."""

    def __init__(self, what: str, longest_s: float | None = None, clock: Callable[[], float] = time.time) -> None:
        """Args: what: for the error's text; longest_s: what one has taken at most so far, None: not known."""
        self._what, self._clock = what, clock
        self._began_at: float | None = None
        self.longest_s = longest_s

    def require(self) -> None:
        """The next piece begins now, and the one before it has ended. Raises NodeEnding if it would not fit."""
        now = self._clock()
        if self._began_at is not None:
            self.longest_s = max(now - self._began_at, self.longest_s or 0.0)
        self._began_at = now
        end = ends_at()
        if end is not None and not fits(self.longest_s, now, end):
            drain_this_node(self._what, end)
            raise NodeEnding(f"{self._what}: the node ends in {end - now:.0f} s, too soon to go on there.")


def drain_this_node(why: str, end: float) -> None:
    """Have Ray start nothing new on the node of this worker, which ends at `end`; without Ray nothing happens."""
    import ray

    if not ray.is_initialized():
        return
    reason = import_module("ray.core.generated.autoscaler_pb2").DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    context = ray.get_runtime_context()
    at_ms = int(max(end, time.time() + 1) * 1000)
    with contextlib.suppress(ray.exceptions.RayError):  # who asks next meets the same end
        head = import_module("ray._raylet").GcsClient(address=context.gcs_address)
        head.drain_node(context.get_node_id(), reason, why, at_ms, timeout=ANSWER_S)


def staying_nodes() -> list[dict[str, Any]]:
    """Return the nodes of the cluster that this process has joined, as ``ray.nodes()``, without those that drain."""
    import ray

    return without(ray.nodes(), draining_nodes())


def draining_nodes() -> frozenset[str]:
    """Return the ids of the nodes that take nothing new, of the cluster that this process has joined."""
    return frozenset(import_module("ray._private.state").state.get_draining_nodes())


def without(listed: Sequence[Mapping[str, Any]], draining: Collection[str]) -> list[dict[str, Any]]:
    """Return the nodes that are not named. Args: draining: ids."""
    return [dict(node) for node in listed if node["NodeID"] not in draining]
