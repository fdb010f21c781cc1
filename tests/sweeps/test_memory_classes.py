from __future__ import annotations

from typing import Any

from sweeps.config import SweepConfig, parse_sweep
from sweeps.memory_classes import MOST_CLASSES, attack_class, attack_classes, classes_of, training_class
from sweeps.records import PlannedStage
from trainables.config import TrialConfig

MODEL = {"img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 2}


def sweep(**sections: Any) -> SweepConfig:
    document = {"model": MODEL, "data": {"name": "digits"}, "objectives": ["clean_acc"], **sections}
    return parse_sweep(document)


def trial(**sections: Any) -> TrialConfig:
    return TrialConfig.model_validate({"model": MODEL, **sections})


def stage(attack: str, batch_size: int = 64, **config: Any) -> PlannedStage:
    threat = {"norm": "linf", "epsilon": 0.1}
    return PlannedStage("validation", 0, "sweep", attack, attack, attack, config, threat, True, 100, batch_size, 1)


def test_numbers_that_change_no_tensor_are_of_one_class_and_what_does_is_not() -> None:
    usual = training_class(trial(methods={"jasmin": {"k": 2, "weight": 0.001}}))
    assert training_class(trial(methods={"jasmin": {"k": 4, "weight": 0.01}})) == usual
    assert training_class(trial(methods={"jasmin": {}}, training={"epochs": 3, "learning_rate": 0.01})) == usual
    assert training_class(trial(methods={"jasmin": {}}, model={**MODEL, "drop_path": 0.1})) == usual
    others = [
        trial(),
        trial(methods={"jasmin": {"aggregation": "mean"}}),
        trial(methods={"jasmin": {}}, model={**MODEL, "depth": 3}),
        *(
            trial(methods={"jasmin": {}}, training=training)
            for training in (
                {"batch_size": 64},
                {"precision": "bfloat16"},
                {"compile": True},
                {"optimizer": "sgd"},
                {"ema_decay": 0.9},
            )
        ),
    ]
    classes = [usual, *map(training_class, others)]
    assert len(set(classes)) == len(classes)


def test_images_of_one_pass_count_and_more_of_them_cover_fewer() -> None:
    half = training_class(trial(training={"batch_size": 128, "micro_batch": 64}))
    assert half == training_class(trial(training={"batch_size": 64}))
    whole = training_class(trial(training={"batch_size": 128}))
    assert (whole.covers(half), half.covers(whole), half.covers(half)) == (True, False, True)
    assert not training_class(trial(training={"batch_size": 512}, methods={"jasmin": {}})).covers(half)
    assert whole.label == "plain, 8 px, 128 images, float32"


def test_a_sweep_names_every_class_that_it_may_propose_once() -> None:
    config = sweep(
        methods=["plain", {"jasmin": {"k": [0, 2]}}], training={"batch_size": [32, 64], "learning_rate": "search"}
    )
    labels = [of.label for of in classes_of(config)]
    assert labels == [
        f"{method}, 8 px, {images} images, float32"
        for method, images in (
            ("plain", 32),
            ("plain", 64),
            ("jasmin", 32),
            ("jasmin (mean)", 32),
            ("jasmin", 64),
            ("jasmin (mean)", 64),
        )
    ]
    assert all(training_class(member) == of for of, member in classes_of(config).items())


def test_parents_are_classes_too_and_many_are_thinned_out() -> None:
    config = sweep(
        parents={"robust": {"methods": {"adversarial": {}}, "training": {"batch_size": 16}}},
        methods=[{"safer": {}, "start_from": "robust"}],
    )
    assert "adversarial, 8 px, 16 images, float32" in [of.label for of in classes_of(config)]
    many = sweep(methods=["plain"], training={"batch_size": {"int": [1, 100]}})
    sizes = [of.images for of in classes_of(many)]
    assert len(sizes) == MOST_CLASSES
    assert (min(sizes), max(sizes)) == (1, 100)


def test_every_attack_is_measured_on_one_model_and_the_first_on_all() -> None:
    members = [trial(), trial(methods={"jasmin": {}}), trial(training={"batch_size": 3})]
    stages = [stage("pgd", steps=2), stage("square"), stage("pgd", steps=2)]
    found = attack_classes(members, stages)
    assert [of.label for of in found] == [
        "pgd on plain, 64 images",
        "square on plain, 64 images",
        "pgd on jasmin, 64 images",
    ]
    assert all(attack_class(*pair) == of for of, pair in found.items())
