"""What one more training asks for, and whether it has room: its class, what is measured of it, and the nodes. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from cluster.packing import Device, Node, Request
from cluster.resources import ATTACK, TRAINING, Shares, as_told
from cluster.room import Grant, Room
from sweeps.measured_memory import Needs
from sweeps.memory_classes import MemoryClass
from sweeps.resources_section import ResourcesSection

MOST_AT_ONCE = 10_000
"""A cluster whose cores nobody counted has room for any number of trainings without GPUs."""


class Admission:
    """Decides for one driver who may start, and with how much."""

    def __init__(self, wanted: ResourcesSection, shares: Shares, nodes: Sequence[Node], needs: Needs) -> None:
        """Args: shares: as planned for these nodes; nodes: with the memory of their devices where that counts."""
        self._wanted = wanted
        self._needs = needs if wanted.is_measured else Needs()
        self._asked: dict[MemoryClass | None, Request] = {}
        self._devices: tuple[Device, ...] = ()
        """One of each kind that there is or was: what has room on one that is lost waits for the next, and does not
        fail on a smaller one."""
        self._most_gpus: Mapping[str, float] = {}
        self.follow(shares, nodes)

    def follow(self, shares: Shares, nodes: Sequence[Node]) -> None:
        """Decide for these nodes from now on; what runs goes on with what it got."""
        pinned = None if self._wanted.concurrent == "auto" else self._wanted.concurrent
        attacks = Request(ATTACK, shares.evaluation_workers, shares.evaluation_cpus, shares.evaluation_gpus, True)
        self._shares = shares
        self._room = Room([as_told(node, shares) for node in nodes], attacks, pinned, self._most_gpus)
        self._most_gpus = self._room.most_gpus
        seen = [*(device for device in self._devices if device.memory_bytes is not None)]
        seen += [replace(device, node="", index=0) for node in nodes for device in node.devices]
        self._devices = tuple(dict.fromkeys(seen))
        self._asked.clear()
        self._has_room: tuple[object, bool] = (None, False)

    def grant(self, of: MemoryClass, times: float, running: Collection[Grant]) -> Grant | None:
        """Return what a training of this class gets beside those that run; None if it has no room now.

        Args: times: how many times as much as usual, because it had not enough memory before.
        """
        return self._room.grant(self._room.grown(self.request(of), times), running)

    def has_room(self, of: Collection[MemoryClass], running: Collection[Grant]) -> bool:
        """Return whether a training of any of these classes has room."""
        asked = (tuple(of), tuple(running))
        if asked != self._has_room[0]:  # the driver asks again and again while nothing ends
            requests = {str(r): r for r in (self._room.grown(self.request(one), 1.0) for one in of)}.values()
            found = any(self._room.grant(request, running) is not None for request in requests)
            self._has_room = asked, found
        return self._has_room[1]

    def holds(self, of: MemoryClass, times: float) -> bool:
        """Return whether these nodes have room for one such training at all. Args: times: as in `grant`."""
        return self._room.at_once(self._room.grown(self.request(of), times), 1) > 0

    def can_give(self, granted: Grant) -> bool:
        """Return whether one training can have this on these nodes."""
        return self._room.can_give(granted)

    def at_once(self, of: MemoryClass) -> int:
        """Return how many trainings of this class alone would run at once; 0 if one would wait for ever."""
        return self._room.at_once(self._room.grown(self.request(of), 1.0), MOST_AT_ONCE)

    def request(self, of: MemoryClass) -> Request:
        """Return what one training of this class asks for: on each kind of device the part of its memory that it
        needs, rounded up to 1/100, where that is known; else the share that was planned."""
        if of not in self._asked:
            self._asked[of] = Request(TRAINING, 1, self._shares.trial_cpus, self._gpus(of))
        return self._asked[of]

    def _gpus(self, of: MemoryClass) -> float | Mapping[str, float]:
        needed = self._bytes(of)
        if not needed:
            return self._shares.trial_gpus
        shares: dict[str, float] = {}
        for device in self._devices:
            share = self._share(device, needed.get(device.kind, _most(needed.values())))
            shares[device.accelerator] = max(share, shares.get(device.accelerator, 0.0))
        if "" in shares:  # Ray cannot be told not to put it on another kind
            shares[""] = max(shares.values())
        fitting = {kind: share for kind, share in shares.items() if share <= 1}
        return fitting or dict.fromkeys(shares, 1.0) or self._shares.trial_gpus

    def _share(self, device: Device, needed: float | None) -> float:
        """Return which part of a device so much memory is, rounded up to 1/100; as planned where that is unknown."""
        if device.memory_bytes is None:
            return self._shares.trial_gpus
        return math.inf if needed is None else math.ceil(round(100 * needed / device.memory_bytes, 6)) / 100

    def _bytes(self, of: MemoryClass) -> Mapping[str, float | None]:
        """Return by kind of device what a training of this class needs; None: more than all of it."""
        if self._wanted.memory_bytes is not None:
            return dict.fromkeys((device.kind for device in self._devices), self._wanted.memory_bytes)
        return self._needs.of("training", of)


def _most(needed: Collection[float | None]) -> float | None:
    """Return the most that is needed on any kind of device; None if it fits on none."""
    return max((value for value in needed if value is not None), default=None)
