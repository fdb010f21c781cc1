"""What ``plan --on`` and ``plan --like`` read, as the command shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from run_sweep import app
from search_spaces.errors import ConfigError, SweepNotFound
from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.plan_inputs import nodes_to_plan, seconds_of
from tests.sweeps import ledgers

QUICKSTART = Path(__file__).resolve().parents[2] / "sweeps" / "presets" / "quickstart.yaml"


def test_without_a_description_it_is_this_machine() -> None:
    (node,) = nodes_to_plan(None)
    assert node.started_here
    assert node.cpus >= 1


def test_nodes_that_are_described_and_nodes_that_are_there_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"--on: .*found both"):
        nodes_to_plan("4x80GB", "10.0.0.1:6379")


def test_mistakes_in_a_settings_file_have_their_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("nodes:\n  cpus: 8\n  gpu: 2\n")
    with pytest.raises(ConfigError) as caught:
        nodes_to_plan(str(file))
    assert [(problem.line, problem.source) for problem in caught.value.problems] == [(3, str(file))]


def test_the_plan_shows_the_packing_and_the_time_that_a_finished_sweep_tells(folder: SweepFolder) -> None:
    ledger = ledgers.finished(folder, document={"data": {"name": "digits"}, "attacks": {}})
    with Lease(ledger):
        ledger.note_driver("resources", {"trial_cpus": 1.0, "trial_gpus": 0.0})
    ledger.close()
    storage = ["--storage", str(folder.storage)]
    arguments = ["plan", str(QUICKSTART), "--on", "2*(4x80GB,32cpu)", "--like", folder.name, *storage]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    assert "8 trainings at once, 1 CPU and 0.75 GPU" in " ".join(done.output.split())
    assert "rests on 3 trials of digits" in done.output
    assert "there 0 GPU of a training, here 0.75" in " ".join(done.output.split())


def test_a_sweep_that_is_not_there_or_has_trained_nothing_is_refused(folder: SweepFolder) -> None:
    with pytest.raises(SweepNotFound):
        seconds_of("digits", folder.storage)
    ledgers.empty(folder, document={"data": {"name": "digits"}, "attacks": {}}).close()
    with pytest.raises(ConfigError, match="--like: no trial of digits has been trained") as caught:
        seconds_of("digits", folder.storage)
    assert caught.value.problems[0].hint
    assert Ledger.at(folder.ledger).trials() == []
