"""Tune's hooks without Tune: what the searcher does about attempts that hang, die, or are no longer wanted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

from cluster.packing import Device, Node
from cluster.resources import GB, Shares
from sweeps.admission import Admission
from sweeps.folder import SweepFolder
from sweeps.halt import Halt
from sweeps.measured_memory import Needs
from sweeps.records import State
from sweeps.resources_section import ResourcesSection
from sweeps.searcher import WAITS_S, HaltStopper, Hooks, LedgerSearcher
from tests.sweeps.driving import Driven, create, driving, trained
from trainables.tune import Report, TrainingJob


class Tune:
    """Tune as far as the searcher sees it: trials with actors, and a clock."""

    def __init__(self, driven: Driven, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.halt = Halt()
        self.searcher = LedgerSearcher(driven.coordinator, self.halt, lambda: None, **options)
        self.trials: list[Any] = []
        self.killed: list[str] = []
        self.now = 0.0
        monkeypatch.setattr("sweeps.searcher.time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr("sweeps.searcher._kill", self.killed.append)

    def start(self, *, with_actor: bool = True) -> TrainingJob:
        name = f"t{len(self.trials)}"
        config = self.searcher.suggest(name)
        assert isinstance(config, dict), self.halt.error
        actor = f"actor of {name}" if with_actor else None
        state = SimpleNamespace(ray_actor=actor)
        self.trials.append(SimpleNamespace(trial_id=name, temporary_state=state, error_file=None))
        return TrainingJob(**json.loads(config["job"]))

    def report_an_epoch(self, name: str, job: TrainingJob) -> None:
        epoch = replace(trained(job, 0.5), status="training", clean_acc=None, weights_digest=None)
        self.searcher.on_trial_result(name, epoch.result())

    def look(self, at: float) -> None:
        self.now = at
        self.searcher.watch(self.trials)
        assert self.halt.error is None


def test_a_training_that_reports_nothing_is_ended_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driving(create(tmp_path, failures={"hang": {"retries": 1}})) as driven:
        tune = Tune(driven, monkeypatch, hang_after_s=200)
        first = tune.start()
        second = tune.start()
        tune.look(100)  # the first look at them: their clocks begin
        tune.now = 150
        tune.report_an_epoch("t1", second)
        tune.look(299)
        assert tune.killed == []
        tune.look(300)
        assert tune.killed == ["actor of t0"]
        assert driven.ledger.trial(first.number).failed_as == {"hang": 1}
        assert "no report for 200 s" in (driven.ledger.trial(first.number).error or "")
        tune.searcher.on_trial_complete("t0", error=True)  # what Tune says of an actor that was killed
        assert driven.ledger.trial(first.number).failures == 1
        tune.look(349)
        assert tune.killed == ["actor of t0"]
        again = tune.start()
        assert (again.number, again.token) != (first.number, first.token)
        assert again.number == first.number


def test_a_training_that_waits_for_its_share_of_the_machine_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driving(create(tmp_path)) as driven:
        tune = Tune(driven, monkeypatch, hang_after_s=200)
        tune.start(with_actor=False)
        tune.look(1000)
        tune.trials[0].temporary_state.ray_actor = "late"
        tune.look(2000)
        assert tune.killed == []
        tune.look(2200)
        assert tune.killed == ["late"]


def test_without_a_limit_nothing_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with driving(create(tmp_path)) as driven:
        tune = Tune(driven, monkeypatch)
        tune.start()
        tune.look(0)
        tune.look(1e9)
        assert tune.killed == []


def test_a_worker_that_starts_has_two_minutes_whatever_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driving(create(tmp_path)) as driven:
        tune = Tune(driven, monkeypatch, hang_after_s=10)
        tune.start()
        second = tune.start()
        tune.look(0)
        tune.now = 5
        tune.report_an_epoch("t1", second)
        tune.look(14)
        assert tune.killed == []
        tune.look(15)
        assert tune.killed == ["actor of t1"]
        tune.look(119)
        assert tune.killed == ["actor of t1"]
        tune.look(120)
        assert tune.killed == ["actor of t1", "actor of t0"]


def test_a_stopped_training_loses_its_actor_even_if_it_comes_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driving(create(tmp_path)) as driven:
        tune = Tune(driven, monkeypatch)
        running, late = tune.start(), tune.start(with_actor=False)
        driven.ask("stop", trials=(running.number, late.number))
        tune.look(1)
        assert tune.killed == ["actor of t0"]
        tune.trials[1].temporary_state.ray_actor = "late"
        tune.look(2)
        tune.look(3)
        assert tune.killed == ["actor of t0", "late"]
        tune.searcher.on_trial_complete("t0", error=True)
        tune.searcher.on_trial_result("t1", trained(late, 0.9).result())
        tune.searcher.on_trial_complete("t1", trained(late, 0.9).result())
        assert [t.state for t in driven.ledger.trials()] == [State.STOPPED, State.STOPPED]
        assert tune.halt.error is None


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.", "memory"),
        ("The actor died unexpectedly before finishing this task.", "crash"),
        ("The actor died because its node has died. Node Id: 1f00", "node"),
        ("ray.exceptions.ActorUnavailableError: The actor is temporarily unavailable: RpcError: Socket closed", "node"),
        (None, "crash"),
    ],
)
def test_a_dead_worker_is_a_crash_unless_ray_says_that_memory_was_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, kind: str
) -> None:
    with driving(create(tmp_path)) as driven:
        tune = Tune(driven, monkeypatch)
        job = tune.start()
        if said is not None:
            tune.trials[0].error_file = str(tmp_path / "error.txt")
            (tmp_path / "error.txt").write_text(said)
        tune.look(0)
        tune.searcher.on_trial_complete("t0", error=True)
        trial = driven.ledger.trial(job.number)
        assert trial.failed_as == {kind: 1}
        assert (said or "") in (trial.error or "")


def test_a_training_makes_room_for_the_attacks_after_an_epoch_and_goes_on_later_without_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driving(create(tmp_path)) as driven:
        wants = [True]
        tune = Tune(driven, monkeypatch, wants_room=lambda: wants.pop() if wants else False)
        first, second = tune.start(), tune.start()
        tune.report_an_epoch("t0", first)
        tune.report_an_epoch("t1", second)
        tune.look(1)
        assert tune.killed == ["actor of t0"]
        tune.searcher.on_trial_complete("t0", error=True)
        assert driven.ledger.trial(first.number).failures == 0
        driven.coordinator.admission = admission(driven, cpus=1)
        assert tune.searcher.suggest("none") is None, "one trains, and no more have room"
        driven.coordinator.admission = admission(driven, cpus=2)
        again = tune.start()
        assert (again.number, again.token) != (first.number, first.token)
        assert again.number == first.number
        assert driven.ledger.trial(first.number).epochs == len(trained(first, 0.5).history)


def test_a_proposal_is_made_only_when_it_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with driving(create(tmp_path)) as driven:
        driven.coordinator.admission = admission(driven, cpus=2)
        tune = Tune(driven, monkeypatch)
        tune.start(), tune.start()
        assert tune.searcher.suggest("none") is None
        assert len(driven.ledger.trials()) == 2
        assert tune.searcher.suggest("none") is not Searcher.FINISHED


def test_tune_is_told_what_was_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with driving(create(tmp_path)) as driven:
        node = Node("a", 8, (Device("a", 0),))
        shares = Shares(1, 2.0, 0.3, 1, 1.0, 0.25)
        driven.coordinator.admission = Admission(driven.coordinator.config.resources, shares, [node], Needs())
        tune = Tune(driven, monkeypatch)
        assert tune.searcher.suggest("t0")["resources"] == {"CPU": 2.0, "GPU": 0.3}


def test_while_a_training_waits_long_for_its_share_nothing_else_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driving(create(tmp_path)) as driven:
        tune = Tune(driven, monkeypatch)
        tune.start(with_actor=False)
        tune.look(WAITS_S)
        tune.start()
        tune.look(WAITS_S + 1)
        assert tune.searcher.suggest("none") is None
        tune.trials[0].temporary_state.ray_actor = "it has come"
        tune.look(WAITS_S + 2)
        assert isinstance(tune.searcher.suggest("t2"), dict)


def test_a_stopped_training_that_never_had_a_worker_keeps_nothing_from_starting_and_ends_with_this_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driving(create(tmp_path, search={"trials": 2})) as driven:
        tune = Tune(driven, monkeypatch)
        waits = tune.start(with_actor=False)
        tune.look(WAITS_S + 1)
        assert tune.searcher.suggest("none") is None
        driven.ask("stop", trials=(waits.number,))
        other = tune.start()
        tune.look(3 * WAITS_S)
        assert not tune.searcher.is_over, "another one trains"
        tune.searcher.on_trial_complete("t1", trained(other, 0.5).result())
        tune.look(3 * WAITS_S + 1)
        assert tune.searcher.is_over
        assert tune.searcher.suggest("none") is Searcher.FINISHED
        stopper = HaltStopper(tune.halt, Hooks(print, print, tune.halt), lambda: tune.searcher.is_over)
        assert stopper.stop_all()
        assert not HaltStopper(tune.halt, Hooks(print, print, tune.halt)).stop_all()


def test_a_training_that_waits_for_a_device_that_is_gone_begins_again_on_one_that_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driving(create(tmp_path)) as driven:
        kinds = {"A100": 80 * GB, "L4": 24 * GB}
        nodes = [Node(k, 8, (Device(k, 0, k, size, k),)) for k, size in kinds.items()]
        wanted = ResourcesSection(memory_gb=12, evaluation={"gpus": 0.1})
        found = driven.coordinator.admission = Admission(wanted, wanted.shares(nodes), nodes, Needs())
        tune = Tune(driven, monkeypatch)
        first = tune.start(with_actor=False)
        gone = driven.coordinator.granted(first.number)
        tune.look(WAITS_S + 1)
        assert not tune.searcher.is_over, "the nodes have it: something else is in its place, or they begin"
        left = [node for node in nodes if node.name != gone.kind]
        found.follow(wanted.shares(left), left)
        tune.look(WAITS_S + 2)
        assert tune.searcher.is_over
        tune.searcher.on_trial_complete("t0")
        again = Tune(driven, monkeypatch).start()
        assert again.number == first.number
        assert driven.coordinator.granted(again.number).kind == left[0].name
        assert driven.ledger.trial(first.number).failures == 0


def test_a_training_that_no_node_can_have_waits_for_one_that_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driving(create(tmp_path)) as driven:
        shares = Shares(1, 1.0, 0.75, 1, 1.0, 0.25)
        driven.coordinator.admission = Admission(driven.coordinator.config.resources, shares, [], Needs())
        tune = Tune(driven, monkeypatch)
        tune.start(with_actor=False)
        tune.look(9 * WAITS_S)
        assert not tune.searcher.is_over, "an autoscaler starts nodes for what waits"


def admission(driven: Driven, cpus: float) -> Admission:
    """Return one that has room for trainings on so many cores, with one more for the attacks."""
    shares = Shares(1, 1.0, 0.0, 1, 1.0, 0.0)
    return Admission(driven.coordinator.config.resources, shares, [Node("a", cpus + 1)], Needs())


def test_a_training_that_leaves_a_node_that_ends_goes_on_elsewhere_and_its_process_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driving(create(tmp_path)) as driven:
        tune = Tune(driven, monkeypatch)
        first = tune.start()
        tune.report_an_epoch("t0", first)
        result = Report(first.number, "leaving").result()
        assert not result["done"], "Tune would give the process, on that node, to the next training"
        for _ in range(2):  # the second one comes before the process is ended
            tune.searcher.on_trial_result("t0", result)
        tune.look(1)
        assert tune.killed == ["actor of t0"]
        tune.searcher.on_trial_complete("t0", error=True)
        assert driven.ledger.trial(first.number).failures == 0
        assert driven.said[-1].endswith("leaves a node that ends and goes on later")
        again = tune.start()
        assert again.number == first.number
        assert again.token != first.token
        assert driven.ledger.trial(first.number).epochs == len(trained(first, 0.5).history)


def test_a_training_is_told_how_long_the_longest_epoch_has_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driving(create(tmp_path)) as driven:
        tune = Tune(driven, monkeypatch)
        first = tune.start()
        assert first.longest_epoch_s is None, "nothing is known yet"
        for seconds in ((7.0,), (7.0, 3.0)):
            epochs = tuple({"cost/epoch_s": value} for value in seconds)
            tune.searcher.on_trial_result("t0", Report(first.number, "training", epochs).result())
        assert tune.start().longest_epoch_s == 7.0
    with driving(SweepFolder(tmp_path, "s")) as driven:  # the next driver knows of the ledger's epochs
        assert driven.start().longest_epoch_s == 7.0
