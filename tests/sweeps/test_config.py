"""The configuration of a sweep: what it searches, what it refuses, and where it says the mistake is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from search_spaces.domains import Choice, LogUniform
from search_spaces.errors import ConfigError, Problem
from sweeps.config import Stage, SweepConfig, configuration_diff, parse_sweep, read_sweep
from trainables.attack import Threat, find_attack
from trainables.config import TrialConfig

PRESETS = Path(__file__).parents[2] / "sweeps" / "presets"
optuna.logging.set_verbosity(optuna.logging.WARNING)


def small(**sections: Any) -> dict[str, Any]:
    """Return a document with a tiny model (17 tokens) and the given sections."""
    model = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 1, "num_heads": 3}
    return {"model": model, "methods": ["plain"], "attacks": {"stages": ["pgd"]}, **sections}


def stacked(**sections: Any) -> dict[str, Any]:
    """Return a document with every kind of method entry and a searched training field."""
    methods = [
        "plain",
        {"jasmin": {"k": [0, 4], "aggregation": "max"}},
        {"jasmin": {"k": 0, "weight": "search"}, "adversarial": {"epsilon": "8/255"}},
    ]
    return small(methods=methods, training={"learning_rate": {"log_uniform": ["1e-3", 5e-3]}}, **sections)


def problems_in(document: Any) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        parse_sweep(document)
    return list(caught.value.problems)


def ask(config: SweepConfig, seed: int, fixed: dict[str, Any] | None = None) -> tuple[TrialConfig, dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    if fixed is not None:
        study.enqueue_trial(fixed)
    trial = study.ask()
    return config.suggest(trial), trial.params


# What is searched


def test_parameters_are_named_by_section_method_and_stack() -> None:
    assert set(parse_sweep(stacked()).domains()) == {
        "method",
        "training.learning_rate",
        "jasmin.k",
        "jasmin.weight",
        "jasmin+adversarial/jasmin.weight",
        "jasmin+adversarial/jasmin.aggregation",
    }


def test_domains_come_from_the_file_or_from_beside_the_default() -> None:
    domains = parse_sweep(stacked()).domains()
    assert domains["method"] == Choice(("plain", "jasmin", "jasmin+adversarial"))
    assert domains["jasmin.k"] == Choice((0, 4))
    assert domains["jasmin.weight"] == LogUniform(1e-4, 3e-2)
    assert domains["training.learning_rate"] == LogUniform(1e-3, 5e-3)


def test_a_single_method_is_no_choice() -> None:
    config = parse_sweep(small(methods=[{"jasmin": {"k": 0}}]))
    assert set(config.domains()) == {"jasmin.weight", "jasmin.aggregation"}
    trial, params = ask(config, 0)
    assert trial.label == "jasmin"
    assert set(params) == set(config.domains())


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_a_trial_draws_the_parameters_of_its_method_alone_and_within_their_domains(seed: int) -> None:
    config = parse_sweep(stacked())
    trial, params = ask(config, seed)
    domains = config.domains()
    assert all(domains[name].contains(value) for name, value in params.items())
    own = {
        "plain": set(),
        "jasmin": {"jasmin.k", "jasmin.weight"},
        "jasmin+adversarial": {"jasmin+adversarial/jasmin.weight", "jasmin+adversarial/jasmin.aggregation"},
    }
    assert set(params) == {"method", "training.learning_rate"} | own[params["method"]]
    assert trial.label == params["method"]
    assert trial.training.learning_rate == params["training.learning_rate"]
    assert TrialConfig.model_validate(trial.plain()) == trial


def test_whole_cpus_of_a_trial_become_its_threads() -> None:
    for cpus, threads in ((1, 1), (0.5, 1), (3, 3), (2.5, 2)):
        trial, _ = ask(parse_sweep(small(resources={"cpus": cpus})), 0)
        assert trial.threads == threads


def test_a_document_without_sections_is_plain_fine_tuning_at_the_defaults() -> None:
    config = parse_sweep({"objectives": ["clean_acc"]})
    trial, params = ask(config, 0)
    assert config.attacks is None
    assert trial.plain() == TrialConfig(methods={"plain": {}}).plain()
    assert params == {}


def test_an_empty_section_is_the_default() -> None:
    empty = dict.fromkeys(["name", "training", "search", "resources", "tracking", "failures", "plugins"])
    assert parse_sweep({**small(), **empty}).comparable() == parse_sweep(small()).comparable()


# Known configurations


def test_a_known_configuration_fixes_what_it_names_and_leaves_the_rest_to_the_sampler() -> None:
    known = [{"method": "jasmin", "jasmin.k": 4, "training.learning_rate": "2e-3"}, {"training.learning_rate": 0.001}]
    config = parse_sweep(stacked(search={"known": known}))
    assert config.known_params(0) == {"method": "jasmin", "jasmin.k": 4, "training.learning_rate": 2e-3}
    assert config.known_params(1) == {"training.learning_rate": 0.001}
    assert config.known_params(2) is None
    trial, params = ask(config, 0, config.known_params(0))
    assert trial.methods["jasmin"].k == 4  # type: ignore[attr-defined]
    assert trial.training.learning_rate == 2e-3
    assert LogUniform(1e-4, 3e-2).contains(params["jasmin.weight"])


def test_a_known_configuration_may_repeat_pinned_values() -> None:
    known = {"method": "jasmin", "jasmin.aggregation": "max", "model.depth": 1, "training.epochs": 40}
    assert parse_sweep(stacked(search={"known": [known]})).known_params(0) == {"method": "jasmin"}
    single = parse_sweep(small(search={"known": [{"method": "plain"}]}))
    assert single.known_params(0) == {}


@pytest.mark.parametrize(
    ("entry", "key", "words"),
    [
        ({"method": "jasmin", "jasmin.k": 3}, "jasmin.k", "3 is outside what is searched: one of 0, 4"),
        ({"training.learning_rate": 1}, "training.learning_rate", "outside what is searched"),
        ({"training.learning_rate": "fast"}, "training.learning_rate", "expected a number"),
        ({"training.epochs": 41}, "training.epochs", "is always 40; found 41"),
        ({"jasmin.k": 0}, "jasmin.k", "must say method: jasmin"),
        ({"method": "plain", "jasmin.k": 0}, "jasmin.k", "must say method: jasmin"),
        ({"method": "jasmim"}, "method", "one of plain, jasmin, jasmin+adversarial"),
        ({"learning_rate": 1e-3}, "learning_rate", "Did you mean 'training.learning_rate'?"),
    ],
)
def test_a_known_configuration_outside_the_search_is_refused(entry: dict[str, Any], key: str, words: str) -> None:
    (problem,) = problems_in(stacked(search={"known": [entry]}))
    assert problem.path == ("search", "known", 0, key)
    assert words in str(problem)


# Attacks


def test_a_plan_knows_its_threat_and_builds_its_attacks() -> None:
    stages = [{"pgd": {"steps": 3}}, "autoattack", {"pgd": {"steps": 9}}]
    plan = parse_sweep(small(attacks={"norm": "l2", "epsilon": "1/2", "stages": stages, "images": None})).attacks
    assert plan is not None
    assert plan.threat == Threat(norm="l2", epsilon=0.5)
    assert plan.images is None
    assert [stage.label for stage in plan.stages] == ["pgd", "autoattack", "pgd_2"]
    attack = find_attack(plan.stages[2].attack, plan.stages[2].config, plan.threat)
    assert attack.config.steps == 9
    assert plan.stages[0].plain()["config"]["steps"] == 3


def test_the_test_split_takes_the_stages_of_validation_unless_it_has_its_own() -> None:
    def tested(**test: Any) -> list[str]:
        plan = parse_sweep(small(attacks={"stages": ["pgd", "autoattack"], "test": test})).attacks
        assert plan is not None
        assert plan.test is not None
        return [stage.attack for stage in plan.test.stages]

    assert tested() == ["pgd", "autoattack"]
    assert tested(stages=["fgsm"]) == ["fgsm"]


def columns_of(**attacks: Any) -> dict[str, Stage]:
    plan = parse_sweep(small(attacks={"stages": ["pgd"], **attacks})).attacks
    assert plan is not None
    return dict(plan.columns)


def test_a_column_has_the_sections_ball_unless_it_gives_its_own() -> None:
    columns = {
        "FGSM": "fgsm",
        "PGD": "pgd",
        "PGD.4-x_": {"pgd": {"steps": 4}, "epsilon": "4/255"},
        "L2": {"pgd": None, "norm": "l2", "epsilon": "1/2"},
    }
    found = columns_of(stages=["autoattack"], epsilon="2/255", columns=columns)
    assert list(found) == list(columns)
    assert {label: column.label for label, column in found.items()} == {label: label for label in columns}
    assert [column.threat for column in found.values()] == [
        Threat(epsilon=2 / 255),
        Threat(epsilon=2 / 255),
        Threat(epsilon=4 / 255),
        Threat(norm="l2", epsilon=0.5),
    ]
    assert found["PGD.4-x_"].config.plain()["steps"] == 4
    assert columns_of() == {}


def test_columns_and_what_only_describes_come_back_from_the_ledger() -> None:
    attacks = {
        "plan": "standard",
        "columns": {"FGSM4": {"fgsm": {}, "epsilon": "4/255"}, "PGD": {"pgd": {}, "surrogate": "backbone"}},
        "keep_images": True,
        "later_stages": "idle",
    }
    config = parse_sweep(small(attacks=attacks))
    again = parse_sweep(config.document)
    assert again.document == config.document
    assert again == config
    assert "plan" not in config.document["attacks"]
    assert parse_sweep(config.comparable()).comparable() == config.comparable()


def test_null_switches_the_test_split_off() -> None:
    plan = parse_sweep(small(attacks={"test": None})).attacks
    assert plan is not None
    assert plan.test is None


# Mistakes


def assert_refused(document: Any, path: str, words: str) -> None:
    found = problems_in(document)
    assert [problem.where() for problem in found] == [path]
    assert words in str(found[0])


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "a" * 65, "a b", "é", "a\n", 5])
def test_a_name_that_could_leave_the_storage_folder_is_refused(name: Any) -> None:
    assert problems_in(small(name=name))[0].path == ("name",)


@pytest.mark.parametrize("name", ["a", "A1", "my-sweep_2.0", "9" * 64])
def test_an_ordinary_name_is_accepted(name: str) -> None:
    assert parse_sweep(small(name=name)).name == name


@pytest.mark.parametrize(
    ("sections", "path", "words"),
    [
        ({"trainning": {}}, "trainning", "Did you mean 'training'?"),
        ({"training": {"epoch": 1}}, "training.epoch", "Did you mean 'epochs'?"),
        ({"training": {"epochs": True}}, "training.epochs", "should be a number"),
        ({"training": {"warmup_epochs": 50}}, "training", "warmup_epochs must not exceed epochs, found 50 and 40"),
        ({"training": [1]}, "training", "expected a mapping"),
        ({"training": {"epochs": "ten"}}, "training.epochs", "expected a whole number; found 'ten'"),
        ({"training": {"epochs": 1.5}}, "training.epochs", "expected a whole number; found 1.5"),
        ({"training": {"flip": "perhaps"}}, "training.flip", "expected true or false"),
        ({"training": {"learning_rate": "fast"}}, "training.learning_rate", "expected a number; found 'fast'"),
        ({"model": {"img_size": 9, "patch_size": 2}}, "model", "patch_size must divide img_size"),
        (
            {"model": {"img_size": 9, "patch_size": 2, "embed_dim": 4, "num_heads": 3}},
            "model",
            "; num_heads must divide",
        ),
        ({"model": {"img_size": 8, "patch_size": [2, 3]}}, "model", "patch_size must divide img_size"),
        ({"model": {"name": "vit_tini_patch16_224"}}, "model.name", "Did you mean"),
        ({"model": {"name": "resnet18"}}, "model.name", "not a VisionTransformer"),
        ({"model": {"weights": "no/such.pth"}}, "model.weights", "no such file"),
        ({"data": {"name": "digit"}}, "data.name", "Did you mean 'digits'?"),
        ({"data": {"name": 3}}, "data.name", "expected a name"),
        ({"data": {"validation_fraction": 1}}, "data.validation_fraction", "found 1"),
        ({"data": {"name": "arrays", "path": "no.npz"}}, "data.path", "no.npz"),
        ({"data": {"name": "arrays"}}, "data.path", "a value is needed"),
        ({"methods": ["jasmim"]}, "methods[0]", "Did you mean 'jasmin'?"),
        ({"methods": [{"plain": {"k": 1}}]}, "methods[0].plain.k", "unknown key"),
        ({"methods": [{"jasmin": {"k": 17}}]}, "methods[0].jasmin.k", "17"),
        ({"methods": [{"jasmin": {"k": [0, 4, 90]}}]}, "methods[0].jasmin.k", "90"),
        ({"methods": [{"jasmin": {"k": {"int": [2, 17]}}}]}, "methods[0].jasmin.k", "17"),
        ({"methods": ["plain", "plain"]}, "methods[1]", "plain is already methods[0]"),
        ({"methods": []}, "methods", "at least one method"),
        ({"methods": "plain"}, "methods", "expected a list"),
        ({"methods": {"plain": {}}}, "methods", "Put a hyphen before each method."),
        ({"methods": [3]}, "methods[0]", "expected a name"),
        ({"methods": [{"training": {}}]}, "methods[0].training", "cannot be a method"),
        ({"objectives": []}, "objectives", "one or more of clean_acc, robust_acc and feature_cosine"),
        ({"objectives": ["clean_acc", "clean_acc"]}, "objectives", "once"),
        ({"objectives": ["robust"]}, "objectives[0]", "Did you mean 'robust_acc'?"),
        ({"attacks": None}, "objectives", "attacks: {}"),
        ({"attacks": {"epsilon": 0}}, "attacks.epsilon", "found 0"),
        ({"attacks": {"epsilon": 8}}, "attacks.epsilon", "found 8"),
        ({"attacks": {"norm": "l1"}}, "attacks.norm", "'linf' or 'l2'"),
        ({"attacks": {"stages": "pgd"}}, "attacks.stages", "expected a list"),
        ({"attacks": {"stages": []}}, "attacks.stages", "at least 1 entry"),
        ({"attacks": {"stages": ["pdg"]}}, "attacks.stages[0]", "Did you mean 'pgd'?"),
        ({"attacks": {"stages": [{"pgd": {"steps": 0}}]}}, "attacks.stages[0].pgd.steps", "found 0"),
        ({"attacks": {"stages": [{"pgd": {"steps": [1, 2]}}]}}, "attacks.stages[0].pgd.steps", "found [1, 2]"),
        ({"attacks": {"stages": [{"pgd": {}, "fgsm": {}}]}}, "attacks.stages[0]", "found the keys pgd, fgsm"),
        ({"attacks": {"test": {"stages": ["aa"]}}}, "attacks.test.stages[0]", "unknown name 'aa'"),
        ({"attacks": {"test": {"trial": 3}}}, "attacks.test.trial", "Did you mean 'trials'?"),
        ({"attacks": {"plan": "standart"}}, "attacks.plan", "Did you mean 'standard'?"),
        ({"attacks": {"later_stages": "never"}}, "attacks.later_stages", "'auto', 'idle' or 'end'"),
        ({"attacks": {"keep_images": "some"}}, "attacks.keep_images", "true or false"),
        ({"attacks": {"columns": ["fgsm"]}}, "attacks.columns", "expected a mapping"),
        ({"attacks": {"columns": {"F": "fgms"}}}, "attacks.columns.F", "Did you mean 'fgsm'?"),
        ({"attacks": {"columns": {"F": {"fgms": {}}}}}, "attacks.columns.F.fgms", "Did you mean 'fgsm'?"),
        ({"attacks": {"columns": {"F": 3}}}, "attacks.columns.F", "expected a name, or a mapping"),
        ({"attacks": {"columns": {"F": {"epsilon": 0.1}}}}, "attacks.columns.F", "expected one attack"),
        ({"attacks": {"columns": {"F": {"fgsm": {}, "pgd": {}}}}}, "attacks.columns.F", "found the keys fgsm, pgd"),
        ({"attacks": {"columns": {"F": {"fgsm": {}, "epsilon": 4}}}}, "attacks.columns.F.epsilon", "found 4"),
        ({"attacks": {"columns": {"F": {"fgsm": {}, "norm": "l1"}}}}, "attacks.columns.F.norm", "'linf' or 'l2'"),
        ({"attacks": {"columns": {"F": {"pgd": {"step": 3}}}}}, "attacks.columns.F.pgd.step", "Did you mean 'steps'?"),
        (
            {"attacks": {"columns": {"F": {"fgsm": {}, "surrogate": "vit"}}}},
            "attacks.columns.F.surrogate",
            "expected backbone; found 'vit'",
        ),
        (
            {"attacks": {"stages": [{"pgd": {}, "surrogate": "backbone"}]}},
            "attacks.stages[0].surrogate",
            "Move the attack to attacks.columns",
        ),
        ({"attacks": {"columns": {"a b": "fgsm"}}}, "attacks.columns.a b", "letters, digits, dots"),
        ({"attacks": {"columns": {"-a": "fgsm"}}}, "attacks.columns.-a", "letters, digits, dots"),
        ({"attacks": {"columns": {"a" * 41: "fgsm"}}}, f"attacks.columns.{'a' * 41}", "1 to 40"),
        (
            {"attacks": {"columns": {"autoattack": "fgsm"}}},
            "attacks.columns.autoattack",
            "stage of the cascade already",
        ),
        (
            {"attacks": {"stages": ["pgd"], "test": {"stages": ["fgsm"]}, "columns": {"fgsm": "fgsm"}}},
            "attacks.columns.fgsm",
            "stage of the cascade already",
        ),
        (
            {"attacks": {"columns": {"autoattack.square": "fgsm"}}},
            "attacks.columns.autoattack.square",
            "a part of autoattack",
        ),
        ({"attacks": {"stages": [{"pgd": {}, "epsilon": 0.1}]}}, "attacks.stages[0]", "found the keys pgd, epsilon"),
        ({"search": {"trials": 0}}, "search.trials", "found 0"),
        ({"search": {"sampler": "tpee"}}, "search.sampler", "Did you mean 'tpe'?"),
        ({"search": {"known": [3]}}, "search.known[0]", "found 3"),
        ({"resources": "aut"}, "resources", "auto, which is all defaults, or a mapping; found 'aut'"),
        ({"resources": {"concurrent": 0}}, "resources.concurrent", "auto or a whole number"),
        ({"resources": {"gpus": -1}}, "resources.gpus", "auto or a number"),
        ({"resources": {"cpus": 0}}, "resources.cpus", "greater than 0"),
        ({"resources": {"evaluation": {"worker": 1}}}, "resources.evaluation.worker", "Did you mean 'workers'?"),
        ({"tracking": 3}, "tracking", "enabled, uri, experiment"),
        ({"failures": {"retries": -1}}, "failures.retries", "found -1"),
        ({"plugins": ["no_such_plugin.py"]}, "plugins[0]", "no such Python file"),
    ],
)
def test_a_mistake_is_named_with_its_path_and_what_is_allowed(sections: dict[str, Any], path: str, words: str) -> None:
    assert_refused(small(**sections), path, words)


def test_choosing_the_best_epoch_needs_images_to_choose_on() -> None:
    sections = {"training": {"select": ["last", "best"]}, "data": {"selection_fraction": 0}}
    assert_refused(small(**sections), "data.selection_fraction", "best")
    parse_sweep(small(training={"select": "last"}, data={"selection_fraction": 0}))


def test_a_k_that_one_of_the_searched_models_cannot_hold_is_refused() -> None:
    model = {"img_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
    methods = [{"jasmin": {"k": 10}}]
    parse_sweep(small(model={**model, "patch_size": 2}, methods=methods))
    assert_refused(small(model={**model, "patch_size": [2, 4]}, methods=methods), "methods[0].jasmin.k", "10")


@pytest.fixture
def plugin(tmp_path: Path) -> Callable[[str, str], str]:
    def write(stem: str, code: str) -> str:
        file = tmp_path / f"{stem}.py"
        file.write_text("from trainables.method import Method\nfrom trainables.attack import Attack\n" + code)
        return str(file)

    return write


def test_a_trial_carries_the_plugins_that_its_worker_must_load(plugin: Callable[[str, str], str]) -> None:
    file = plugin("carried_along", "class CarriedAlong(Method): ...\n")
    trial, _ = ask(parse_sweep(small(plugins=[file], methods=["carried_along"])), 0)
    assert trial.plugins == (file,)
    assert trial.label == "carried_along"


def test_two_methods_that_both_own_the_loss_cannot_be_stacked(plugin: Callable[[str, str], str]) -> None:
    body = "class {}(Method):\n    def loss(self, model, seen, clean): ...\n"
    files = [plugin("own_loss_a", body.format("OwnLossA")), plugin("own_loss_b", body.format("OwnLossB"))]
    parse_sweep(small(plugins=files, methods=["own_loss_a", "own_loss_b"]))
    stack = [{"own_loss_a": None, "own_loss_b": {}}]
    assert_refused(small(plugins=files, methods=stack), "methods[0]", "both replace the loss")


def test_an_attack_that_does_not_know_the_norm_is_refused(plugin: Callable[[str, str], str]) -> None:
    file = plugin("only_linf", "class OnlyLinf(Attack):\n    norms = ('linf',)\n    def perturb(self, *a): ...\n")
    parse_sweep(small(plugins=[file], attacks={"stages": ["only_linf"]}))
    for attacks in ({"stages": ["only_linf"], "test": None}, {"stages": ["pgd"], "test": {"stages": ["only_linf"]}}):
        (problem,) = problems_in(small(plugins=[file], attacks={"norm": "l2", **attacks}))
        assert problem.path[-1] == "only_linf"
        assert "found l2" in problem.message


def test_an_unreadable_plain_section_does_not_hide_mistakes_in_the_others() -> None:
    document = small(
        training={"epoch": 1},
        methods=["plain", "jasmim", {"jasmin": {"k": 90}}],
        objectives=["robust"],
        attacks={
            "epsilon": 8,
            "stages": ["pgd", {"pgd": {"steps": 0}}],
            "columns": {"a b": "fgsm", "F": {"fgms": {}}, "G": {"fgsm": {}, "epsilon": 9}},
            "test": {"stages": [3]},
        },
        search={"trials": 0},
        plugins=["no.py"],
        extra=1,
    )
    assert {problem.where() for problem in problems_in(document)} == {
        "training.epoch",
        "methods[1]",
        "methods[2].jasmin.k",
        "objectives[0]",
        "attacks.epsilon",
        "attacks.stages[1].pgd.steps",
        "attacks.columns.a b",
        "attacks.columns.F.fgms",
        "attacks.columns.G.epsilon",
        "attacks.test.stages[0]",
        "search.trials",
        "plugins[0]",
        "extra",
    }


@pytest.mark.parametrize("document", [{"a": object()}, {"a": float("nan")}, {"a": {1, 2}}])
def test_data_that_json_cannot_hold_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="not plain data"):
        parse_sweep(document)


# Files and overrides


def write(folder: Path, text: str) -> Path:
    file = folder / "s.yaml"
    file.write_text(text)
    return file


def test_problems_come_with_file_and_line_in_the_order_of_the_file(tmp_path: Path) -> None:
    file = write(
        tmp_path, "objectives: [clean_acc]\ntraining:\n  epochs: 2\n  mixupp: 1\nsearch: {trials: 0}\nnom: x\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_sweep(file)
    assert [(p.source, p.line) for p in caught.value.problems] == [(str(file), 4), (str(file), 5), (str(file), 6)]


def test_a_column_with_a_ball_that_is_none_is_shown_with_its_line(tmp_path: Path) -> None:
    text = "attacks:\n  plan: jasmine\n  columns:\n    A: fgsm\n    B:\n      fgsm: {}\n      epsilon: 4\n"
    with pytest.raises(ConfigError) as caught:
        read_sweep(write(tmp_path, text))
    found = [(p.line, p.where().split(": ")[-1]) for p in caught.value.problems]
    assert [(line, where.split(".", 1)[1]) for line, where in found] == [(2, "plan"), (7, "columns.B.epsilon")]
    assert "Did you mean 'jasmin'?" in caught.value.problems[0].hint


def test_a_mistake_in_an_override_names_the_option_and_not_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "objectives: [clean_acc]\ntraining: {epochs: 2}\n")
    with pytest.raises(ConfigError) as caught:
        read_sweep(file, ["training.epochs=0", "search.trials=3"])
    (problem,) = caught.value.problems
    assert problem.where() == "--set training.epochs=0: training.epochs"


def test_overrides_change_the_document_and_the_configuration(tmp_path: Path) -> None:
    file = write(tmp_path, "objectives: [clean_acc]\ntraining: {epochs: 2}\nmethods: [plain, {jasmin: {k: 4}}]\n")
    config = read_sweep(file, ["training.epochs=5", "methods[1].jasmin.weight=1/100"])
    assert config.document["training"] == {"epochs": 5}
    assert config.training.at_defaults().epochs == 5
    assert config.methods[1].spaces["jasmin"].at_defaults().weight == 0.01


def test_the_document_holds_what_the_user_gave_and_no_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, "objectives: [clean_acc]\ntraining: {learning_rate: 2/255}\n")
    assert read_sweep(file).document == {"objectives": ["clean_acc"], "training": {"learning_rate": "2/255"}}


def test_a_document_written_as_yaml_and_read_again_is_the_same_sweep(tmp_path: Path) -> None:
    config = parse_sweep(stacked(search={"known": [{"method": "plain"}]}))
    with (tmp_path / "s.yaml").open("w") as stream:
        YAML().dump(config.document, stream)
    again = read_sweep(tmp_path / "s.yaml")
    assert again.document == config.document
    assert again == config


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    def some(choices: dict[str, list[Any]]) -> dict[str, Any]:
        return {name: draw(st.sampled_from(values)) for name, values in choices.items() if draw(st.booleans())}

    base = {name: value for name, value in stacked().items() if name != "methods"}
    methods = draw(st.lists(st.sampled_from(stacked()["methods"]), min_size=1, max_size=3, unique_by=str))
    training = some({"epochs": [3, [2, 3], {"int": [1, 9, 2]}], "learning_rate": ["1e-3", "search"], "flip": [True]})
    columns = [{"FGSM4": {"fgsm": {}, "epsilon": "4/255"}}, {"A": "pgd", "B": {"fgsm": None, "norm": "l2"}}]
    attacks = some(
        {
            "epsilon": ["2/255", 0.1],
            "stages": [["pgd"], ["fgsm", {"pgd": {"steps": 2}}]],
            "columns": columns,
            "keep_images": [True],
            "later_stages": ["idle", "end"],
            "test": [None],
        }
    )
    search = some({"trials": [1, 99], "sampler": ["tpe", "random"], "seed": [0, 7]})
    return {**base, "methods": methods, "training": training, "attacks": attacks, "search": search}


@settings(deadline=None, max_examples=30)
@given(documents(), st.integers(0, 100))
def test_every_document_comes_back_from_the_ledger_as_the_same_sweep(document: dict[str, Any], seed: int) -> None:
    before = copy.deepcopy(document)
    config = parse_sweep(document)
    again = parse_sweep(config.document)
    assert document == before
    assert again.document == config.document == document
    assert again == config
    assert configuration_diff(config.comparable(), again.comparable()) == []
    assert ask(config, seed) == ask(again, seed)


@settings(deadline=None, max_examples=15)
@given(documents())
def test_what_is_compared_is_a_sweep_of_its_own_and_says_the_same(document: dict[str, Any]) -> None:
    config = parse_sweep(document)
    assert parse_sweep(config.comparable()).comparable() == config.comparable()


# What may change between launch and resume


@pytest.mark.parametrize(
    "sections",
    [
        {"name": "other"},
        {"search": {"trials": 99}},
        {"resources": {"concurrent": 7, "gpus": 0.5, "evaluation": {"workers": 3}}},
        {"tracking": {"enabled": False}},
        {"failures": {"retries": 9}},
        {"training": {"epochs": 40}},
        {"attacks": {"stages": ["pgd"], "keep_images": True, "later_stages": "end"}},
    ],
)
def test_what_decides_no_result_may_change(sections: dict[str, Any]) -> None:
    assert configuration_diff(parse_sweep(small()).comparable(), parse_sweep(small(**sections)).comparable()) == []


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"training": {"epochs": 39}}, "training.epochs: 40 -> 39"),
        ({"training": {"epochs": [3, 4]}}, 'training.epochs: 40 -> {"choice": [3, 4]}'),
        ({"attacks": {"stages": [{"pgd": {"steps": 3}}]}}, "attacks.stages[0].pgd.steps: 20 -> 3"),
        ({"attacks": {"stages": ["pgd"], "columns": {"F": "fgsm"}}}, "attacks.columns.F: (absent) -> "),
        ({"search": {"seed": 3}}, "search.seed: 0 -> 3"),
        ({"resources": {"cpus": 2}}, "resources.cpus: 1.0 -> 2.0"),
        ({"data": {"split_seed": 1}}, "data.split_seed: 0 -> 1"),
    ],
)
def test_what_decides_results_is_compared(sections: dict[str, Any], line: str) -> None:
    found = configuration_diff(parse_sweep(small()).comparable(), parse_sweep(small(**sections)).comparable())
    assert any(change.startswith(line) for change in found)


def test_differences_name_added_removed_and_moved_values() -> None:
    old = {"a": 1, "b": [1, 2], "methods": [{"plain": {}}, {"jasmin": {"k": 0}}], "flag": True}
    new = {"a": 1, "b": [1, 3], "methods": [{"plain": {}}], "flag": 1, "c": "ε"}
    assert configuration_diff(old, new) == [
        "b: [1, 2] -> [1, 3]",
        'methods[1]: {"jasmin": {"k": 0}} -> (absent)',
        "flag: true -> 1",
        'c: (absent) -> "ε"',
    ]
    assert configuration_diff(old, copy.deepcopy(old)) == []


# Presets


def test_the_quickstart_compares_three_methods_and_searches_jasmin_as_a_whole() -> None:
    config = read_sweep(PRESETS / "quickstart.yaml")
    assert [entry.label for entry in config.methods] == ["plain", "jasmin", "adversarial"]
    assert {"jasmin.k", "jasmin.weight", "jasmin.aggregation"} <= set(config.domains())
    assert config.search.trials >= 12


def test_the_arrays_preset_lacks_nothing_but_its_data() -> None:
    with pytest.raises(ConfigError) as caught:
        read_sweep(PRESETS / "cifar10_arrays.yaml", ["data.path=no_such_file.npz"])
    assert [problem.where() for problem in caught.value.problems] == ["--set data.path=no_such_file.npz: data.path"]
