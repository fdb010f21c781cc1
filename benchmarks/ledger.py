"""What the ledger costs as a sweep grows: one transition, `status` as a whole command, and one look of the live view.

    python -m benchmarks.ledger

Trials are committed as a driver commits them, one after the other, each through its whole life: 10,000 in all.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.rows import Row, measured
from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.live_block import render_block
from sweeps.live_reader import LiveReader
from sweeps.records import PlannedStage, StageRecord, SweepRecord

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "python -m benchmarks.ledger"
SIZES = (100, 1000, 10_000)
WATCHED = 50
"""Trials at each size whose transitions are timed."""
TRANSITION_MS, STATUS_S, LOOK_MS = 50.0, 1.0, 50.0
IMAGES = 1000


def rows() -> list[Row]:
    """Grow a ledger and measure at 100, 1,000 and 10,000 trials."""
    with tempfile.TemporaryDirectory() as storage:
        folder = SweepFolder(Path(storage), "big")
        folder.root.mkdir()
        ledger = Ledger.at(folder.ledger)
        ledger.create(_sweep(SIZES[-1]))
        transitions: dict[int, list[float]] = {}
        statuses: dict[int, list[float]] = {}
        with Lease(ledger):
            for number in range(SIZES[-1]):
                size = next(size for size in SIZES if number < size)
                spent = _live(ledger, number)
                if number >= size - WATCHED:
                    transitions.setdefault(size, []).extend(spent)
                if number + 1 in SIZES:
                    statuses[number + 1] = [_status(folder) for _ in range(5)]
            ledger.raise_total(SIZES[-1] + WATCHED)
            reader, looks = LiveReader(ledger, folder.requests), []
            reader.read(time.time())
            for number in range(SIZES[-1], SIZES[-1] + WATCHED):
                _live(ledger, number)
                looks.append(_milliseconds(lambda: render_block(reader.read(time.time()), 80, 24)))
        ledger.close()
    largest = SIZES[-1]
    growth = statistics.median(transitions[largest]) / statistics.median(transitions[SIZES[0]])
    per_size = ", ".join(f"{size:,}: {statistics.median(values):.2f}" for size, values in transitions.items())
    status_per_size = ", ".join(f"{size:,}: {statistics.median(values):.2f}" for size, values in statuses.items())
    return [
        measured(
            "ledger_transition_10000",
            transitions[largest],
            "ms at 10,000 trials",
            COMMAND,
            at_most=TRANSITION_MS,
            peer=f"medians by trials: {per_size}; growth {growth:.2f}",
        ),
        measured(
            "status_10000",
            statuses[largest],
            "s at 10,000 trials",
            COMMAND,
            at_most=STATUS_S,
            peer=f"medians by trials: {status_per_size}",
        ),
        measured("live_look_10000", looks, "ms at 10,000 trials", COMMAND, at_most=LOOK_MS),
    ]


def _live(ledger: Ledger, number: int) -> list[float]:
    """Take a trial through its life; returns the milliseconds of each transition."""
    config = {"methods": {"jasmin": {"weight": 1e-3, "k": 10}}, "training": {"epochs": 40, "learning_rate": 1e-3}}
    stage = StageRecord(number, "validation", 0, "apgd_ce", {"steps": 100}, "0" * 16, "running", time.time())
    verdicts = np.arange(IMAGES) < number % IMAGES
    done = replace(
        stage, state="done", images=IMAGES, clean_correct=IMAGES, survivors=int(verdicts.sum()), verdicts=verdicts
    )
    acts: tuple[Callable[[], object], ...] = (
        lambda: ledger.propose(number, "jasmin", config, {"jasmin.weight": 1e-3}, {}, number),
        lambda: ledger.start_training(number),
        lambda: ledger.record_epochs(number, [{"train/loss": 1.0, "val/clean_acc": 0.5}] * 3),
        lambda: ledger.finish_training(number, 0.5, "0" * 16, 1.0),
        lambda: ledger.start_stage(stage),
        lambda: ledger.finish_stage(done, exact=number % 10 == 0),
    )
    return [_milliseconds(act) for act in acts]


def _milliseconds(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - started)


def _status(folder: SweepFolder) -> float:
    command = [sys.executable, str(ROOT / "run_sweep.py"), "status", folder.name, "--json"]
    started = time.perf_counter()
    subprocess.run([*command, "--storage", str(folder.storage)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def _sweep(requested: int) -> SweepRecord:
    stage = PlannedStage(
        split="validation",
        position=0,
        plan="sweep",
        column="apgd_ce",
        label="apgd_ce",
        attack="apgd_ce",
        config={},
        threat={"norm": "linf", "epsilon": 8 / 255},
        cumulative=True,
        images=IMAGES,
        batch_size=256,
        seed=0,
    )
    return SweepRecord(
        id="big",
        name="big",
        created_at=time.time(),
        requested=requested,
        document={},
        objectives=("clean_acc", "robust_acc"),
        planned_stages=(stage,),
        environment={},
        data_digest="",
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(rows(), indent=2, ensure_ascii=False) + "\n")
