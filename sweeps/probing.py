"""Measuring, before trainings start, what their classes and the attacks need of the memory of each kind of GPU.

Each measurement is a task of its own on a whole device; what it finds is in the ledger before anything rests on it, so
that a resume measures nothing twice. Where nothing can be measured, shares stay what they are without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, replace
from typing import Any

from cluster.packing import Device, Node
from cluster.resources import GB, TRAINING, Shares, lay_out, shortage
from cluster.room import Grant
from search_spaces.errors import DoesNotFit
from search_spaces.imports import quick_imports
from sweeps.config import SweepConfig
from sweeps.measured_memory import Need, Needs, Purpose
from sweeps.memory_classes import MemoryClass, attack_classes, classes_of
from sweeps.records import PlannedStage
from sweeps.resources_section import ResourcesSection
from trainables.config import TrialConfig

LONGEST_S = 180.0
"""When no measurement has ended for so long, those that are left are given up (our choice: data are loaded and a model
is compiled meanwhile; and a cluster's GPUs may be busy with another sweep)."""
POLL_S = 0.1
LEAST_ATTACK_SHARE = 0.1
"""Kept for the attacks where trainings and attacks need more than there is (our choice): what does not fit then is
attacked in smaller batches."""


@dataclass(frozen=True)
class Question:
    """What is to be measured on which kind of device."""

    purpose: Purpose
    of: MemoryClass
    config: dict[str, Any]
    """TrialConfig.plain() of a member of the class."""
    stage: PlannedStage | None
    """The attack; None for a training."""
    device: Device
    """One of the kind."""

    @property
    def label(self) -> str:
        """What is measured, and where, for people."""
        return f"{self.of.label} on {self.device.kind}"


def questions(
    config: SweepConfig, planned: Sequence[PlannedStage], nodes: Sequence[Node], needs: Needs
) -> list[Question]:
    """Return what is not known and decides a share. Pure; devices whose memory is unknown are left out."""
    wanted = config.resources
    kinds = {device.kind: device for node in nodes for device in node.devices if device.memory_bytes is not None}
    members = classes_of(config)
    trainings: dict[MemoryClass, tuple[TrialConfig, PlannedStage | None]] = {}
    if wanted.is_measured:
        trainings = {of: (member, None) for of, member in members.items()}
    attacks: dict[MemoryClass, tuple[TrialConfig, PlannedStage | None]] = {}
    if wanted.evaluation.is_measured and planned:
        attacks |= attack_classes(members.values(), planned)
    asked: list[tuple[Purpose, MemoryClass, TrialConfig, PlannedStage | None]] = [
        *(("training", of, *pair) for of, pair in trainings.items()),
        *(("attack", of, *pair) for of, pair in attacks.items()),
    ]
    return [
        Question(purpose, of, member.plain(), stage, device)
        for device in kinds.values()
        for purpose, of, member, stage in asked
        if not needs.knows(purpose, of, device.kind)
    ]


def answer(question: Question) -> dict[str, Any]:
    """Measure. Runs in a process of its own, on a device of its own. Returns: Need.plain()."""
    with quick_imports():
        from trainables.memory_probe import measure_attack, measure_training, needed_bytes

    config = TrialConfig.model_validate(question.config)
    try:
        peak = measure_training(config) if question.stage is None else measure_attack(config, question.stage)
        needed: int | None = needed_bytes(peak)
        found = asdict(peak)
    except DoesNotFit as error:
        needed, found = None, {"error": str(error)}
    of = question.of
    kind = found.get("device_kind", question.device.kind)
    return Need(question.purpose, of.label, of.parts, of.images, kind, needed, found).plain()


Asked = tuple[Future[dict[str, Any]], Callable[[], None]]
"""What will hold the answer, and what gives the question up."""


def ask_ray(question: Question) -> Asked:
    """Start a measurement as a Ray task on a whole device."""
    import ray

    asked = Grant(1.0, 1.0, question.device.accelerator or None).resources()
    options = {"num_cpus": asked.pop("CPU"), "num_gpus": asked.pop("GPU"), "resources": asked}
    reference = ray.remote(max_calls=1, max_retries=0, **options)(answer).remote(question)
    return reference.future(), lambda: ray.cancel(reference, force=True)


def measure(
    asked: Sequence[Question],
    note: Callable[[Need], None],
    say: Callable[[str], None],
    is_over: Callable[[], bool],
    ask: Callable[[Question], Asked] = ask_ray,
) -> None:
    """Measure all of it, as many at once as Ray has devices for.

    Args:
        note: writes a measurement into the ledger.
        say: takes a line for each.
        is_over: whether the driver is asked to stop.
    """
    running: dict[Future[dict[str, Any]], tuple[Question, Callable[[], None]]] = {}
    for question in asked:
        future, give_up = ask(question)
        running[future] = (question, give_up)
    if asked:
        say(announcement(asked))
    heard_at = time.monotonic()
    while running and not is_over() and time.monotonic() < heard_at + LONGEST_S:
        for future in wait(running, POLL_S, FIRST_COMPLETED).done:
            heard_at = time.monotonic()
            question, _ = running.pop(future)
            try:
                need = Need(**future.result())
            except Exception as error:  # the trial that fails by the same will say all of it
                say(f"{question.label} could not be measured: {str(error).strip().splitlines()[-1]}")
                continue
            note(need)
            say(describe(need, question.device.memory_bytes))
    for question, give_up in running.values():
        give_up()
        if not is_over():
            say(f"{question.label} could not be measured in time; its share is what it would be without")


def announcement(asked: Sequence[Question]) -> str:
    """Say what will take a while: "measuring the GPU memory of 4 kinds of trainings and 1 kind of attacks on A 80 GB;
    each takes some seconds"."""
    kinds = dict.fromkeys(question.device.kind for question in asked)
    words: dict[Purpose, str] = {"training": "trainings", "attack": "attacks"}
    counts = {purpose: len({q.of for q in asked if q.purpose == purpose}) for purpose in words}
    told = [f"{n} kind{'' if n == 1 else 's'} of {words[purpose]}" for purpose, n in counts.items() if n]
    return f"measuring the GPU memory of {' and '.join(told)} on {', '.join(kinds)}; each takes some seconds"


def describe(need: Need, memory_bytes: int | None) -> str:
    """Say what was measured: "jasmin, 32 px, 128 images, float32 needs 9.2 GB of NVIDIA H200 140 GB"."""
    if need.needed is None:
        return f"{need.label} does not fit on {need.device}. {need.peak.get('error', '')}".strip()
    share = f", {need.needed / memory_bytes:.0%} of it" if memory_bytes else ""
    return f"{need.label} needs {need.needed / GB:.1f} GB of {need.device}{share}"


def fitted(wanted: ResourcesSection, nodes: Sequence[Node], needs: Needs) -> Shares:
    """Return the shares by what was measured. Pure.

    Where the attacks' share leaves no room for one training it is cut, unless it is pinned: attacks that run out of
    memory halve their batch, and a training cannot. Beside trainings that are pinned it is what it was without.
    """
    shares = wanted.shares(nodes, needs.most("training"), needs.most("attack"))
    if not needs or not (wanted.evaluation.is_measured and shortage(shares, nodes)):
        return shares
    if not wanted.is_measured:
        return wanted.shares(nodes)
    attack = max(LEAST_ATTACK_SHARE, round(1 - shares.trial_gpus, 2))
    cut = replace(shares, evaluation_gpus=attack, trial_gpus=min(shares.trial_gpus, 1 - attack))
    each = lay_out(replace(cut, concurrent=sum(len(node.devices) for node in nodes)), nodes).count(TRAINING)
    return replace(cut, concurrent=max(1, min(each, shares.concurrent) if wanted.concurrent != "auto" else each))
