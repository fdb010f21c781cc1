"""Attack plans: the ready-made ones say what they should, and an attack's parts come to what the attack comes to."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces.errors import ConfigError
from sweeps.attack_plan import fill_in, planned_stages, ready_made
from sweeps.config import AttackPlan, parse_sweep, read_sweep
from sweeps.records import LAUNCHED, PlannedStage
from trainables.attack import Threat, find_attack
from trainables.attacks.autoattack import Autoattack, AutoattackConfig
from trainables.config import attack_config_type
from trainables.verdicts import judge

SIZES = {"validation": 50, "test": 80}
TEN = ["apgd_ce", *(f"apgd_t_{target}" for target in range(1, 10)), "fab_t", "square"]


def plan_of(**attacks: Any) -> AttackPlan:
    plan = parse_sweep({"attacks": attacks}).attacks
    assert plan is not None
    return plan


def stages_of(num_classes: int = 10, **attacks: Any) -> list[PlannedStage]:
    """Return the stages on validation images."""
    planned = planned_stages(plan_of(**attacks), num_classes, SIZES)
    return [stage for stage in planned if stage.split == "validation"]


# Ready-made plans


@pytest.mark.parametrize("name", ready_made())
def test_every_ready_made_plan_is_legal_and_knows_its_costs(name: str) -> None:
    planned = planned_stages(plan_of(plan=name), 10, SIZES)
    assert (planned[0].split, planned[0].position, planned[0].cumulative) == ("validation", 0, True)
    assert all(stage.passes is not None for stage in planned)
    assert len({(stage.split, stage.label) for stage in planned}) == len(planned)


def test_the_jasmin_plan_has_the_columns_of_the_papers_tables() -> None:
    plan = plan_of(plan="jasmin")
    planned = planned_stages(plan, 10, SIZES)
    assert (plan.norm, plan.epsilon, plan.images) == ("linf", 2 / 255, None)
    for split, size in SIZES.items():
        own = [stage for stage in planned if stage.split == split]
        aa2 = [stage for stage in own if stage.cumulative]
        assert [stage.label for stage in aa2] == [f"autoattack.{part}" for part in TEN]
        assert all(stage.config["steps"] == 10 for stage in aa2 if stage.attack != "square")
        assert aa2[-1].config["queries"] == 5000
        assert {stage.threat["epsilon"] for stage in aa2} == {2 / 255}
        alone = {s.label: (s.attack, s.threat["epsilon"], s.config.get("steps")) for s in own if not s.cumulative}
        assert alone == {
            "FGSM2": ("fgsm", 2 / 255, None),
            "FGSM4": ("fgsm", 4 / 255, None),
            "PGD2": ("pgd", 2 / 255, 4),
            "PGD4": ("pgd", 4 / 255, 4),
        }
        assert all(stage.images == size and stage.threat["norm"] == "linf" for stage in own)


def test_the_standard_plan_is_autoattack_as_published_taken_apart() -> None:
    stages = stages_of(plan="standard")
    assert [stage.label for stage in stages] == [f"autoattack.{part}" for part in TEN]
    assert {stage.column for stage in stages} == {"autoattack"}
    assert [stage.attack for stage in stages] == ["apgd_ce", *["apgd_t"] * 9, "fab_t", "square"]
    assert [stage.config["first"] for stage in stages if stage.attack == "apgd_t"] == list(range(9))
    assert {stage.config["steps"] for stage in stages if stage.attack != "square"} == {100}
    assert stages_of(stages=["autoattack"]) == stages


def test_fewer_classes_have_fewer_targets() -> None:
    labels = [stage.label.partition(".")[2] for stage in stages_of(4, plan="standard")]
    assert labels == ["apgd_ce", "apgd_t_1", "apgd_t_2", "apgd_t_3", "fab_t", "square"]
    assert len(stages_of(1000, plan="standard")) == len(TEN)


def test_what_a_section_says_itself_wins_over_its_plan() -> None:
    plan = plan_of(plan="jasmin", epsilon="1/255", columns={"X": "fgsm"}, test={"trials": 3})
    assert plan.epsilon == 1 / 255
    assert list(plan.columns) == ["X"]
    assert plan.columns["X"].threat.epsilon == 1 / 255
    assert plan.stages[0].config.plain()["version"] == "aa10"
    assert plan.test is not None
    assert (plan.test.trials, plan.test.images) == (3, None)  # a section of its own takes the rest from the plan
    assert plan_of(plan="jasmin", test=None).test is None


@pytest.mark.parametrize("section", [None, 3, ["pgd"], {}, {"plan": "none"}, {"plan": ["jasmin"]}, {"stages": ["pgd"]}])
def test_what_names_no_ready_made_plan_stays_as_it_is(section: Any) -> None:
    assert fill_in(section) == section


def test_the_document_has_the_plan_written_out_and_comes_back_as_the_same_sweep(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("attacks: {plan: jasmin, epsilon: 1/255}\n")
    config = read_sweep(file, ["attacks.columns.PGD2.pgd.steps=7"])
    assert "plan" not in config.document["attacks"]
    assert config.document["attacks"]["columns"]["PGD2"]["pgd"]["steps"] == 7
    again = parse_sweep(config.document)
    assert (again, again.document) == (config, config.document)


def test_an_override_chooses_another_plan_than_the_file(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    for text in ("attacks: {plan: jasmin}\n", "attacks: {}\n", "search: random\n"):
        file.write_text(text)
        chosen = read_sweep(file, ["attacks.plan=standard", "attacks.images=9"]).attacks
        assert chosen is not None
        assert chosen.as_written() == plan_of(plan="standard", images=9).as_written()


def test_an_unknown_plan_is_named_with_its_line_and_what_there_is(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("methods: [plain]\nattacks:\n  plan: jasmim\n")
    with pytest.raises(ConfigError) as caught:
        read_sweep(file)
    (problem,) = caught.value.problems
    assert (problem.line, problem.path) == (3, ("attacks", "plan"))
    assert all(name in str(problem) for name in ready_made())
    with pytest.raises(ConfigError, match=r"--set attacks\.plan=jasmim"):
        read_sweep(file, ["attacks.plan=jasmim"])


# Taking a plan apart


def test_a_part_that_was_there_already_is_left_out_of_a_cascade_and_kept_in_a_column() -> None:
    own = {"custom": {"autoattack": {"version": "custom", "attacks": ["apgd_ce", "square"]}}}
    stages = stages_of(stages=["apgd_ce", "autoattack", "apgd_ce", {"apgd_ce": {"steps": 7}}], columns=own)
    labels = [stage.label for stage in stages]
    assert labels[:2] == ["apgd_ce", "autoattack.apgd_t_1"]
    assert labels[-3:] == ["apgd_ce_3", "custom.apgd_ce", "custom.square"]
    assert len(labels) == len(set(labels)) == len(TEN) + 3
    assert [stage.cumulative for stage in stages[-3:]] == [True, False, False]


def test_no_part_and_no_stage_has_the_place_of_another() -> None:
    planned = planned_stages(plan_of(plan="jasmin", stages=["pgd", "autoattack"]), 10, SIZES)
    for split in SIZES:
        assert [stage.position for stage in planned if stage.split == split] == list(range(len(TEN) + 5))
    assert {stage.plan for stage in planned} == {LAUNCHED}


def test_positions_go_on_after_what_is_planned_already() -> None:
    first = planned_stages(plan_of(stages=["pgd", "fgsm"], test={"stages": ["pgd"]}), 10, SIZES)
    more = planned_stages(plan_of(stages=["fgsm"], columns={"P": "pgd"}), 10, SIZES, name="more", after=first)
    assert [(s.split, s.position) for s in more] == [("validation", 2), ("validation", 3), ("test", 1), ("test", 2)]
    assert {s.plan for s in more} == {"more"}
    only = planned_stages(plan_of(stages=["fgsm"], test=None), 10, SIZES, name="only", after=(*first, *more))
    assert [(s.split, s.position) for s in only] == [("validation", 4)]


def test_no_more_images_are_judged_than_a_split_has() -> None:
    planned = planned_stages(plan_of(stages=["pgd"], images=60, test={"images": 60}), 10, SIZES)
    assert [(stage.split, stage.images) for stage in planned] == [("validation", 50), ("test", 60)]


def test_a_stage_comes_back_from_the_ledger_as_it_was() -> None:
    for stage in planned_stages(plan_of(plan="jasmin", stages=["pgd", "autoattack"], keep_images=True), 10, SIZES):
        assert PlannedStage.from_plain(json.loads(json.dumps(asdict(stage)))) == stage


@pytest.mark.parametrize("num_classes", [4, 10, 100])
def test_the_most_passes_of_the_parts_add_up_to_those_of_the_whole(num_classes: int) -> None:
    for settings in ({}, {"version": "aa10"}, {"steps": 7, "queries": 30}):
        stages = stages_of(num_classes, stages=[{"autoattack": settings}])
        config = AutoattackConfig.model_validate(settings)
        assert all(stage.passes is not None for stage in stages)
        assert sum(s.passes[1] for s in stages if s.passes) == Autoattack.passes(config, num_classes)[1]


def test_the_parts_one_after_the_other_come_to_the_verdict_of_the_whole_attack(trained: Any) -> None:
    threat, device, seed = Threat(epsilon=0.06), torch.device("cpu"), 3
    settings = {"steps": 4, "queries": 20}
    images = trained.splits.validation
    ids = torch.arange(48)
    with torch.no_grad():
        ids = ids[trained.model(images.take(ids)).argmax(1) == images.labels[ids]]

    def stands(attack: str, config: Any, some: torch.Tensor) -> torch.Tensor:
        found = find_attack(attack, config, threat)
        verdict = judge(trained.model, found, images, some, seed=seed, batch_size=16, device=device)
        return some[verdict.correct]

    whole = stands("autoattack", AutoattackConfig.model_validate(settings), ids)
    left, counts = ids, [len(ids)]
    for stage in stages_of(stages=[{"autoattack": settings}]):
        left = stands(stage.attack, attack_config_type(stage.attack).model_validate(dict(stage.config)), left)
        counts.append(len(left))
    assert left.tolist() == whole.tolist()
    assert 0 < len(whole) < counts[1] < len(ids), "the first part and a later one take some away, and some stand"
