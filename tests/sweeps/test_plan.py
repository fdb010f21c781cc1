"""The plan: figures that can be checked by hand, and a table that holds what a user must know before a launch."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from search_spaces.errors import ConfigError
from sweeps.config import parse_sweep
from sweeps.disk import MARGIN_BYTES
from sweeps.forecast import UNIT_BYTES, VERDICT_BYTES, Range
from sweeps.plan import Plan, describe, render
from trainables.attacks.autoattack import Autoattack, AutoattackConfig
from trainables.config import ModelConfig
from trainables.verdict_store import COSTS, PER_IMAGE, VerdictStore
from trainables.vit import build_model

MODEL = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """Write 90 training and 30 test images of three classes, one channel, 8×8."""
    random = np.random.default_rng(0)
    file = tmp_path / "small.npz"
    np.savez(
        file,
        x_train=random.integers(0, 256, (90, 8, 8), dtype=np.uint8),
        y_train=np.arange(90) % 3,
        x_test=random.integers(0, 256, (30, 8, 8), dtype=np.uint8),
        y_test=np.arange(30) % 3,
    )
    return file


def plan_for(arrays: Path, **sections: Any) -> Plan:
    document = {
        "model": MODEL,
        "data": {"name": "arrays", "path": str(arrays)},
        "methods": ["plain", {"jasmin": {"k": [0, 4]}}],
        "training": {"epochs": 3, "batch_size": 32},
        "attacks": {"stages": [{"pgd": {"steps": 10, "restarts": 2}}], "images": 12, "test": None},
        "search": {"trials": 5},
        **sections,
    }
    return describe(parse_sweep(document))


def shown(plan: Plan, width: int = 120) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(render(plan))
    return stream.getvalue()


def test_sizes_and_steps_follow_from_the_splits(arrays: Path) -> None:
    plan = plan_for(arrays)
    data = plan.data
    assert (data.train, data.validation, data.test, data.selection) == (72, 18, 30, 0)
    assert (data.num_classes, data.channels) == (3, 1)
    assert plan.steps == Range(9, 9)  # 3 epochs of ⌈72 / 32⌉ steps
    assert plan.image_passes == Range(1080, 1080)  # 5 trials × 3 epochs × 72 images


def test_a_searched_length_gives_a_range(arrays: Path) -> None:
    plan = plan_for(arrays, training={"epochs": {"int": [2, 6, 2]}, "batch_size": [16, 40]})
    assert plan.epochs == Range(2, 6)
    assert plan.steps == Range(4, 30)
    assert "4 to 30 steps per trial" in shown(plan)


def test_the_parameters_are_those_of_the_model_that_a_trial_builds(arrays: Path) -> None:
    built = build_model(ModelConfig(**MODEL), num_classes=3, channels=1, mean=(0.5,), std=(0.5,))
    count = sum(parameter.numel() for parameter in built.parameters())
    plan = plan_for(arrays)
    assert plan.model.parameters == Range(count, count)
    assert plan.model.tokens == Range(17, 17)
    assert plan.final_bytes == Range(5 * 4 * count, 5 * 4 * count)
    assert plan.checkpoint_bytes.high == 2 * 3 * 4 * count  # two checkpoints of weights and AdamW's two moments


def test_momentum_average_and_best_epoch_change_what_a_checkpoint_holds(arrays: Path) -> None:
    count = plan_for(arrays).model.parameters.high
    training = {"optimizer": ["sgd", "adamw"], "ema_decay": 0.9, "select": "best", "epochs": 3}
    plan = plan_for(arrays, training=training)
    assert plan.checkpoint_bytes == Range(2 * 4 * 4 * count, 2 * 5 * 4 * count)
    assert (plan.data.train, plan.data.selection) == (66, 6)  # of each class a tenth of 24 images, rounded


def test_a_searched_model_gives_ranges(arrays: Path) -> None:
    plan = plan_for(arrays, model={**MODEL, "depth": [1, 3], "patch_size": [2, 4]}, methods=["plain"])
    assert (plan.model.depth, plan.model.tokens) == (Range(1, 3), Range(5, 17))
    assert plan.model.parameters.low < plan.model.parameters.high


def test_attack_passes_count_images_steps_and_restarts(arrays: Path) -> None:
    (stage,) = plan_for(arrays).stages
    assert (stage.label, stage.images) == ("pgd", 12)
    assert stage.passes == Range(12 * 3, 12 * 2 * 31)  # falls at once; or 10 steps of 3 and a last look, twice


def test_no_more_images_are_attacked_than_there_are(arrays: Path) -> None:
    attacks = {"stages": ["fgsm"], "images": None, "test": {"images": 999}}
    plan = plan_for(arrays, attacks=attacks)
    assert plan.stages[0].images == 18
    assert plan.test_stages[0].images == 30
    assert plan.stages[0].passes == Range(54, 54)


def test_autoattack_costs_what_was_counted_with_hooks() -> None:
    passes = Autoattack.passes(AutoattackConfig(), 10)
    # APGD-CE; nine targets, each with a pass of its own that ranks the classes; FAB-T; Square
    assert passes == (3, 301 + 9 * (1 + 301) + (1 + 9 * 403) + 5001)


def test_an_attack_that_the_number_of_classes_rules_out_is_found_before_the_launch(arrays: Path) -> None:
    with pytest.raises(ConfigError, match="apgd_t needs at least 4 classes, the data set has 3") as caught:
        plan_for(arrays, attacks={"stages": ["pgd", "autoattack"], "test": None})
    assert caught.value.problems[0].where() == "attacks.stages[1].autoattack"


def test_a_batch_that_drop_last_never_fills_is_found_before_the_launch(arrays: Path) -> None:
    assert plan_for(arrays, training={"epochs": 3, "batch_size": 32, "drop_last": True}).steps == Range(6, 6)
    with pytest.raises(ConfigError, match="leaves nothing of 72 training images, batch_size is 80") as caught:
        plan_for(arrays, training={"epochs": 3, "batch_size": [32, 80], "drop_last": True})
    assert caught.value.problems[0].where() == "training.drop_last"


def test_the_table_names_every_searched_parameter_method_and_stage(arrays: Path) -> None:
    methods = ["plain", {"jasmin": {"k": [0, 4]}}, {"jasmin": {"k": 0}, "adversarial": {"epsilon": "8/255"}}]
    stages = ["pgd", "fgsm", {"pgd": {"steps": 9}}]
    attacks = {"stages": stages, "epsilon": "2/255", "test": {"stages": ["fgsm"], "trials": 2}}
    plan = plan_for(arrays, methods=methods, attacks=attacks, training={"learning_rate": "search"})
    text = shown(plan)
    for name, domain in plan.config.domains().items():
        if name != "method":
            (line,) = (line for line in text.splitlines() if f" {name} " in line)
            assert str(domain) in line
    for words in ("method plain", "method jasmin+adversarial", "pgd_2", "2/255", "2 of the front", "CPU"):
        assert words in text
    assert len(text.splitlines()) <= 30


def test_the_table_says_which_attack_is_made_on_another_model(arrays: Path) -> None:
    attacks = {"stages": ["fgsm"], "columns": {"T": {"pgd": {}, "surrogate": "backbone"}, "P": "pgd"}}
    text = shown(plan_for(arrays, attacks=attacks))
    assert "T, made on the backbone " in text
    assert "P, made" not in text


def test_the_table_warns_when_nothing_is_searched_or_methods_outnumber_trials(arrays: Path) -> None:
    assert "differ in their seeds alone" in shown(plan_for(arrays, methods=["plain"]))
    assert "cannot try all of the 2 methods" in shown(plan_for(arrays, search={"trials": 1}))
    assert "note" not in shown(plan_for(arrays))


def test_the_table_says_what_a_grid_is_and_what_is_left_out_of_it(arrays: Path) -> None:
    methods = ["plain", {"jasmin": {"k": [0, 4], "weight": 0.1, "aggregation": "max"}}]
    search = {"sampler": "grid", "replicates": 2}
    assert "6 trials, a grid of 3 combinations, 2 times with other seeds" in shown(
        plan_for(arrays, methods=methods, search=search)
    )
    part = shown(plan_for(arrays, methods=methods, search={**search, "trials": 4}))
    assert "the first 4 of the grid's 6 trials" in part
    known = plan_for(arrays, methods=methods, search={"sampler": "grid", "known": [{"method": "plain"}]})
    assert "1 trials, a grid of 1 known configurations" in shown(known)


def test_a_sweep_without_attacks_says_so(arrays: Path) -> None:
    text = shown(plan_for(arrays, attacks=None, objectives=["clean_acc"]))
    assert "attacks" in text
    assert "none" in text
    assert "attacks at once" not in text


def test_an_attack_that_does_not_tell_its_cost_is_shown_as_unknown(arrays: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "silent_attack.py"
    plugin.write_text(
        "from trainables.attack import Attack\nclass SilentAttack(Attack):\n    def perturb(self, *a): ...\n"
    )
    plan = plan_for(arrays, plugins=[str(plugin)], attacks={"stages": ["silent_attack"]})
    assert plan.stages[0].passes is None
    assert any(line.split()[-1] == "unknown" for line in shown(plan).splitlines() if "silent_attack" in line)


def test_ranges_are_written_with_thousands_and_once_if_they_are_a_point() -> None:
    assert str(Range(1200, 1200)) == "1,200"
    assert str(Range(4, 1e6)) == "4 to 1,000,000"
    assert Range.over([3, 1, 2]).scaled(2) == Range(2, 6)


def test_the_disk_row_adds_up_what_a_sweep_writes_and_compares_it_with_what_is_free(
    arrays: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"stages": [{"pgd": {}}], "images": 12, "test": None, "keep_images": True}
    plan, bare = plan_for(arrays, attacks=kept), plan_for(arrays)
    assert bare.image_bytes == 0
    assert plan.image_bytes == 5 * 12 * 8 * 8 * 4  # 5 trials × 12 images of 8 × 8 in float32
    assert plan.verdict_bytes == 5 * (12 * VERDICT_BYTES + UNIT_BYTES)
    assert plan.total_bytes > plan.final_bytes.high + plan.checkpoint_bytes.high + plan.image_bytes
    needed = plan.total_bytes + MARGIN_BYTES
    for free, word in ((needed, "enough"), (needed - 1, "too little")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert word in shown(plan)


def test_what_is_foretold_for_verdicts_is_about_what_they_take(tmp_path: Path) -> None:
    count = 200
    verdict = SimpleNamespace(
        ids=torch.arange(count),
        correct=torch.ones(count, dtype=torch.bool),
        warnings=(),
        costs=dict.fromkeys(COSTS, 1e6),
        per_image={name: torch.zeros(count, dtype=torch.float64) for name in PER_IMAGE},
        attacked=None,
    )
    written = VerdictStore(tmp_path).add("ab12", verdict).stat().st_size
    assert 0.7 < written / (count * VERDICT_BYTES + UNIT_BYTES) < 1.3
