"""Confirming a front: what is frozen and refused, the sweep that is made of it, and what the reader of both is told."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from search_spaces.errors import ConfigError, ConfigurationChanged, SweepError, SweepExists
from sweeps.conclude import conclude, print_confirmation
from sweeps.config import parse_sweep, read_sweep
from sweeps.confirm import Prepared, confirmation_document, fresh_seed, prepare
from sweeps.confirm_cost import suggestion, work_seconds
from sweeps.confirmed import confirmation_of, find_confirmation, read_confirmation
from sweeps.export import export_json
from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.records import IMPORTED, State
from sweeps.report import build_report
from sweeps.snapshot import Snapshot
from sweeps.stage_job import StageJob
from sweeps.study import trial_seed
from sweeps.summary import sweep_state
from tests.sweeps import ledgers
from tests.sweeps.driving import DOCUMENT, create, driving, settle, train_all, trained

CLEAN = {0: 0.9, 1: 0.6, 2: 0.8, 3: 0.7}
FIRST = {0: 4, 1: 3, 2: 6, 3: 5}
"""Survivors of ten after the first stage: trials 0 and 2 are the front."""
METHODS = ["plain", {"jasmin": {"k": [0, 2], "weight": {"log_uniform": [1e-3, 1e-2]}, "aggregation": "max"}}]
KNOWN = [{"method": "plain"}, {"method": "plain"}, {"method": "jasmin"}, {"method": "jasmin"}]
SECTIONS: dict[str, Any] = {
    "methods": METHODS,
    "search": {"trials": 4, "sampler": "random", "seed": 7, "known": KNOWN},
    "tracking": {"enabled": False},
}


def searched(path: Path, **sections: Any) -> SweepFolder:
    """A finished search whose front is trials 0 (plain) and 2 (jasmin)."""
    folder = create(path, **{**SECTIONS, **sections})

    def survivors(job: StageJob) -> int:
        return max(0, FIRST[job.number] - job.stage.position - (job.stage.split == "test"))

    with driving(folder, survivors) as driven:
        train_all(driven.coordinator, CLEAN.__getitem__)
        settle(driven.coordinator)
        driven.ledger.complete()
    return folder


@pytest.fixture(scope="module")
def _search(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    return searched(tmp_path_factory.mktemp("searched"))


@pytest.fixture
def search(_search: SweepFolder, tmp_path: Path) -> SweepFolder:
    shutil.copytree(_search.root, tmp_path / "s")
    return SweepFolder(tmp_path, "s")


def asked(folder: SweepFolder, seeds: int | None = 2, wanted: str = "front", name: str | None = None) -> Prepared:
    return prepare(folder, seeds=seeds, wanted=wanted, name=name, say=lambda text: None)


def snapshot_of(folder: SweepFolder) -> Snapshot:
    ledger = Ledger.at(folder.ledger)
    try:
        return Snapshot.read(ledger)
    finally:
        ledger.close()


def drive(prepared: Prepared, trains: int = 100) -> None:
    """Drive a confirmation as its driver would, so many trainings at most, and judge what is trained."""

    def survivors(job: StageJob) -> int:
        return max(0, 5 + job.number % 2 - job.stage.position)

    with driving(prepared.folder, survivors) as driven:
        if prepared.change is not None:
            prepared.change.record(driven.ledger)
            driven.coordinator.config = parse_sweep(driven.ledger.sweep().document)
    with driving(prepared.folder, survivors) as driven:
        for _ in range(trains):
            if (job := driven.coordinator.next_training()) is None:
                break

            driven.coordinator.take_report(trained(job, 0.75 + 0.01 * job.number), job.token)
            while driven.coordinator.evaluation_needed:
                driven.coordinator.poll()
        settle(driven.coordinator)
        if len(driven.ledger.trials()) == driven.ledger.sweep().requested:
            driven.ledger.complete()


def test_the_front_becomes_a_grid_of_its_configurations_with_seeds_that_were_never_used(search: SweepFolder) -> None:
    prepared = asked(search, seeds=3)
    made, origin = snapshot_of(prepared.folder), snapshot_of(search)
    config = parse_sweep(made.sweep.document)
    assert prepared.folder.name == "s-confirm"
    assert config.confirms is not None
    assert (config.confirms.sweep, config.confirms.id, config.confirms.trials) == ("s", origin.sweep.id, (0, 2))
    assert config.confirms.robust_acc == tuple(origin.trials[n].robust_acc for n in (0, 2))
    assert made.sweep.requested == 6
    old = {trial.seed for trial in origin.trials}
    assert not old & {trial_seed(config.search.seed, number) for number in range(6)}
    drive(prepared)
    trials = snapshot_of(prepared.folder).trials
    for number, trial in enumerate(trials):
        assert trial.config == origin.trials[(0, 2)[number % 2]].config
    assert len({trial.seed for trial in trials} | old) == 6 + 4
    assert all(t.exact and t.test_robust_acc is not None and t.test_clean_acc is not None for t in trials)


def test_every_training_is_judged_on_test_images_also_where_the_search_judged_none(search: SweepFolder) -> None:
    origin = snapshot_of(search)
    document = {**origin.sweep.document, "attacks": {**DOCUMENT["attacks"], "test": None}}
    without = replace(origin, sweep=replace(origin.sweep, document=document))
    plan = parse_sweep(confirmation_document(without, [origin.trials[0]], 2, "c")).attacks
    assert plan is not None
    assert plan.test is not None
    assert (plan.tested, plan.evaluate, plan.test.images) == (None, "all", plan.images)
    assert plan.test.stages == plan.stages


def test_the_plan_of_a_confirmation_says_that_every_trial_is_tested(search: SweepFolder) -> None:
    from sweeps.plan import describe, render

    text = told(160, lambda console: console.print(render(describe(read_sweep(asked(search).folder.config)))))
    rows = [line for line in text.splitlines() if "10 images" in line]
    assert len(rows) >= 4
    assert all("every trial" in row for row in rows)


def test_methods_and_parents_that_no_frozen_trial_has_are_left_out_and_parents_get_new_seeds(
    search: SweepFolder,
) -> None:
    origin = snapshot_of(search)
    sections = {
        "parents": {"robust": {"methods": {"adversarial": {"epsilon": 0.03}}}, "other": {"methods": "plain"}},
        "methods": [*METHODS, {"plain": {}, "start_from": "robust"}, {"plain": {}, "start_from": "other"}],
    }
    document = {**origin.sweep.document, **sections}
    params = {**origin.trials[0].params, "method": "plain@robust"}
    child = replace(origin.trials[0], label="plain@robust", params=params)
    sweep = replace(origin.sweep, document=document)
    snapshot = replace(origin, sweep=sweep, trials=(child, *origin.trials[1:]))
    before, after = parse_sweep(document), parse_sweep(confirmation_document(snapshot, [child], 2, "c"))
    assert [entry.label for entry in after.methods] == ["plain@robust"]
    assert [parent.name for parent in after.parents] == ["robust"]
    (trained,) = after.trained_parents
    same = next(parent for parent in before.trained_parents if "robust" in parent.names)
    assert trained.config == same.config
    assert trained.seed != same.seed


def test_a_seed_that_the_search_has_used_is_passed_over(search: SweepFolder) -> None:
    sweep = snapshot_of(search).sweep
    first = fresh_seed(sweep, 7, "c", set())
    other = fresh_seed(sweep, 7, "c", {trial_seed(first, 5)})
    assert first != other
    assert fresh_seed(sweep, 7, "d", set()) not in (first, other)
    assert fresh_seed(sweep, 7, "c", set()) == first


def test_asked_again_it_goes_on_and_shows_what_it_came_to(search: SweepFolder) -> None:
    prepared = asked(search, seeds=2)
    drive(prepared, trains=3)
    found = find_confirmation(search, snapshot_of(search).sweep.id)
    assert found is not None
    assert (found.state, found.finished, found.expected, found.is_whole) == ("interrupted", 3, 4, False)
    again = asked(search, seeds=None)
    assert (again.folder, again.change) == (prepared.folder, None)
    drive(again)
    found = find_confirmation(search, snapshot_of(search).sweep.id)
    assert found is not None
    assert found.is_whole
    assert found.result is not None
    assert [row.seeds for row in found.result.rows] == [2, 2]


def test_more_seeds_are_trained_in_addition_and_fewer_are_refused(search: SweepFolder) -> None:
    drive(asked(search, seeds=2))
    before = [trial.seed for trial in snapshot_of(SweepFolder(search.storage, "s-confirm")).trials]
    more = asked(search, seeds=3)
    assert more.change is not None
    assert more.change.requested == 6
    drive(more)
    made = snapshot_of(more.folder)
    assert [trial.seed for trial in made.trials][:4] == before
    found = read_confirmation(made, "finished")
    assert found is not None
    assert found.result is not None
    assert [(row.number, row.seeds) for row in found.result.rows] == [(0, 3), (2, 3)]
    assert found.is_whole
    with pytest.raises(ConfigError, match="3 seeds of each configuration and can only grow; found 2"):
        asked(search, seeds=2)


def test_another_front_than_the_frozen_one_is_refused_with_what_to_do(search: SweepFolder) -> None:
    asked(search, wanted="0")
    with pytest.raises(ConfigurationChanged, match=r"not frozen: 2\)(.|\n)*--trials 0\n(.|\n)*--as s-confirm-2"):
        asked(search)
    assert asked(search, wanted="0").change is None
    assert asked(search, name="s-confirm-2").folder.name == "s-confirm-2"
    names = {find_confirmation(search, snapshot_of(search).sweep.id).name}  # type: ignore[union-attr]
    assert names == {"s-confirm-2"}, "the newest one is the one that reports show"


def test_a_name_that_is_another_sweeps_is_refused(search: SweepFolder) -> None:
    shutil.copytree(search.root, search.storage / "taken")
    with pytest.raises(SweepExists, match="does not confirm s"):
        asked(search, name="taken")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("1", "only an upper bound is known"), ("9", "not among the finished"), ("best", "expected front, all")],
)
def test_trials_that_cannot_be_confirmed_are_refused_before_anything_is_made(
    search: SweepFolder, wanted: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        asked(search, wanted=wanted)
    assert not (search.storage / "s-confirm").exists()


def test_a_front_that_is_not_exact_yet_is_no_front_to_confirm(tmp_path: Path) -> None:
    folder = create(tmp_path, **SECTIONS)
    with pytest.raises(SweepError, match=r"no exact front yet: no trial has all its values yet(.|\n)*resume s"):
        asked(folder)
    with driving(folder, lambda job: FIRST[job.number]) as driven:
        train_all(driven.coordinator, CLEAN.__getitem__)
    with pytest.raises(SweepError, match="no exact front yet"):
        asked(folder)


def test_a_sweep_that_runs_is_not_frozen(search: SweepFolder) -> None:
    ledger = Ledger.at(search.ledger)
    with Lease(ledger), pytest.raises(SweepError, match=r"s is running(.|\n)*pause s"):
        asked(search)
    ledger.close()


def test_what_was_never_searched_cannot_be_confirmed(search: SweepFolder, tmp_path: Path) -> None:
    prepared = asked(search)
    with pytest.raises(SweepError, match="is a confirmation of s itself"):
        asked(prepared.folder)
    plain = create(tmp_path, "clean", objectives=["clean_acc"], attacks=None)
    with pytest.raises(SweepError, match="no section attacks"):
        asked(plain)
    brought = ledgers.folder_at(tmp_path, "brought")
    ledger = ledgers.empty(brought)
    with Lease(ledger):
        ledger.propose(0, IMPORTED, {}, {}, {}, 0)
    ledger.close()
    with pytest.raises(SweepError, match="no training to repeat"):
        asked(brought)


def test_the_cost_is_what_the_front_took_in_the_search(search: SweepFolder) -> None:
    snapshot = snapshot_of(search)
    each = [1.0 + sum(s.seconds or 0.0 for s in snapshot.stages_of(snapshot.trials[n])) for n in (0, 2)]
    assert work_seconds(snapshot, [snapshot.trials[0], snapshot.trials[2]], 3) == pytest.approx(3 * sum(each))
    unjudged = {
        number: tuple(s for s in stages if s.split == "validation") for number, stages in snapshot.stages.items()
    }
    without = replace(snapshot, stages=unjudged)
    on_validation = sum(s.seconds or 0.0 for s in unjudged[0])
    assert work_seconds(without, [snapshot.trials[0]], 1) == pytest.approx(1.0 + 2 * on_validation), "as many images"
    line = suggestion(snapshot, search)
    assert line is not None
    assert "confirm s" in line
    assert "--seeds 3" in line
    assert "2 configurations × 3 seeds, about" in line


def test_what_has_no_front_or_is_a_confirmation_is_not_told_to_confirm(search: SweepFolder, tmp_path: Path) -> None:
    assert suggestion(snapshot_of(create(tmp_path, "new", **SECTIONS)), SweepFolder(tmp_path, "new")) is None
    prepared = asked(search)
    drive(prepared)
    assert suggestion(snapshot_of(prepared.folder), prepared.folder) is None


def test_both_reports_and_the_export_show_the_confirmation(search: SweepFolder) -> None:
    ledger = Ledger.at(search.ledger)
    html, markdown = build_report(ledger, search)
    assert "of one seed each" in html.read_text()
    assert "confirm s --seeds 3" in markdown.read_text()
    assert 'id="confirmation"' not in html.read_text()
    assert export_json(ledger, search)["confirmation"] is None
    prepared = asked(search)
    drive(prepared, trains=3)
    build_report(ledger, search)
    assert "Not whole: 3 of 4 trainings have all their figures (interrupted" in html.read_text()
    drive(prepared)
    build_report(ledger, search)
    assert 'id="confirmation"' in html.read_text()
    assert "see Confirmation" in html.read_text()
    assert "| 2 | jasmin |" in markdown.read_text()
    shown = export_json(ledger, search)["confirmation"]
    ledger.close()
    assert shown["name"] == "s-confirm"
    assert [row["trial"] for row in shown["configurations"]] == [0, 2]
    own = Ledger.at(prepared.folder.ledger)
    assert export_json(own)["confirmation"] == json.loads(json.dumps(shown)), "the same from either side"
    html, markdown = build_report(own, prepared.folder)
    own.close()
    assert "Optimism of the selection" in html.read_text()
    assert "of one seed each" not in html.read_text()
    assert "## Confirmation" in markdown.read_text()


def test_an_unreadable_confirmation_is_named_and_keeps_no_report_from_being_built(search: SweepFolder) -> None:
    prepared = asked(search)
    prepared.folder.ledger.write_text("no database")
    ledger = Ledger.at(search.ledger)
    html, _ = build_report(ledger, search)
    ledger.close()
    assert "s-confirm: not readable:" in html.read_text()


def told(width: int, show: Callable[[Console], None]) -> str:
    text = io.StringIO()
    show(Console(file=text, width=width))
    return text.getvalue()


def test_the_terminal_suggests_it_and_then_shows_it_within_a_hundred_columns(search: SweepFolder) -> None:
    before = told(200, lambda console: conclude(search, console))
    assert "of one seed each" in before
    assert "--seeds 3    (2 configurations × 3 seeds, about" in before
    prepared = asked(search)
    drive(prepared)
    found = snapshot_of(prepared.folder)
    snapshot = replace(found, confirming=confirmation_of(found, "finished", prepared.folder))
    shown = told(100, lambda console: print_confirmation(console, snapshot, prepared.folder, "finished"))
    rows = [line for line in shown.splitlines() if line.strip().startswith(("0 plain", "2 jasmin"))]
    assert len(rows) == 2
    assert all("kept" in row or "lost" in row for row in rows), "nothing was cut off"
    assert "Validation minus test images" in shown
    assert "more seeds" in told(200, lambda console: conclude(prepared.folder, console))
    assert "Confirmation of s with new seeds" in told(100, lambda console: conclude(search, console))


def test_a_failed_training_leaves_its_configuration_with_fewer_seeds(search: SweepFolder) -> None:
    prepared = asked(search)
    drive(prepared, trains=3)
    ledger = Ledger.at(prepared.folder.ledger)
    with driving(prepared.folder) as driven:
        job = driven.start()
        driven.ledger.fail(job.number, "nan", "the loss is NaN")
        driven.ledger.complete()
    snapshot, state = Snapshot.read(ledger), sweep_state(ledger)
    ledger.close()
    found = confirmation_of(snapshot, state, prepared.folder)
    assert found is not None
    assert found.result is not None
    assert snapshot.trials[3].state is State.FAILED
    assert [(row.number, row.seeds) for row in found.result.rows] == [(0, 2), (2, 1)]
    assert (found.failed, found.is_whole) == (1, False)


def test_the_copy_of_the_document_reads_back_as_the_same_sweep(search: SweepFolder) -> None:
    prepared = asked(search)
    config = read_sweep(prepared.folder.config)
    assert config.comparable() == parse_sweep(snapshot_of(prepared.folder).sweep.document).comparable()
    assert config.comparable()["confirms"]["trials"] == [0, 2]
