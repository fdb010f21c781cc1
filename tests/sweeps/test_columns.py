"""Columns: what is grouped with what, and when a figure is exact, a bound, or not there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.columns import cell_of, columns_of, pixels, usual_threat
from sweeps.records import PlannedStage, StageRecord
from sweeps.summary import wilson
from tests.sweeps.ledgers import IMAGES, THREAT, cascade, judged, parted, planned

FAR = {"norm": "linf", "epsilon": 4 / 255}


def alone(label: str, position: int, **changes: object) -> PlannedStage:
    return planned(label, position, cumulative=False, **changes)  # type: ignore[arg-type]


def test_validation_comes_first_then_the_launched_plan_then_its_cascade() -> None:
    other = [replace(s, plan="paper", position=s.position + 9) for s in cascade("autoattack.a", "autoattack.b", "cw")]
    stages = [*cascade("pgd", split="test"), *other, alone("FGSM4", 7), *parted()]
    assert [c.key for c in columns_of(stages)] == [
        "validation.pgd",
        "validation.autoattack",
        "validation.FGSM4",
        "paper.validation.autoattack",
        "paper.validation.cw",
        "test.pgd",
    ]
    assert [len(c.stages) for c in columns_of(stages)] == [1, 6, 1, 2, 1, 1]
    assert columns_of([]) == ()


def test_a_head_names_what_differs_from_the_launched_plan() -> None:
    legacy = {"steps": 4, "legacy_normalized_budget": True}
    columns = columns_of(
        [
            *cascade("autoattack"),
            alone("FGSM8", 1),
            alone("FGSM4", 2, threat=FAR),
            alone("PGD", 3, config=legacy),
            alone("far", 4, threat={"norm": "l2", "epsilon": 0.5}),
            alone("made", 5, surrogate="backbone"),
            planned("cw", 6, "test", plan="paper", threat=FAR),
        ]
    )
    usual = usual_threat(columns)
    assert [c.title(usual) for c in columns] == [
        "autoattack",
        "FGSM8",
        "FGSM4, ε = 4/255",
        "PGD, ε = 8/255, normalised units",
        "far, l2, ε = 0.5",
        "made, ε = 8/255, made on the backbone",
        "test paper: cw, ε = 4/255",
    ]
    assert columns[0].title() == "autoattack, linf, ε = 8/255"


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [
        (8 / 255, "8/255"),
        (0.5 / 255, "0.5/255"),
        (128 / 255, "128/255"),
        (0.5, "0.5"),
        (0.1, "0.1"),
        (0.0281, "0.0281"),
    ],
)
def test_a_radius_is_written_in_pixels_where_that_is_short(epsilon: float, text: str) -> None:
    assert pixels(epsilon) == text


def test_a_column_is_a_bound_until_all_its_parts_have_run() -> None:
    plan = parted()
    pgd, auto = columns_of(plan)
    for done in range(len(plan) + 1):
        records = [judged(stage, 200 - 10 * i) for i, stage in enumerate(plan[:done])]
        assert cell_of(pgd, records).exact == (done >= 1)
        cell = cell_of(auto, records)
        assert (cell.done, cell.planned) == (max(0, done - 1), 6)
        assert cell.exact == (done == 7)
        if done < 2:
            assert (cell.figure, cell.progress, cell.interval) == ("", "", None)
        else:
            assert cell.survivors == 200 - 10 * (done - 1)
            assert cell.interval == wilson(cell.survivors, IMAGES)
    assert cell_of(auto, [judged(s, 150) for s in plan[:3]]).figure == "≤ 0.586"
    assert cell_of(auto, [judged(s, 150) for s in plan[:3]]).progress == "2 of 6 parts"
    assert cell_of(auto, [judged(s, 150) for s in plan]).figure == "0.586"


def test_what_left_no_survivor_makes_everything_after_it_exact() -> None:
    plan = (*parted(), alone("cw", 7), *(replace(s, plan="paper", position=8) for s in cascade("pgd")))
    pgd, auto, cw, other = columns_of(plan)
    records = [judged(plan[0], 40), judged(plan[1], 0)]
    assert (cell_of(pgd, records).survivors, cell_of(pgd, records).exact) == (40, True)
    assert (cell_of(auto, records).figure, cell_of(auto, records).exact) == ("0.000", True)
    only_first = cell_of(auto, [judged(plan[0], 0)])
    assert (only_first.survivors, only_first.images, only_first.exact, only_first.done) == (0, IMAGES, True, 0)
    for column in (cw, other):  # neither goes on from the launched plan's cascade
        assert cell_of(column, records).survivors is None


@pytest.mark.parametrize("state", ["running", "failed"])
def test_a_part_that_was_begun_and_has_no_verdicts_is_told(state: str) -> None:
    plan = parted()
    _, auto = columns_of(plan)
    begun: StageRecord = replace(judged(plan[3], 0), state=state, survivors=None, images=None, verdicts=None)  # type: ignore[arg-type]
    cell = cell_of(auto, [*(judged(s, 150) for s in plan[:3]), begun])
    assert (cell.figure, cell.progress, cell.exact) == ("≤ 0.586", f"2 of 6 parts, {state}", False)
    nothing = cell_of(auto, [judged(plan[0], 150), replace(begun, position=1)])
    assert (nothing.survivors, nothing.progress) == (None, state)


def test_records_of_the_other_split_do_not_count() -> None:
    plan = cascade("pgd") + cascade("pgd", split="test")
    validation, test = columns_of(plan)
    records = [judged(plan[1], 30)]
    assert cell_of(validation, records).survivors is None
    assert cell_of(test, records).survivors == 30


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4))
def test_a_column_that_stands_for_itself_is_the_worst_case_over_its_parts(verdicts: list[list[bool]]) -> None:
    plan = [alone(f"aa.part_{i}", i, images=6, threat=THREAT) for i in range(len(verdicts))]
    (column,) = columns_of(plan)
    cell = cell_of(column, [judged(stage, row) for stage, row in zip(plan, verdicts, strict=True)])
    slow = [all(row[image] for row in verdicts) for image in range(6)]
    assert cell.exact
    assert cell.survivors == sum(slow)
    assert cell.verdicts is not None
    np.testing.assert_array_equal(cell.verdicts, slow)
