"""What the lazy cascade would cost on sweeps with the accuracies of the JaSMin tables. Simulated: no model is attacked.

    python -m benchmarks.simulated

A draw is a sweep of 30 trials, rows of the table with their accuracies as probabilities per image. The cascade
is standard AutoAttack, decided by the functions that decide a real sweep; what a stage costs follows from when each
image falls. How images fall is assumed, not published: see GAP, FIRST_HIT and TARGET_HIT.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.rows import Row, measured
from sweeps.attack_plan import planned_stages
from sweeps.cascade import Standing, is_through, next_target
from sweeps.pareto import front
from sweeps.reading import read_attacks
from sweeps.records import PlannedStage, StageRecord, State, TrialRecord

COMMAND = "python -m benchmarks.simulated"
TRIALS, IMAGES, DRAWS = 30, 1000, 20
AT_MOST = 0.25

CIFAR100 = (
    (90.9, 2.12),
    (90.02, 3.01),
    (90.97, 2.61),
    (90.64, 2.57),
    (90.91, 2.39),
    (90.92, 2.33),
    (91.04, 2.16),
    (90.67, 2.13),
    (91.04, 2.1),
    (90.91, 2.22),
    (90.95, 1.9),
    (91.25, 1.98),
    (90.96, 2.22),
    (89, 4.19),
    (91, 2.12),
    (91.13, 1.98),
    (89.1, 3.72),
    (90.76, 2.56),
    (91.12, 2.21),
    (88.04, 3.71),
    (90.85, 2.39),
    (88.07, 4.01),
    (88.85, 3.83),
    (90.92, 2.34),
    (90.9, 2.01),
    (87.81, 3.49),
    (90.94, 2.48),
    (90.89, 2.17),
    (86.52, 2.54),
    (90.58, 2.44),
    (91.1, 2),
)
"""Standard accuracy and AutoAttack with 10 steps at 2/255, in percent: JaSMin, table 3, all rows."""
CIFAR10 = (
    (98.56, 2.13),
    (97.72, 4.38),
    (98.24, 2.87),
    (98.27, 3.13),
    (98.35, 2.46),
    (98.36, 2.59),
    (98.36, 2.23),
    (98.41, 2.09),
    (98.55, 1.85),
    (98.46, 2.1),
    (98.45, 2.3),
    (98.46, 2.08),
    (98.51, 2.04),
    (98.55, 1.96),
    (98.47, 2.2),
    (98.58, 2.08),
    (97.46, 4.2),
    (98.4, 2.8),
    (98.43, 2),
    (96.74, 5.04),
    (98.4, 2.74),
    (98.58, 2.08),
    (96.71, 4.38),
    (98.52, 2.23),
    (98.37, 2.1),
    (96.49, 3.13),
    (98.21, 2.79),
    (98.4, 1.69),
    (95.7, 2.39),
    (98.09, 2.9),
    (98.5, 1.97),
)
"""The same of table 4."""

GAP = (0.02, 0.03)
"""Share of the images that APGD-CE leaves standing and AutoAttack does not: between these, evenly."""
FIRST_HIT = 3
"""Mean iteration at which an image falls to APGD-CE, if it does: 1 more than geometric."""
LATER_HIT = 8
"""The same within a target of APGD-T."""
TARGET_HIT = 0.5
"""Chance of an image of the gap to fall to the next target; whoever stands after all falls to the last."""
ASCENT = 101
"""Iterates of pyautoattack's APGD, each a pass forward and back, whether the image has fallen or not."""


@dataclass(frozen=True)
class Simulated:
    """One trial: what each stage of the cascade leaves standing, what it costs here, and what it costs the package."""

    clean: float
    robust: tuple[float, ...]
    passes: tuple[int, ...]
    package_passes: int


def rows() -> list[Row]:
    """Return the share of pyautoattack's passes, median and range over the draws, for both tables together."""
    shares = [share for _, share in draws()]
    row = measured(
        "simulated_jasmin_front_passes",
        shares,
        "of pyautoattack's passes on every trial, simulated, median and range of 20 draws",
        COMMAND,
        at_most=AT_MOST,
    )
    row["peer"] = f"worst draw {max(shares):.3f}"
    return [row]


def draws() -> Iterator[tuple[int, float]]:
    """Yield the size of the front and the share of the package's passes for each draw, the tables in turn."""
    planned = _standard()
    for draw in range(DRAWS):
        generator = np.random.default_rng(draw)
        table = (CIFAR100, CIFAR10)[draw % 2]
        chosen = random.Random(draw).sample(table, TRIALS)
        trials = [_trial(clean / 100, robust / 100, len(planned), generator) for clean, robust in chosen]
        spent, members = run_lazily(trials, planned)
        if members != front([(t.clean, t.robust[-1]) for t in trials]):
            raise RuntimeError(f"draw {draw}: the front differs from that of full evaluation")
        yield len(members), spent / sum(t.package_passes for t in trials)


def run_lazily(trials: Sequence[Simulated], planned: Sequence[PlannedStage]) -> tuple[int, list[int]]:
    """Run the first stage on every trial and then what the cascade asks for; returns the passes and the front."""
    stages = [_stage(number, planned[0], t.robust[0]) for number, t in enumerate(trials)]
    records = [_record(number, t) for number, t in enumerate(trials)]
    spent = sum(t.passes[0] for t in trials)
    objectives = ("clean_acc", "robust_acc")
    while True:
        at = Standing(planned, objectives, records, stages, ())
        target = next_target(at, evaluate="front", test_trials=0, final=True)
        if target is None:
            break
        trial, position = trials[target.number], target.stage.position
        stages.append(_stage(target.number, target.stage, trial.robust[position]))
        spent += trial.passes[position]
        exact = is_through(planned, [s for s in stages if s.number == target.number])
        records[target.number] = replace(records[target.number], robust_acc=trial.robust[position], exact=exact)
    settled = [r for r in records if r.exact]
    members = front([(r.clean_acc or 0.0, r.robust_acc or 0.0) for r in settled])
    return spent, [settled[i].number for i in members]


def _standard() -> list[PlannedStage]:
    plan, problems = read_attacks({"images": IMAGES, "test": None})
    assert plan is not None, problems
    return list(planned_stages(plan, 10, {"validation": IMAGES}))


def _trial(clean: float, robust: float, stages: int, generator: np.random.Generator) -> Simulated:
    """Draw a trial's images. The stages: APGD-CE, nine targets, FAB-T and Square, which break nobody."""
    fate = generator.random(IMAGES)
    correct, gap = fate < clean, generator.uniform(*GAP)
    by_target = correct & (fate >= robust) & (fate < robust + gap)
    stands = correct & (fate < robust + gap)
    target = np.minimum(generator.geometric(TARGET_HIT, IMAGES), 9)
    left, cost = [int(stands.sum())], [IMAGES + _falls(correct & ~stands, FIRST_HIT, generator) + _climbs(stands)]
    package = ASCENT * 3 * int(correct.sum()) + IMAGES
    for rank in range(1, 10):
        falls = stands & by_target & (target == rank)
        package += ASCENT * 3 * int(stands.sum())
        stands = stands & ~falls
        cost.append(_falls(falls, LATER_HIT, generator) + _climbs(stands) + int(stands.sum() + falls.sum()))
        left.append(int(stands.sum()))
    for passes in (3628, 5003):
        package += passes * left[-1]
        cost.append((passes + 1) * left[-1])
        left.append(left[-1])
    assert len(left) == stages
    return Simulated(
        clean=int(correct.sum()) / IMAGES,
        robust=tuple(count / IMAGES for count in left),
        passes=tuple(cost),
        package_passes=package,
    )


def _falls(who: np.ndarray[tuple[int], np.dtype[np.bool_]], mean: float, generator: np.random.Generator) -> int:
    """Passes of images that fall: three for each iterate until then, at most all, and the evaluator's own."""
    hits = np.minimum(generator.geometric(1 / mean, int(who.sum())), ASCENT)
    return int(3 * hits.sum() + len(hits))


def _climbs(who: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> int:
    """Passes of images that withstand: 100 forward and back, the last one forward, and the evaluator's own."""
    return 302 * int(who.sum())


def _record(number: int, trial: Simulated) -> TrialRecord:
    return TrialRecord(
        number=number,
        state=State.FINISHED,
        label="simulated",
        config={},
        params={},
        distributions={},
        seed=0,
        created_at=0.0,
        updated_at=0.0,
        revision=0,
        clean_acc=trial.clean,
        robust_acc=trial.robust[0],
    )


def _stage(number: int, stage: PlannedStage, accuracy: float) -> StageRecord:
    return StageRecord(
        number=number,
        split=stage.split,
        position=stage.position,
        attack=stage.label,
        config={},
        digest="",
        state="done",
        started_at=0.0,
        images=IMAGES,
        survivors=round(accuracy * IMAGES),
        column=stage.column,
    )


if __name__ == "__main__":
    for size, share in draws():
        sys.stderr.write(f"front of {size}: {share:.3f}\n")
    sys.stdout.write(json.dumps(rows(), indent=2, ensure_ascii=False) + "\n")
