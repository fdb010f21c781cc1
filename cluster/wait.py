"""Waiting until a cluster has the nodes that a sweep is to start on, and asking an autoscaler for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.authentication import agree
from cluster.connect import joined_nodes
from cluster.draining import staying_nodes
from search_spaces.errors import SweepError

POLL_S = 5.0


class NoNodes(SweepError):
    """No node has come that could train."""


def wait_until(
    wanted: int,
    count: Callable[[], int],
    minutes: float,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Return how many nodes there are as soon as all have come, or when the time is up.

    Args:
        count: returns how many there are; a line is said whenever that changes.
    Raises: NoNodes when the time is up and there is none.
    """
    end, said = clock() + 60 * minutes, -1
    while True:
        there = count()
        if there >= wanted:
            return there
        if there != said:
            say(f"{there} of {wanted} nodes are there")
            said = there
        if clock() >= end:
            break
        sleep(POLL_S)
    if there == 0:
        raise NoNodes(f"none of {wanted} nodes has come in {minutes:g} minutes; the cluster's own log says why.")
    say(f"starting with {there} of {wanted} nodes: the others have not come in {minutes:g} minutes")
    return there


def wait_for_nodes(
    address: str, wanted: int, cpus: float, gpus: float, minutes: float, say: Callable[[str], None]
) -> int:
    """Join the cluster, wait for `wanted` nodes with so many CPUs and GPUs each, and leave it again.

    An autoscaler is asked for them, and let go when they are there: what trials need then keeps them.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    agree(address, say)
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        request_resources(bundles=[{"CPU": cpus} | ({"GPU": gpus} if gpus else {})] * wanted)
        try:
            return wait_until(wanted, lambda: able_nodes(staying_nodes(), cpus, gpus), minutes, say)
        finally:
            request_resources(bundles=[])
    finally:
        ray.shutdown()


def able_nodes(nodes: Sequence[Mapping[str, Any]], cpus: float, gpus: float) -> int:
    """Count the living nodes, as ``ray.nodes()`` lists them, that have so many CPUs and GPUs."""
    return sum(node.cpus >= cpus and len(node.devices) >= gpus for node in joined_nodes(nodes))
