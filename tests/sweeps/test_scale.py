"""The smoke scale: small, legal, on the code path of the whole sweep; what it does not understand stays as it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.errors import ConfigError
from sweeps.attack_plan import ready_made
from sweeps.config import SweepConfig, parse_sweep, read_sweep
from sweeps.scale import shrink

DOCUMENT: dict[str, Any] = {
    "name": "big",
    "model": {"name": "vit_base_patch16_224", "img_size": 32, "patch_size": 4, "depth": [6, 12], "qkv_bias": False}
    | {"pretrained": True},
    "data": {"name": "arrays", "path": "nowhere.npz", "mean": [0.5, 0.5, 0.5], "selection_fraction": 0.2},
    "training": {"epochs": 40, "batch_size": 512, "micro_batch": 128, "warmup_epochs": 5, "compile": True}
    | {"optimizer": "sgd", "learning_rate": {"log_uniform": [0.01, 0.1]}, "select": "best"},
    "methods": [
        "plain",
        {"jasmin": {"k": [0, 60]}},
        {"adversarial": {"epsilon": "2/255", "epsilon_warmup_epochs": 3}},
        {"jasmin": {"k": 0}, "adversarial": {"steps": 1}},
    ],
    "attacks": {"images": None, "stages": [{"pgd": {"steps": 50, "restarts": 5}}, "fgsm", "autoattack"]},
    "search": {
        "trials": 200,
        "known": [
            {"method": "adversarial", "training.epochs": 40, "adversarial.steps": 10, "model.depth": 12},
            {"method": "jasmin", "jasmin.k": 60, "training.learning_rate": 0.05},
            {"method": "jasmin", "jasmin.k": 0},
        ],
    },
    "resources": {"gpus": 4, "cpus": 8},
}


def smoke(**sections: Any) -> SweepConfig:
    return parse_sweep(shrink({**DOCUMENT, **sections}, "smoke", "file"))


def test_what_costs_is_small_and_what_decides_the_code_path_stays() -> None:
    config = smoke()
    assert config.name == "big-smoke"
    model, training = config.model.at_defaults(), config.training.at_defaults()
    assert (model.name, model.img_size, model.patch_size, model.qkv_bias) == ("vit_base_patch16_224", 32, 4, False)
    assert (model.depth, model.pretrained, config.data.name) == (2, False, "digits")
    assert (training.epochs, training.optimizer, training.compile) == (1, "sgd", False)
    assert (training.micro_batch or 99) < training.batch_size
    assert 0 < training.warmup_epochs < training.epochs
    assert [entry.label for entry in config.methods] == ["plain", "jasmin", "adversarial", "jasmin+adversarial"]
    assert config.tracking.enabled


def test_attacks_and_their_inner_forms_are_short_and_never_longer_than_before() -> None:
    config = smoke()
    assert config.attacks is not None
    settings = [stage.config.plain() for stage in config.attacks.stages]
    assert (settings[0]["steps"], settings[0]["restarts"]) == (2, 2)
    assert (settings[2]["version"], settings[2]["steps"], settings[2]["queries"]) == ("standard", 2, 20)
    assert config.attacks.test is not None
    assert (config.attacks.images, config.attacks.test.images, config.attacks.test.trials) == (8, 8, 1)
    stack = config.methods[3].spaces["adversarial"].at_defaults().plain()
    alone = config.methods[2].spaces["adversarial"].at_defaults().plain()
    assert (stack["steps"], alone["steps"], alone["epsilon_warmup_epochs"]) == (1, 2, 0)
    assert smoke(attacks={"stages": ["pgd"], "test": None}).attacks.stages[0].config.plain()["restarts"] == 1  # type: ignore[union-attr]


def test_columns_and_every_version_of_autoattack_are_short_and_keep_their_ball() -> None:
    columns = {"F": "fgsm", "P": {"pgd": {"steps": 50}, "epsilon": "4/255"}, "A": {"autoattack": {"version": "aa10"}}}
    stages = [{"autoattack": {"version": version}} for version in ("aa10", "rand", "standard")]
    plan = smoke(attacks={"stages": stages, "columns": columns, "test": None}).attacks
    assert plan is not None
    assert list(plan.columns) == list(columns)
    assert (plan.columns["P"].config.plain()["steps"], plan.columns["P"].threat.epsilon) == (2, 4 / 255)
    found = [stage.config.plain() for stage in (*plan.stages, plan.columns["A"])]
    assert [(one["version"], one["steps"], one["queries"]) for one in found] == [
        ("standard", 2, 20),
        ("rand", 2, 20),
        ("standard", 2, 20),
        ("standard", 2, 20),
    ]


@pytest.mark.parametrize("plan", ready_made())
def test_a_ready_made_plan_is_shrunk_with_its_columns(plan: str, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(f"attacks: {{plan: {plan}}}\n")
    small, whole = (read_sweep(file, (), scale).attacks for scale in ("smoke", None))
    assert small is not None
    assert whole is not None
    assert small.columns.keys() == whole.columns.keys()
    stages = (*small.stages, *small.columns.values())
    assert all(stage.config.plain().get("steps", 2) == 2 for stage in stages)
    assert (small.images, small.test and small.test.images) == (8, whole.test and 8)


def test_every_method_is_tried_once_with_its_first_known_configuration() -> None:
    config = smoke()
    found = [config.known_params(number) for number in range(config.trials)]
    assert found == [
        {"method": "plain"},
        {"method": "jasmin", "jasmin.k": 60, "training.learning_rate": 0.05},
        {"method": "adversarial"},
        {"method": "jasmin+adversarial"},
    ]


def test_a_grid_stays_a_grid_without_its_replicates() -> None:
    methods = ["plain", {"jasmin": {"k": [0, 60], "weight": [0.1, 0.2], "aggregation": "max"}}]
    sections: dict[str, Any] = {"methods": methods, "training": None}
    whole = smoke(**sections, search={"sampler": "grid", "replicates": 3})
    assert [(whole.known_params(n) or {})["method"] for n in range(whole.trials)] == ["plain", "jasmin"]
    row = {"method": "jasmin", "jasmin.k": 60, "jasmin.weight": 0.2}
    rows = smoke(**sections, search={"sampler": "grid", "known": [row, {**row, "jasmin.k": 0}], "replicates": 3})
    assert [rows.known_params(n) for n in range(rows.trials)] == [row]


def test_the_monitor_looks_at_few_images_and_only_where_it_is_on() -> None:
    assert smoke(monitor={"images": 500}).monitor.images == 8
    assert smoke(monitor={"images": 0}).monitor.images == 0


def test_a_sweep_without_sections_and_without_a_name_takes_the_files_name() -> None:
    small = shrink({"objectives": ["clean_acc"]}, "smoke", "file")
    config = parse_sweep(small)
    assert (config.name, config.trials, config.attacks) == ("file-smoke", 1, None)


def test_shrinking_changes_nothing_in_place() -> None:
    before = copy.deepcopy(DOCUMENT)
    shrink(DOCUMENT, "smoke", "file")
    assert before == DOCUMENT


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 600) | st.sampled_from(["", "pgd", "jasmin", "grid"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["known", "method", "stages", "columns", "test", "steps", "pgd", "images", "epsilon"]),
            inner,
        )
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(list(DOCUMENT)), json_values))
def test_a_broken_document_is_shrunk_without_an_exception(document: dict[str, Any]) -> None:
    assert set(document) <= set(shrink(document, "smoke", "file"))


def test_a_mistake_keeps_its_place(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("objectives: [clean_acc]\nmodel: 3\nmethods:\n  - plain\n  - jasmine: {k: 0}\n")
    with pytest.raises(ConfigError) as caught:
        read_sweep(file, (), "smoke")
    assert [(p.line, p.path) for p in caught.value.problems] == [(2, ("model",)), (5, ("methods", 1, "jasmine"))]


def test_overrides_come_after_the_scale_and_win(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("objectives: [clean_acc]\nname: big\ntraining: {epochs: 40}\n")
    config = read_sweep(file, ["training.epochs=3", "name=mine", "data.train_images=200"], "smoke")
    assert (config.training.at_defaults().epochs, config.name, config.data.train_images) == (3, "mine", 200)
    assert config.document["training"]["batch_size"] == 20
