"""Gains: every answer that the sentence can give, from verdicts made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from sweeps.gains import Gain, caution, gain_of, gain_rows, gain_sentence, standing
from sweeps.ledger import Ledger
from sweeps.records import PlannedStage, StageRecord, State, TrialRecord
from sweeps.snapshot import Snapshot
from tests.sweeps.ledgers import cascade, judged

PLAN = cascade("pgd", "autoattack")
TEST = cascade("pgd", "autoattack", split="test")
Row = tuple[str, Sequence[int], bool]
"""Label, which images stand after the last attack, whether that is exact."""


def stands(images: Sequence[int]) -> list[bool]:
    """Verdicts of 100 images."""
    return [i in images for i in range(100)]


def stages_of(number: int, row: Row, plan: Sequence[PlannedStage]) -> tuple[StageRecord, ...]:
    _, images, exact = row
    return tuple(judged(stage, stands(images), number) for stage in (plan if exact else plan[:1]))


@pytest.fixture
def empty(unfinished: Ledger) -> Snapshot:
    return Snapshot.read(unfinished)


def made(few: Snapshot, *rows: Row) -> Snapshot:
    """A snapshot of finished trials with these verdicts."""
    trials, stages = [], {}
    for number, row in enumerate(rows):
        record = few.trials[0]
        facts = {"label": row[0], "exact": row[2], "robust_acc": len(row[1]) / 100, "state": State.FINISHED}
        trials.append(replace(record, number=number, **facts))
        stages[number] = stages_of(number, row, PLAN)
    sweep = replace(few.sweep, planned_stages=(*PLAN, *TEST))
    return replace(few, sweep=sweep, trials=tuple(trials), stages=stages, front=())


def gain(snapshot: Snapshot) -> Gain:
    found = gain_of(snapshot)
    assert isinstance(found, Gain), found
    return found


def test_a_gain_on_many_images_exceeds_its_interval(empty: Snapshot) -> None:
    snapshot = made(empty, ("plain", range(10), True), ("jasmin", range(40), True), ("trades", range(30), True))
    found, sentence = gain(snapshot), gain_sentence(snapshot)
    assert (found.best.number, found.baseline.number, found.outcome) == (1, 0, "exceeds")
    assert found.counts.interval[0] > 0
    assert sentence.startswith("The gain of jasmin over plain exceeds its 95 % interval.")
    assert "on 0.400 of the 100 validation images" in sentence
    assert "a difference of +0.300 [" in sentence
    assert ("by trial 1 alone", "30") in gain_rows(snapshot)


def test_a_gain_of_two_images_may_be_chance(empty: Snapshot) -> None:
    snapshot = made(empty, ("plain", range(10), True), ("jasmin", range(12), True))
    assert gain(snapshot).outcome == "within"
    assert "does not exceed its 95 % interval: it may be chance" in gain_sentence(snapshot)


def test_being_worse_than_the_baseline_is_no_gain(empty: Snapshot) -> None:
    snapshot = made(empty, ("plain", range(60), True), ("jasmin", range(20), True))
    assert gain(snapshot).outcome == "less"
    assert "jasmin gains nothing over plain" in gain_sentence(snapshot)


def test_above_an_upper_bound_is_above_whatever_it_falls_to(empty: Snapshot) -> None:
    snapshot = made(empty, ("plain", range(10), False), ("jasmin", range(40), True))
    assert gain(snapshot).outcome == "exceeds"
    assert "on at most 0.100: a difference of at least +0.300" in gain_sentence(snapshot)


@pytest.mark.parametrize("images", [range(38), range(70)])
def test_not_above_an_upper_bound_says_nothing(empty: Snapshot, images: Sequence[int]) -> None:
    snapshot = made(empty, ("plain", images, False), ("jasmin", range(40), True))
    assert gain(snapshot).outcome == "open"
    assert "cannot be said: not all attacks on trial 0 have run" in gain_sentence(snapshot)


def test_a_bound_stands_for_the_baseline_if_it_is_above_the_exact_ones(empty: Snapshot) -> None:
    snapshot = made(empty, ("plain", range(10), True), ("plain", range(20), False), ("jasmin", range(60), True))
    assert gain(snapshot).baseline.number == 1


def test_without_plain_the_runner_up_is_the_baseline(empty: Snapshot) -> None:
    snapshot = made(empty, ("trades", range(20), True), ("jasmin", range(60), True), ("jasmin", range(59), True))
    found = gain(snapshot)
    assert (found.best.label, found.baseline.label) == ("jasmin", "trades")


def test_one_method_alone_has_nothing_to_gain_on(empty: Snapshot) -> None:
    sentence = gain_sentence(made(empty, ("jasmin", range(60), True), ("jasmin", range(10), True)))
    assert sentence == (
        "Whether the best method gains anything cannot be said: all trials are of one method, so that there is no "
        "other to gain on."
    )
    assert gain_rows(made(empty, ("jasmin", range(60), True))) == []


def test_bounds_alone_are_no_gain(empty: Snapshot) -> None:
    snapshot = made(empty, ("plain", range(10), True), ("jasmin", range(60), False))
    assert "no robust accuracy of a method other than plain is exact yet" in gain_sentence(snapshot)


def test_without_a_trial_of_the_baseline_nothing_can_be_said(empty: Snapshot) -> None:
    snapshot = made(empty, ("plain", range(10), True), ("jasmin", range(60), True))
    failed = replace(snapshot.trials[0], state=State.FAILED, robust_acc=None)
    snapshot = replace(snapshot, trials=(failed, snapshot.trials[1]))
    assert "no trial of plain has a robust accuracy" in gain_sentence(snapshot)


def test_verdicts_on_other_images_are_not_compared(empty: Snapshot) -> None:
    snapshot = made(empty, ("plain", range(10), True), ("jasmin", range(60), True))
    short = tuple(replace(s, verdicts=s.verdicts[:50], images=50) for s in snapshot.stages[0] if s.verdicts is not None)
    snapshot = replace(snapshot, stages={**snapshot.stages, 0: short})
    assert "no attack in common whose verdicts are of the same images" in gain_sentence(snapshot)


def on_test_images(snapshot: Snapshot, *rows: Row) -> Snapshot:
    """The same with what stands on the test images."""
    more = {n: (*snapshot.stages[n], *stages_of(n, row, TEST)) for n, row in enumerate(rows)}
    return replace(snapshot, stages={**snapshot.stages, **more})


def test_test_images_decide_where_both_were_judged_on_them(empty: Snapshot) -> None:
    rows: tuple[Row, Row] = ("plain", range(10), True), ("jasmin", range(60), True)
    there: tuple[Row, Row] = ("plain", range(30), True), ("jasmin", range(31), True)
    snapshot = on_test_images(made(empty, *rows), *there)
    assert (gain(snapshot).split, gain(snapshot).outcome) == ("test", "within")
    assert "of the 100 test images" in gain_sentence(snapshot)
    assert "the gain is of test images" in caution(snapshot)
    half = on_test_images(made(empty, *rows), there[0], ("jasmin", range(31), False))
    assert (gain(half).split, gain(half).outcome) == ("validation", "exceeds")
    assert "picked on these validation images" in caution(half)


def test_what_stands_withstood_every_part(empty: Snapshot) -> None:
    trial: TrialRecord = made(empty, ("plain", range(10), True)).trials[0]
    rng = np.random.default_rng(0)
    verdicts = [rng.random(100) < 0.7 for _ in PLAN]
    stages = tuple(judged(s, v, 0) for s, v in zip(PLAN, verdicts, strict=True))
    snapshot = replace(made(empty, ("plain", range(10), True)), stages={0: stages})
    found = standing(snapshot, trial, "validation")
    assert found is not None
    assert found.tolist() == [all(v[i] for v in verdicts) for i in range(100)]
    assert standing(snapshot, trial, "test") is None
