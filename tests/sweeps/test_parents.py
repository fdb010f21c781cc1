"""Parents in the file and in the books: what is read and refused, what trials are called, who bears what."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from search_spaces.config import digest_of
from search_spaces.errors import ConfigError, ConfigurationChanged, ModelError
from sweeps.changes import plan_change
from sweeps.config import SweepConfig, parse_sweep, read_sweep
from sweeps.folder import SweepFolder
from sweeps.images import load_data
from sweeps.parents import booked, children_of, count_siblings
from sweeps.plan import describe, render
from sweeps.prefetch import check_fit, stage_weights
from sweeps.records import State, TrialRecord
from sweeps.scale import shrink
from tests.sweeps import ledgers
from trainables.config import TrialConfig

MODEL = {"img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 2}
ROBUST = {"methods": {"adversarial": {"epsilon": "8/255", "steps": 2}}, "training": {"epochs": 3}}
YAML = """
model: {img_size: 8, patch_size: 2, embed_dim: 24, depth: 2, num_heads: 2}
data: {name: digits, train_images: 100, validation_images: 40, test_images: 40}
training: {epochs: 2, batch_size: 50}
parents:
  robust: {methods: {adversarial: {epsilon: 8/255}}, training: {epochs: 3}}
methods:
  - plain
  - jasmin: {k: 0}
    start_from: robust
objectives: [clean_acc]
"""


def document(**sections: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "training": {"epochs": 2, "learning_rate": {"log_uniform": [1e-3, 1e-2]}},
        "parents": {"robust": ROBUST},
        "methods": ["plain", {"jasmin": {"k": [0, 4]}, "start_from": "robust"}],
        "objectives": ["clean_acc"],
        **sections,
    }


def read(**sections: Any) -> SweepConfig:
    return parse_sweep(document(**sections))


# The file


def test_a_childs_label_names_its_parent_and_its_parameters_never_collide() -> None:
    config = read(methods=[{"jasmin": {"k": [0, 4]}}, {"jasmin": {"k": [0, 8]}, "start_from": "robust"}])
    assert [entry.label for entry in config.methods] == ["jasmin", "jasmin@robust"]
    domains = config.domains()
    assert {"jasmin.k", "jasmin@robust/jasmin.k"} <= domains.keys()
    plain, child = (config.at_defaults(entry) for entry in config.methods)
    assert (plain.label, plain.start_from) == ("jasmin", None)
    assert child.label == "jasmin@robust"
    assert child.start_from is not None
    assert child.start_from.identity == config.trained_parents[0].digest
    assert TrialConfig.model_validate(child.plain()) == child
    assert plain.digest() != child.digest()
    known = read(search={"known": [{"method": "jasmin@robust", "jasmin@robust/jasmin.k": 4}]})
    assert known.known_params(0) == {"method": "jasmin@robust", "jasmin@robust/jasmin.k": 4}


def test_a_parent_has_the_sweeps_model_and_recipe_but_for_what_it_overrides() -> None:
    (parent,) = read().trained_parents
    child = read().at_defaults(read().methods[1])
    assert (parent.config.model, parent.config.data) == (child.model, child.data)
    assert parent.config.training == child.training.model_copy(update={"epochs": 3})
    assert parent.config.training.learning_rate == 1e-3  # searched by the trials: its default
    assert parent.config.methods["adversarial"].plain()["steps"] == 2
    assert parent.config.label == "adversarial"


def test_names_with_the_same_configuration_are_one_training_in_whatever_order_they_stand() -> None:
    twins = {"b": ROBUST, "other": {"methods": "plain"}, "a": {**ROBUST, "training": {"epochs": "3"}}}
    methods = [{"plain": {}, "start_from": name} for name in twins]
    config = read(parents=twins, methods=methods)
    assert [(p.number, p.names) for p in config.trained_parents] == [(-1, ("a", "b")), (-2, ("other",))]
    turned = read(parents=dict(reversed(twins.items())), methods=methods)
    assert turned.trained_parents == config.trained_parents
    identities = {n: config.at_defaults(e).start_from.identity for n, e in zip(twins, config.methods, strict=True)}  # type: ignore[union-attr]
    assert identities["a"] == identities["b"] != identities["other"]


def test_a_parents_seed_depends_on_the_sweeps_and_on_its_configuration() -> None:
    seeds = {read(search={"seed": seed}).trained_parents[0].seed for seed in (0, 0, 1)}
    longer = {**ROBUST, "training": {"epochs": 4}}
    seeds.add(read(parents={"robust": longer}).trained_parents[0].seed)
    assert len(seeds) == 3
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_without_a_parent_a_trial_is_named_and_identified_as_ever() -> None:
    trial = TrialConfig(methods={"jasmin": {"k": 4}})  # type: ignore[dict-item]
    assert "start_from" not in trial.plain()
    assert trial.digest() == digest_of({k: v for k, v in trial.plain().items() if k != "monitor"})
    assert trial.digest() == TrialConfig.model_validate({**trial.plain(), "start_from": None}).digest()


@pytest.mark.parametrize(
    ("sections", "where", "said"),
    [
        ({"parents": {"robust": {**ROBUST, "methods": {"adversarial": {"epsilon": ["2/255", "8/255"]}}}}},
         "parents.robust.methods.adversarial.epsilon", "nothing in a parent is searched"),
        ({"parents": {"robust": {**ROBUST, "training": {"learning_rate": "search"}}}},
         "parents.robust.training.learning_rate", "nothing in a parent is searched"),
        ({"parents": {"robust": {**ROBUST, "training": {"epoch": 3}}}}, "parents.robust.training.epoch", "'epochs'"),
        ({"parents": {"robust": {**ROBUST, "training": {"warmup_epochs": 9}}}}, "parents.robust.training", "warmup"),
        ({"parents": {"robust": {"methods": "nothing"}}}, "parents.robust.methods", "unknown name"),
        ({"parents": {"robust": {"methods": ["plain"]}}}, "parents.robust.methods", "expected a name"),
        ({"parents": {"robust": {}}}, "parents.robust", "found neither"),
        ({"parents": {"robust": {**ROBUST, "checkpoint": "w"}}}, "parents.robust", "found both"),
        ({"parents": {"robust": {**ROBUST, "sha256": "0" * 64}}}, "parents.robust", "sha256 is that of a checkpoint"),
        ({"parents": {"robust": {"checkpoint": "w", "training": {"epochs": 1}}}}, "parents.robust", "is not trained"),
        ({"parents": {"robust": {"checkpoint": "no.pth"}}}, "parents.robust.checkpoint", "no such file"),
        ({"parents": {"robust": {"start_from": "x"}}}, "parents.robust.start_from", "unknown key"),
        ({"parents": {"robust": {"methods": "robustness_tokens"}}},
         "parents.robust.methods.robustness_tokens", "adds weights"),
        ({"parents": {"robust": {"methods": {"adversarial": {}, "trades": {}}}}}, "parents.robust.methods", "both"),
        ({"parents": {"robust": {"methods": {"jasmin": {"k": 17}}}}}, "parents.robust.methods.jasmin.k", "17"),
        ({"parents": {"robust": ROBUST, "idle": ROBUST}}, "parents.idle", "start_from: idle"),
        ({"parents": {"a+b": ROBUST}}, "parents.a+b", "starts with a letter"),
        ({"parents": ["robust"]}, "parents", "expected a mapping"),
        ({"methods": [{"plain": {}, "start_from": "robuts"}, {"plain": {}, "start_from": "robust"}]},
         "methods[0].start_from", "'robust'"),
        ({"methods": [{"plain": {}, "start_from": 1}]}, "methods[0].start_from", "name of a parent"),
        ({"methods": [{"start_from": "robust"}]}, "methods[0]", "plain: {}"),
        ({"methods": [{"plain": {}, "start_from": "robust"}] * 2}, "methods[1]", "plain@robust is already"),
        ({"model": {**MODEL, "depth": [2, 3], "drop_path": [0, 0.1]}}, "model.depth", "depth, drop_path"),
        ({"training": {"select": "best"}, "parents": {"robust": {**ROBUST, "training": {"select": "last"}}}},
         "parents.robust.training.select", "select: best"),
        ({"data": {"name": "digits", "selection_fraction": 0},
          "parents": {"robust": {**ROBUST, "training": {"select": "best"}}}}, "data.selection_fraction", "share of 0"),
    ],
)  # fmt: skip
def test_every_mistake_is_one_problem_at_its_place(sections: dict[str, Any], where: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**sections)
    (problem,) = caught.value.problems
    assert problem.where() == where
    assert said in str(problem)


def test_a_mistake_in_a_parent_is_shown_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(YAML.replace("epsilon: 8/255", "epsilon: [2/255, 8/255]"))
    with pytest.raises(ConfigError, match=r"s\.yaml:6: parents\.robust\.methods\.adversarial\.epsilon"):
        read_sweep(tmp_path / "s.yaml")


# Checkpoints


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Final weights of a trial of the sweep."""
    from trainables.trial import find_splits, new_model

    torch.manual_seed(3)
    config = read().at_defaults(read().methods[0])
    save_file(new_model(config, find_splits(config)).state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def given_by(weights: Path, **parent: Any) -> dict[str, Any]:
    methods = [{"plain": {}, "start_from": "given"}]
    return document(parents={"given": {"checkpoint": str(weights), **parent}}, methods=methods)


def test_a_checkpoint_is_pinned_by_its_bytes_and_needed_no_more_by_who_only_reads(weights: Path) -> None:
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    config = parse_sweep(given_by(weights))
    assert config.document["parents"]["given"]["sha256"] == digest
    assert parse_sweep(config.document).document == config.document
    start = config.at_defaults(config.methods[0]).start_from
    assert start is not None
    assert start.identity == digest
    assert config.trained_parents == ()
    weights.unlink()
    assert parse_sweep(config.document).parents == config.parents


def test_relative_checkpoints_become_absolute(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(weights.parent)
    trained = "{methods: {adversarial: {epsilon: 8/255}}, training: {epochs: 3}}"
    text = YAML.replace(trained, "{checkpoint: weights.safetensors}")
    (weights.parent / "s.yaml").write_text(text)
    parent = read_sweep(Path("s.yaml")).document["parents"]["robust"]
    assert parent["checkpoint"] == str(weights)
    assert len(parent["sha256"]) == 64


def test_a_checkpoint_that_does_not_fit_or_has_changed_is_refused_before_any_trial(weights: Path) -> None:
    config = parse_sweep(given_by(weights))
    assert check_fit(config, load_data(config)) == []
    assert str(stage_weights(config, print)[0]).startswith(f"parent given: {weights}")
    small = parse_sweep({**given_by(weights), "model": {**MODEL, "depth": 1}})
    with pytest.raises(ModelError, match=r"parents\.given\.checkpoint: .*unexpected.*blocks\.1"):
        check_fit(small, load_data(small))
    save_file({"x": torch.zeros(1)}, weights)
    for check in (lambda: check_fit(config, load_data(config)), lambda: stage_weights(config, print)):
        with pytest.raises(ModelError, match="has changed: its SHA-256"):
            check()
    weights.unlink()
    with pytest.raises(ModelError, match="no file"):
        stage_weights(config, print)


def test_parents_must_stay_what_they_are_and_checkpoints_may_move(weights: Path, tmp_path: Path) -> None:
    sweep = replace(ledgers.sweep_record(), document=read().document, requested=50)
    longer = read(parents={"robust": {**ROBUST, "training": {"epochs": 4}}})
    with pytest.raises(ConfigurationChanged, match=r"parents\.robust\.training\.epochs: 3 -> 4"):
        plan_change(sweep, longer, "new.yaml")
    assert plan_change(sweep, read(), "same.yaml") is None
    sweep = replace(sweep, document=parse_sweep(given_by(weights)).document)
    moved = weights.rename(tmp_path / "moved.safetensors")
    change = plan_change(sweep, parse_sweep(given_by(moved)), "moved.yaml")
    assert change is not None
    assert len(change.lines) == 1
    save_file({"x": torch.zeros(1)}, moved)
    with pytest.raises(ConfigurationChanged, match=r"parents\.given\.sha256"):
        plan_change(sweep, parse_sweep(given_by(moved)), "other.yaml")


# What is shown and shrunk


def test_the_plan_counts_parents_and_says_what_they_are_for(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(YAML)
    config = read_sweep(tmp_path / "s.yaml", ["search.trials=5"])
    alone = read_sweep(tmp_path / "s.yaml", ["search.trials=5", "methods=[plain]", "parents={}"])
    plan, without = describe(config), describe(alone)
    assert plan.image_passes.low - without.image_passes.low == 3 * 100
    assert plan.final_bytes.low * 5 == without.final_bytes.low * 6
    assert plan.record_bytes > without.record_bytes
    text = "\n".join(str(cell) for column in render(plan).columns for cell in column.cells)
    assert "robust: adversarial, 3 epochs, 6 steps, adamw at 0.001, once before the trials, for jasmin@robust" in text
    given = parse_sweep(given_by(weights))
    text = "\n".join(str(cell) for column in render(describe(given)).columns for cell in column.cells)
    assert f"given: {weights}, for plain@given" in text


def test_the_smoke_scale_shrinks_parents_as_it_shrinks_trials(weights: Path) -> None:
    both = {"robust": {**ROBUST, "training": {"epochs": 40, "compile": True, "warmup_epochs": 5}}}
    both["given"] = {"checkpoint": str(weights)}
    methods = ["plain", {"jasmin": {"k": [0, 4]}, "start_from": "robust"}, {"plain": {}, "start_from": "given"}]
    search = {"known": [{"method": "jasmin@robust", "jasmin@robust/jasmin.k": 4}]}
    config = parse_sweep(shrink(document(parents=both, methods=methods, search=search), "smoke", "s"))
    given, robust = (parent.config for parent in config.trained_parents)
    assert (robust.label, robust.training.epochs, robust.training.compile) == ("adversarial", 1, False)
    assert robust.training.batch_size == config.training.at_defaults().batch_size
    assert (given.label, given.training.epochs) == ("plain", 1)
    assert [(config.known_params(n) or {})["method"] for n in range(config.trials)] == [
        "plain",
        "jasmin@robust",
        "plain@given",
    ]
    assert (config.known_params(1) or {})["jasmin@robust/jasmin.k"] == 4


def test_a_parents_files_are_apart_from_the_trials() -> None:
    folder = SweepFolder(Path("runs"), "s")
    assert folder.trial(-1) == folder.root / "parents" / "00001"
    assert folder.trial(1) == folder.root / "trials" / "00001"


# The books


def record(number: int, label: str, parent: str | None = None, seconds: float | None = None) -> TrialRecord:
    config = {} if parent is None else {"start_from": {"name": parent, "identity": "0"}}
    made = TrialRecord(number, State.TRAINED, label, config, {}, {}, 0, 0.0, 0.0, 0)
    return replace(made, train_seconds=seconds)


def test_each_child_bears_an_equal_part_whichever_name_it_used() -> None:
    parents = [record(-1, "robust, strong", seconds=30.0), record(-2, "idle", seconds=5.0), record(-3, "new")]
    trials = [record(0, "plain"), record(1, "a@robust", "robust"), record(2, "a@strong", "strong")]
    trials += [record(3, "a@given", "given"), record(4, "a@robust", "robust"), record(5, "b@new", "new")]
    assert booked(parents, trials) == {1: 10.0, 2: 10.0, 4: 10.0, 5: 0.0}
    assert children_of(parents[0], trials) == [1, 2, 4]
    assert [count_siblings(trial, parents, trials) for trial in trials] == [0, 3, 3, 0, 3, 1]


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "b, c"]), st.floats(0, 1e6)), unique_by=lambda pair: pair[0][0]),
    st.lists(st.sampled_from([None, "a", "b", "c", "given"])),
)
def test_what_is_booked_adds_up_to_what_parents_with_children_took(
    rows: list[tuple[str, float]], starts: list[str | None]
) -> None:
    parents = [record(-place, names, seconds=seconds) for place, (names, seconds) in enumerate(rows, 1)]
    trials = [record(number, "x", start) for number, start in enumerate(starts)]
    expected = sum(p.train_seconds or 0.0 for p in parents if set(p.label.split(", ")) & set(starts))
    assert sum(booked(parents, trials).values()) == pytest.approx(expected)
