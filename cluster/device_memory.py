"""How much memory the GPUs of a joined cluster have: Ray does not know it, so every node with GPUs is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cluster.connect import this_machine
from cluster.every_node import EveryNode
from cluster.packing import Node

Found = Sequence[tuple[str, int]]
"""Kind and memory in bytes of each device of a node."""


def with_memory(nodes: Sequence[Node], before: Sequence[Node] = ()) -> list[Node]:
    """Return the nodes with the kind and the memory of their GPUs, as far as they answer.

    Args:
        nodes: of the cluster that this process has joined (`connect.joined_nodes`), or with all memories known.
        before: nodes that have been asked; they, and new ones with as many of the same accelerator, are not asked.
    """
    nodes = [remembered(node, before) for node in nodes]
    if all(device.memory_bytes is not None for node in nodes for device in node.devices):
        return list(nodes)
    import ray

    mine = ray.get_runtime_context().get_node_id()
    found: dict[str, Found] = {mine[:8]: devices_here()}
    asked = EveryNode(devices_here, lambda node: (), able=True)
    found |= {answer.identity[:8]: answer.value for answer in asked.all_answers() if not answer.problem}
    return filled(nodes, found)


def remembered(node: Node, before: Sequence[Node]) -> Node:
    """Return the node with the devices that it, or one like it, had. Pure."""
    alike = [one for one in before if one.name == node.name] + [
        one
        for one in before
        if one.devices
        and [d.accelerator for d in one.devices] == [d.accelerator for d in node.devices]
        and all(device.accelerator for device in node.devices)
    ]
    if not alike or len(alike[0].devices) != len(node.devices):
        return node
    return replace(node, devices=tuple(replace(device, node=node.name) for device in alike[0].devices))


def devices_here() -> list[tuple[str, int]]:
    """Return kind and memory of each GPU that a process on this machine sees."""
    devices = this_machine().devices
    return [(device.kind, device.memory_bytes) for device in devices if device.memory_bytes is not None]


def filled(nodes: Sequence[Node], found: Mapping[str, Found]) -> list[Node]:
    """Return the nodes with what was found filled in. Pure.

    Args: found: by the first eight characters of the node's id, with which its name ends. A node that sees fewer
        devices than it offers, as in tests, is left as it is.
    """
    after = []
    for node in nodes:
        seen = found.get(node.name.rpartition(" ")[2], ())
        if len(seen) >= len(node.devices):
            pairs = zip(node.devices, seen, strict=False)
            devices = (replace(device, kind=kind, memory_bytes=memory) for device, (kind, memory) in pairs)
            node = replace(node, devices=tuple(devices))
        after.append(node)
    return after
