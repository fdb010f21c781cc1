"""The feature cosine as an objective: who measures it, what is told, what is shown, and what is not a number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search_spaces.errors import ConfigError
from sweeps.config import parse_sweep
from sweeps.foreground import pinned_trial
from sweeps.mirrored import finals
from sweeps.records import State
from sweeps.report import render_html
from sweeps.report_markdown import render_markdown
from sweeps.snapshot import Snapshot
from sweeps.summary import status
from sweeps.terminal import front_scatter, front_table
from tests.conftest import TINY_MODEL
from tests.sweeps.driving import Driven, create, driving, settle, trained
from trainables.training import Training
from trainables.tune import FEATURE_COSINE

TOKENS = [{"robustness_tokens": {"count": 2}}]
SECTIONS: dict[str, Any] = {"methods": TOKENS, "objectives": ["clean_acc", "feature_cosine"]}


def train(driven: Driven, clean_acc: float, cosine: float | None) -> int:
    job = driven.start()
    report = replace(trained(job, clean_acc), feature_cosine=cosine)
    driven.coordinator.take_report(report, job.token)
    while driven.coordinator.evaluation_needed:
        driven.coordinator.poll()
    return job.number


def test_the_search_is_told_the_cosine_and_the_front_is_made_of_it(tmp_path: Path) -> None:
    with driving(create(tmp_path, **SECTIONS)) as driven:
        for clean, cosine in ((0.9, 0.2), (0.8, 0.7), (0.7, 0.6), (0.6, -0.1)):
            train(driven, clean, cosine)
        told = [trial.values for trial in driven.coordinator.study.trials]
        assert told == [[0.9, 0.2], [0.8, 0.7], [0.7, 0.6], [0.6, -0.1]]
        settle(driven.coordinator)
        driven.ledger.complete()
        assert [item["trial"] for item in status(driven.ledger)["front"]] == [0, 1]
        snapshot = Snapshot.read(driven.ledger)
        page = render_html(snapshot, "finished", "ui")
        assert '<th class="n">cosine' in page
        assert "feature cosine under attack (validation)" in page
        assert "| cosine |" in render_markdown(snapshot, "finished")
        assert "feature cosine" in front_scatter(Snapshot.read(driven.ledger)).plain
        assert "cosine" in [str(column.header) for column in front_table(Snapshot.read(driven.ledger)).columns]
        figures = {m.key: m.value for m in finals(snapshot, snapshot.trials[1], driven.ledger.events(1))}
        assert figures["feature_cosine"] == 0.7


@pytest.mark.parametrize("cosine", [None, float("nan")])
def test_a_cosine_that_is_no_number_fails_its_trial(tmp_path: Path, cosine: float | None) -> None:
    with driving(create(tmp_path, **SECTIONS, failures={"retries": 0})) as driven:
        number = train(driven, 0.9, cosine)
        trial = driven.ledger.trial(number)
        assert (trial.state, trial.error_kind, trial.feature_cosine) == (State.FAILED, "nan", None)


def test_only_robustness_tokens_measure_it() -> None:
    with pytest.raises(ConfigError, match=r"objectives: .*found the methods plain, jasmin.*count: 0"):
        parse_sweep({"methods": ["plain", "jasmin", *TOKENS], "objectives": ["clean_acc", "feature_cosine"]})
    assert parse_sweep({"methods": TOKENS, "objectives": ["feature_cosine"]}).objectives == ("feature_cosine",)


def test_an_objective_that_would_not_be_measured_is_refused() -> None:
    silent = [{"robustness_tokens": {"measured_images": [0, 20]}}]
    with pytest.raises(ConfigError, match=r"methods\[0\]\.robustness_tokens\.measured_images: .*found 0"):
        parse_sweep({"methods": silent, "objectives": ["feature_cosine"]})


@pytest.mark.parametrize("tokens", [{"count": 1}, {"count": 0, "head": "fitted"}])
def test_a_training_with_tokens_measures_what_the_objective_reads(tmp_path: Path, tokens: dict[str, Any]) -> None:
    document = {
        "model": TINY_MODEL,
        "training": {"epochs": 1, "batch_size": 64},
        "methods": [{"robustness_tokens": {**tokens, "steps": 2, "updates": 2, "measured_images": 20}}],
        "objectives": ["clean_acc", "feature_cosine"],
    }
    config = parse_sweep(document)
    training = Training(pinned_trial(config, None), 0, tmp_path)
    assert -1 <= training.run_epoch()[FEATURE_COSINE] <= 1
