"""The grid: every configuration once before any comes again, nothing drawn, clear words where it cannot be listed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from search_spaces.errors import ConfigError, Problem
from sweeps.config import SweepConfig, configuration_diff, parse_sweep, read_sweep
from sweeps.records import State
from sweeps.study import SearchStudy
from tests.sweeps.test_study import record

MODEL = {"img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 1, "num_heads": 2}
LISTED = {"k": [0, 4], "weight": [1e-3, 1e-2], "aggregation": "max"}
ROWS = [
    {"method": "jasmin", "jasmin.k": 4, "jasmin.weight": 1e-2},
    {"method": "plain"},
    {"method": "jasmin", "jasmin.k": 0, "jasmin.weight": "1e-3"},
]


def document(**sections: Any) -> dict[str, Any]:
    methods = ["plain", {"jasmin": LISTED}]
    return {"model": MODEL, "methods": methods, "attacks": {"stages": ["fgsm"]}, "search": "grid", **sections}


def grid_of(**sections: Any) -> SweepConfig:
    return parse_sweep(document(**sections))


def problems_of(**sections: Any) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        grid_of(**sections)
    return list(caught.value.problems)


def listed(config: SweepConfig, count: int) -> list[dict[str, Any]]:
    return [dict(params) for number in range(count) if (params := config.known_params(number)) is not None]


def test_without_known_configurations_every_combination_is_trained_once() -> None:
    config = grid_of(training={"epochs": {"int": [2, 4, 2]}})
    plain = [{"method": "plain", "training.epochs": e} for e in (2, 4)]
    jasmin = [
        {"method": "jasmin", "training.epochs": e, "jasmin.k": k, "jasmin.weight": w}
        for e, k, w in itertools.product((2, 4), LISTED["k"], LISTED["weight"])
    ]
    found = listed(config, config.trials)
    assert config.trials == len(plain + jasmin)
    assert sorted(map(str, found)) == sorted(map(str, plain + jasmin))


def test_the_first_trials_have_tried_every_method() -> None:
    config = grid_of(methods=[{"jasmin": LISTED}, "plain", {"jasmin": LISTED, "adversarial": {"epsilon": [0.1, 0.2]}}])
    labels = [params["method"] for params in listed(config, config.trials)]
    assert labels[:3] == ["jasmin", "plain", "jasmin+adversarial"]
    assert (labels.count("jasmin"), labels.count("plain"), labels.count("jasmin+adversarial")) == (4, 1, 8)


def test_known_configurations_are_the_grid_in_their_order_and_each_comes_again_after_all() -> None:
    config = grid_of(search={"sampler": "grid", "known": ROWS, "replicates": 3})
    found = listed(config, config.trials)
    assert config.trials == 9
    assert [p["method"] for p in found[:3]] == ["jasmin", "plain", "jasmin"]
    assert found[2] == {"method": "jasmin", "jasmin.k": 0, "jasmin.weight": 1e-3}
    assert found[3:6] == found[6:] == found[:3]


@pytest.mark.parametrize("known", [[], ROWS])
def test_replicates_differ_in_their_seeds_alone_and_a_restart_changes_nothing(known: list[dict[str, Any]]) -> None:
    config = grid_of(search={"sampler": "grid", "known": known, "replicates": 2})
    whole, restarted = [], []
    study = SearchStudy(config, [])
    for number in range(config.trials):
        whole.append(record(study.propose(number), State.TRAINING))
        restarted.append(record(SearchStudy(config, restarted).propose(number), State.TRAINING))
    assert restarted == whole
    half = config.trials // 2
    assert [t.config for t in whole[:half]] == [t.config for t in whole[half:]]
    assert len({t.seed for t in whole}) == config.trials


def test_a_grid_of_one_configuration_is_its_seeds() -> None:
    config = grid_of(methods=["plain"], search={"sampler": "grid", "replicates": 4})
    assert listed(config, config.trials) == [{}] * 4


def test_fewer_trials_take_the_first_ones_and_more_are_refused() -> None:
    assert grid_of(search={"sampler": "grid", "trials": 2}).trials == 2
    (problem,) = problems_of(search={"sampler": "grid", "replicates": 2, "trials": 11})
    assert problem.path == ("search", "trials")
    assert "5 configurations × 2 replicates; found 11" in problem.message


def test_a_total_that_was_raised_goes_round_again() -> None:
    config = grid_of(search={"sampler": "grid", "known": ROWS})
    assert config.known_params(3) == config.known_params(0)


def test_what_a_known_configuration_leaves_open_is_refused_by_name() -> None:
    rows = [{"method": "jasmin", "jasmin.k": 4}, {"jasmin.k": 4}, {}]
    problems = problems_of(search={"sampler": "grid", "known": rows})
    found = {problem.path: problem.message for problem in problems}
    assert "leaves jasmin.weight open" in found["search", "known", 0]
    assert "must say method: jasmin" in found["search", "known", 1, "jasmin.k"]
    assert "leaves method open" in found["search", "known", 2]
    assert len(problems) == 3


def test_a_range_without_end_is_refused_where_it_stands_with_what_to_write() -> None:
    training = {"learning_rate": {"log_uniform": [1e-3, 1e-2]}}
    problems = problems_of(training=training, methods=["plain", {"jasmin": {"k": 0, "aggregation": "max"}}])
    assert [p.path for p in problems] == [("training", "learning_rate"), ("methods", 1, "jasmin", "weight")]
    assert all("no end of values" in p.message for p in problems)
    assert "[0.001, 0.01]" in problems[0].hint
    complete = [{"method": "plain", "training.learning_rate": 2e-3}]
    assert grid_of(training=training, search={"sampler": "grid", "known": complete}).trials == 1


def test_only_a_grid_has_replicates() -> None:
    (problem,) = problems_of(search={"replicates": 2})
    assert problem.path == ("search", "replicates")
    assert "only sampler: grid" in problem.message


def test_a_name_alone_is_the_sampler() -> None:
    assert grid_of(search="random").search.sampler == "random"
    (problem,) = problems_of(search="gird")
    assert problem.path == ("search", "sampler")
    assert "Did you mean 'grid'?" in problem.hint


def test_a_sweep_that_names_no_number_has_fifty_trials_or_its_grid() -> None:
    assert grid_of(search=None).trials == 50
    assert grid_of().trials == 5


def test_more_seeds_do_not_make_a_sweep_another_one_and_another_row_does() -> None:
    def rows(known: list[dict[str, Any]], **search: Any) -> dict[str, Any]:
        return grid_of(search={"sampler": "grid", "known": known, **search}).comparable()

    assert configuration_diff(rows(ROWS), rows(ROWS, replicates=3, trials=4)) == []
    assert configuration_diff(rows(ROWS), rows(ROWS[:2]))


def test_overrides_turn_a_search_into_the_grid_of_its_known_configurations(tmp_path: Path) -> None:
    text = """
    model: {img_size: 8, patch_size: 2, embed_dim: 24, depth: 1, num_heads: 2}
    methods: [plain, {jasmin: {k: 0}}]
    objectives: [clean_acc]
    search: {sampler: tpe, known: [{method: plain}]}
    """
    (tmp_path / "s.yaml").write_text(text)
    config = read_sweep(tmp_path / "s.yaml", ["search.sampler=grid", "search.replicates=3"])
    assert config.trials == 3
