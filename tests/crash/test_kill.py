"""`kill -9` of the driver at every kind of moment, then `resume`: nothing lost, nothing done twice."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel import yaml

from sweeps.export import export_json
from sweeps.ledger import Ledger
from sweeps.records import State
from sweeps.summary import status
from tests.crash.drivers import SWEEP, Driver, evaluate, launch, ledger_says, open_ledger, resume, units
from tests.crash.evidence import assert_judged_once, assert_mirrored, assert_nothing_twice, results, slow_front

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TRIALS = 12
EVERYTHING = "attacks.evaluate=all"
"""Which attacks on dominated trials are spared depends on how many stages were under way at once."""

POINTS = (
    "mlflow.note:1",
    "propose.commit:2",
    "train.start:1",
    "epochs.commit:2",
    "trained.commit:1",
    "stage.start:1",
    "stage.adopt:2",
)
"""Done and not yet committed: a run created, a trial asked for, started but not handed to Tune, checkpointed, …"""


@pytest.fixture(scope="module")
def undisturbed_storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("undisturbed")
    driver = launch(storage, EVERYTHING)
    assert driver.wait() == 0, driver.text()
    return storage


@pytest.fixture(scope="module")
def undisturbed(undisturbed_storage: Path) -> dict[str, Any]:
    ledger = open_ledger(undisturbed_storage)
    assert len(ledger.trials([State.FINISHED])) == TRIALS
    assert_judged_in_parts(undisturbed_storage)
    return results(ledger)


def assert_whole(storage: Path, undisturbed: dict[str, Any]) -> None:
    """The sweep is finished, equals the undisturbed one bit for bit, and nothing in it was done twice."""
    ledger = open_ledger(storage)
    found = status(ledger)
    assert found["state"] == "finished"
    assert found["open"] == []
    assert results(ledger) == undisturbed
    assert [item["trial"] for item in found["front"]] == slow_front(export_json(ledger)["trials"])
    assert_nothing_twice(ledger, storage / "s")
    assert_judged_in_parts(storage)
    assert_mirrored(ledger)


def assert_judged_in_parts(storage: Path) -> None:
    """No image was judged twice, and the store holds several units of one question."""
    assert_judged_once(storage / "s")
    assert len(units(storage)) > len({path.parent for path in units(storage)})


def test_a_sweep_that_is_stopped_in_every_way_ends_as_if_it_had_not_been(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """One sweep meets Ctrl-C, kills between an act and its commit, one in training and one within a stage."""
    stop_with_ctrl_c(launch(tmp_path, EVERYTHING), tmp_path)
    kill_when(tmp_path, lambda ledger: any(0 < t.epochs < 4 for t in ledger.trials([State.TRAINING])))
    for point in POINTS:
        driver = resume(tmp_path, kill_at=point)
        assert driver.wait() == -signal.SIGKILL, f"{point} was never reached:\n{driver.text()}"
    kill_when(tmp_path, lambda ledger: is_partly_stored(ledger, tmp_path))
    assert any(s.state == "running" for s in open_ledger(tmp_path).stages())
    stored = units(tmp_path)
    found = status(open_ledger(tmp_path))
    assert found["state"] == "interrupted"
    assert {item["state"] for item in found["open"]} <= {"proposed", "training", "trained", "evaluating"}
    last = resume(tmp_path)
    assert last.wait() == 0, last.text()
    assert "finished kept" in last.text()
    assert_whole(tmp_path, undisturbed)
    assert {path: at for path, at in units(tmp_path).items() if path in stored} == stored
    again = resume(tmp_path)
    assert again.wait() == 0
    assert "nothing to do" in again.text()


def is_partly_stored(ledger: Ledger, storage: Path) -> bool:
    """Return whether a stage runs and verdicts came into the store after its start."""
    last = max(units(storage).values(), default=0) / 1e9
    return any(s.state == "running" and s.started_at < last for s in ledger.stages())


def test_workers_that_die_in_the_midst_of_stages_cost_what_they_had_not_stored_and_nothing_else(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    # every worker that judges dies before its seventh unit is stored
    driver = launch(tmp_path, EVERYTHING, kill_at="unit.write:7")
    assert driver.wait() == 0, driver.text()
    assert_whole(tmp_path, undisturbed)


def test_pruned_trials_are_judged_to_the_end_through_a_kill_and_the_front_was_right(tmp_path: Path) -> None:
    first = launch(tmp_path)
    assert first.wait() == 0, first.text()
    before = open_ledger(tmp_path)
    bounds = [t.number for t in before.trials() if not t.exact]
    assert bounds
    had = {s.digest: s for s in before.stages() if s.split == "validation"}
    plan = tmp_path / "again.yaml"
    sections = yaml.YAML(typ="safe").load(SWEEP)
    yaml.YAML().dump({**sections["attacks"], "test": None}, plan)
    stored = units(tmp_path)
    first = evaluate(tmp_path, plan)
    first.signal_when(signal.SIGKILL, lambda: len(units(tmp_path)) > len(stored) + 2)
    assert first.wait() == -signal.SIGKILL
    kept = units(tmp_path)
    second = evaluate(tmp_path, plan)
    assert second.wait() == 0, second.text()
    assert {path: at for path, at in units(tmp_path).items() if path in kept} == kept
    assert_judged_in_parts(tmp_path)
    third = evaluate(tmp_path, plan)
    assert third.wait() == 0
    assert "0 images judged now" in third.text()
    ledger = open_ledger(tmp_path)
    again = {t.number: [s for s in ledger.stages(t.number) if s.plan == "again"] for t in ledger.trials()}
    for stages in again.values():
        assert [stage.state for stage in stages] == ["done"] * len(stages)
        assert len(stages) == 2 or stages[-1].survivors == 0
        for stage in stages:
            if stage.digest in had:
                assert stage.verdicts.tolist() == had[stage.digest].verdicts.tolist()  # type: ignore[union-attr]
    full = [
        {"number": t.number, "state": "finished", "exact": True, "clean_acc": t.clean_acc}
        | {"robust_acc": again[t.number][-1].accuracy}
        for t in ledger.trials()
    ]
    front = status(ledger)["front"]
    assert slow_front(full) == [item["trial"] for item in front]
    assert [(item["clean_acc"], item["robust_acc"]) for item in front] == [
        (full[item["trial"]]["clean_acc"], full[item["trial"]]["robust_acc"]) for item in front
    ]


def stop_with_ctrl_c(driver: Driver, storage: Path) -> None:
    driver.signal_when(signal.SIGINT, ledger_says(storage, lambda ledger: any(t.epochs for t in ledger.trials())))
    asked = time.monotonic()
    assert driver.wait() == 130, driver.text()
    assert time.monotonic() - asked < 10
    assert "run_sweep.py resume s" in driver.text()
    assert status(open_ledger(storage))["state"] == "interrupted"


def kill_when(storage: Path, happened: Callable[[Ledger], bool]) -> None:
    driver = resume(storage)
    driver.signal_when(signal.SIGKILL, ledger_says(storage, happened))
    assert driver.wait() == -signal.SIGKILL
