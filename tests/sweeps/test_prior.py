"""Prior knowledge: whose trials are taken over, under which distributions, and whose are refused."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from search_spaces.domains import Choice, Domain, IntRange, LogUniform, Uniform
from search_spaces.errors import ConfigurationChanged, SweepNotFound
from sweeps.attack_plan import planned_stages
from sweeps.config import parse_sweep
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.prior import Prior, distribution_of, first_stage, learn, read_prior
from sweeps.records import State
from sweeps.stage_job import StageJob
from tests.sweeps.driving import DOCUMENT, create, driving, settle

RATE = "training.learning_rate"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """Four trials: two finished and settled, one failed, one stopped."""

    def survivors(job: StageJob) -> int:
        return 6 - job.stage.position

    folder = create(tmp_path_factory.mktemp("other"), "other")
    with driving(folder, survivors) as driven:
        driven.train(0.7)
        driven.fail("nan")
        driven.start()
        driven.ask("stop", trials=(2,))
        driven.train(0.9)
        settle(driven.coordinator)
    return folder


def read(other: SweepFolder, data_digest: str = "data", **sections: Any) -> Prior:
    config = parse_sweep({**DOCUMENT, **sections})
    ledger = Ledger.at(other.ledger)
    try:
        sweep = ledger.sweep()
        plan = config.attacks
        planned = () if plan is None else planned_stages(plan, sweep.num_classes, sweep.split_sizes)
        return read_prior(ledger, config, first_stage(planned), data_digest)
    finally:
        ledger.close()


def test_finished_trials_bring_what_their_own_search_was_told(other: SweepFolder) -> None:
    found = read(other)
    ledger = Ledger.at(other.ledger)
    trials = ledger.trials([State.FINISHED])
    ledger.close()
    assert [(t.sweep, t.number, t.params) for t in found.trials] == [("other", t.number, t.params) for t in trials]
    assert [t.number for t in found.trials] == [0, 3]
    assert [t.values for t in found.trials] == [(0.7, 0.6), (0.9, 0.6)], "not what later stages left standing"
    assert trials[1].robust_acc == 0.5
    assert found.outside == 0


def test_what_lies_outside_of_the_search_is_left_out_and_the_rest_speaks_its_language(other: SweepFolder) -> None:
    whole = sorted(trial.params[RATE] for trial in read(other).trials)
    middle = sum(whole) / 2
    found = read(other, training={"epochs": 2, "learning_rate": {"log_uniform": [middle, 1e-2]}})
    assert (len(found.trials), found.outside) == (1, 1)
    kind = optuna.distributions.json_to_distribution(found.trials[0].distributions[RATE])
    assert kind == optuna.distributions.FloatDistribution(middle, 1e-2, log=True)


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"objectives": ["clean_acc"]}, 'objectives: ["clean_acc", "robust_acc"] -> ["clean_acc"]'),
        ({"attacks": {**DOCUMENT["attacks"], "epsilon": 0.1}}, "attack.threat.epsilon: 0.05 -> 0.1"),
        ({"attacks": {**DOCUMENT["attacks"], "images": 9}}, "attack.images: 10 -> 9"),
        ({"attacks": {**DOCUMENT["attacks"], "stages": ["fgsm"]}}, 'attack.attack: "pgd" -> "fgsm"'),
        ({"training": {"learning_rate": {"uniform": [1e-3, 1e-2]}}}, 'parameters.training.learning_rate: "LogUniform"'),
        ({"methods": ["plain", {"jasmin": {"k": 0}}]}, "parameters.method: (absent)"),
        ({"search": {"sampler": "grid", "known": [{RATE: 0.005}]}}, "search.sampler: a grid has nothing to learn"),
    ],
)
def test_a_sweep_that_asked_another_question_is_refused_with_every_difference(
    other: SweepFolder, sections: dict[str, Any], line: str
) -> None:
    with pytest.raises(ConfigurationChanged) as caught:
        read(other, **sections)
    assert line in str(caught.value)
    assert "the trials of 'other' are no prior knowledge" in str(caught.value)


def test_other_images_are_another_question(other: SweepFolder) -> None:
    with pytest.raises(ConfigurationChanged, match='images: "data" -> "else"'):
        read(other, "else")


def test_how_attacks_are_batched_and_which_come_later_is_the_same_question(other: SweepFolder) -> None:
    attacks = {**DOCUMENT["attacks"], "batch_size": 3, "stages": [{"pgd": {"steps": 5}}], "test": None}
    assert len(read(other, attacks=attacks).trials) == 2


@pytest.mark.parametrize(
    "domain", [Uniform(0, 1), LogUniform(1e-3, 1), IntRange(1, 9), IntRange(2, 9, 3), Choice((0, "a", None))]
)
def test_a_domain_has_the_distribution_that_a_trial_which_draws_from_it_gets(domain: Domain) -> None:
    trial = optuna.create_study().ask()
    domain.suggest(trial, "x")  # type: ignore[arg-type]
    assert trial.distributions["x"] == distribution_of(domain)


def test_the_other_sweep_has_to_be_there(other: SweepFolder) -> None:
    said: list[str] = []
    config = parse_sweep(DOCUMENT)
    with pytest.raises(SweepNotFound):
        learn(other.storage, "nobody", config, (), "data", said.append)
    ledger = Ledger.at(other.ledger)
    found = learn(other.storage, "other", config, ledger.sweep().planned_stages, "data", said.append)
    ledger.close()
    assert len(found) == 2
    assert said == ["prior knowledge: 2 finished trials of other"]
