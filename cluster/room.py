"""Whether one more training has room beside those that run, and on which kind of device. Pure.

What trainings take may differ: by the class of their configuration, by the kind of device, and after one had not enough
memory. Ray is asked for the share that was granted here, on that kind of device; which one of them it is, is Ray's
choice, so that a training may have to wait although it fits by these numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.packing import Node, Request, by_accelerator, pack

ACCELERATOR = "accelerator_type:"
"""What the name of the resource begins with by which Ray tells the kind of a node's GPUs."""
ASKED_OF_TYPE = 0.001
"""Of Ray's resource for a kind of accelerator, of which each node has 1: more trainings than fit could ask for it."""


@dataclass(frozen=True)
class Grant:
    """What one training gets."""

    cpus: float
    gpus: float = 0.0
    """Up to 1 a share of one device, above it whole devices of one node."""
    kind: str | None = None
    """The only kind of device that it may run on, by Ray's name of it; None is any."""
    is_whole: bool = False
    """Whether no training can get more of a GPU."""

    def request(self, name: str, count: int) -> Request:
        """Return so many of these, as a packing takes them."""
        return Request(name, count, self.cpus, self.gpus if self.kind is None else {self.kind: self.gpus})

    def resources(self) -> dict[str, float]:
        """Return what Ray is asked for."""
        found = {"CPU": self.cpus, "GPU": self.gpus}
        if self.kind:
            found[f"{ACCELERATOR}{self.kind}"] = ASKED_OF_TYPE
        return {name: amount for name, amount in found.items() if amount}


class Room:
    """The nodes, and what is reserved on them. Kinds of devices are those that Ray tells apart (Device.accelerator)."""

    def __init__(
        self,
        nodes: Sequence[Node],
        attacks: Request,
        most: int | None = None,
        before: Mapping[str, float] | None = None,
    ) -> None:
        """Say what there is.

        Args:
            nodes: as Ray was told of them.
            attacks: the reserved share.
            most: trainings at once, None: as fit.
            before: `most_gpus` of the room on the nodes that there were before: what could be had comes back with them.
        """
        self._nodes = [by_accelerator(node) for node in nodes]
        self._attacks = attacks
        self._most = most
        empty = pack([attacks], self._nodes)
        self.most_cpus = max((cpus for cpus in empty.cpus_left.values()), default=math.inf)
        """The most cores that one training can have beside the attacks."""
        self.most_gpus: dict[str, float] = dict(before or {})
        """The largest share that one training can have of a device beside the attacks, by kind."""
        devices = [device for node in self._nodes for device in node.devices]
        counts = Counter(device.kind for device in devices)
        for device in devices:
            left = empty.gpus_left[device.node, device.index]
            beside = 1 - (attacks.share(device.kind) or 0.0)
            if len(counts) > 1 and counts[device.kind] <= attacks.count and beside > 0:
                left = min(left, beside)  # Ray may put the attacks on all devices of this kind
            self.most_gpus[device.kind] = max(left, self.most_gpus.get(device.kind, 0.0))
        self._alone: dict[Grant, bool] = {}

    def grown(self, request: Request, times: float) -> Request:
        """Return the request for so many times as much: of a GPU up to what one device has beside the attacks, and
        without GPUs of the cores. Whole devices stay as many.

        Kinds of devices that have not so much are not asked for, if others have it; if none has, those that have most.

        Args: times: at least 1.
        """
        if isinstance(request.gpus, Mapping):
            reach = {kind: self._most_of(kind) / share for kind, share in request.gpus.items()}
            if not any(reach.values()):  # the attacks have it all: it waits, and does not train without
                return request
            enough = min(times, max(reach.values())) - 1e-9
            far = {kind: share for kind, share in request.gpus.items() if reach[kind] >= enough}
            return replace(request, gpus={kind: self._grown(share, times, kind) for kind, share in far.items()})
        if 0 < request.gpus <= 1:
            return replace(request, gpus=self._grown(request.gpus, times, None))
        if request.gpus:
            return request
        return replace(request, cpus=max(request.cpus, min(request.cpus * times, self.most_cpus)))

    def _grown(self, share: float, times: float, kind: str | None) -> float:
        return min(share * times, self._most_of(kind))

    def _most_of(self, kind: str | None) -> float:
        """Return the largest share that one training can have of a device of a kind, or of any."""
        if kind is not None:
            return self.most_gpus.get(kind, 1.0)
        return max(self.most_gpus.values(), default=1.0)

    def grant(self, request: Request, running: Collection[Grant]) -> Grant | None:
        """Return what one such training gets beside those that run; None if it has no room now.

        With nothing running it gets its share whether there is room or not, and waits for it inside Ray: an autoscaler
        starts nodes for what waits, and for nothing else.
        """
        if self._most is not None and len(running) >= self._most:
            return None
        found = next((grant for grant in self._choices(request, running)), None)
        return found if found is not None or running else self._waiting(request)

    def at_once(self, request: Request, most: int) -> int:
        """Return how many such trainings have room where no other runs, counted up to `most`."""
        count = most if self._most is None else min(most, self._most)
        return pack([self._attacks, replace(request, name="alike", count=count)], self._nodes).count("alike")

    def _choices(self, request: Request, running: Collection[Grant]) -> Iterator[Grant]:
        """Yield what it may get: where most is left beside those that run; or, where they would have to lie in another
        way, of each kind. All are laid out in the order of their size, because small ones find room behind large ones.

        What runs and has no room on these nodes at all takes none of theirs: its node is lost, or has yet to come.
        """
        groups = Counter(grant for grant in running if self.can_give(grant))
        before = [grant.request(f"running {place}", count) for place, (grant, count) in enumerate(groups.items())]
        before.sort(key=_size, reverse=True)
        one = replace(request, name="one more", count=1, reserved=False)
        asked = request.gpus.items() if isinstance(request.gpus, Mapping) else [(None, request.gpus)]
        each = [replace(one, gpus=share if kind is None else {kind: share}) for kind, share in asked]
        orders = [[*before, one], *(sorted([*before, single], key=_size, reverse=True) for single in each)]
        kinds = {(device.node, device.index): device.kind for node in self._nodes for device in node.devices}
        for order in orders if before else orders[:1]:
            packing = pack([self._attacks, *order], self._nodes)
            if not any(unplaced.request != self._attacks.name for unplaced in packing.unplaced):
                found = next(placement for placement in packing.placements if placement.request == one.name)
                kind = kinds[found.node, found.devices[0]] if found.devices else None
                yield self._granted(request, found.gpus if isinstance(request.gpus, Mapping) else request.gpus, kind)

    def can_give(self, grant: Grant) -> bool:
        """Return whether these nodes have so much where nothing runs."""
        if grant not in self._alone:
            self._alone[grant] = not pack([grant.request("alone", 1)], self._nodes).unplaced
        return self._alone[grant]

    def _waiting(self, request: Request) -> Grant:
        """Return what a training waits for that has no room though nothing runs: the least that is asked for."""
        if not isinstance(request.gpus, Mapping):
            return self._granted(request, request.gpus, None)
        share, kind = min((share, kind) for kind, share in request.gpus.items())
        return self._granted(request, share, kind)

    def _granted(self, request: Request, share: float, kind: str | None) -> Grant:
        if not isinstance(request.gpus, Mapping):
            return Grant(request.cpus, share, None, bool(share) and share >= self._most_of(None) - 1e-9)
        reach = {name: self._most_of(name) / least for name, least in request.gpus.items()}
        whole = all(reach[name] <= 1 + 1e-9 for name in reach)
        return Grant(request.cpus, share, kind if len(self.most_gpus) > 1 else None, whole)


def _size(request: Request) -> tuple[float, float]:
    """Return how much one takes: of a GPU, then of the cores."""
    share = max(request.gpus.values()) if isinstance(request.gpus, Mapping) else request.gpus
    return share, request.cpus
