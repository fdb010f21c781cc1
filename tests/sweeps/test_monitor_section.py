"""The section monitor: where its ball comes from, what is refused, what it costs, and that its figures are mirrored."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from search_spaces.errors import ConfigError
from sweeps.config import SweepConfig, configuration_diff, parse_sweep
from sweeps.forecast import Range
from sweeps.foreground import pinned_trial
from sweeps.mirrored import curves
from sweeps.plan import describe
from trainables.config import MonitorConfig, TrialConfig
from trainables.monitor import threat_of


def document(**sections: Any) -> dict[str, Any]:
    model = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 1, "num_heads": 3}
    return {"model": model, "methods": ["plain"], "attacks": {"stages": ["pgd"], "epsilon": 0.1}, **sections}


def drawn(config: SweepConfig) -> TrialConfig:
    return config.suggest(optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask())


def without_attacks(monitor: dict[str, Any]) -> dict[str, Any]:
    found = document(monitor=monitor, objectives=["clean_acc"])
    del found["attacks"]
    return found


@pytest.mark.parametrize(
    ("written", "attacks", "norm", "epsilon"),
    [
        ({}, {"epsilon": 0.1}, "linf", 0.1),
        ({}, {"epsilon": "1/2", "norm": "l2"}, "l2", 0.5),
        ({"epsilon": "4/255"}, {"epsilon": 0.1, "norm": "l2"}, "l2", 4 / 255),
        ({"norm": "l2"}, {"epsilon": 0.1}, "l2", 0.1),
    ],
)
def test_the_ball_is_its_own_or_that_of_the_attacks(
    written: dict[str, Any], attacks: dict[str, Any], norm: str, epsilon: float
) -> None:
    config = parse_sweep(document(monitor={"images": 20, **written}, attacks={"stages": ["pgd"], **attacks}))
    threat = threat_of(config.monitor)
    assert (threat.norm, threat.epsilon) == (norm, pytest.approx(epsilon))
    trial = drawn(config)
    assert trial.monitor == config.monitor == pinned_trial(config, None).monitor
    assert TrialConfig.model_validate(trial.plain()) == trial


def test_without_attacks_it_needs_an_epsilon_of_its_own() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_sweep(without_attacks({"images": 20}))
    (problem,) = caught.value.problems
    assert problem.path == ("monitor", "epsilon")
    assert "section attacks" in problem.message
    config = parse_sweep(without_attacks({"images": 20, "epsilon": "8/255"}))
    assert threat_of(config.monitor).norm == "linf"


def test_a_mistake_in_it_is_reported_with_what_is_allowed() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_sweep(document(monitor={"image": 20, "every": 0}))
    assert [problem.path for problem in caught.value.problems] == [("monitor", "every"), ("monitor", "image")]


def test_off_is_the_default_whatever_else_it_says() -> None:
    off = parse_sweep(document(monitor={"every": 7, "epsilon": 0.3}))
    assert off.monitor == MonitorConfig()
    assert drawn(off).plain() == drawn(parse_sweep(document())).plain()
    assert configuration_diff(off.comparable(), parse_sweep(document()).comparable()) == []


def test_a_change_between_launch_and_resume_is_named() -> None:
    old, new = (parse_sweep(document(monitor={"images": count})) for count in (20, 30))
    assert configuration_diff(old.comparable(), new.comparable()) == ["monitor.images: 20 -> 30"]
    assert parse_sweep(old.comparable()).comparable() == old.comparable()


def test_the_plan_counts_its_passes() -> None:
    small = {"train_images": 50, "validation_images": 20, "test_images": 20}
    shared = {"data": small, "training": {"epochs": [3, 5]}}
    plan = describe(parse_sweep(document(**shared, monitor={"images": 30, "every": 2, "steps": 4})))
    # 30 training and all 20 validation images; 2 or 3 looks; 3 passes if an image falls at once, 4 × 3 + 1 if it holds
    assert plan.monitor_passes == Range(50 * 2 * 3, 50 * 3 * 13)
    assert describe(parse_sweep(document(**shared))).monitor_passes is None


def test_its_figures_are_mirrored_at_the_epochs_that_have_them() -> None:
    figures = {"train/robust_acc": 0.5, "val/robust_acc": 0.4, "val/robust_gap": 0.1}
    mirrored = curves([{"train/loss": 2.0}, {"train/loss": 1.0, **figures}], [])
    assert [[metric.key for metric in epoch] for epoch in mirrored] == [["train/loss"], ["train/loss", *figures]]
    assert mirrored[1][-1].step == 2
