"""Parents under a driver: trained first, once, and never among the trials; what happens when they fail or vanish."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

import run_sweep
from cluster.resources import Shares
from search_spaces.errors import ConfigError, ParentError
from sweeps.config import parse_sweep
from sweeps.export import export_csv, export_json
from sweeps.folder import SweepFolder
from sweeps.halt import Halt
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.live_block import render_block
from sweeps.live_reader import LiveReader
from sweeps.records import State
from sweeps.report import build_report
from sweeps.retention import find_unneeded
from sweeps.runner import _Drive
from sweeps.steering import failed_numbers, retry_request
from sweeps.summary import status
from sweeps.tracking import Mirror
from tests.sweeps.driving import Driven, create, driving
from trainables.tune import Report, TrainingJob, TrialTrainable

PARENTS: dict[str, Any] = {
    "parents": {
        "robust": {"methods": {"adversarial": {"steps": 1}}, "training": {"epochs": 1}},
        "other": {"methods": "plain", "training": {"epochs": 1}},
        "strong": {"methods": {"adversarial": {"steps": 1}}, "training": {"epochs": 1}},
    },
    "methods": [
        {"jasmin": {"k": 0}, "start_from": "robust"},
        {"plain": {}, "start_from": "other"},
        {"plain": {}, "start_from": "strong"},
    ],
}
"""Three names, two trainings: −1 is that of other, −2 that of robust and strong."""
ONE: dict[str, Any] = {
    "data": {"name": "digits", "train_images": 60, "validation_images": 20, "test_images": 20},
    "training": {"epochs": 2, "batch_size": 30},
    "parents": {"robust": {"methods": {"adversarial": {"steps": 1}}, "training": {"epochs": 2}}},
    "methods": [{"plain": {}, "start_from": "robust"}],
    "objectives": ["clean_acc"],
    "attacks": None,
    "search": {"trials": 2, "sampler": "random"},
}
"""Small enough to be really trained."""


def run_epochs(driven: Driven, job: TrainingJob, epochs: int | None = None) -> Report:
    """Train here what a worker would train, to its end or so many epochs; returns the last report."""
    trainable = object.__new__(TrialTrainable)
    trainable.setup(job.tune_config())
    report = Report.read(trainable.step())
    driven.coordinator.take_report(report, job.token)
    while report.status == "training" and (epochs is None or len(report.history) < epochs):
        report = Report.read(trainable.step())
        driven.coordinator.take_report(report, job.token)
    return report


def run_all(driven: Driven) -> list[int]:
    """Train whatever is left; returns what was trained, in order."""
    driven.coordinator.pool = None
    numbers = []
    while (job := driven.coordinator.next_training()) is not None:
        numbers.append(job.number)
        run_epochs(driven, job)
        driven.coordinator.poll()
    return numbers


# The order


def test_parents_are_trained_first_each_configuration_once_and_proposals_wait_for_all(tmp_path: Path) -> None:
    with driving(create(tmp_path, **PARENTS)) as driven:
        coordinator = driven.coordinator
        jobs = [driven.start(), driven.start()]
        assert [job.number for job in jobs] == [-1, -2]
        assert [(p.number, p.label, p.state) for p in driven.ledger.parents()] == [
            (-1, "other", State.TRAINING),
            (-2, "robust, strong", State.TRAINING),
        ]
        assert coordinator.training_numbers == (-1, -2)
        assert coordinator.next_training() is None  # no trial may start
        coordinator.take_report(_trained(jobs[0]), jobs[0].token)
        assert coordinator.next_training() is None
        assert coordinator.is_training_needed
        assert driven.ledger.trials() == []
        coordinator.take_report(_trained(jobs[1]), jobs[1].token)
        assert not coordinator.evaluation_needed  # parents are not judged
        assert [driven.train() for _ in range(4)] == [0, 1, 2, 3]
        assert coordinator.next_training() is None
        driven.ledger.complete()
    said = [line for line in driven.said if "parent" in line]
    assert said == ["parent other trained: clean 0.500", "parent robust, strong trained: clean 0.500"]
    assert "trial -" not in "\n".join(driven.said)


def _trained(job: TrainingJob) -> Report:
    return Report(job.number, "trained", ({"val/clean_acc": 0.5},), 0.5, f"weights{job.number}", 6.0)


def test_a_child_is_told_where_its_parents_weights_are_and_what_they_must_be(tmp_path: Path) -> None:
    with driving(create(tmp_path, **PARENTS)) as driven:
        found: dict[str, Any] = {}
        while (job := driven.coordinator.next_training()) is not None:
            driven.coordinator.take_report(_trained(job), job.token)
            if job.number < 0:
                assert job.parent is None
            else:
                found[driven.ledger.trial(job.number).label] = job.parent
        place = {"other": str(driven.folder.trial(-1)), "robust": str(driven.folder.trial(-2))}
        named = {"jasmin@robust": "robust", "plain@other": "other", "plain@strong": "robust"}
        assert found
        for label, parent in found.items():
            number = -1 if named[label] == "other" else -2
            assert parent == {"path": place[named[label]], "weights_digest": f"weights{number}", "sha256": None}


def test_a_parent_that_needs_a_larger_share_is_trained_again_before_any_trial_is_proposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driving(create(tmp_path, **ONE)) as driven:
        driven.coordinator.pool = None
        started = []

        def fit(self: _Drive) -> None:
            while driven.coordinator.is_training_needed:
                job = driven.coordinator.next_training()
                assert job is not None
                started.append(job.number)
                if started == [-1]:
                    driven.coordinator.training_failed(job.number, "memory", "no room")
                else:
                    driven.coordinator.take_report(_trained(job), job.token)
                self._between()

        monkeypatch.setattr(_Drive, "_train", fit)
        found = _Drive(driven.folder, driven.ledger, driven.coordinator.config, Console(quiet=True), Halt())
        found.coordinator = driven.coordinator
        found._work(Shares(2, 1.0, 0.0, 1, 1.0, 0.0))
        assert started == [-1, -1, 0, 1]
        assert driven.ledger.sweep().completed_at is not None
        assert driven.ledger.parents()[0].failures == 1


# Interruptions


def test_a_driver_that_comes_after_the_parent_trains_it_no_more(tmp_path: Path) -> None:
    folder = create(tmp_path, **ONE)
    with driving(folder) as driven:
        assert run_epochs(driven, driven.start()).status == "trained"
    with driving(folder) as driven:
        assert driven.coordinator.kept.sentence() == "0 finished kept, 2 to go"
        assert run_all(driven) == [0, 1]
        assert driven.ledger.parents()[0].attempts == 1


def test_a_parent_goes_on_after_its_last_epoch_and_its_child_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    whole, broken = create(tmp_path / "whole", **ONE), create(tmp_path / "broken", **ONE)
    with driving(whole) as driven:
        assert run_all(driven) == [-1, 0, 1]
        expected = [(r.weights_digest, r.clean_acc) for r in (*driven.ledger.parents(), *driven.ledger.trials())]
    with driving(broken) as driven:
        run_epochs(driven, driven.start(), epochs=1)
    with driving(broken) as driven:
        assert driven.coordinator.kept.sentence() == "0 finished kept, parent robust continues after epoch 1, 2 to go"
        assert run_all(driven) == [-1, 0, 1]
        parent, *trials = (*driven.ledger.parents(), *driven.ledger.trials())
        assert [(r.weights_digest, r.clean_acc) for r in (parent, *trials)] == expected
        assert (parent.attempts, parent.epochs) == (2, 2)
    log = (broken.trial(-1) / "log.txt").read_text()
    assert log.count("epoch 1: ") == log.count("epoch 2: ") == 1


# Failures


def test_a_parent_that_fails_for_good_stops_the_driver_until_it_is_tried_again(tmp_path: Path) -> None:
    folder = create(tmp_path, **ONE, failures={"retries": 1})
    with driving(folder) as driven:
        assert driven.fail("exception") == -1  # and is tried again
        job = driven.start()
        with pytest.raises(ParentError, match=r"parent robust failed: exception.*`logs s robust`.*retry.* --failed"):
            driven.coordinator.training_failed(job.number, "exception", "Traceback\nValueError: it is broken")
        said = driven.said
        assert said == ["parent robust failed (exception) and is tried again"]
    with driving(folder) as driven:
        assert driven.coordinator.next_training() is None
        assert not driven.coordinator.is_training_needed
        with pytest.raises(ParentError, match="parent robust failed: exception"):
            _Drive(folder, driven.ledger, driven.coordinator.config, Console(quiet=True), Halt()).run(None)
        assert failed_numbers(driven.ledger) == [-1]
        driven.ask("retry", trials=retry_request(driven.ledger, [], failed=True).trials)
        assert driven.said[-1] == "parent robust is tried again"
        assert run_all(driven) == [-1, 0, 1]
        driven.ledger.complete()


def test_a_driver_says_what_is_wrong_with_a_parent_in_a_sentence() -> None:
    halt = Halt()
    halt.fail(ParentError("parent robust failed: nan."))
    assert (halt.error, halt.parent) == ("parent robust failed: nan.", True)


def test_a_parent_whose_weights_have_changed_stops_the_driver_and_no_trial_fails_for_it(tmp_path: Path) -> None:
    folder = create(tmp_path, **ONE)
    with driving(folder) as driven:
        run_epochs(driven, driven.start())
        before = driven.ledger.parents()[0].weights_digest
        file = folder.trial(-1) / "final" / "weights.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"?")
        job = driven.start()
        with pytest.raises(ParentError, match="parent robust failed: checkpoint"):
            run_epochs(driven, job)
        assert (driven.ledger.trial(0).state, driven.ledger.trial(0).failures) == (State.TRAINING, 0)
        assert "differs from its digest" in (driven.ledger.parents()[0].error or "")
    with driving(folder) as driven:
        assert driven.coordinator.next_training() is None  # trial 0 waits for its parent
        driven.ask("retry", trials=(-1,))
        assert run_all(driven) == [-1, 0, 1]
        assert driven.ledger.parents()[0].weights_digest == before


def test_a_checkpoint_that_changes_under_way_stops_the_driver(tmp_path: Path) -> None:
    from trainables.trial import find_splits, new_model

    config = parse_sweep({**_document(), **ONE})
    model = new_model(config.trained_parents[0].config, find_splits(config.trained_parents[0].config))
    file = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), file)
    parents = {"parents": {"given": {"checkpoint": str(file)}}, "methods": [{"plain": {}, "start_from": "given"}]}
    with driving(create(tmp_path, **{**ONE, **parents})) as driven:
        job = driven.start()
        assert (job.number, driven.ledger.parents()) == (0, [])
        assert run_epochs(driven, job).status == "trained"
        save_file({"x": torch.zeros(1)}, file)
        job = driven.start()
        with pytest.raises(ParentError, match=r"trial 1 cannot start\. parent given: .*has changed"):
            run_epochs(driven, job)
        assert driven.ledger.trial(1).state is State.TRAINING


def _document() -> dict[str, Any]:
    from tests.sweeps.driving import DOCUMENT

    return DOCUMENT


# Nothing else knows them


@pytest.fixture
def family(tmp_path: Path) -> SweepFolder:
    """A sweep whose parents took 6 s each, three of whose four trials have been trained and judged."""
    folder = create(tmp_path / "runs", **PARENTS, tracking={"uri": f"sqlite:///{tmp_path}/runs/mlflow.db"})
    with driving(folder) as driven:
        for _ in range(2):
            job = driven.start()
            driven.coordinator.take_report(_trained(job), job.token)
        for _ in range(3):
            driven.train()
        driven.start()
    return folder


def test_parents_are_in_no_count_and_on_no_list(family: SweepFolder) -> None:
    ledger = Ledger.at(family.ledger)
    found = status(ledger)
    counts = dict(found["trials"])
    assert counts.pop("requested") == sum(counts.values()) == 4
    assert found["parents"] == [
        {"name": "other", "state": "trained", "epochs": 1},
        {"name": "robust", "state": "trained", "epochs": 1},
        {"name": "strong", "state": "trained", "epochs": 1},
    ]
    assert all(item["trial"] >= 0 for item in (*found["open"], *found["front"]))
    whole = export_json(ledger)
    assert [trial["number"] for trial in whole["trials"]] == [0, 1, 2, 3]
    assert [row.split(",")[0] for row in export_csv(ledger).splitlines()[1:]] == ["0", "1", "2", "3"]
    with driving(family) as driven:
        numbers = {trial.number for trial in driven.coordinator.study.trials}
        assert len(numbers) == 4
    assert find_unneeded(ledger, family) == []
    ledger.close()


def test_costs_are_booked_in_export_report_and_mlflow(family: SweepFolder, store_at: Callable[[Path], None]) -> None:
    store_at(family.storage / "mlflow.db")
    ledger = Ledger.at(family.ledger)
    whole = export_json(ledger)
    trials = {trial["number"]: trial for trial in whole["trials"]}
    parents = {tuple(parent["names"]): parent for parent in whole["sweep"]["parents"]}
    assert {names: p["train_seconds"] for names, p in parents.items()} == {("other",): 6.0, ("robust", "strong"): 6.0}
    for parent in parents.values():
        assert sum(trials[number]["parent_seconds"] for number in parent["children"]) == pytest.approx(
            6.0 if parent["children"] else 0.0
        )
    assert {trial["parent"] for trial in trials.values()} <= {"other", "robust", "strong"}
    html, _ = build_report(ledger, family)
    assert "parent robust, strong" in html.read_text()
    assert "booked to each of its children" in html.read_text()
    mirror = Mirror(ledger, family, None, "paretune")
    with Lease(ledger):
        mirror.sync()
        logged = _mlflow(family)
        assert {row["trial.number"] for row in logged} == {"0", "1", "2", "3"}
        for row in logged:
            trial = trials[int(row["trial.number"])]
            assert row["start_from"] == trial["parent"]
            if trial["number"] != 3:  # still trained
                assert row["cost/parent_s"] == trial["parent_seconds"]
    ledger.close()


def test_a_late_child_makes_the_others_cheaper_in_mlflow_too(tmp_path: Path, store_at: Callable[[Path], None]) -> None:
    folder = create(tmp_path, **ONE)
    store_at(tmp_path / "mlflow.db")
    with driving(folder) as driven:
        mirror = Mirror(driven.ledger, folder, None, "paretune")
        driven.coordinator.pool = None
        for expected in ([], [6.0], [3.0, 3.0]):
            job = driven.start()
            driven.coordinator.take_report(_trained(job), job.token)
            driven.coordinator.poll()
            if expected == [3.0, 3.0]:
                driven.ledger.complete()
            mirror.sync()
            assert sorted(row["cost/parent_s"] for row in _mlflow(folder)) == expected
        before = _mlflow(folder)
        Mirror(driven.ledger, folder, None, "paretune").sync()  # another process
        assert _mlflow(folder) == before


@pytest.fixture
def store_at(_mlflow_template: Path) -> Callable[[Path], None]:
    """Copy an empty MLflow database somewhere."""

    def copy(place: Path) -> None:
        place.write_bytes(_mlflow_template.read_bytes())

    return copy


def _mlflow(folder: SweepFolder) -> list[dict[str, Any]]:
    """Return what MLflow has of each trial's run: its number, its parent, the latest cost, how many metrics in all."""
    connection = sqlite3.connect(folder.storage / "mlflow.db")
    ask = connection.execute
    rows = []
    for run, number in ask("SELECT run_uuid, value FROM tags WHERE key = 'trial.number' ORDER BY value").fetchall():
        row: dict[str, Any] = {"trial.number": number}
        named = "SELECT value FROM params WHERE run_uuid = ? AND key = 'start_from'"
        row["start_from"] = next((value for (value,) in ask(named, [run])), None)
        cost = "SELECT key, value FROM latest_metrics WHERE run_uuid = ? AND key = 'cost/parent_s'"
        row |= dict(ask(cost, [run]).fetchall())
        row["metrics"] = ask("SELECT count(*) FROM metrics WHERE run_uuid = ?", [run]).fetchone()[0]
        rows.append(row)
    connection.close()
    return rows


def test_the_live_view_names_a_parent_in_training(tmp_path: Path) -> None:
    with driving(create(tmp_path, **ONE)) as driven:
        driven.start()
        text = render_block(LiveReader(driven.ledger, driven.folder.requests).read(time.time())).plain
        assert re.search(r"training +parent robust .* epoch 0/", text)
        assert "-1" not in text


# In the foreground, and by name


def test_a_trial_and_its_repetition_start_from_the_same_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = create(tmp_path / "runs", **{**ONE, "search": {"trials": 1, "sampler": "random"}})
    with driving(folder) as driven:
        assert run_all(driven) == [-1, 0]
        digest = driven.ledger.trial(0).weights_digest
        document = driven.ledger.sweep().document
    monkeypatch.chdir(tmp_path)
    text = _run(monkeypatch, capsys, "rerun", "s", "0")
    assert "equal to the ledger, bit for bit" in text
    assert "parent robust" not in text  # its weights are there
    folder.trial(-1).rename(tmp_path / "away")
    text = _run(monkeypatch, capsys, "rerun", "s", "0")
    assert "parent robust (adversarial) first" in text
    assert "equal to the ledger, bit for bit" in text
    (tmp_path / "s.yaml").write_text(json.dumps(document))
    text = _run(monkeypatch, capsys, "trial", "s.yaml")
    assert f"weights {digest}" in text
    assert "parent robust (adversarial) first" in text


RAY = """
model: {img_size: 8, patch_size: 2, embed_dim: 24, depth: 2, num_heads: 2}
data: {name: digits, train_images: 100, validation_images: 40, test_images: 40}
training: {epochs: 1, learning_rate: 0.003, batch_size: 50}
parents:
  robust: {methods: {adversarial: {steps: 1}}, training: {epochs: 2}}
methods:
  - plain
  - safer: {steps: 1, fraction: 0.5, reselect_epochs: null, rho: 0.05, epsilon: 8/255, score_batches: 1}
    start_from: robust
attacks: {epsilon: 0.05, images: 20, stages: [{pgd: {steps: 2}}], test: null}
search: {sampler: grid, known: [{method: plain}, {method: safer@robust}]}
resources: {concurrent: 1}
tracking: {enabled: false}
"""


@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_with_parents_runs_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(RAY)
    command = [sys.executable, str(Path(run_sweep.__file__)), "launch", "s.yaml", "--storage", "."]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ledger = Ledger.at(tmp_path / "s" / "ledger.db")
    assert [(p.label, p.state, p.attempts) for p in ledger.parents()] == [("robust", State.TRAINED, 1)]
    assert [(t.label, t.state) for t in ledger.trials()] == [
        ("plain", State.FINISHED),
        ("safer@robust", State.FINISHED),
    ]
    proposed = {e.number: e.sequence for e in ledger.events() if e.kind == "proposed"}
    trained = {e.number: e.sequence for e in ledger.events() if e.kind == "trained"}
    assert trained[-1] < proposed[0] < proposed[1]
    ledger.close()


def test_logs_know_a_parent_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = create(tmp_path / "runs", **ONE)
    with driving(folder) as driven:
        driven.start()
        driven.ledger.fail(-1, "nan", "the loss is nan")
    folder.trial_log(-1).write_text("it said this\n")
    monkeypatch.chdir(tmp_path)
    text = _run(monkeypatch, capsys, "logs", "s", "robust")
    assert "it said this" in text
    assert "the loss is nan" in text
    assert "parents: robust" in _run(monkeypatch, capsys, "logs", "s", "robuts", code=2)
    assert "parent robust: failed, 0 epochs done" in _run(monkeypatch, capsys, "status", "s")
    assert "parent robust failed: nan" in _run(monkeypatch, capsys, "resume", "s", code=3)
    ledger = Ledger.at(folder.ledger)
    with pytest.raises(ConfigError, match="trial 0 is unknown"):
        retry_request(ledger, [0], failed=False)
    ledger.close()


def _run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    monkeypatch.setattr("sys.argv", ["run_sweep.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_sweep.main()
    printed = capsys.readouterr()
    assert (ended.value.code or 0) == code, printed
    return printed.out + printed.err


def test_finished_weights_of_parents_outlive_every_clearance(family: SweepFolder) -> None:
    ledger = Ledger.at(family.ledger)
    for number in (-1, 0):
        (family.trial(number) / "final").mkdir(parents=True, exist_ok=True)
        (family.trial(number) / "checkpoints").mkdir()
    paths = {path for kind in find_unneeded(ledger, family) for path in kind.paths}
    assert paths == {family.trial(-1) / "checkpoints", family.trial(0) / "checkpoints"}
    with Lease(ledger):
        ledger.fail(3, "nan", "")
        ledger.complete()
    paths = {path for kind in find_unneeded(ledger, family, weights=True) for path in kind.paths}
    assert family.trial(-1) / "checkpoints" in paths
    assert not any(path.is_relative_to(family.root / "parents") and path.name == "final" for path in paths)
    ledger.close()


def test_the_kept_sentence_counts_trials_alone(tmp_path: Path) -> None:
    with driving(create(tmp_path, **PARENTS)) as driven:
        driven.start()
    with driving(driven.folder) as driven:
        kept = driven.coordinator.kept
        assert (kept.to_evaluate, kept.failed, kept.to_go) == (0, 0, 4)
        assert replace(kept, parents=()).sentence() == "0 finished kept, 4 to go"
