"""The command line as a user meets it: answers, errors, exit codes, and what it does not import."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

import run_sweep
from sweeps.commands import steer
from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.records import SweepRecord
from tests.sweeps import ledgers

ROOT = Path(__file__).resolve().parents[1]
YAML = """
model: {img_size: 8, patch_size: 2, embed_dim: 24, depth: 2, num_heads: 2}
data: {name: digits, train_images: 100, validation_images: 40, test_images: 40}
training: {epochs: 1, learning_rate: 0.003, batch_size: 50}
methods: [plain, {jasmin: {k: [0, 4]}}]
attacks: {epsilon: 0.05, images: 20, stages: [{pgd: {steps: 2}}], test: null}
search: {trials: 2}
"""


Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process and return what it printed; its exit code must be `code`."""

    def call(*arguments: str, cwd: Path, code: int = 0) -> str:
        monkeypatch.chdir(cwd)
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setattr(sys, "argv", ["run_sweep.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            run_sweep.main()
        printed = capsys.readouterr()
        assert (ended.value.code or 0) == code, printed
        return printed.out + printed.err

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "s.yaml").write_text(YAML)
    return tmp_path


@pytest.fixture
def sweep(folder: Path) -> Path:
    """A sweep with one open trial whose driver is gone."""
    place = SweepFolder(folder / "runs", "s")
    place.root.mkdir(parents=True)
    place.config.write_text(YAML)
    ledger = Ledger.at(place.ledger)
    from sweeps.config import read_sweep

    document = read_sweep(folder / "s.yaml").document
    planned = ledgers.cascade("pgd")
    ledger.create(SweepRecord("id", "s", 0.0, 2, document, ("clean_acc", "robust_acc"), planned, {}, "data"))
    with Lease(ledger):
        ledger.propose(0, "plain", {}, {}, {}, 1)
        ledger.start_training(0)
    ledger.close()
    return folder


@pytest.mark.parametrize("arguments", [("--help",), ("status", "s"), ("status", "s", "--json")])
def test_help_and_status_import_nothing_heavy(sweep: Path, arguments: tuple[str, ...]) -> None:
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"sys.argv = ['run_sweep.py', *{list(arguments)!r}]\n"
        "import run_sweep\n"
        "try: run_sweep.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'ray', 'optuna', 'mlflow', 'timm', 'plotly'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=sweep, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_status_of_a_dead_driver_names_the_open_trial_and_how_to_go_on(run: Run, sweep: Path) -> None:
    text = run("status", "s", cwd=sweep)
    assert "interrupted" in text
    assert "to train     0 plain" in text
    assert "python run_sweep.py resume s" in text
    found: dict[str, Any] = json.loads(run("status", "s", "--json", cwd=sweep))
    assert list(found) == ["name", "state", "trials", "parents", "open", "waiting", "prior", "objectives", "front"]
    counts = dict(found["trials"])
    assert counts.pop("requested") == sum(counts.values()) == 2


def test_plan_shows_what_would_run_and_starts_nothing(run: Run, folder: Path) -> None:
    text = run("plan", "s.yaml", cwd=folder)
    for word in ("2 trials", "jasmin.k", "pgd", "17 tokens"):
        assert word in text
    assert not (folder / "runs").exists()


def test_status_is_watched_as_long_as_a_driver_runs(run: Run, sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger.at(SweepFolder.existing(sweep / "runs", "s").ledger)
    lease, looks = Lease(ledger), []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            lease.__exit__(None, None, None)

    lease.__enter__()
    monkeypatch.setattr(steer.time, "sleep", sleep)
    text = run("status", "s", "--watch", cwd=sweep)
    ledger.close()
    assert looks == [steer.WATCH_S] * 3
    assert "s: interrupted" in text
    assert run("status", "s", "--watch", cwd=sweep).startswith("s: interrupted")
    assert len(looks) == 3


@pytest.mark.parametrize(
    ("arguments", "code"), [(("--help",), 0), (("status", "s"), 0), (("status", "none"), 2), (("nonsense",), 2)]
)
def test_a_process_ends_with_everything_printed_and_its_exit_code(
    sweep: Path, arguments: tuple[str, ...], code: int
) -> None:
    command = [sys.executable, str(ROOT / "run_sweep.py"), *arguments]
    done = subprocess.run(command, cwd=sweep, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert (done.stderr if code else done.stdout).strip()


def test_the_smoke_scale_says_what_it_does_and_leaves_the_last_word_to_set(run: Run, folder: Path) -> None:
    text = run("plan", "s.yaml", "--scale", "smoke", "--set", "training.epochs=3", cwd=folder)
    assert "its figures mean nothing" in text
    assert "s-smoke: 2 trials" in text
    assert "3 epochs" in text
    assert "figures mean nothing" not in run("plan", "s.yaml", cwd=folder)


def test_an_unknown_scale_is_refused(run: Run, folder: Path) -> None:
    assert "'smoke'" in run("plan", "s.yaml", "--scale", "tiny", cwd=folder, code=2)


def test_every_mistake_is_reported_at_once_with_its_line(run: Run, folder: Path) -> None:
    (folder / "bad.yaml").write_text(YAML.replace("epochs: 1", "epoch: 1").replace("k: [0, 4]", "k: [0, 17]"))
    text = run("launch", "bad.yaml", cwd=folder, code=2)
    assert "2 problems" in text
    assert "bad.yaml:4: training.epoch" in text
    assert "'epochs'" in text
    assert "bad.yaml:5: methods[1].jasmin.k" in text
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".hidden", "x" * 65])
def test_a_name_cannot_leave_the_storage_folder(run: Run, folder: Path, name: str) -> None:
    text = run("launch", "s.yaml", "--name", name, cwd=folder, code=2)
    assert "letters, digits" in text


def test_launching_an_existing_name_points_to_resume(run: Run, sweep: Path) -> None:
    text = run("launch", "s.yaml", cwd=sweep, code=2)
    assert "exists" in text
    assert "python run_sweep.py resume s" in text


def test_an_unknown_sweep_is_named_with_those_that_exist(run: Run, sweep: Path) -> None:
    commands = (("status",), ("resume",), ("report",), ("export",), ("evaluate",))
    for command in (*commands, ("logs", "0"), ("verify", "0"), ("compare", "0", "1")):
        name, *rest = command
        text = run(name, "t", *rest, cwd=sweep, code=2)
        assert "no sweep 't'" in text
        assert "s" in text.split("sweeps there:")[1]


def test_resume_refuses_a_changed_configuration_with_a_diff(run: Run, sweep: Path) -> None:
    (sweep / "changed.yaml").write_text(YAML.replace("epsilon: 0.05", "epsilon: 0.1"))
    text = run("resume", "s", "changed.yaml", cwd=sweep, code=2)
    assert "attacks.epsilon: 0.05" in text
    assert "0.1" in text


@pytest.fixture
def driven(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sweeps that a command would go on with."""
    found: list[str] = []
    monkeypatch.setattr("sweeps.commands.steer.drive_on", lambda folder, *_, **__: found.append(folder.name))
    return found


def test_what_is_asked_of_a_sweep_without_a_driver_waits_and_is_shown(run: Run, sweep: Path, driven: list[str]) -> None:
    assert "no driver runs: it happens as soon as the sweep goes on" in run("stop", "s", "0", cwd=sweep)
    text = run("status", "s", cwd=sweep)
    assert text.split("to train")[1].splitlines()[0].endswith("stopping")
    assert "asked for: stop 0" in text
    assert "nothing to pause: the sweep is interrupted" in run("pause", "s", cwd=sweep)
    assert driven == []
    run("extend", "s", "--trials", "5", cwd=sweep)
    assert driven == ["s"]
    waiting = json.loads(run("status", "s", "--json", cwd=sweep))["waiting"]
    assert [(item["request"], item["requested"]) for item in waiting] == [("stop", None), ("extend", 5)]


def test_a_running_driver_is_asked_and_nothing_is_started(run: Run, sweep: Path, driven: list[str]) -> None:
    ledger = Ledger.at(SweepFolder(sweep / "runs", "s").ledger)
    with Lease(ledger):
        ledger.fail(0, "nan", "the loss is nan")
        for arguments in (("retry", "s", "--failed"), ("extend", "s", "--trials", "5"), ("pause", "s")):
            assert "asked the running driver" in run(*arguments, cwd=sweep)
    ledger.close()
    assert driven == []
    waiting = json.loads(run("status", "s", "--json", cwd=sweep))["waiting"]
    assert [item["request"] for item in waiting] == ["retry", "extend", "pause"]


def test_what_cannot_be_asked_is_refused_and_leaves_nothing(run: Run, sweep: Path, driven: list[str]) -> None:
    assert "trial 7 is unknown" in run("stop", "s", "7", cwd=sweep, code=2)
    assert "nothing to try again" in run("retry", "s", "--failed", cwd=sweep, code=2)
    assert "say what is to come" in run("extend", "s", cwd=sweep, code=2)
    assert driven == []
    assert not (sweep / "runs" / "s" / "requests").exists()


def test_resume_takes_a_configuration_that_keeps_results_comparable_and_records_it(run: Run, sweep: Path) -> None:
    ledger = Ledger.at(SweepFolder(sweep / "runs", "s").ledger)
    with Lease(ledger):
        ledger.fail(0, "nan", "the loss is nan")
        ledger.propose(1, "plain", {}, {}, {}, 1)
        ledger.fail(1, "nan", "the loss is nan")
        ledger.complete()
    (sweep / "s.yaml").write_text(YAML + "failures: {crash: {retries: 4}}\ntracking: {enabled: false}\n")
    text = run("resume", "s", "s.yaml", cwd=sweep, code=1)
    assert "failures.crash.retries: null -> 4" in text
    assert "nothing to do: the sweep is finished" in text
    assert ledger.events()[-1].kind == "configuration"
    assert ledger.sweep().document["failures"] == {"crash": {"retries": 4}}
    assert "retries: 4" in (sweep / "runs" / "s" / "sweep.yaml").read_text()
    assert "changed and recorded" not in run("resume", "s", "s.yaml", cwd=sweep, code=1)
    copy = sweep / "runs" / "s" / "sweep.yaml"
    copy.write_text(copy.read_text().replace("retries: 4", "retries: 5"))
    assert "sweep.yaml was not what the sweep runs and is written again" in run("resume", "s", cwd=sweep, code=1)
    assert "retries: 4" in copy.read_text()
    ledger.close()


def test_resume_refuses_fewer_trials_than_there_are(run: Run, sweep: Path) -> None:
    assert "can only grow" in run("resume", "s", "--trials", "1", cwd=sweep, code=2)


def test_export_refuses_an_unknown_format(run: Run, sweep: Path) -> None:
    assert "allowed: json, csv, optuna" in run("export", "s", "--format", "xml", cwd=sweep, code=2)


def test_export_prints_stable_objects(run: Run, sweep: Path) -> None:
    found = json.loads(run("export", "s", cwd=sweep))
    needed = [
        "number",
        "state",
        "config",
        "seed",
        "clean_acc",
        "robust_acc",
        "exact",
        "attacks",
        "epochs",
        "error",
        "mlflow_run_id",
    ]
    assert set(needed) <= set(found["trials"][0])
    assert set(found) == {"sweep", "trials", "replicates", "published", "confirmation"}


def test_a_trial_runs_in_the_foreground_without_ray(run: Run, folder: Path) -> None:
    options = ("--scale", "smoke", "--set", "methods[1].jasmin.k=0")
    text = run("trial", "s.yaml", "--method", "jasmin", *options, cwd=folder)
    assert "figures mean nothing" in text
    assert "epoch 1:" in text
    assert '"k": 0' in text
    assert "clean 0." in text
    assert "robust 0." in text
    assert "choose one method" in run("trial", "s.yaml", cwd=folder, code=2)


def test_gc_shows_what_nothing_needs_and_removes_it_only_when_told(run: Run, sweep: Path) -> None:
    left = sweep / "runs" / "s" / "scratch" / "old" / "result.json"
    left.parent.mkdir(parents=True)
    left.write_text("x" * 2000)
    text = run("gc", "s", cwd=sweep)
    assert "Ray Tune's own files: 1, 2 kB" in text
    assert "python run_sweep.py gc s --yes" in text
    assert left.exists()
    assert "removed 2 kB" in run("gc", "s", "--yes", cwd=sweep)
    assert not left.exists()
    assert "every file is needed" in run("gc", "s", cwd=sweep)
    assert "not finished" in run("gc", "s", "--weights", cwd=sweep, code=2)


@pytest.mark.parametrize(
    ("problem", "said"), [("database or disk is full", "No space left on device"), ("database is locked", "kill -CONT")]
)
def test_a_storage_that_fails_is_one_clear_text_and_exit_code_3(
    run: Run, sweep: Path, monkeypatch: pytest.MonkeyPatch, problem: str, said: str
) -> None:
    def fails(*_: object) -> None:
        raise OperationalError("UPDATE", {}, Exception(problem))

    monkeypatch.setattr(Ledger, "sweep", fails)
    text = run("status", "s", cwd=sweep, code=3)
    assert said in text
    assert "Traceback" not in text
