"""How much of the machine a trial and an evaluation take, and how many run at once. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.packing import Node, Packing, Request, pack

GB = 2**30
"""Bytes of one GB of GPU memory: a card that is sold with 80 GB has 80 of these."""
TRAINING, ATTACK = "training", "attack"
"""The requests of a sweep, as a packing names them."""
EVALUATION_GPU_SHARE = 0.25
"""Share of one GPU kept for attacks when `resources` says auto (our choice, until shares are measured)."""


@dataclass(frozen=True)
class Shares:
    """What is running at once. Evaluation has a reserved share of its own, which no trial can take."""

    concurrent: int
    """Trainings at once."""
    trial_cpus: float
    trial_gpus: float
    evaluation_workers: int
    """Evaluations at once while trials train; when training is over they may use everything."""
    evaluation_cpus: float
    evaluation_gpus: float
    largest_gpus: float = 0.0
    """The most of a GPU that one training can have beside the evaluation's share."""

    def grown(self, times: float) -> Shares:
        """Return the shares when each training gets so many times as much: of a GPU, up to a whole one, and without
        GPUs of the cores, up to all that the trainings have; accordingly fewer train at once. times >= 1."""
        if self.trial_gpus:
            gpus = max(self.trial_gpus, min(self.trial_gpus * times, self.largest_gpus))
            fewer = max(1, int(self.concurrent * self.trial_gpus / gpus + 1e-9))
            return replace(self, concurrent=fewer, trial_gpus=gpus)
        cpus = max(self.trial_cpus, min(self.trial_cpus * times, self.concurrent * self.trial_cpus))
        return replace(self, concurrent=max(1, int(self.concurrent * self.trial_cpus / cpus + 1e-9)), trial_cpus=cpus)

    @property
    def draining_workers(self) -> int:
        """Evaluations at once when no trial trains any more: those that fit into the trials' shares."""
        per_trial = self.trial_cpus // self.evaluation_cpus if self.evaluation_cpus else 1
        if self.evaluation_gpus:
            per_trial = min(per_trial, self.trial_gpus // self.evaluation_gpus)
        return max(self.evaluation_workers, self.concurrent * max(1, int(per_trial)))

    def public(self) -> dict[str, float]:
        """Return what one training and one attack get: CPU cores and shares of a GPU."""
        names = ("trial_cpus", "trial_gpus", "evaluation_cpus", "evaluation_gpus")
        return {name: getattr(self, name) for name in names}

    def describe(self) -> str:
        """Return one line for people."""
        trial = f"{self.trial_cpus:g} CPU" + (f", {self.trial_gpus:g} GPU" if self.trial_gpus else "")
        attack = f"{self.evaluation_cpus:g} CPU" + (f", {self.evaluation_gpus:g} GPU" if self.evaluation_gpus else "")
        return f"{self.concurrent} trials at once ({trial} each), {self.evaluation_workers} evaluation ({attack})"


def plan_shares(
    nodes: Sequence[Node],
    *,
    concurrent: int | None,
    trial_cpus: float,
    trial_gpus: float | None,
    evaluation_workers: int | None,
    evaluation_cpus: float,
    evaluation_gpus: float | None,
    trial_memory_bytes: float | None = None,
    evaluation_memory_bytes: float | None = None,
) -> Shares:
    """Decide the shares on these nodes; None means "choose". Trainings at once are as many as fit (`lay_out`).

    On one machine without GPUs a trial takes `trial_cpus` and all of them are used; evaluation comes on top, because it
    is short and a core kept free for it would idle. On GPUs evaluation reserves a part of one device and trials get the
    rest of it: a share of 1 − EVALUATION_GPU_SHARE, one trial per device. Where the memory is known that one takes, its
    share is that memory's part of the device; Ray is given one share for all devices, the largest (`shares_by_kind`).
    """
    some = any(node.devices for node in nodes)
    of_trial = _largest(trial_memory_bytes, nodes)
    of_attack = _largest(evaluation_memory_bytes, nodes)
    attack_gpus = _first(evaluation_gpus, of_attack, EVALUATION_GPU_SHARE if some else 0.0)
    share = _first(trial_gpus, of_trial, 1 - EVALUATION_GPU_SHARE if some else 0.0)
    wanted = Shares(
        concurrent=concurrent or 1,
        trial_cpus=trial_cpus,
        trial_gpus=share,
        evaluation_workers=evaluation_workers or 1,
        evaluation_cpus=evaluation_cpus,
        evaluation_gpus=attack_gpus,
    )
    most = sum(_most(wanted, node) for node in nodes)
    fitting = lay_out(replace(wanted, concurrent=most), nodes).count(TRAINING)
    return replace(wanted, concurrent=concurrent or max(1, fitting), largest_gpus=_largest_share(wanted, nodes))


def lay_out(shares: Shares, nodes: Sequence[Node]) -> Packing:
    """Return where the attacks' reserved shares and the trainings go."""
    return pack(
        [*_attacks(shares), Request(TRAINING, shares.concurrent, shares.trial_cpus, shares.trial_gpus)],
        [_as_told(node, shares) for node in nodes],
    )


def lay_out_by_kind(
    shares: Shares, nodes: Sequence[Node], trial_memory_bytes: float, evaluation_memory_bytes: float | None
) -> Packing:
    """Return what would fit if each kind of device had a share of its own; Ray is not told so."""
    by_kind = shares_by_kind(trial_memory_bytes, nodes)
    attack = shares_by_kind(evaluation_memory_bytes, nodes) if evaluation_memory_bytes else shares.evaluation_gpus
    most = sum(_most(replace(shares, trial_gpus=min(by_kind.values(), default=1.0)), node) for node in nodes)
    requests = [
        Request(ATTACK, shares.evaluation_workers, shares.evaluation_cpus, attack, reserved=True),
        Request(TRAINING, most, shares.trial_cpus, by_kind),
    ]
    return pack(requests, [_as_told(node, shares) for node in nodes])


def shares_by_kind(memory_bytes: float, nodes: Sequence[Node]) -> dict[str, float]:
    """Return which share of a device of each kind so much memory is, rounded up to 1/100.

    Kinds that have less memory, or an unknown amount, are left out. Of one kind the smallest device counts.

    shares_by_kind(20 * 2**30, [Node("a", 8, (Device("a", 0, "80GB", 80 * 2**30),))])  # {"80GB": 0.25}
    """
    smallest: dict[str, int] = {}
    for device in (device for node in nodes for device in node.devices):
        if device.memory_bytes is not None:
            smallest[device.kind] = min(device.memory_bytes, smallest.get(device.kind, device.memory_bytes))
    shares = {kind: math.ceil(round(100 * memory_bytes / memory, 6)) / 100 for kind, memory in smallest.items()}
    return {kind: share for kind, share in shares.items() if share <= 1}


def shortage(shares: Shares, nodes: Sequence[Node]) -> str:
    """Return what these nodes lack for one training beside the attacks; empty if nothing is lacking.

    CPUs are not looked at where Ray is started for the sweep, which is told that it has as many as are needed, and
    where no node has any: nodes may join, and nothing else is waited for.
    """
    if not (shares.trial_gpus or shares.evaluation_gpus) and not any(node.cpus or node.started_here for node in nodes):
        return ""
    packing = lay_out(replace(shares, concurrent=1), nodes)
    if not packing.unplaced:
        return ""
    cpus, gpus = sum(node.cpus for node in nodes), sum(len(node.devices) for node in nodes)
    reserved = shares.evaluation_workers * shares.evaluation_gpus
    what = f"a training needs {shares.trial_gpus:g} GPU and the attacks {reserved:g} beside"
    if any("CPU" in unplaced.why for unplaced in packing.unplaced) or not (shares.trial_gpus or reserved):
        attacks = shares.evaluation_workers * shares.evaluation_cpus
        what = f"a training needs {shares.trial_cpus:g} CPUs of one node and the attacks {attacks:g} beside"
    found = f"{gpus:g} GPU{'' if gpus == 1 else 's'}" + (f" and {cpus:g} CPUs" if math.isfinite(cpus) else "")
    return f"{what}; found {found}" + (f" on {len(nodes)} nodes" if len(nodes) > 1 else "")


def unfit(what: str, memory_bytes: float, nodes: Sequence[Node]) -> str:
    """Say on which devices so much memory is not to be had, where a share of them was asked for; empty if on none."""
    devices = [device for node in nodes for device in node.devices]
    unknown = dict.fromkeys(device.kind for device in devices if device.memory_bytes is None)
    if unknown:
        return f"the memory of {', '.join(unknown)} is not known here, of which {what} is to get a share"
    small = dict.fromkeys(d.kind for d in devices if d.kind not in shares_by_kind(memory_bytes, nodes))
    if not small:
        return ""
    return f"{what} needs {memory_bytes / GB:g} GB, and Ray might put it on a device that has less ({', '.join(small)})"


def _attacks(shares: Shares) -> list[Request]:
    gpus = shares.evaluation_gpus
    return [Request(ATTACK, shares.evaluation_workers, shares.evaluation_cpus, gpus, reserved=True)]


def _as_told(node: Node, shares: Shares) -> Node:
    """Return the node with the CPUs that Ray is told: where it is started for the sweep, as many as are needed."""
    if not node.started_here:
        return node
    beside = shares.evaluation_workers * shares.evaluation_cpus
    return replace(node, cpus=max(node.cpus, shares.trial_cpus) + beside)


def _most(shares: Shares, node: Node) -> int:
    """Return a number of trainings that no node can exceed."""
    by_gpu = sum(int(1 / min(1.0, shares.trial_gpus) + 1e-3) for _ in node.devices) if shares.trial_gpus else math.inf
    most = min(by_gpu, max(node.cpus, shares.trial_cpus if node.started_here else 0) // shares.trial_cpus)
    return int(most) if math.isfinite(most) else 1


def _largest_share(shares: Shares, nodes: Sequence[Node]) -> float:
    """Return the largest share that one training can have beside the attacks; at least its own."""
    if not shares.trial_gpus or not any(node.devices for node in nodes):
        return 0.0
    left = pack(_attacks(shares), [_as_told(node, shares) for node in nodes]).gpus_left
    if shares.trial_gpus > 1:
        whole = [sum(left[node.name, device.index] == 1 for device in node.devices) for node in nodes]
        return max(shares.trial_gpus, float(max(whole)))
    return max(shares.trial_gpus, *left.values())


def _largest(memory_bytes: float | None, nodes: Sequence[Node]) -> float | None:
    """Return the share that is enough on every device that has so much memory; None without any."""
    return None if memory_bytes is None else max(shares_by_kind(memory_bytes, nodes).values(), default=None)


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
