"""How much of the machine a trial and an evaluation take, and how many run at once. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cluster.packing import Node, Packing, Request, by_accelerator, pack

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
    by_kind: Mapping[str, float] = field(default_factory=dict)
    """Share of one training by kind of device, where kinds differ; `trial_gpus` is then the largest."""

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
        share = ", ".join(f"{share:g} of {kind}" for kind, share in self.by_kind.items())
        share = share or (f"{self.trial_gpus:g} GPU" if self.trial_gpus else "")
        trial = f"{self.trial_cpus:g} CPU" + (f", {share}" if share else "")
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
    share is that memory's part of the device (`shares_by_kind`); the attacks, which may run on any, get the largest.
    """
    some = any(node.devices for node in nodes)
    by_kind = {} if trial_memory_bytes is None else shares_by_kind(trial_memory_bytes, nodes)
    of_trial = max(by_kind.values(), default=None)
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
        by_kind=by_kind if trial_gpus is None and len(_kinds(nodes)) > 1 else {},
    )
    most = sum(_most(wanted, node) for node in nodes)
    fitting = lay_out(replace(wanted, concurrent=most), nodes).count(TRAINING)
    return replace(wanted, concurrent=concurrent or max(1, fitting))


def lay_out(shares: Shares, nodes: Sequence[Node]) -> Packing:
    """Return where the attacks' reserved shares and the trainings go."""
    each = shares.by_kind or shares.trial_gpus
    trainings = Request(TRAINING, shares.concurrent, shares.trial_cpus, each)
    return pack([*_attacks(shares), trainings], [by_accelerator(as_told(node, shares)) for node in nodes])


def shares_by_kind(memory_bytes: float, nodes: Sequence[Node]) -> dict[str, float]:
    """Return which share of a device so much memory is, rounded up to 1/100, by kind as Ray tells them apart
    (Device.accelerator; the empty name stands for all that it does not).

    Of a kind the smallest device counts. Kinds that have less memory, or an unknown amount, are left out.

    shares_by_kind(20 * 2**30, [Node("a", 8, (Device("a", 0, "80 GB", 80 * 2**30, "A100"),))])  # {"A100": 0.25}
    """
    smallest: dict[str, float] = {}
    for device in (device for node in nodes for device in node.devices):
        memory = 0 if device.memory_bytes is None else device.memory_bytes
        smallest[device.accelerator] = min(memory, smallest.get(device.accelerator, memory))
    known = {kind: memory for kind, memory in smallest.items() if memory >= memory_bytes}
    return {kind: math.ceil(round(100 * memory_bytes / memory, 6)) / 100 for kind, memory in known.items()}


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


def unfit(what: str, memory_bytes: float, nodes: Sequence[Node], *, on_any: bool) -> str:
    """Say on which devices so much memory is not to be had, where a share of them was asked for; empty if that is fine.

    Args: on_any: whether Ray may put it on any device; else kinds that it tells apart and that have less are not used.
    """
    devices = [device for node in nodes for device in node.devices]
    fitting = shares_by_kind(memory_bytes, nodes)
    if fitting and not on_any and "" not in _kinds(nodes):
        return ""
    unknown = dict.fromkeys(device.kind for device in devices if device.memory_bytes is None)
    if unknown:
        return f"the memory of {', '.join(unknown)} is not known here, of which {what} is to get a share"
    small = dict.fromkeys(d.kind for d in devices if d.memory_bytes is not None and d.memory_bytes < memory_bytes)
    if not small:
        return ""
    return f"{what} needs {memory_bytes / GB:g} GB, and Ray might put it on a device that has less ({', '.join(small)})"


def as_told(node: Node, shares: Shares) -> Node:
    """Return the node with the CPUs that Ray is told: where it is started for the sweep, as many as are needed."""
    if not node.started_here:
        return node
    beside = shares.evaluation_workers * shares.evaluation_cpus
    return replace(node, cpus=max(node.cpus, shares.concurrent * shares.trial_cpus) + beside)


def _kinds(nodes: Sequence[Node]) -> set[str]:
    return {device.accelerator for node in nodes for device in node.devices}


def _attacks(shares: Shares) -> list[Request]:
    gpus = shares.evaluation_gpus
    return [Request(ATTACK, shares.evaluation_workers, shares.evaluation_cpus, gpus, reserved=True)]


def _most(shares: Shares, node: Node) -> int:
    """Return a number of trainings that no node can exceed."""
    least = min(shares.by_kind.values(), default=shares.trial_gpus)
    by_gpu = sum(int(1 / min(1.0, least) + 1e-3) for _ in node.devices) if least else math.inf
    most = min(by_gpu, max(node.cpus, shares.trial_cpus if node.started_here else 0) // shares.trial_cpus)
    return int(most) if math.isfinite(most) else 1


def _largest(memory_bytes: float | None, nodes: Sequence[Node]) -> float | None:
    """Return the share that is enough on every device that has so much memory; None without any."""
    return None if memory_bytes is None else max(shares_by_kind(memory_bytes, nodes).values(), default=None)


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
