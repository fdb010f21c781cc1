"""A cluster that is described and not there: ``4x80GB``, ``2*(8xa100:80GB,64cpu)+16cpu``, or the settings of a start.

::

    CLUSTER = NODES + NODES …    NODES = 4x80GB | 3*(ITEM,ITEM) | (ITEM,ITEM)
    ITEM    = 4x80GB | 4xa100:80GB | 4xa100 | 4gpu | 64cpu

Each of NODES is one machine, or so many alike: 4x80GB is one machine with four GPUs of 80 GB. Where a machine with GPUs
has no ``cpu``, its cores are not counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster.packing import Device, Node
from cluster.resources import GB
from cluster.settings import TARGETS, ClusterSettings, parse_settings
from search_spaces.errors import ConfigError, Problem

NODES_TERM = re.compile(r"(?:(\d+)\*)?\(?([^()]+)\)?")
DEVICES_ITEM = re.compile(r"(\d+)x(?:([a-z][\w.-]*)(?::|$))?(?:(\d+)gb)?", re.IGNORECASE)
PLAIN_ITEM = re.compile(r"(\d+)(cpu|gpu)s?", re.IGNORECASE)
MOST_NODES, MOST_DEVICES = 1000, 64
"""Of a cluster, and of each node; more is taken for a slip of the pen (our choice)."""
EXAMPLE = "4x80GB, 2*(8xa100:80GB,64cpu)+16cpu, or a settings file of cluster/presets"


def read_nodes(text: str) -> list[Node]:
    """Return the nodes that a short description names: node 1, node 2 and so on.

    Raises: ConfigError with the part that cannot be read.

    [node.cpus for node in read_nodes("2*(1x24GB,8cpu)")]  # [8.0, 8.0]
    """
    nodes: list[Node] = []
    for term in re.sub(r"\s", "", text).split("+"):
        found = NODES_TERM.fullmatch(term)
        if found is None or (term.count("("), term.count(")")) not in ((0, 0), (1, 1)):
            raise _unreadable(text, term)
        count = int(found[1] or 1)
        if not 1 <= count <= MOST_NODES - len(nodes):
            raise _unreadable(text, term, f"expected 1 to {MOST_NODES} nodes")
        node = _read_node(text, found[2])
        nodes += [_named(node, f"node {len(nodes) + more}") for more in range(1, count + 1)]
    return nodes


def _read_node(text: str, items: str) -> Node:
    cpus: float | None = None
    kinds: list[tuple[str, int | None]] = []
    for item in items.split(","):
        plain, devices = PLAIN_ITEM.fullmatch(item), DEVICES_ITEM.fullmatch(item)
        if plain is not None and plain[2].lower() == "cpu":
            if cpus is not None:
                raise _unreadable(text, item, "cpu may be given once for a node")
            cpus = float(plain[1])
        elif plain is not None:
            kinds += [("GPU", None)] * _devices(text, item, plain[1])
        elif devices is not None and (devices[2] or devices[3]):
            memory = int(devices[3]) if devices[3] else None
            kinds += [(kind_of(devices[2], memory), memory)] * _devices(text, item, devices[1])
        else:
            raise _unreadable(text, item)
    if cpus is None and not kinds:
        raise _unreadable(text, items, "a node needs a GPU or a cpu")
    return _node("", math.inf if cpus is None else cpus, kinds)


def _devices(text: str, item: str, count: str) -> int:
    if len(count) > 3 or int(count) > MOST_DEVICES:
        raise _unreadable(text, item, f"expected at most {MOST_DEVICES} GPUs of a kind in a node")
    return int(count)


def nodes_of(document: Mapping[str, Any]) -> tuple[list[Node], list[Problem]]:
    """Return the nodes that take trials by the settings of a start, or every problem of the settings.

    What it is for is seen from the section that it has (slurm, ray, aws, kuberay); without any it is taken for slurm.
    """
    target = next((target for target in TARGETS if target in document), "slurm")
    settings, problems = parse_settings(document, target)
    return (_settled(settings, target), []) if settings is not None else ([], problems)


def _settled(settings: ClusterSettings, target: str) -> list[Node]:
    wanted = settings.nodes
    count = len(settings.ray.workers) + 1 if target == "ray" else wanted.count
    if target in ("slurm", "ray") and not settings.head_takes_trials(target):
        count -= 1
    kind = kind_of(wanted.gpu_type, wanted.gpu_memory_gb)
    return [
        _node(f"node {number}", float(wanted.cpus), [(kind, wanted.gpu_memory_gb)] * wanted.gpus)
        for number in range(1, count + 1)
    ]


def kind_of(name: str | None, memory_gb: int | None) -> str:
    """Return what a kind of device is called: "a100 80 GB", "80 GB", "a100", or "GPU" where nothing is known."""
    return " ".join(part for part in (name or "", f"{memory_gb} GB" if memory_gb else "") if part) or "GPU"


def _node(name: str, cpus: float, kinds: Sequence[tuple[str, int | None]]) -> Node:
    size = {memory: None if memory is None else memory * GB for _, memory in kinds}
    devices = (Device(name, index, kind, size[memory], kind) for index, (kind, memory) in enumerate(kinds))
    return Node(name, cpus, tuple(devices))


def _named(node: Node, name: str) -> Node:
    return replace(node, name=name, devices=tuple(replace(device, node=name) for device in node.devices))


def _unreadable(text: str, part: str, expected: str = "expected GPUs and CPUs of a node") -> ConfigError:
    found = f"found {part!r}" + (f" in {text!r}" if part != text else "")
    return ConfigError([Problem((), f"{expected}; {found}.", f"Write {EXAMPLE}.", source="--on")])
