"""Who runs where: a pure function from what is asked for and the nodes that there are to a plan.

Reserved requests, the attacks, are placed first: over the nodes in turn, on a node on the fullest device that has room,
so that whole devices are left to trainings. The others go to the device that has most left, so that none idles while
another is shared; among equals first to device 0 of every node, then to device 1. Amounts count in ten-thousandths, as
Ray counts them.

A request is unplaced only if nothing has room for it. Of requests of one kind as many are placed as any plan could
beside the same reservations: what a device or a node still holds does not depend on where the others went. Several
kinds are placed in the order given, each as often as it fits, which need not be the most in all.

Differs from what Ray does with it: Ray keeps to the same capacities and puts the attacks' placement group on different
nodes (SPREAD), but chooses the nodes and devices itself, and stacks trainings on one device while another idles. The
numbers are those of the plan whenever the reservations fall on nodes like those planned; which device is Ray's choice.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

UNIT = 10_000
"""Parts of a CPU or a GPU that are told apart."""


@dataclass(frozen=True)
class Device:
    """One GPU."""

    node: str
    index: int
    """From 0, in its node."""
    kind: str = "GPU"
    """What devices that are alike have in common."""
    memory_bytes: int | None = None
    """None where it is not known."""
    accelerator: str = ""
    """By what name Ray tells this kind from others on a cluster; empty where it does not."""


@dataclass(frozen=True)
class Node:
    """One machine."""

    name: str
    """Unique."""
    cpus: float
    """Cores that may be used; inf where they are not counted."""
    devices: tuple[Device, ...] = ()
    started_here: bool = False
    """Whether Ray is started for the sweep on this machine alone, and told as many CPUs as the sweep needs."""


def by_accelerator(node: Node) -> Node:
    """Return the node with its devices' kinds as Ray tells them apart; the empty name stands for what it does not."""
    return replace(node, devices=tuple(replace(device, kind=device.accelerator) for device in node.devices))


@dataclass(frozen=True)
class Request:
    """So many times the same."""

    name: str
    """Unique."""
    count: int
    cpus: float
    gpus: float | Mapping[str, float] = 0.0
    """Up to 1 a share of one device, above it whole devices of one node; by kind of device where that matters, kinds
    that are not named are not used."""
    reserved: bool = False
    """Whether it is placed before all that are not."""

    def share(self, kind: str) -> float | None:
        """Return what it takes of a device of that kind; None if it cannot use one."""
        return self.gpus.get(kind) if isinstance(self.gpus, Mapping) else self.gpus


@dataclass(frozen=True)
class Placement:
    """One of a request, and where it is."""

    request: str
    node: str
    devices: tuple[int, ...]
    """Indices of the devices, none without GPUs; several are whole ones."""
    cpus: float
    gpus: float
    """Of each of its devices, or 0."""


@dataclass(frozen=True)
class Unplaced:
    """Those of a request that have no room."""

    request: str
    count: int
    why: str


@dataclass(frozen=True)
class Packing:
    """What is where, what is left, and what has no room."""

    placements: tuple[Placement, ...]
    cpus_left: Mapping[str, float]
    """By node."""
    gpus_left: Mapping[tuple[str, int], float]
    """By node and index of the device: from 0 to 1."""
    unplaced: tuple[Unplaced, ...]

    def count(self, request: str) -> int:
        """Return how many of a request are placed."""
        return sum(placement.request == request for placement in self.placements)


def pack(requests: Sequence[Request], nodes: Sequence[Node]) -> Packing:
    """Return where each request goes. Same arguments, same plan.

    Raises: ValueError if two nodes, or two requests, have one name.

    pack([Request("training", 3, 1, 0.5)], [Node("a", 8, (Device("a", 0),))]).count("training")  # 2
    """
    for what, names in (("node", [n.name for n in nodes]), ("request", [r.name for r in requests])):
        if len(set(names)) < len(names):
            raise ValueError(f"every {what} needs a name of its own; found {', '.join(names)}")
    room = _Room(nodes)
    placements: list[Placement] = []
    unplaced: list[Unplaced] = []
    for request in sorted(requests, key=lambda request: not request.reserved):
        placed = list(room.place(request))
        placements += placed
        if missing := request.count - len(placed):
            unplaced.append(Unplaced(request.name, missing, _why(request, nodes)))
    return Packing(
        tuple(placements),
        {node.name: room.cpus[node.name] / UNIT for node in nodes},
        {
            (node.name, device.index): room.gpus[node.name, device.index] / UNIT
            for node in nodes
            for device in node.devices
        },
        tuple(unplaced),
    )


@dataclass(frozen=True)
class _Spot:
    """Where one of a request may go: a node, and the devices of it among which to choose."""

    node: Node
    devices: tuple[Device, ...]


class _Room:
    """What is left while a plan is made, in parts of `UNIT`."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self.cpus = {node.name: _parts(node.cpus) for node in nodes}
        self.gpus = {(node.name, device.index): float(UNIT) for node in nodes for device in node.devices}

    def place(self, request: Request) -> Iterator[Placement]:
        """Take the room of as many as fit. A spot that has no room once has none later, and is looked at no more."""
        on_node = dict.fromkeys(self.cpus, 0)
        rank: Callable[[_Spot], float] = (lambda s: on_node[s.node.name]) if request.reserved else self._most_left
        spots = self._spots(request)
        heap = [(rank(spot), order) for order, spot in enumerate(spots)]
        heapq.heapify(heap)
        placed = 0
        while heap and placed < request.count:
            _, order = heapq.heappop(heap)
            placement = self._take(request, spots[order])
            if placement is None:
                continue
            placed += 1
            on_node[placement.node] += 1
            heapq.heappush(heap, (rank(spots[order]), order))
            yield placement

    def _spots(self, request: Request) -> list[_Spot]:
        """List the spots of a request, best ones first among equals."""
        usable = {n.name: tuple(d for d in n.devices if request.share(d.kind) is not None) for n in self._nodes}
        shares = isinstance(request.gpus, Mapping) or 0 < request.gpus <= 1
        if request.reserved or not shares:
            return [_Spot(node, usable[node.name]) for node in self._nodes]
        spots = [_Spot(node, (device,)) for node in self._nodes for device in usable[node.name]]
        return sorted(spots, key=lambda spot: spot.devices[0].index)

    def _most_left(self, spot: _Spot) -> float:
        """Rank a spot by its room, the largest first: of its devices, or of the node's cores where it has none."""
        if not spot.devices:
            return -self.cpus[spot.node.name]
        return -sum(self.gpus[device.node, device.index] for device in spot.devices)

    def _take(self, request: Request, spot: _Spot) -> Placement | None:
        """Take the room of one; None if there is none."""
        cpus = _parts(request.cpus)
        chosen = self._choose(request, spot)
        if chosen is None or cpus > self.cpus[spot.node.name]:
            return None
        devices, share = chosen
        self.cpus[spot.node.name] -= cpus
        for device in devices:
            self.gpus[device.node, device.index] -= _parts(share)
        return Placement(request.name, spot.node.name, tuple(d.index for d in devices), request.cpus, share)

    def _choose(self, request: Request, spot: _Spot) -> tuple[tuple[Device, ...], float] | None:
        """Return the devices of a spot that one takes, and how much of each; None if they have no room."""
        if request.gpus == 0:
            return (), 0.0
        if isinstance(request.gpus, float | int) and request.gpus > 1:
            free = [device for device in spot.devices if self.gpus[device.node, device.index] == UNIT]
            wanted = math.ceil(request.gpus)
            return (tuple(free[:wanted]), 1.0) if len(free) >= wanted else None
        fitting = [
            (self.gpus[device.node, device.index], device.index, device, share)
            for device in spot.devices
            if (share := request.share(device.kind)) is not None
            and _parts(share) <= self.gpus[device.node, device.index]
        ]
        if not fitting:
            return None
        _, _, device, share = min(fitting, key=lambda one: one[:2])
        return (device,), share


def _parts(amount: float) -> float:
    """Return an amount in parts of `UNIT`, whole unless it is infinite."""
    return amount if math.isinf(amount) else round(amount * UNIT)


def _why(request: Request, nodes: Sequence[Node]) -> str:
    """Say why one of a request has no room."""
    cores = max((node.cpus for node in nodes), default=0.0)
    most = max((len(node.devices) for node in nodes), default=0)
    kinds = dict.fromkeys(device.kind for node in nodes for device in node.devices)
    if request.cpus > cores:
        return f"it needs {request.cpus:g} CPUs on one node, and none has more than {cores:g}"
    if request.gpus and not kinds:
        return "it needs a GPU, and no node has one"
    if isinstance(request.gpus, Mapping):
        if not any(request.share(kind) is not None for kind in kinds):
            return f"it fits on none of the GPUs ({', '.join(kinds)})"
    elif request.gpus > most:
        return f"it needs {request.gpus:g} GPUs of one node, and none has more than {most}"
    return "what is there is taken"
