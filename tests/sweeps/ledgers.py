"""Ledgers for tests: small sweeps as a driver would have written them, without Ray or torch."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.pareto import next_unsettled
from sweeps.records import LAUNCHED, PlannedStage, Split, StageRecord, State, SweepRecord
from sweeps.summary import front_of

IMAGES = 256
TRACEBACK = """Traceback (most recent call last):
  File "trainables/training.py", line 88, in epoch
    raise LossDiverged(f"the loss of step {step} is {loss}")
search_spaces.errors.LossDiverged: the loss of step 12 is <nan>
"""
STACKS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "jasmin": {"weight": (1e-4, 3e-2), "k": [0, 1, 2, 4], "aggregation": ["sum", "max"]},
    "adversarial": {"epsilon": (0.01, 0.05), "steps": [3, 7]},
}


THREAT = {"norm": "linf", "epsilon": 8 / 255}
PARTS = ("apgd_ce", "apgd_t_0", "apgd_t_1", "apgd_t_2", "fab_t", "square")


def planned(label: str, position: int, split: Split = "validation", **changes: Any) -> PlannedStage:
    """A stage of the launched plan's cascade; a label with a dot is a part."""
    column, _, part = label.partition(".")
    stage = PlannedStage(
        split=split,
        position=position,
        plan=LAUNCHED,
        column=column,
        label=label,
        attack=part.rstrip("_0123456789") or column,
        config={"steps": 20} if column == "pgd" else {},
        threat=THREAT,
        cumulative=True,
        images=IMAGES,
        batch_size=128,
        seed=0,
        passes=(3, 61) if column == "pgd" else (4, 1000),
    )
    return replace(stage, **changes)


def cascade(*labels: str, split: Split = "validation", **changes: Any) -> tuple[PlannedStage, ...]:
    """A cascade of the launched plan on one split."""
    return tuple(planned(label, position, split, **changes) for position, label in enumerate(labels))


def parted(split: Split = "validation", **changes: Any) -> tuple[PlannedStage, ...]:
    """PGD, then AutoAttack in its parts."""
    return cascade("pgd", *(f"autoattack.{part}" for part in PARTS), split=split, **changes)


def judged(stage: PlannedStage, standing: Any, number: int = 0, **changes: Any) -> StageRecord:
    """A stage that has run: `standing` are its verdicts, or how many of its images, the first ones, are left."""
    verdicts = np.asarray(standing, dtype=bool) if np.ndim(standing) else np.arange(stage.images) < standing
    record = StageRecord(
        number=number,
        split=stage.split,
        position=stage.position,
        attack=stage.label,
        config={**stage.config, **stage.threat},
        digest=f"{stage.plan}-{stage.split}-{number}-{stage.position}",
        state="done",
        started_at=1_790_000_100.0,
        images=len(verdicts),
        clean_correct=len(verdicts),
        survivors=int(verdicts.sum()),
        verdicts=verdicts,
        forwards=1000,
        backwards=500,
        seconds=2.0,
        plan=stage.plan,
        column=stage.column,
        cumulative=stage.cumulative,
    )
    return replace(record, **changes)


def sweep_record(**changes: Any) -> SweepRecord:
    """A sweep of 8 trials with two objectives and two validation attacks."""
    sweep = SweepRecord(
        id=str(uuid.uuid4()),
        name="digits",
        created_at=1_790_000_000.0,
        requested=8,
        document={"name": "digits", "methods": [{"jasmin": {"k": [0, 1, 2, 4]}}], "attacks": {"epsilon": "8/255"}},
        objectives=("clean_acc", "robust_acc"),
        planned_stages=cascade("pgd", "autoattack") + cascade("pgd", "autoattack", split="test"),
        environment={"git": {"revision": "0123abcd", "dirty": False}, "packages": {"torch": "2.15.0", "ray": "2.60.0"}},
        data_digest="d41d8cd98f00b204",
    )
    return replace(sweep, **changes)


def empty(folder: SweepFolder, **changes: Any) -> Ledger:
    """A ledger with a sweep and no trial."""
    folder.root.mkdir(parents=True, exist_ok=True)
    ledger = Ledger.at(folder.ledger)
    ledger.create(sweep_record(name=folder.name, **changes))
    return ledger


def folder_at(path: Path, name: str = "digits") -> SweepFolder:
    """The folder of a sweep in a storage folder of its own."""
    return SweepFolder(path / "runs", name)


def propose(ledger: Ledger, number: int, label: str = "jasmin", seed: int = 0) -> None:
    """Propose a trial as the searcher would, its parameters drawn from (seed, number)."""
    rng = random.Random(f"{seed}/{number}")
    drawn = {"training.learning_rate": 10 ** rng.uniform(-4, -2)}
    kinds = {"training.learning_rate": _float(1e-4, 1e-2)}
    method: dict[str, Any] = {}
    for field, domain in STACKS.get(label, {}).items():
        name = f"{label}.{field}"
        drawn[name] = method[field] = rng.choice(domain) if isinstance(domain, list) else rng.uniform(*domain)
        kinds[name] = _choice(domain) if isinstance(domain, list) else _float(*domain)
    config = {
        "model": {"name": "vit_tiny_patch16_224", "depth": 3, "weights": None},
        "data": {"name": "digits", "mean": [0.3], "train_images": None},
        "training": {"epochs": 3, "learning_rate": drawn["training.learning_rate"], "clip_norm": None},
        "methods": {label: method} if label in STACKS and label != "plain" else {},
        "threads": 1,
        "plugins": [],
    }
    ledger.propose(number, label, config, drawn, kinds, seed=seed + number)


def train(ledger: Ledger, number: int, clean: float, epochs: int = 3) -> None:
    """Run a proposed trial's training to its end."""
    start(ledger, number, epochs)
    ledger.finish_training(number, clean, f"weights-{number}", seconds=4.5 * epochs)


def start(ledger: Ledger, number: int, epochs: int = 1) -> None:
    """Start a training and record so many epochs."""
    ledger.start_training(number)
    for count in range(1, epochs + 1):
        ledger.record_epochs(number, history(count))


def history(epochs: int) -> list[dict[str, float]]:
    """Curves of so many epochs."""
    return [{"train/loss": 2.0 / (e + 1), "val/accuracy": 1 - 1.0 / (e + 2)} for e in range(epochs)]


def attack(
    ledger: Ledger,
    number: int,
    survivors: int,
    *,
    split: Split = "validation",
    position: int = 0,
    exact: bool = False,
    images: int = IMAGES,
    test_clean: float | None = None,
) -> StageRecord:
    """Run one attack stage to its end."""
    stage = stage_record(number, split, position)
    ledger.start_stage(stage)
    verdicts = np.arange(images) < survivors
    done = replace(
        stage,
        state="done",
        images=images,
        clean_correct=min(images, survivors + 40),
        survivors=survivors,
        verdicts=verdicts,
        warnings=("square: loss did not fall",) if number % 5 == 0 and position else (),
        forwards=images * (20 if position == 0 else 300),
        backwards=images * 20,
        seconds=2.5 + position * 30,
    )
    ledger.finish_stage(done, exact=exact, split_clean_acc=test_clean)
    return done


def stage_record(number: int, split: Split = "validation", position: int = 0) -> StageRecord:
    """A stage that is about to run."""
    label = ("pgd", "autoattack")[position]
    config = THREAT | ({"steps": 20} if position == 0 else {})
    digest = f"{split}-{number}-{position}"
    return StageRecord(number, split, position, label, config, digest, "running", time.time(), column=label)


def finish(ledger: Ledger, number: int, label: str, clean: float, pgd: int, auto: int | None, seed: int = 0) -> None:
    """Take a trial from its proposal to its end; without `auto` its robust accuracy stays a bound."""
    propose(ledger, number, label, seed)
    train(ledger, number, clean)
    attack(ledger, number, pgd)
    if auto is not None:
        attack(ledger, number, auto, position=1, exact=True)


def test_stages(ledger: Ledger, number: int, pgd: int, auto: int, clean: float) -> None:
    """Judge a member of the front on the test images."""
    attack(ledger, number, pgd, split="test", test_clean=clean)
    attack(ledger, number, auto, split="test", position=1, exact=True)


test_stages.__test__ = False  # type: ignore[attr-defined]


def unfinished(folder: SweepFolder, **changes: Any) -> Ledger:
    """Eight trials: three exact (two of them the front), a dominated bound, one failed, three open. No driver."""
    ledger = empty(folder, **changes)
    with Lease(ledger):
        finish(ledger, 0, "plain", 0.95, 60, 20)
        finish(ledger, 1, "jasmin", 0.90, 120, 100)
        finish(ledger, 2, "adversarial", 0.80, 200, 180)
        finish(ledger, 3, "jasmin", 0.78, 150, None)
        propose(ledger, 4, "jasmin")
        start(ledger, 4)
        ledger.fail(4, "nan", TRACEBACK)
        test_stages(ledger, 2, 190, 170, 0.79)
        propose(ledger, 5, "plain")
        propose(ledger, 6, "jasmin")
        start(ledger, 6, 2)
        propose(ledger, 7, "adversarial")
        train(ledger, 7, 0.85)
        ledger.start_stage(stage_record(7))
    return ledger


def finished(folder: SweepFolder, **changes: Any) -> Ledger:
    """Four trials, all of them closed, completed."""
    ledger = empty(folder, **{"requested": 4} | changes)
    with Lease(ledger):
        finish(ledger, 0, "plain", 0.95, 60, 20)
        finish(ledger, 1, "jasmin", 0.90, 120, 100)
        finish(ledger, 2, "jasmin", 0.80, 90, None)
        propose(ledger, 3, "jasmin")
        start(ledger, 3)
        ledger.fail(3, "nan", TRACEBACK)
        for number in (0, 1):
            test_stages(ledger, number, 50, 15, 0.9)
        ledger.complete()
    return ledger


def large(folder: SweepFolder, trials: int, seed: int = 0) -> Ledger:
    """A finished sweep of many trials: 1 in 20 failed, the dear attack has run only where the front needed it."""
    rng = random.Random(seed)
    ledger = empty(folder, requested=trials)
    with Lease(ledger):
        for number in range(trials):
            label = rng.choice(list(STACKS))
            clean = rng.betavariate(12, 3)
            if number % 20 == 19:
                propose(ledger, number, label, seed)
                start(ledger, number)
                ledger.fail(number, "nan", TRACEBACK.replace("12", str(number)))
            else:
                pgd = IMAGES * (1.15 - clean) * rng.uniform(0.3, 1.0)
                finish(ledger, number, label, clean, min(IMAGES, max(0, round(pgd))), None, seed)
        settle(ledger)
        ledger.complete()
    return ledger


def settle(ledger: Ledger) -> None:
    """Run the dear attack, which takes 10 % off, wherever the front needs it; then judge the front on test images."""
    trials = ledger.trials([State.FINISHED])
    objectives = ledger.sweep().objectives
    points = [(t.clean_acc or 0.0, t.robust_acc or 0.0) for t in trials]
    exact = [t.exact for t in trials]
    while (place := next_unsettled(points, exact)) is not None:
        survivors = round(points[place][1] * IMAGES * 0.9)
        attack(ledger, trials[place].number, survivors, position=1, exact=True)
        points[place], exact[place] = (points[place][0], survivors / IMAGES), True
    for trial in front_of(ledger.trials(), objectives):
        survivors = round((trial.robust_acc or 0.0) * IMAGES * 0.95)
        test_stages(ledger, trial.number, survivors, survivors, (trial.clean_acc or 0.0) - 0.01)


def _float(low: float, high: float) -> str:
    return f'{{"name": "FloatDistribution", "attributes": {{"step": null, "low": {low}, "high": {high}, "log": true}}}}'


def _choice(values: list[Any]) -> str:
    return json.dumps({"name": "CategoricalDistribution", "attributes": {"choices": values}})
