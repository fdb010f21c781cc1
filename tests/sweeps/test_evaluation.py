from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search_spaces.errors import ObjectiveMissing
from sweeps.evaluation import StageJob, judge_stage, read_verdicts, warm_up
from trainables.config import attack_config_type


def stage(trained: Any, tmp_path: Path, **changes: Any) -> StageJob:
    """A short PGD on the validation images of the model that the session has trained."""
    import json

    meta = json.loads((trained.folder / "final" / "meta.json").read_text())
    job = StageJob(
        number=3,
        split="validation",
        position=0,
        label="pgd",
        attack="pgd",
        config=attack_config_type("pgd").model_validate({"steps": 5}).plain(),
        threat={"norm": "linf", "epsilon": 0.05},
        images=50,
        batch_size=25,
        seed=0,
        trial_folder=str(trained.folder),
        verdict_folder=str(tmp_path),
        weights_digest=meta["weights_digest"],
        data_digest=trained.splits.digest(),
    )
    return replace(job, **changes)


def test_a_stage_leaves_verdicts_that_can_be_adopted(trained: Any, tmp_path: Path) -> None:
    job = stage(trained, tmp_path)
    judge_stage(job)
    found = read_verdicts(job)
    record = found.record
    assert (record.state, record.images, record.number, record.attack) == ("done", 50, 3, "pgd")
    assert record.verdicts is not None
    assert record.survivors == record.verdicts.sum()
    assert 0 < record.survivors < record.clean_correct <= 50  # type: ignore[operator]
    assert record.config == {"steps": 5, "step_size": None, "restarts": 1, "random_start": True, **job.threat}
    assert found.split_clean_acc is None
    assert not list(tmp_path.glob(".*"))


def test_a_later_stage_attacks_only_what_stands(trained: Any, tmp_path: Path) -> None:
    first = stage(trained, tmp_path)
    judge_stage(first)
    verdicts = read_verdicts(first).record.verdicts
    assert verdicts is not None
    second = replace(first, position=1, standing=tuple(bool(v) for v in verdicts), config={**first.config, "steps": 20})
    judge_stage(second)
    later = read_verdicts(second).record.verdicts
    assert later is not None
    assert (later <= verdicts).all()


def test_test_images_come_with_the_clean_accuracy_of_their_whole_split(trained: Any, tmp_path: Path) -> None:
    job = stage(trained, tmp_path, split="test", images=20)
    judge_stage(job)
    found = read_verdicts(job)
    assert found.record.images == 20
    assert found.split_clean_acc is not None
    assert found.split_clean_acc == pytest.approx(found.record.clean_correct / 20, abs=0.3)  # type: ignore[operator]


def test_a_stage_that_has_its_file_is_not_run_again(trained: Any, tmp_path: Path) -> None:
    job = stage(trained, tmp_path)
    judge_stage(job)
    written = job.verdict_file.stat().st_mtime_ns
    judge_stage(replace(job, trial_folder="/nowhere"))
    assert job.verdict_file.stat().st_mtime_ns == written


@pytest.mark.parametrize("damage", ["missing", "torn", "foreign"])
def test_a_missing_or_torn_file_is_no_verdict_and_is_written_again(trained: Any, tmp_path: Path, damage: str) -> None:
    job = stage(trained, tmp_path)
    judge_stage(job)
    content = job.verdict_file.read_bytes()
    if damage == "missing":
        job.verdict_file.unlink()
    elif damage == "torn":
        job.verdict_file.write_bytes(content[: len(content) // 2])
    else:
        np.savez(job.verdict_file, other=np.zeros(3))
    with pytest.raises(ObjectiveMissing):
        read_verdicts(job)
    judge_stage(job)
    assert read_verdicts(job).record.images == 50


def test_other_weights_or_images_are_refused(trained: Any, tmp_path: Path) -> None:
    for changes in ({"weights_digest": "0" * 16}, {"data_digest": "0" * 16}):
        with pytest.raises(ObjectiveMissing, match="not those"):
            judge_stage(stage(trained, tmp_path, **changes))


def test_the_digest_names_what_decides_a_verdict_and_nothing_else(trained: Any, tmp_path: Path) -> None:
    job = stage(trained, tmp_path)
    different: list[dict[str, Any]] = [
        {"attack": "fgsm"},
        {"config": {"steps": 6}},
        {"threat": {"norm": "linf", "epsilon": 0.06}},
        {"images": 49},
        {"seed": 1},
        {"split": "test"},
        {"weights_digest": "x"},
        {"data_digest": "x"},
        {"standing": (True, False)},
    ]
    digests = {job.digest, *(replace(job, **change).digest for change in different)}
    assert len(digests) == len(different) + 1
    same: list[dict[str, Any]] = [{"number": 9}, {"verdict_folder": "/else"}, {"batch_size": 7}, {"label": "again"}]
    assert {replace(job, **change).digest for change in same} == {job.digest}


def test_a_worker_is_warmed_up_for_the_attacks_that_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "trainables.attacks.fgsm", raising=False)
    warm_up(["of_a_plugin", "fgsm"])
    assert "trainables.attacks.fgsm" in sys.modules
