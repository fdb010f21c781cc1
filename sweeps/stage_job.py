"""One attack stage on one trial: what a worker needs, what it does with its share of the images, what comes back.

Verdicts go into the sweep's store unit by unit, under the digest of (weights, images, attack, seed). Whoever asks
again, a retry, the next driver or another plan, gets from there what was judged before and judges the rest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cluster.draining import Units
from search_spaces.errors import ObjectiveMissing
from search_spaces.imports import quick_imports
from sweeps.pulse import beat
from sweeps.records import PlannedStage, StageRecord

if TYPE_CHECKING:
    from trainables.node_data import NodeData

SUMMED = ("attacked", "flat", "mismatches", "budget")
"""Facts that add up over shards; logit_scale is averaged over the images."""


@dataclass(frozen=True)
class StageJob:
    """A stage on a trial's images, complete: a worker needs nothing else."""

    number: int
    stage: PlannedStage
    trial_folder: str
    verdict_folder: str
    weights_digest: str
    data_digest: str
    standing: tuple[bool, ...] | None = None
    """What the stages before it left standing: only these images are attacked. None attacks every correct one."""
    threads: int = 1
    plugins: tuple[str, ...] = ()
    gpu_share: float = 0.0
    """Share of a GPU's memory that a worker may use: 1 or more is all of it, 0 sets no limit."""

    @property
    def attacked(self) -> int:
        """How many images are attacked, at most."""
        return self.stage.images if self.standing is None else sum(self.standing)

    def shards(self, workers: int, unit_size: int) -> int:
        """Return in how many shards the stage is judged: one for each worker, if each gets half a batch, and none
        larger than a unit, so that a worker that is lost loses no more."""
        batches = math.ceil(self.attacked / self.stage.batch_size)
        return max(1, min(workers, batches), math.ceil(self.attacked / unit_size))


@dataclass(frozen=True)
class ShardResult:
    """The verdicts on some of a stage's images."""

    digest: str
    positions: NDArray[np.int64]
    """(n,) places in the stage's list of images."""
    clean: NDArray[np.bool_]
    """(n,) classified correctly without an attack."""
    correct: NDArray[np.bool_]
    """(n,) and under the attack."""
    forwards: int
    backwards: int
    seconds: float
    facts: Mapping[str, float]
    warnings: tuple[str, ...] = ()
    judged: int = 0
    """Images judged now; the others were in the store."""
    beyond: tuple[int, int] | None = None
    """Of the images that the stage leaves out, how many are classified correctly, and how many there are; counted once,
    with the first stage on test images."""


@dataclass(frozen=True)
class StageOutcome:
    """A finished stage."""

    record: StageRecord
    judged: int
    """Images judged now; the others were in the store."""
    split_clean_acc: float | None = None
    """Clean accuracy on the whole split; measured with the first stage on test images only."""
    positions: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def started(job: StageJob, at: float) -> StageRecord:
    """Return the stage as the ledger first knows it. Args: at: seconds since the epoch."""
    stage = job.stage
    return StageRecord(
        number=job.number,
        split=stage.split,
        position=stage.position,
        attack=stage.label,
        config={**stage.config, **stage.threat, **({"surrogate": stage.surrogate} if stage.surrogate else {})},
        digest="",
        state="running",
        started_at=at,
        plan=stage.plan,
        column=stage.column,
        cumulative=stage.cumulative,
    )


def judge_shard(
    job: StageJob,
    shard: int,
    shards: int,
    pulse: Path | str | None = None,
    unit_s: float | None = None,
    held: NodeData | None = None,
) -> ShardResult:
    """Judge a share of a stage's images. Runs in a worker.

    Args:
        pulse: file or object for signs of life (`sweeps.pulse`); None: nobody listens.
        unit_s: what such a unit of images has taken at most so far; None if nothing is known.
        held: what the worker's node holds of the images.

    Raises:
        NodeEnding: the node ends before a unit of images could; what was judged is in the store.
        ObjectiveMissing: weights or images are not those that the ledger knows.
        AttackError: the attack fails.
        GpuMemoryExceeded: the worker has taken more than its share; DoesNotFit: a whole device is too small.
    """
    beat(pulse)
    with quick_imports():
        import torch

        from trainables.assessment import AttackQuestion, Subject, assess, assess_clean
        from trainables.attack import Threat
        from trainables.config import attack_config_type
        from trainables.dataset import balanced_subset
        from trainables.gpu_guard import begin_job
        from trainables.gpu_peak import attack_remedy
        from trainables.registry import load_plugins
        from trainables.remote_verdicts import open_verdicts

    torch.set_num_threads(job.threads)
    guard = begin_job(job.gpu_share)
    load_plugins(job.plugins)
    stage = job.stage
    model, splits, device = _load(job.trial_folder, job.weights_digest, held)
    if splits.digest() != job.data_digest:
        raise ObjectiveMissing(f"trial {job.number}: the images are not those that the ledger knows.")
    images = splits.validation if stage.split == "validation" else splits.test
    everything = torch.arange(len(images.labels))
    ids = balanced_subset(images.labels, everything, stage.images, torch.Generator().manual_seed(stage.seed))
    standing = torch.ones(len(ids), dtype=torch.bool) if job.standing is None else torch.tensor(job.standing)
    positions = torch.tensor_split(standing.nonzero().squeeze(1), shards)[shard]
    subject = Subject(model, images, job.weights_digest, f"{job.data_digest}/{stage.split}", device)
    store = open_verdicts(job.verdict_folder)

    ending = Units(f"{stage.label} on trial {job.number}", unit_s)

    def on_unit(*_: int) -> None:
        beat(pulse)

    def on_attacked(known: int, of: int) -> None:
        beat(pulse)
        if known < of:
            guard.check()
            ending.require()

    on_unit()
    clean = assess_clean(subject, ids[positions], batch_size=stage.batch_size, store=store, on_unit=on_unit)
    question = AttackQuestion(
        stage.attack,
        attack_config_type(stage.attack).model_validate(dict(stage.config)),
        Threat(**stage.threat),
        stage.seed,
        stage.surrogate,
    )
    attacked = positions[clean.correct]
    ending.require()
    with guard.explaining(f"{stage.label} with batches of {stage.batch_size} images", attack_remedy(stage.batch_size)):
        answer = assess(
            subject,
            question,
            ids[attacked],
            batch_size=stage.batch_size,
            store=store,
            keep=stage.keep_images,
            on_unit=on_attacked,
        )
    correct = torch.zeros(len(positions), dtype=torch.bool)
    correct[clean.correct] = answer.correct
    is_first = stage.position == 0  # the first stage of a split pays for the clean passes and says what they showed
    beyond = None
    if is_first and stage.split == "test" and shard == 0:
        rest = everything[~torch.isin(everything, ids)]  # the other shards look at theirs at the same time
        found = assess_clean(subject, rest, batch_size=stage.batch_size, store=store, on_unit=on_unit)
        beyond = (int(found.correct.sum()), len(rest))
    paid = (clean, answer) if is_first else (answer,)
    most = 0 if stage.passes is None else stage.passes[1]
    return ShardResult(
        digest=question.digest(subject),
        positions=positions.numpy(),
        clean=clean.correct.numpy(),
        correct=correct.numpy(),
        forwards=sum(int(a.facts["forwards"]) for a in paid),
        backwards=sum(int(a.facts["backwards"]) for a in paid),
        seconds=sum(float(a.facts["seconds"]) for a in paid),
        facts={
            "attacked": len(attacked),
            "budget": len(attacked) * most + (len(positions) if is_first else 0),
            "flat": int(answer.facts["flat"]),
            "mismatches": int(answer.facts["mismatches"]),
            "logit_scale_sum": float(clean.facts["logit_scale_sum"]),
        },
        warnings=tuple(dict.fromkeys(text for a in paid for text in a.warnings)),
        judged=answer.judged,
        beyond=beyond,
    )


@lru_cache(maxsize=1)
def _load(trial_folder: str, weights_digest: str, held: NodeData | None) -> tuple[Any, Any, Any]:
    """Return model, splits and device; the last trial's stay in memory, because its parts come one after the other."""
    from trainables.training import default_device
    from trainables.trial import load_final
    from trainables.trial_folder import fetched_final

    device = default_device()
    model, splits, meta = load_final(fetched_final(trial_folder), device=device, held=held)
    if meta["weights_digest"] != weights_digest:
        raise ObjectiveMissing(f"{trial_folder}: the weights are not those that the ledger knows.")
    return model, splits, device


def assemble(job: StageJob, results: Sequence[ShardResult], at: float) -> StageOutcome:
    """Put the shards of a stage together; without a shard nothing stood. Args: at: when the stage was started."""
    count = job.stage.images
    correct = np.zeros(count, dtype=bool)
    clean = np.zeros(count, dtype=bool)
    facts: Counter[str] = Counter()
    for result in results:
        correct[result.positions] = result.correct
        clean[result.positions] = result.clean
        facts.update({name: value for name, value in result.facts.items() if name != "logit_scale_sum"})
    judged_clean = sum(len(result.positions) for result in results)
    shown: dict[str, float] = dict(facts)
    if job.standing is None and judged_clean:
        shown["logit_scale"] = sum(r.facts["logit_scale_sum"] for r in results) / judged_clean
    record = StageRecord(
        **{
            **started(job, at).__dict__,
            "digest": results[0].digest if results else "",
            "state": "done",
            "images": count,
            "clean_correct": int(clean.sum()) if job.standing is None else None,
            "survivors": int(correct.sum()),
            "verdicts": correct,
            "warnings": tuple(dict.fromkeys(text for result in results for text in result.warnings)),
            "forwards": sum(result.forwards for result in results),
            "backwards": sum(result.backwards for result in results),
            "seconds": sum(result.seconds for result in results),
            "facts": shown,
        }
    )
    beyond = next((result.beyond for result in results if result.beyond is not None), None)
    split_clean_acc = None if beyond is None else (int(clean.sum()) + beyond[0]) / (count + beyond[1])
    return StageOutcome(record, sum(result.judged for result in results), split_clean_acc)


def judge_here(job: StageJob, at: float) -> StageOutcome:
    """Judge a whole stage in this process."""
    return assemble(job, [judge_shard(job, 0, 1)] if job.attacked else [], at)
