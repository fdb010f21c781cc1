"""Stop, pause, retry and extend, as a driver grants them: exactly once, at any moment, with or without a driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweeps import requests
from sweeps.records import OPEN, PriorTrial, State
from sweeps.requests import Request
from sweeps.stage_job import StageJob
from sweeps.study import TrialState, distribution_to_json
from sweeps.summary import status, sweep_state
from tests.sweeps.driving import DOCUMENT, Driven, create, driving, settle, train_all, trained

RATE = "training.learning_rate"
PLAIN_ATTACKS = {**DOCUMENT["attacks"], "test": None, "columns": {}}


def told(driven: Driven) -> list[TrialState]:
    return [trial.state for trial in driven.coordinator.study.trials]


# stop


def test_a_stopped_training_is_over_at_once_and_for_good(tmp_path: Path) -> None:
    folder = create(tmp_path)
    with driving(folder) as driven:
        job = driven.start()
        driven.ask("stop", trials=(0,))
        assert driven.ledger.trial(0).state is State.STOPPED
        assert not driven.coordinator.is_current(0, job.token)
        assert (Path(job.folder) / "attempt").read_text() != job.token, "its worker could still write"
        driven.coordinator.take_report(trained(job, 0.99), job.token)
        driven.coordinator.training_failed(0, "crash", "killed")
        trial = driven.ledger.trial(0)
        assert (trial.state, trial.clean_acc, trial.failures) == (State.STOPPED, None, 0)
        assert told(driven) == [TrialState.PRUNED]
        assert driven.start().number == 1
    with driving(folder) as driven:
        assert driven.coordinator.kept.stopped == 1
        train_all(driven.coordinator, lambda number: 0.5)
        settle(driven.coordinator)
        driven.ledger.complete()
        assert [t.state for t in driven.ledger.trials()] == [State.STOPPED] + [State.FINISHED] * 3
        assert told(driven)[0] is TrialState.PRUNED


def test_a_stage_that_runs_when_its_trial_is_stopped_is_never_adopted(tmp_path: Path) -> None:
    with driving(create(tmp_path)) as driven:
        job = driven.start()
        driven.coordinator.take_report(trained(job, 0.8), job.token)
        driven.coordinator.poll()
        assert driven.ledger.trial(0).state is State.EVALUATING
        driven.ask("stop", trials=(0,))
        while driven.coordinator.evaluation_needed:
            driven.coordinator.poll()
        assert (driven.ledger.trial(0).state, driven.ledger.trial(0).robust_acc) == (State.STOPPED, None)
        assert [stage.state for stage in driven.ledger.stages(0)] == ["failed"]


def test_a_stop_waits_for_the_next_driver_and_what_is_over_is_left_alone(tmp_path: Path) -> None:
    folder = create(tmp_path)
    with driving(folder) as driven:
        driven.train()
        driven.start()
    requests.put(folder.requests, Request.make("stop", trials=(0, 1, 9)))
    with driving(folder) as driven:
        assert [t.state for t in driven.ledger.trials()] == [State.FINISHED, State.STOPPED]
        assert "trial 0 is finished: there is nothing to stop" in driven.said
        assert "trial 9 is unknown: there is nothing to stop" in driven.said
        assert driven.start().number == 2


@pytest.mark.parametrize("kind", ["stop", "retry", "extend"])
def test_a_request_whose_file_outlives_a_kill_is_granted_once(tmp_path: Path, kind: str) -> None:
    folder = create(tmp_path)
    details: dict[str, Any] = {"known": ({RATE: 0.005},)} if kind == "extend" else {"trials": (0,)}
    with driving(folder) as driven:
        if kind == "retry":
            driven.fail("nan")
        else:
            driven.start()
        request = driven.ask(kind, **details)
        events = len(driven.ledger.events())
        requested = driven.ledger.sweep().requested
        requests.put(folder.requests, request)  # as if the driver had died before it removed the file
        assert driven.ledger.grant(request) is None
    with driving(folder) as driven:
        assert requests.waiting(folder.requests) == []
        assert len(driven.ledger.events()) == events
        assert (driven.ledger.sweep().requested, driven.ledger.waiting_known()) == (requested, int(kind == "extend"))


def test_a_request_that_the_ledger_does_not_have_yet_survives_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = create(tmp_path)

    def dies(ledger: Any, request: Request) -> None:
        raise KeyboardInterrupt

    with driving(folder) as driven:
        driven.start()
        monkeypatch.setattr("sweeps.ledger.Ledger.grant", dies)
        with pytest.raises(KeyboardInterrupt):
            driven.ask("stop", trials=(0,))
    monkeypatch.undo()
    assert len(requests.waiting(folder.requests)) == 1
    with driving(folder) as driven:
        assert driven.ledger.trial(0).state is State.STOPPED


def test_requests_are_granted_in_the_order_in_which_they_were_made(tmp_path: Path) -> None:
    for at, identity in ((3.0, "a"), (1.0, "c"), (2.0, "b")):
        requests.put(tmp_path, Request(identity, "pause", at))
    assert [request.id for request in requests.waiting(tmp_path)] == ["c", "b", "a"]


def test_a_request_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    prior = PriorTrial("other", 3, "plain", {"a": 1}, {"a": "{}"}, (0.5, 0.25))
    request = Request.make("extend", trials=(1, 2), requested=9, known=({"a": 1},), prior=(prior,))
    requests.put(tmp_path, request)
    assert requests.waiting(tmp_path) == [request]


def test_a_file_that_is_no_request_stops_nobody(tmp_path: Path) -> None:
    folder = create(tmp_path)
    folder.requests.mkdir()
    (folder.requests / "torn.json").write_text('{"id": "x", "ki')
    (folder.requests / "list.json").write_text("[]")
    with driving(folder) as driven:
        driven.ask("pause")
        assert driven.coordinator.pause_asked
    assert [place.name for place in requests.unreadable(folder.requests)] == ["list.json", "torn.json"]


# pause


def test_a_pause_ends_the_driver_that_it_was_meant_for_and_no_later_one(tmp_path: Path) -> None:
    folder = create(tmp_path)
    with driving(folder) as driven:
        driven.start()
        driven.ask("pause")
        assert driven.coordinator.pause_asked
    assert sweep_state(driven.ledger) == "paused"
    requests.put(folder.requests, Request.make("pause"))
    with driving(folder) as driven:
        driven.ledger.note_driver("driver started", {})
        driven.look()
        assert not driven.coordinator.pause_asked
    assert sweep_state(driven.ledger) == "interrupted"


# retry


def test_a_failed_training_goes_on_under_its_number_and_is_told_as_complete(tmp_path: Path) -> None:
    folder = create(tmp_path)
    with driving(folder) as driven:
        first = driven.start()
        driven.coordinator.training_failed(0, "nan", "the loss is nan")
        driven.train()
        driven.ask("retry", trials=(0,))
        trial = driven.ledger.trial(0)
        assert (trial.state, trial.failures, trial.failed_as) == (State.PROPOSED, 1, {})
        again = driven.start()
        assert (again.number, again.config, again.seed) == (0, first.config, first.seed)
        driven.coordinator.take_report(trained(again, 0.7), again.token)
        while driven.coordinator.evaluation_needed:
            driven.coordinator.poll()
        assert told(driven) == [TrialState.COMPLETE, TrialState.COMPLETE]
        trial = driven.ledger.trial(0)
        assert (trial.state, trial.clean_acc, trial.error) == (State.FINISHED, 0.7, None)
        assert [event.kind for event in driven.ledger.events(0)].count("retried") == 1
    with driving(folder) as driven:
        assert told(driven) == [TrialState.COMPLETE, TrialState.COMPLETE]


def test_a_retry_opens_a_finished_sweep_again(tmp_path: Path) -> None:
    folder = create(tmp_path, search={"trials": 2})
    with driving(folder) as driven:
        driven.fail("nan")
        driven.train()
        settle(driven.coordinator)
        driven.ledger.complete()
        assert not driven.coordinator.training_needed
    requests.put(folder.requests, Request.make("retry", trials=(0, 1)))
    with driving(folder) as driven:
        assert driven.ledger.sweep().completed_at is None
        assert driven.train() == 0
        assert not driven.coordinator.training_needed
        assert "trial 1 is finished: there is nothing to retry" in driven.said


def test_a_failed_first_attack_is_tried_again_without_training(tmp_path: Path) -> None:
    broken = [True]

    def survivors(job: StageJob) -> int:
        if broken[0]:
            raise RuntimeError("ValueError: no")
        return 4

    with driving(create(tmp_path), survivors) as driven:
        driven.train()
        assert driven.ledger.trial(0).state is State.FAILED
        broken[0] = False
        driven.ask("retry", trials=(0,))
        assert driven.ledger.trial(0).state is State.TRAINED
        while driven.coordinator.evaluation_needed:
            driven.coordinator.poll()
        trial = driven.ledger.trial(0)
        assert (trial.state, trial.robust_acc, trial.attempts, trial.error) == (State.FINISHED, 0.4, 1, None)
        assert told(driven) == [TrialState.COMPLETE]


def test_failed_later_stages_are_tried_again_and_the_front_becomes_exact(tmp_path: Path) -> None:
    broken = [True]

    def survivors(job: StageJob) -> int:
        if job.stage.position == 1 and broken[0]:
            raise RuntimeError("ValueError: no")
        return 5 - job.stage.position

    folder = create(tmp_path, search={"trials": 1}, attacks=PLAIN_ATTACKS)
    with driving(folder, survivors) as driven:
        driven.train()
        settle(driven.coordinator)
        driven.ledger.complete()
        before = driven.ledger.trial(0)
        assert (before.exact, before.error_kind) == (False, "attack")
        broken[0] = False
        driven.ask("retry", trials=(0,))
        settle(driven.coordinator)
        trial = driven.ledger.trial(0)
        assert (trial.state, trial.exact, trial.robust_acc, trial.error) == (State.FINISHED, True, 0.4, None)
        assert told(driven) == [TrialState.COMPLETE]
        driven.ledger.complete()


# extend


def test_a_larger_total_reaches_a_driver_under_way(tmp_path: Path) -> None:
    with driving(create(tmp_path, search={"trials": 1})) as driven:
        driven.train()
        assert not driven.coordinator.training_needed
        driven.ask("extend", requested=3)
        assert [driven.train(), driven.train()] == [1, 2]
        assert not driven.coordinator.training_needed
        settle(driven.coordinator)
        driven.ledger.complete()


def test_added_configurations_are_tried_next_in_their_order_and_once_through_restarts(tmp_path: Path) -> None:
    folder = create(tmp_path, search={"trials": 3, "sampler": "random", "known": [{RATE: 0.002}, {RATE: 0.003}]})
    with driving(folder) as driven:
        driven.train()
        driven.ask("extend", known=({RATE: 0.004}, {RATE: 0.005}))
        assert driven.ledger.sweep().requested == 5
    for _ in range(2):
        with driving(folder) as driven:
            driven.start()
            driven.start()
    with driving(folder) as driven:
        while driven.coordinator.training_needed:
            driven.train()
        drawn = [trial.params[RATE] for trial in driven.ledger.trials()]
        assert drawn[:4] == [0.002, 0.003, 0.004, 0.005]
        assert len(drawn) == 5
        assert drawn[4] not in drawn[:4]
        assert driven.ledger.next_known() is None


def test_prior_knowledge_informs_the_sampler_and_is_neither_counted_nor_on_the_front(tmp_path: Path) -> None:
    folder = create(tmp_path)
    with driving(folder) as driven:
        driven.train()
        (known,) = driven.coordinator.study.trials
        kinds = {name: distribution_to_json(kind) for name, kind in known.distributions.items()}
        prior = tuple(PriorTrial("other", n, "plain", {RATE: 0.002 + n / 1e4}, kinds, (1.0, 1.0)) for n in range(12))
        driven.ask("extend", prior=prior)
        driven.ask("extend", prior=prior[:3])  # what is there already comes no second time
        assert told(driven) == [TrialState.COMPLETE] * 13
        driven.train()
    with driving(folder) as driven:
        trials = driven.coordinator.study.trials
        assert [trial.user_attrs.get("prior") for trial in trials] == ["other"] * 12 + [None] * 2
        assert tuple(driven.ledger.prior()) == prior
        train_all(driven.coordinator, lambda number: 0.5)
        settle(driven.coordinator)
        driven.ledger.complete()
        found = status(driven.ledger)
        assert found["prior"] == {"other": 12}
        assert found["trials"]["finished"] == found["trials"]["requested"] == 4
        assert all(item["clean_acc"] < 1 for item in found["front"])


def test_a_sampler_that_does_not_learn_proposes_the_same_with_and_without_prior_knowledge(tmp_path: Path) -> None:
    drawn = []
    for name in ("without", "with"):
        with driving(create(tmp_path, name)) as driven:
            if name == "with":
                driven.ask("extend", prior=(PriorTrial("other", 0, "plain", {}, {}, (0.5, 0.5)),))
            drawn.append([driven.start().config["training"]["learning_rate"] for _ in range(3)])
    assert drawn[0] == drawn[1]


def test_status_shows_what_waits(tmp_path: Path) -> None:
    folder = create(tmp_path)
    with driving(folder) as driven:
        driven.start()
    requests.put(folder.requests, Request.make("stop", trials=(0,)))
    found = status(driven.ledger, requests.waiting(folder.requests))
    assert found["waiting"] == [{"request": "stop", "trials": [0], "requested": None, "known": 0}]
    assert found["open"][0]["state"] in OPEN
