"""Attack evaluation as work of its own: one Ray task per (trial, split, stage), on a share that no trial can take.

The task writes its verdicts to a file named by the digest of what it judged, before it returns; the driver adopts the
file into the ledger. What was finished but not adopted when a driver died is adopted by the next one, not run again.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from cluster.resources import Shares
from search_spaces.config import digest_of
from search_spaces.errors import ObjectiveMissing, SweepError
from search_spaces.imports import quick_imports
from sweeps.records import Split, StageRecord


@dataclass(frozen=True)
class StageJob:
    """One attack on one trial's images, complete: a worker needs nothing else."""

    number: int
    split: Split
    position: int
    label: str
    """The stage's name in the plan."""
    attack: str
    """Key of the attack."""
    config: Mapping[str, Any]
    """The attack's configuration."""
    threat: Mapping[str, Any]
    """Threat.plain(): norm and epsilon."""
    images: int | None
    """How many images of the split, balanced over the classes; None is all."""
    batch_size: int
    seed: int
    trial_folder: str
    verdict_folder: str
    weights_digest: str
    data_digest: str
    standing: tuple[bool, ...] | None = None
    """Verdicts of the stage before: only these images are attacked. None for a first stage."""
    threads: int = 1
    plugins: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Name what is judged: weights, images, attack, seed, and what earlier stages left."""
        parts = asdict(self)
        names = ("attack", "config", "threat", "images", "seed", "split", "weights_digest", "data_digest", "standing")
        return digest_of({name: parts[name] for name in names})

    @property
    def verdict_file(self) -> Path:
        return Path(self.verdict_folder) / f"{self.digest}.npz"

    def record(self) -> StageRecord:
        """Return the stage as the ledger first knows it."""
        config = {**self.config, **self.threat}
        return StageRecord(
            self.number, self.split, self.position, self.label, config, self.digest, "running", time.time()
        )


@dataclass(frozen=True)
class Verdicts:
    """What a finished stage left in its file."""

    record: StageRecord
    split_clean_acc: float | None
    """Clean accuracy on the whole split; measured with the first stage on test images only."""


def judge_stage(job: StageJob) -> None:
    """Run a stage and write its verdict file, unless a good one is there already. Runs in a worker."""
    if _is_judged(job):
        return
    with quick_imports():
        import torch

        from trainables.attack import Threat, find_attack
        from trainables.config import attack_config_type
        from trainables.dataset import balanced_subset
        from trainables.registry import load_plugins
        from trainables.training import default_device, load_final
        from trainables.verdicts import clean_correct, judge

    torch.set_num_threads(job.threads)
    load_plugins(job.plugins)
    device = default_device()
    model, splits, meta = load_final(Path(job.trial_folder), device=device)
    if meta["weights_digest"] != job.weights_digest or splits.digest() != job.data_digest:
        raise ObjectiveMissing(f"trial {job.number}: weights or images are not those that the ledger knows.")
    images = splits.validation if job.split == "validation" else splits.test
    everything = torch.arange(len(images.labels))
    ids = balanced_subset(images.labels, everything, job.images, torch.Generator().manual_seed(job.seed))
    attack = find_attack(job.attack, attack_config_type(job.attack).model_validate(job.config), Threat(**job.threat))
    standing = torch.ones(len(ids), dtype=torch.bool) if job.standing is None else torch.tensor(job.standing)
    verdict = judge(model, attack, images, ids[standing], seed=job.seed, batch_size=job.batch_size, device=device)
    correct = standing.clone()
    correct[standing] = verdict.correct
    split_clean_acc = None
    if job.split == "test" and job.position == 0:
        split_clean_acc = float(clean_correct(model, images, everything, job.batch_size, device).double().mean())
    _write_verdicts(
        job,
        correct.numpy(),
        {
            "clean_correct": int(verdict.clean.sum()) if job.standing is None else None,
            "split_clean_acc": split_clean_acc,
            "warnings": list(verdict.warnings),
            "forwards": verdict.forward_images,
            "backwards": verdict.backward_images,
            "seconds": verdict.seconds,
        },
    )


def warm_up(attacks: Sequence[str]) -> None:
    """Import what stages with these attacks need, which takes seconds. Runs in a worker."""
    with quick_imports():
        import trainables.training
        import trainables.verdicts  # noqa: F401
        from trainables.registry import find

        for attack in attacks:
            with contextlib.suppress(SweepError):  # of a plugin, which its stage will load
                find("attacks", attack)


def _is_judged(job: StageJob) -> bool:
    try:
        read_verdicts(job)
    except ObjectiveMissing:
        return False
    return True


def _write_verdicts(job: StageJob, correct: NDArray[np.bool_], facts: Mapping[str, Any]) -> None:
    """Write the verdict file atomically and durably."""
    target = job.verdict_file
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}-{os.getpid()}.npz")
    with temporary.open("wb") as file:
        np.savez(file, correct=correct, facts=np.array(json.dumps(facts)))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, target)


def read_verdicts(job: StageJob) -> Verdicts:
    """Read a stage's verdict file; ObjectiveMissing if it is not there or not whole."""
    try:
        with job.verdict_file.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            correct: NDArray[np.bool_] = file["correct"]
            facts = json.loads(str(file["facts"]))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise ObjectiveMissing(f"trial {job.number}: no verdicts in {job.verdict_file} ({error}).") from error
    split_clean_acc = facts.pop("split_clean_acc")
    facts["warnings"] = tuple(facts["warnings"])
    done = replace(
        job.record(), state="done", images=len(correct), survivors=int(correct.sum()), verdicts=correct, **facts
    )
    return Verdicts(done, split_clean_acc)


class EvaluationPool:
    """Runs stages as Ray tasks. While trials train it keeps to its reserved share; `use_everything` lifts that."""

    def __init__(self, shares: Shares, attacks: Sequence[str] = ()) -> None:
        """Args: attacks: keys of those to expect; the workers import them while the first trials train."""
        import ray
        from ray.util.placement_group import placement_group

        self._shares = shares
        self.capacity = shares.evaluation_workers
        self._running: dict[Any, StageJob] = {}
        bundle = {"CPU": shares.evaluation_cpus, "GPU": shares.evaluation_gpus}
        bundle = {name: amount for name, amount in bundle.items() if amount}
        self._reserved: Any = placement_group([bundle] * self.capacity, strategy="SPREAD")
        ray.get(self._reserved.ready())
        warming = ray.remote(max_retries=0, **self._options())(warm_up)
        self._warming = [
            warming.remote(list(attacks)) for _ in range(self.capacity)
        ]  # kept: a dropped one is cancelled

    @property
    def free(self) -> int:
        """How many more stages may be submitted now."""
        return self.capacity - len(self._running)

    @property
    def busy(self) -> bool:
        return bool(self._running)

    @property
    def running(self) -> list[StageJob]:
        """The stages that run now."""
        return list(self._running.values())

    def submit(self, job: StageJob) -> None:
        """Start a stage; `done` will name it once."""
        import ray

        task = ray.remote(max_retries=1, **self._options())(judge_stage)
        self._running[task.remote(job)] = job

    def _options(self) -> dict[str, Any]:
        """Return what Ray needs to know about a task: its share, and where that is reserved."""
        options: dict[str, Any] = {"num_cpus": self._shares.evaluation_cpus, "num_gpus": self._shares.evaluation_gpus}
        if self._reserved is not None:
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self._reserved)
        return options

    def done(self) -> list[tuple[StageJob, str | None]]:
        """Return the stages that ended since the last call, each with its traceback if it failed."""
        import ray

        ready, _ = (
            ray.wait(list(self._running), num_returns=len(self._running), timeout=0) if self._running else ([], [])
        )
        ended = []
        for reference in ready:
            error = None
            try:
                ray.get(reference)
            except Exception:  # the evaluation's boundary: whatever it was becomes a recorded failure
                error = traceback.format_exc()
            ended.append((self._running.pop(reference), error))
        return ended

    def use_everything(self) -> None:
        """Training is over: run as many stages at once as fit where the trials were."""
        self._reserved = None  # the group itself stays until Ray ends: what runs in it must not be killed
        self.capacity = self._shares.draining_workers

    def cancel(self) -> None:
        """Kill what is running; nothing is adopted any more."""
        import ray

        for reference in self._running:
            ray.cancel(reference, force=True)
        self._running.clear()
