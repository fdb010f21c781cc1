"""Verification: what was kept is replayed; what was altered, or never kept, is said."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import run_sweep
from search_spaces.errors import CheckpointCorrupt, LedgerError, ObjectiveMissing, SweepError
from sweeps import foreground
from sweeps.config import parse_sweep
from sweeps.evaluate import add_plan
from sweeps.folder import SweepFolder
from sweeps.foreground import ForegroundResult
from sweeps.ledger import Ledger
from sweeps.records import IMPORTED, LAUNCHED
from sweeps.verify import verify_trial
from tests.sweeps import ledgers

Run = Callable[..., str]


@pytest.fixture
def kept(made: SweepFolder, without_ray: None) -> SweepFolder:
    """Trial 4 of the finished sweep, attacked twice more, this time with the images kept."""
    stages = [{"pgd": {"steps": 5}}, {"apgd_ce": {"steps": 3}}]
    section = {"epsilon": 0.04, "images": 40, "batch_size": 20, "stages": stages, "test": None, "keep_images": True}
    plan = parse_sweep({"attacks": section}).attacks
    assert plan is not None
    add_plan(made, "kept", plan, "4", Console(file=io.StringIO()))
    return made


@pytest.fixture
def ledger(made: SweepFolder) -> Iterator[Ledger]:
    ledger = Ledger.at(made.ledger)
    yield ledger
    ledger.close()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], made: SweepFolder) -> Run:
    """Run a command on the sweeps of the storage folder; returns what it printed."""

    def call(command: str, *arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["run_sweep.py", command, *arguments, "--storage", str(made.storage)])
        with pytest.raises(SystemExit) as ended:
            run_sweep.main()
        printed = capsys.readouterr()
        assert (ended.value.code or 0) == code, printed
        return " ".join((printed.out + printed.err).split())

    return call


def images_of(folder: SweepFolder) -> list[Path]:
    return sorted(folder.verdicts.rglob("*-images.npz"))


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write a unit again with other content."""
    with np.load(path) as archive:
        arrays: dict[str, Any] = {name: archive[name].copy() for name in archive.files}
    change(arrays)
    np.savez(path, **arrays)


def test_what_was_kept_lies_in_the_ball_and_fools_the_model(kept: SweepFolder, ledger: Ledger, run: Run) -> None:
    found = {(r.stage.plan, r.stage.attack): r.found for r in verify_trial(ledger, kept, 4)}
    fallen = {s.attack: s.facts["attacked"] - s.survivors for s in ledger.stages(4) if s.plan == "kept"}  # type: ignore[operator]
    for attack, count in fallen.items():
        one = found["kept", attack]
        assert (one.kept, one.inside, one.misclassified, one.failed, one.without_image) == (count, count, count, (), 0)
    assert fallen["pgd"] > 0
    assert found["sweep", "pgd"].kept == 0
    assert found["sweep", "pgd"].without_image > 0
    text = run("verify", "made", "4")
    total = sum(fallen.values())
    assert f"{total} of {total} adversarial images confirmed" in text
    assert f"kept: pgd on validation images: {fallen['pgd']} kept" in text
    assert "fallen images were not kept" in text


def test_an_image_that_was_altered_is_named(kept: SweepFolder, ledger: Ledger, run: Run) -> None:
    def outside(arrays: dict[str, Any]) -> None:
        arrays["images"][0] = np.clip(arrays["images"][0] + 0.2, 0, 1)

    with np.load(images_of(kept)[0]) as archive:
        first = int(archive["ids"][~archive["correct"]][0])
    rewrite(images_of(kept)[0], outside)
    failed = [image for replayed in verify_trial(ledger, kept, 4) for image in replayed.found.failed]
    assert failed == [first]
    text = run("verify", "made", "4", code=1)
    assert f"not confirmed: images {first}" in text


def test_the_untouched_image_in_place_of_its_attack_is_named(kept: SweepFolder, ledger: Ledger, trained: Any) -> None:
    import torch

    def clean(arrays: dict[str, Any]) -> None:
        ids = torch.from_numpy(arrays["ids"][~arrays["correct"]])
        arrays["images"] = trained.splits.validation.take(ids).numpy()

    rewrite(images_of(kept)[0], clean)
    broken = [replayed.found for replayed in verify_trial(ledger, kept, 4) if replayed.found.failed]
    assert len(broken) == 1
    assert broken[0].inside == broken[0].kept
    assert broken[0].misclassified == broken[0].kept - len(broken[0].failed) == 0


def test_where_nothing_was_kept_the_command_that_keeps_is_named(made: SweepFolder, ledger: Ledger, run: Run) -> None:
    with pytest.raises(SweepError, match=r"no adversarial image of trial 1 was kept.*keep_images: true"):
        verify_trial(ledger, made, 1)
    assert "run_sweep.py evaluate made" in run("verify", "made", "1", code=2)


def test_altered_weights_are_refused(kept: SweepFolder, ledger: Ledger, run: Run) -> None:
    weights = next((kept.trial(4) / "final").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match="differs from its digest"):
        verify_trial(ledger, kept, 4)
    assert "digest" in run("verify", "made", "4", code=2)


def test_the_whole_weights_of_another_model_are_refused(kept: SweepFolder, ledger: Ledger) -> None:
    shutil.rmtree(kept.trial(4) / "final")
    shutil.copytree(kept.trial(3) / "final", kept.trial(4) / "final")
    with pytest.raises(ObjectiveMissing, match="trial 4: weights or images are not those that were judged"):
        verify_trial(ledger, kept, 4)


def test_a_trial_that_was_not_attacked_is_refused(open_ledger: Callable[..., Ledger], folder: SweepFolder) -> None:
    ledger = open_ledger(ledgers.unfinished)
    with pytest.raises(LedgerError, match="trial 5 is proposed, and no attack on it has finished"):
        verify_trial(ledger, folder, 5)
    with pytest.raises(LedgerError, match="no trial 99"):
        verify_trial(ledger, folder, 99)


def test_two_trials_are_compared_and_a_further_plan_is_shown_as_a_table(made: SweepFolder, run: Run) -> None:
    text = run("compare", "made", "1", "4")
    assert "pgd" in text
    assert "autoattack" in text


@pytest.mark.usefixtures("without_ray")
def test_evaluate_prints_what_it_judged_and_where_the_report_is(made: SweepFolder, tmp_path: Path, run: Run) -> None:
    plan = tmp_path / "mine.yaml"
    plan.write_text("stages: [{pgd: {steps: 4}}]\ncolumns: {F: fgsm}\ntest: null\n")
    text = run("evaluate", "made", "--plan", str(plan), "--trials", "1,4")
    assert "Plan mine" in text
    assert "0 images judged now" not in text
    assert made.report_html.is_file()
    again = run("evaluate", "made", "--plan", str(plan), "--trials", "1,4")
    assert "0 images judged now, once for each attack" in again
    assert again.split("Plan mine")[1] == text.split("Plan mine")[1]
    assert "--as: the sweep has a plan" in run("evaluate", "made", "--plan", "jasmin", "--as", "mine", code=2)
    assert "name a sweep" in run("evaluate", "--plan", "jasmin", code=2)


def test_a_trial_is_repeated_by_its_own_stages_and_a_checkpoint_not_at_all(
    kept: SweepFolder, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger.at(kept.ledger)
    trial = ledger.trial(4)
    launched = [stage for stage in ledger.stages(4) if stage.plan == LAUNCHED]
    assert len(ledger.stages(4)) == len(launched) + 2, "a further plan has judged it too"
    ledger.close()
    unpruned = replace(launched[0], position=99, survivors=0)  # what a repetition runs beyond a bound
    again = ForegroundResult(trial.clean_acc or 0.0, trial.weights_digest or "", (unpruned, *reversed(launched)))
    monkeypatch.setattr(foreground, "run_trial", lambda *_, **__: again)
    assert "equal to the ledger, bit for bit" in run("rerun", "made", "4")
    other = replace(again, stages=(*launched[1:], replace(launched[0], survivors=0)))
    monkeypatch.setattr(foreground, "run_trial", lambda *_, **__: other)
    assert "differs from the ledger" in run("rerun", "made", "4", code=1)
    monkeypatch.setattr(Ledger, "trial", lambda *_: replace(trial, label=IMPORTED))
    assert "trial 4 was brought as a checkpoint; there is no training to repeat" in run("rerun", "made", "4", code=2)
