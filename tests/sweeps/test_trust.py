"""Flags: each fires on what it is for, with its numbers, and not on what is next to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sweeps.records import PlannedStage, StageRecord
from sweeps.trust import MEANING, count_mismatches, flags_of
from tests.sweeps.ledgers import IMAGES, cascade, judged, parted, planned

PLAN = parted()


def codes(stages: list[StageRecord], plan: tuple[PlannedStage, ...] = PLAN) -> list[str]:
    return [flag.code for flag in flags_of(stages, plan)]


def alone(label: str, position: int, attack: str, epsilon: float = 8 / 255, most: int = 61, **changes: Any) -> Any:
    threat = {"norm": "linf", "epsilon": epsilon}
    return planned(label, position, attack=attack, cumulative=False, threat=threat, passes=(3, most), **changes)


def run(survivors: list[int]) -> list[StageRecord]:
    return [judged(stage, count) for stage, count in zip(PLAN, survivors, strict=False)]


def test_a_cascade_that_goes_as_it_should_has_no_flag() -> None:
    stages = run([120, 110, 105, 104, 104, 104, 104])
    facts = {"attacked": 120.0, "flat": 0.0, "mismatches": 0.0, "logit_scale": 12.0, "budget": 9e4}
    assert codes([replace(stage, facts=facts) for stage in stages]) == []
    assert codes([]) == []


@pytest.mark.parametrize(
    ("flat", "attacked", "fires"), [(3, 299, True), (3, 300, False), (2, 10, False), (0, 0, False), (50, 100, True)]
)
def test_zero_gradients_are_more_than_one_percent_and_two_images(flat: int, attacked: int, fires: bool) -> None:
    stage = replace(judged(PLAN[1], 100), facts={"flat": float(flat), "attacked": float(attacked)})
    assert codes([stage]) == ["zero-gradients"] * fires


def test_zero_gradients_are_told_once_with_the_worst_attack() -> None:
    facts = [{"flat": 5.0, "attacked": 100.0}, {"flat": 9.0, "attacked": 90.0}, {"flat": 4.0, "attacked": 90.0}]
    stages = [replace(s, facts=f) for s, f in zip(run([100, 90, 90]), facts, strict=True)]
    (flag,) = flags_of(stages, PLAN)
    assert flag.text == (
        "9 of 90 validation images (10.0%) have a gradient of exactly zero at the start of autoattack.apgd_ce; "
        "2 other attacks saw the like."
    )


@pytest.mark.parametrize(("scale", "fires"), [(50.0, False), (50.1, True), (4000.0, True)])
def test_logits_far_apart_are_flagged(scale: float, fires: bool) -> None:
    assert codes([judged(PLAN[0], 100, facts={"logit_scale": scale})]) == ["logit-scale"] * fires


@pytest.mark.parametrize(
    ("after", "fires"),
    [((110, 105, 99), False), ((99, 98, 95), False), ((99, 94, 94), True), ((94, 94, 94), True)],
)
def test_a_loss_blind_to_scale_that_breaks_a_tenth_of_the_images_is_flagged(after: Any, fires: bool) -> None:
    stages = run([130, 120, *after])  # 256 images: a tenth is 25.6
    assert codes(stages) == ["dlr-beats-ce"] * fires
    if fires:
        expected = f"{120 - after[-1]} of 256 validation images"
        assert flags_of(stages, PLAN)[0].text.startswith(f"attacks on the DLR loss broke {expected}")


def test_what_other_attacks_break_is_not_put_down_to_the_dlr_loss() -> None:
    assert codes(run([130, 120, 120, 120, 120, 60, 60])) == []  # FAB-T
    first = cascade("autoattack.apgd_t_0", "autoattack.apgd_ce")
    assert codes([judged(first[0], 50), judged(first[1], 50)], first) == []


@pytest.mark.parametrize(("square", "fires"), [(100, False), (98, False), (97, True)])
def test_square_that_breaks_what_gradients_left_is_flagged(square: int, fires: bool) -> None:
    stages = run([130, 110, 100, 100, 100, 100, square])
    assert codes(stages) == ["square-alone"] * fires


def test_square_first_or_alone_shows_nothing() -> None:
    first = cascade("autoattack.square", "autoattack.apgd_ce")
    assert codes([judged(first[0], 50), judged(first[1], 50)], first) == []


@pytest.mark.parametrize(
    ("attack", "epsilon", "config", "survivors", "fires"),
    [
        ("pgd", 0.5, {}, 3, True),
        ("pgd", 1.0, {}, 200, True),
        ("pgd", 0.5, {}, 2, False),
        ("pgd", 0.49, {}, 200, False),
        ("fgsm", 0.5, {}, 200, False),
        ("pgd", 0.5, {"legacy_normalized_budget": True}, 200, False),
    ],
)
def test_images_that_withstand_grey_are_flagged(
    attack: str, epsilon: float, config: dict[str, Any], survivors: int, fires: bool
) -> None:
    stage = alone("far", 7, attack, epsilon, config=config)
    assert codes([judged(stage, survivors)], (*PLAN, stage)) == ["robust-to-grey"] * fires


def test_a_large_radius_in_another_norm_is_not_grey() -> None:
    stage = replace(alone("far", 7, "pgd"), threat={"norm": "l2", "epsilon": 0.5})
    assert codes([judged(stage, 200)], (*PLAN, stage)) == []


def test_accuracy_that_rises_with_epsilon_is_flagged_image_by_image() -> None:
    near, far = alone("PGD2", 7, "pgd", 2 / 255), alone("PGD4", 8, "pgd", 4 / 255)
    plan = (*PLAN, near, far)
    few, more = np.arange(IMAGES) < 100, np.arange(IMAGES) < 110
    assert codes([judged(near, few), judged(far, more)], plan) == ["rises-with-epsilon"]
    assert "10 images withstand only the larger ball" in flags_of([judged(near, few), judged(far, more)], plan)[0].text
    assert codes([judged(near, more), judged(far, few)], plan) == []
    assert codes([judged(near, few), judged(far, np.arange(IMAGES) < 102)], plan) == []
    moved = np.roll(few, 20)  # 20 other images, but no more of them
    assert codes([judged(near, few), judged(far, moved)], plan) == []
    step = (*PLAN, replace(near, config={"steps": 4, "step_size": 0.01}), replace(far, config={"steps": 4}))
    assert codes([judged(step[-2], few), judged(step[-1], more)], step) == ["rises-with-epsilon"]


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"images": 128}, {"config": {"steps": 7}}, {"attack": "cw"}, {"split": "test"}]
)
def test_only_the_same_attack_on_the_same_images_can_rise(changes: dict[str, Any]) -> None:
    near = alone("PGD2", 7, "pgd", 2 / 255)
    far = replace(alone("PGD4", 8, "pgd", 4 / 255), **changes)
    records = [judged(near, 50), judged(far, np.arange(far.images) < 100)]
    assert codes(records, (*PLAN, near, far)) == []


def test_a_weaker_attack_that_breaks_what_a_stronger_one_leaves_is_flagged() -> None:
    weak = alone("FGSM8", 7, "fgsm", most=3)
    plan = (*PLAN, weak)
    cascaded = run([130, 120, 110, 110, 110, 110, 110])
    standing = np.arange(IMAGES) < 200
    standing[:5] = False
    flags = flags_of([*cascaded, judged(weak, standing)], plan)
    assert [flag.code for flag in flags] == ["weaker-beats-stronger"] * 2  # PGD and the whole cascade
    assert flags[1].text == (
        "FGSM8, linf, ε = 8/255 broke 5 images that autoattack, linf, ε = 8/255 left "
        "(at most 3 passes an image against 6,061)."
    )
    standing[2:5] = True
    assert codes([*cascaded, judged(weak, standing)], plan) == []


def test_the_stronger_of_two_may_break_what_it_will() -> None:
    strong = alone("long", 7, "pgd", most=10**6)
    assert codes([*run([130]), judged(strong, 10)], (*PLAN, strong)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"split": "test"},
        {"threat": {"norm": "linf", "epsilon": 0.02}},
        {"config": {"legacy_normalized_budget": True}},
        {"passes": None},
    ],
)
def test_only_attacks_in_the_same_ball_on_the_same_images_compete(changes: dict[str, Any]) -> None:
    weak = replace(alone("FGSM8", 7, "fgsm", most=3), **changes)
    assert codes([*run([130, 120]), judged(weak, 50)], (*PLAN, weak)) == []


def test_another_plans_cascade_counts_as_one_attack() -> None:
    other = tuple(replace(s, plan="paper", position=s.position + 10, passes=(1, 2)) for s in cascade("cw", "pgd"))
    records = [*run([130, 120]), judged(other[0], 120), judged(other[1], 115)]
    found = flags_of(records, (*PLAN, *other))
    assert {flag.code for flag in found} == {"weaker-beats-stronger"}
    assert any(flag.text.startswith("paper: pgd, linf, ε = 8/255 broke 5 images that autoattack") for flag in found)


@pytest.mark.parametrize(("count", "attacked", "fires"), [(1, 1000, False), (2, 1999, True), (2, 2000, False)])
def test_mismatches_are_more_than_one_in_a_thousand(count: int, attacked: int, fires: bool) -> None:
    half = {"mismatches": count / 2, "attacked": attacked / 2}
    stages = [replace(stage, facts=half) for stage in run([120, 110])]
    assert codes(stages) == ["mismatches"] * fires
    assert count_mismatches(stages) == (count, attacked)


@pytest.mark.parametrize(
    ("own", "transferred", "fires"),
    [((100, 61), (97, 61), True), ((100, 61), (98, 61), False), ((100, 60), (9, 61), False)],
)
def test_an_attack_that_another_model_leads_better_is_flagged(own: Any, transferred: Any, fires: bool) -> None:
    through, made = alone("own", 7, "pgd", most=own[1]), alone("made", 8, "pgd", most=transferred[1])
    made = replace(made, surrogate="backbone")
    stages = [judged(through, own[0]), judged(made, transferred[0])]
    assert codes(stages, (through, made)) == ["transfer-beats-own"] * fires


def test_attacks_made_on_another_model_do_not_compete_with_each_other() -> None:
    plan = [
        replace(stage, surrogate="backbone") for stage in (alone("a", 7, "fgsm", most=3), alone("b", 8, "pgd", 0.6))
    ]
    plan += [
        replace(alone("c", 9, "pgd", 0.55), surrogate="backbone"),
        replace(alone("d", 10, "pgd"), surrogate="backbone"),
    ]
    stages = [judged(stage, count) for stage, count in zip(plan, (50, 60, 60, 100), strict=True)]
    assert codes(stages, tuple(plan)) == []


def test_every_code_has_its_meaning() -> None:
    weak, far = alone("FGSM8", 7, "fgsm", most=3), alone("far", 8, "pgd", 0.6)
    near = alone("near", 9, "pgd", 0.55)
    made = replace(alone("made", 10, "pgd", 0.55), surrogate="backbone")
    stages = [*run([200, 190, 120, 120, 120, 120, 100]), judged(weak, 90), judged(far, 60), judged(near, 50)]
    stages.append(judged(made, 40))
    facts = {"flat": 20.0, "attacked": 200.0, "mismatches": 3.0, "logit_scale": 99.0}
    stages[0] = replace(stages[0], facts=facts)
    found = list(dict.fromkeys(codes(stages, (*PLAN, weak, far, near, made))))
    assert found == list(MEANING)
