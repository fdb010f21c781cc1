"""What another terminal may ask for: checked against the ledger, refused with what was found and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from search_spaces.errors import ConfigError
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.requests import Request
from sweeps.stage_job import StageJob
from sweeps.steering import extend_request, failed_numbers, retry_request, stop_request
from tests.sweeps.driving import DOCUMENT, create, driving, settle

RATE = "training.learning_rate"


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """Trial 0 finished, 1 finished with a failed later stage, 2 failed, 3 trains."""

    def survivors(job: StageJob) -> int:
        if (job.number, job.stage.position) == (1, 1):
            raise RuntimeError("ValueError: no")
        return 5

    folder = create(tmp_path, search={**DOCUMENT["search"], "known": [{RATE: 0.004}]})
    with driving(folder, survivors) as driven:
        driven.train(0.7)
        driven.train(0.8)
        settle(driven.coordinator)
        driven.fail("nan")
        driven.start()
    return folder


def refused(ask: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        ask(*arguments, **options)
    return str(caught.value)


def extend(folder: SweepFolder, **options: Any) -> Request:
    ledger = Ledger.at(folder.ledger)
    try:
        given = {"total": None, "known": None, "prior": None, **options}
        return extend_request(ledger, **given, storage=folder.storage, say=lambda text: None)
    finally:
        ledger.close()


def test_only_open_trials_can_be_stopped(folder: SweepFolder) -> None:
    ledger = Ledger.at(folder.ledger)
    assert stop_request(ledger, [3, 3]).trials == (3,)
    text = refused(stop_request, ledger, [0, 3, 9])
    assert "trial 0 is finished; only an open trial can be stopped" in text
    assert "trial 9 is unknown: there is no such trial" in text
    assert "trial 3" not in text
    ledger.close()


def test_retry_takes_failed_trials_and_trials_with_a_failed_attack_and_no_others(folder: SweepFolder) -> None:
    ledger = Ledger.at(folder.ledger)
    assert failed_numbers(ledger) == [1, 2]
    assert retry_request(ledger, [], failed=True).trials == (1, 2)
    assert retry_request(ledger, [2], failed=False).trials == (2,)
    assert "trial 0 is finished, and none of its attacks has failed" in refused(
        retry_request, ledger, [0, 2], failed=False
    )
    assert "2 trials failed" in refused(retry_request, ledger, [], failed=False)
    assert "not both" in refused(retry_request, ledger, [2], failed=True)
    ledger.close()


def test_with_nothing_failed_there_is_nothing_to_try_again(tmp_path: Path) -> None:
    with driving(create(tmp_path / "whole")) as driven:
        driven.train()
        assert "nothing to try again" in refused(retry_request, driven.ledger, [], failed=True)


def test_known_configurations_come_in_the_words_of_the_configuration_file(folder: SweepFolder, tmp_path: Path) -> None:
    known = tmp_path / "known.yaml"
    known.write_text("- {training.learning_rate: 5e-3}\n- {training.learning_rate: 1/500}\n- {method: plain}\n")
    request = extend(folder, known=known)
    assert request.known == ({RATE: 0.005}, {RATE: 0.002}, {})
    assert request.requested is None
    assert extend(folder, known=known, total=7).requested == 7


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("training.learning_rate: 5e-3\n", "expected a list of configurations"),
        ("[]\n", "expected a list of configurations"),
        ("- {training.learning_rate: 7}\n", "known.yaml:1: [0].training.learning_rate: 7 is outside"),
        ("- {}\n- {training.rate: 7}\n", "known.yaml:2: [1].training.rate: no such parameter"),
        ("- {method: nobody}\n", "it should be one of plain"),
        ("- {training.epochs: 3}\n", "it is not searched and is always 2"),
    ],
)
def test_a_known_configuration_that_cannot_be_is_refused_where_it_stands(
    folder: SweepFolder, tmp_path: Path, text: str, complaint: str
) -> None:
    known = tmp_path / "known.yaml"
    known.write_text(text)
    assert complaint in refused(extend, folder, known=known)


def test_an_extension_says_what_is_to_come_and_never_shrinks_a_sweep(folder: SweepFolder, tmp_path: Path) -> None:
    known = tmp_path / "known.yaml"
    known.write_text("- {}\n- {}\n")
    assert "--trials, --known or --prior" in refused(extend, folder)
    assert "3 is fewer than the 4 trials" in refused(extend, folder, total=3)
    assert "5 has no room for the known configurations; 6 has" in refused(extend, folder, total=5, known=known)
    assert extend(folder, total=6, known=known).requested == 6


def test_a_grid_takes_no_further_configurations(tmp_path: Path) -> None:
    search = {"sampler": "grid", "known": [{RATE: 0.002}]}
    folder = create(tmp_path, search=search)
    known = tmp_path / "known.yaml"
    known.write_text("- {}\n")
    assert "a grid has its trials from the beginning" in refused(extend, folder, known=known)
    assert extend(folder, total=2).requested == 2


def test_another_sweep_is_read_from_the_same_storage(folder: SweepFolder) -> None:
    other = create(folder.storage, "other", attacks={**DOCUMENT["attacks"], "test": None})
    with driving(other) as driven:
        driven.train(0.6)
    request = extend(folder, prior="other")
    assert [(trial.sweep, trial.values) for trial in request.prior] == [("other", (0.6, 0.5))]
    assert request.requested is None
