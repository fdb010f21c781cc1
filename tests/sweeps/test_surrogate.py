"""Robustness tokens judged as published, by an attack on the backbone, and through the tokens, by a whole trial."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from sweeps.attack_plan import planned_stages
from sweeps.config import SweepConfig, parse_sweep
from sweeps.foreground import ForegroundResult, pinned_trial, run_trial
from sweeps.records import PlannedStage, StageRecord, State, TrialRecord
from sweeps.retention import _questions
from sweeps.stage_job import judge_here
from tests.conftest import TINY_MODEL
from tests.sweeps import ledgers
from tests.sweeps.stages import real_job, real_stage
from trainables.appended_tokens import backbone_of
from trainables.assessment import AttackQuestion, Subject, Verification, verify
from trainables.attack import Threat
from trainables.attacks.pgd import PgdConfig
from trainables.trial import load_final
from trainables.verdict_store import VerdictStore

IMAGES = 60
PGD = {"pgd": {"steps": 5}}
TOKENS = {"count": 20, "updates": None, "epsilon": 0.05, "steps": 3, "measured_images": 16}


class Judged(NamedTuple):
    """A trial with tokens, and what its two attacks found."""

    result: ForegroundResult
    planned: dict[str, PlannedStage]
    stages: dict[str, StageRecord]
    folder: Path


@pytest.fixture(scope="module")
def judged(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Judged:
    config: SweepConfig = parse_sweep(
        {
            "model": {**TINY_MODEL, "weights": str(trained.folder / "final" / "weights.safetensors")},
            "data": {"train_images": 300, "mean": list(trained.splits.mean), "std": list(trained.splits.std)},
            "training": {"epochs": 2, "batch_size": 50, "learning_rate": 3e-2},
            "methods": [{"robustness_tokens": TOKENS}],
            "attacks": {
                "epsilon": 0.05,
                "images": IMAGES,
                "stages": [PGD],
                "columns": {"TRANSFER": {**PGD, "surrogate": "backbone"}},
                "keep_images": True,
            },
        }
    )
    folder = tmp_path_factory.mktemp("tokens")
    result = run_trial(pinned_trial(config, None), 0, config.attacks, lambda _: None, folder)
    assert config.attacks is not None
    planned = planned_stages(config.attacks, 10, {"validation": IMAGES, "test": IMAGES})
    return Judged(
        result,
        {stage.label: stage for stage in planned if stage.split == "validation"},
        {stage.attack: stage for stage in result.stages},
        folder,
    )


def test_the_objective_is_the_attack_through_the_tokens_and_the_column_stands_beside_it(judged: Judged) -> None:
    own, made = judged.stages["pgd"], judged.stages["TRANSFER"]
    assert judged.result.robust_acc == own.accuracy
    assert own.cumulative
    assert not made.cumulative
    assert own.digest != made.digest
    assert (own.config.get("surrogate"), made.config["surrogate"]) == (None, "backbone")
    assert own.clean_correct == made.clean_correct
    assert 0 < own.survivors <= own.clean_correct  # type: ignore[operator]
    assert 0 < made.survivors <= made.clean_correct  # type: ignore[operator]
    assert own.verdicts is not None
    assert made.verdicts is not None
    assert own.verdicts.tolist() != made.verdicts.tolist()
    assert own.survivors < made.survivors  # type: ignore[operator]
    assert made.facts["mismatches"] == 0


def replay(judged: Judged, stage: PlannedStage) -> Verification:
    model, splits, meta = load_final(judged.folder, device=torch.device("cpu"))
    digest = f"{splits.digest()}/validation"
    subject = Subject(model, splits.validation, meta["weights_digest"], digest, torch.device("cpu"))
    config = PgdConfig(**stage.config)
    question = AttackQuestion(stage.attack, config, Threat(**stage.threat), stage.seed, stage.surrogate)
    return verify(subject, question, VerdictStore(judged.folder / "verdicts"), batch_size=20)


def test_the_images_made_on_the_backbone_are_in_the_ball_and_fool_the_model_with_tokens(judged: Judged) -> None:
    for label, record in judged.stages.items():
        found = replay(judged, judged.planned[label])
        fallen = (record.clean_correct or 0) - (record.survivors or 0)
        assert (found.kept, found.inside, found.misclassified) == (fallen, fallen, fallen)
        assert fallen > 0


def test_the_trial_reports_both_feature_cosines_after_every_epoch(judged: Judged) -> None:
    _, _, meta = load_final(judged.folder, device=torch.device("cpu"))
    for epoch in meta["history"]:
        assert {"train/invariance", "train/robustness"} <= epoch.keys()
        assert epoch["val/feature_cosine_backbone"] < 1
        assert epoch["val/feature_cosine_adaptive"] < epoch["val/feature_cosine"] < 1


def test_the_backbone_alone_judges_as_the_model_that_the_tokens_were_added_to(judged: Judged, trained: Any) -> None:
    model, splits, _ = load_final(judged.folder, device=torch.device("cpu"))
    images = splits.validation.take(torch.arange(20))
    with torch.no_grad():
        assert torch.equal(backbone_of(model)(images), trained.model(images))


def test_a_model_without_tokens_is_its_own_surrogate_and_is_judged_once(trained: Any, tmp_path: Path) -> None:
    own = judge_here(real_job(trained, tmp_path), 0.0)
    made = replace(real_stage(position=3), surrogate="backbone", cumulative=False, label="TRANSFER")
    again = judge_here(real_job(trained, tmp_path, made), 0.0)
    assert again.judged == 0
    assert again.record.digest == own.record.digest
    assert again.record.verdicts is not None
    assert own.record.verdicts is not None
    assert again.record.verdicts.tolist() == own.record.verdicts.tolist()


def test_what_was_judged_on_either_model_is_no_waste(judged: Judged) -> None:
    """Whether a trial has tokens, and so a backbone of its own, its weights alone do not say."""
    stage = judged.planned["TRANSFER"]
    sweep = ledgers.sweep_record(planned_stages=(stage,), data_digest="data", document={"attacks": {}})
    trial = TrialRecord(0, State.TRAINED, "", {}, {}, {}, 0, 0.0, 0.0, 0, weights_digest="weights")
    config, threat = PgdConfig(**stage.config), Threat(**stage.threat)
    asked = [AttackQuestion(stage.attack, config, threat, stage.seed, surrogate) for surrogate in ("backbone", None)]
    names = [question.digest_for("weights", "data/validation") for question in asked]
    assert set(names) < set(_questions(sweep, [trial]))
