"""Changing a sweep under way: what is allowed is recorded, what is not is refused with the differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from search_spaces.errors import ConfigurationChanged
from sweeps.changes import check_comparable, plan_change
from sweeps.config import parse_sweep
from sweeps.creation import dump_yaml, keep_copy
from tests.sweeps.driving import DOCUMENT, create, driving


def changed(**sections: Any) -> dict[str, Any]:
    """The document with fields of its sections replaced."""
    whole = {**DOCUMENT, **{name: value for name, value in sections.items() if not isinstance(value, dict)}}
    merged = {name: {**DOCUMENT.get(name, {}), **v} for name, v in sections.items() if isinstance(v, dict)}
    return {**whole, **merged}


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"search": {"trials": 9}}, "search.trials: 4 -> 9"),
        ({"resources": {"concurrent": 3}}, 'resources.concurrent: "auto" -> 3'),
        ({"tracking": {"experiment": "other"}}, 'tracking.experiment: "paretune" -> "other"'),
        ({"failures": {"crash": {"retries": 4}}}, "failures.crash.retries: null -> 4"),
        ({"attacks": {"later_stages": "end"}}, 'attacks.later_stages: "auto" -> "end"'),
        ({"attacks": {"evaluate": "all"}}, 'attacks.evaluate: "front" -> "all"'),
        ({"attacks": {"keep_images": True}}, "attacks.keep_images: false -> true"),
        ({"attacks": {"batch_size": 5}}, "attacks.batch_size: 256 -> 5"),
        ({"attacks": {"test": {**DOCUMENT["attacks"]["test"], "trials": 4}}}, "attacks.test.trials: 2 -> 4"),
    ],
)
def test_what_leaves_results_comparable_is_recorded_and_holds_from_then_on(
    tmp_path: Path, sections: dict[str, Any], line: str
) -> None:
    given = parse_sweep(changed(**sections))
    folder = create(tmp_path)
    with driving(folder) as driven:
        change = plan_change(driven.ledger.sweep(), given, "new.yaml")
        assert change is not None
        assert change.lines == (line,)
        change.record(driven.ledger)
        assert parse_sweep(driven.ledger.sweep().document).adjustable() == given.adjustable()
        assert driven.ledger.events()[-1].detail == {"changes": [line]}
        assert plan_change(driven.ledger.sweep(), given, "new.yaml") is None


def test_a_configuration_that_says_the_same_in_other_words_changes_nothing(tmp_path: Path) -> None:
    given = parse_sweep({**changed(failures={"retries": 1}), "name": "another"})
    with driving(create(tmp_path)) as driven:
        assert plan_change(driven.ledger.sweep(), given, "new.yaml") is None


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"training": {"epochs": 3}}, "training.epochs: 2 -> 3"),
        ({"training": {"learning_rate": {"log_uniform": [1e-4, 1e-2]}}}, "training.learning_rate"),
        ({"methods": ["plain", {"jasmin": {"k": 0}}]}, "methods[1]: (absent) ->"),
        ({"attacks": {"epsilon": 0.1}}, "attacks.epsilon: 0.05 -> 0.1"),
        ({"attacks": {"test": None}}, "attacks.test:"),
        ({"search": {"seed": 7}}, "search.seed: 0 -> 7"),
        ({"ledger": {"url": "postgresql://host/db"}}, "ledger.url: null ->"),
    ],
)
def test_what_does_not_is_refused_with_the_difference(tmp_path: Path, sections: dict[str, Any], line: str) -> None:
    with driving(create(tmp_path)) as driven, pytest.raises(ConfigurationChanged) as caught:
        plan_change(driven.ledger.sweep(), parse_sweep(changed(**sections)), "new.yaml")
    assert "new.yaml differs" in str(caught.value)
    assert line in str(caught.value)
    assert "launch a new sweep" in str(caught.value)


def test_a_total_can_only_grow(tmp_path: Path) -> None:
    with driving(create(tmp_path)) as driven:
        driven.ledger.raise_total(8)
        fewer = parse_sweep(changed(search={"trials": 6}))
        with pytest.raises(ConfigurationChanged, match=r"search\.trials: the sweep has 8 trials .* found 6"):
            plan_change(driven.ledger.sweep(), fewer, "new.yaml")
        same = parse_sweep(changed(failures={"retries": 5}))
        change = plan_change(driven.ledger.sweep(), same, "new.yaml")
        assert change is not None
        assert change.requested == 8, "a file that says nothing new about the total leaves the raised one alone"


def test_a_larger_total_opens_a_finished_sweep(tmp_path: Path) -> None:
    with driving(create(tmp_path)) as driven:
        while driven.coordinator.training_needed:
            driven.train()
        driven.ledger.complete()
        change = plan_change(driven.ledger.sweep(), parse_sweep(changed(search={"trials": 5})), "new.yaml")
        assert change is not None
        change.record(driven.ledger)
        assert (driven.ledger.sweep().requested, driven.ledger.sweep().completed_at) == (5, None)


def test_new_batches_reach_the_planned_stages_and_only_those_of_the_launched_plan(tmp_path: Path) -> None:
    with driving(create(tmp_path)) as driven:
        sweep = driven.ledger.sweep()
        added = sweep.planned_stages[0].__dict__ | {"plan": "extra", "position": 9}
        driven.ledger.add_plan("extra", [type(sweep.planned_stages[0])(**added)])
        change = plan_change(driven.ledger.sweep(), parse_sweep(changed(attacks={"batch_size": 5})), "new.yaml")
        assert change is not None
        change.record(driven.ledger)
        found = driven.ledger.sweep().planned_stages
        assert {stage.batch_size for stage in found if stage.plan == "extra"} == {256}
        assert {stage.batch_size for stage in found if stage.plan != "extra"} == {5}
        assert [(s.split, s.position, s.label) for s in found[:-1]] == [
            (s.split, s.position, s.label) for s in sweep.planned_stages
        ]


def test_another_experiment_forgets_where_the_runs_were(tmp_path: Path) -> None:
    with driving(create(tmp_path)) as driven:
        driven.train()
        driven.ledger.note_mlflow_sweep("uri", "1", "run")
        driven.ledger.note_mlflow_trial(0, "child", 3)
        kept = plan_change(driven.ledger.sweep(), parse_sweep(changed(failures={"retries": 5})), "new.yaml")
        moved = plan_change(driven.ledger.sweep(), parse_sweep(changed(tracking={"experiment": "other"})), "new.yaml")
        assert kept is not None
        assert moved is not None
        kept.record(driven.ledger)
        assert driven.ledger.sweep().mlflow_run_id == "run"
        moved.record(driven.ledger)
        assert driven.ledger.sweep().mlflow_run_id is None
        assert (driven.ledger.trial(0).mlflow_run_id, driven.ledger.trial(0).mlflow_revision) == (None, 0)


def test_the_copy_of_the_configuration_follows_the_ledger(tmp_path: Path) -> None:
    folder = create(tmp_path)
    with driving(folder) as driven:
        keep_copy(driven.ledger, folder)
        old = folder.config.read_text()
        change = plan_change(driven.ledger.sweep(), parse_sweep(changed(failures={"retries": 5})), "new.yaml")
        assert change is not None
        change.record(driven.ledger)  # a kill here leaves the old copy
        assert folder.config.read_text() == old
        keep_copy(driven.ledger, folder)
        assert folder.config.read_text() == dump_yaml(driven.ledger.sweep().document) != old
        check_comparable(driven.ledger.sweep(), parse_sweep(driven.ledger.sweep().document), "sweep.yaml")
