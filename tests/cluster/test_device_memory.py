from __future__ import annotations

from cluster.described import read_nodes
from cluster.device_memory import devices_here, filled, with_memory
from cluster.packing import Device, Node
from cluster.resources import GB

NAME = "host 01234567"


def test_what_a_node_sees_is_filled_in_device_by_device() -> None:
    nodes = [Node(NAME, 8, (Device(NAME, 0), Device(NAME, 1))), Node("head 89abcdef", 4)]
    after = filled(nodes, {"01234567": [("L4 22 GB", 22 * GB), ("H200 139 GB", 139 * GB)], "89abcdef": []})
    assert after[0].devices == (Device(NAME, 0, "L4 22 GB", 22 * GB), Device(NAME, 1, "H200 139 GB", 139 * GB))
    assert after[1] == nodes[1]


def test_a_node_that_sees_fewer_devices_than_it_offers_or_does_not_answer_stays_unknown() -> None:
    nodes = [Node(NAME, 8, (Device(NAME, 0), Device(NAME, 1)))]
    assert filled(nodes, {"01234567": [("L4 22 GB", 22 * GB)]}) == nodes
    assert filled(nodes, {}) == nodes


def test_nobody_is_asked_where_all_is_known() -> None:
    known = read_nodes("4x80GB,8cpu+16cpu")
    assert with_memory(known) == known  # Ray does not run here


def test_every_gpu_here_has_a_kind_and_a_memory() -> None:
    assert all(kind and memory > 0 for kind, memory in devices_here())
