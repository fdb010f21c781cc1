"""Stages and jobs on the small model that the session has trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeps.records import PlannedStage
from sweeps.stage_job import StageJob
from tests.sweeps import ledgers
from trainables.config import attack_config_type


def real_stage(attack: str = "pgd", position: int = 0, split: Any = "validation", **changes: Any) -> PlannedStage:
    """A short attack on fifty images, in batches of ten."""
    settings = {"pgd": {"steps": 5}, "apgd_t": {"steps": 10}, "square": {"queries": 20}}
    config = attack_config_type(attack).model_validate(changes.pop("config", settings.get(attack, {})))
    stage = ledgers.planned(attack, position, split, images=50, batch_size=10, threat={"norm": "linf", "epsilon": 0.05})
    return replace(stage, config=config.plain(), passes=(3, 16), **changes)


def real_job(trained: Any, store: Path, stage: PlannedStage | None = None, **changes: Any) -> StageJob:
    """The job of a stage on the trained model, its verdicts kept in a folder."""
    meta = json.loads((trained.folder / "final" / "meta.json").read_text())
    job = StageJob(
        number=3,
        stage=stage or real_stage(),
        trial_folder=str(trained.folder),
        verdict_folder=str(store),
        weights_digest=meta["weights_digest"],
        data_digest=trained.splits.digest(),
    )
    return replace(job, **changes)
