"""The lease where clocks and machines cannot be trusted. What a lease protects is in test_ledger.py."""

from __future__ import annotations

import dataclasses
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy.exc import OperationalError

from search_spaces.errors import LeaseHeld, LeaseLost
from sweeps import lease as leases
from sweeps.folder import SweepFolder
from sweeps.lease import Lease, is_alive, is_here, process_start
from sweeps.ledger import Ledger
from sweeps.records import LeaseRecord
from sweeps.summary import sweep_state
from sweeps.tracking import Mirror, MirrorThread
from tests.sweeps import ledgers

DAY_S = 86_400.0


@pytest.fixture
def other(unfinished: Ledger, folder: SweepFolder) -> Iterator[Ledger]:
    """The same ledger, opened by another driver."""
    ledger = Ledger.at(folder.ledger)
    yield ledger
    ledger.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease elsewhere expires after half a second."""
    monkeypatch.setattr(leases, "LIFETIME_S", 0.5)
    monkeypatch.setattr(leases, "WATCH_S", 0.01)


def elsewhere(heartbeat_at: float = 1000.0) -> LeaseRecord:
    return LeaseRecord("theirs", "elsewhere.example", 1, "1@there", heartbeat_at, heartbeat_at)


def living(host: str) -> LeaseRecord:
    """The lease of a process that lives here: this one."""
    now = time.time()
    return LeaseRecord("theirs", host, os.getpid(), process_start(os.getpid()), now, now)


@pytest.mark.parametrize("offset", [-DAY_S, 0.0, DAY_S])
@pytest.mark.usefixtures("quick")
def test_a_heartbeat_that_stands_still_expires_whatever_the_two_clocks_say(
    unfinished: Ledger, other: Ledger, offset: float
) -> None:
    assert other.take_lease(elsewhere(time.time() + offset), replacing=None)
    said: list[str] = []
    started = time.monotonic()
    with Lease(unfinished, say=said.append):
        assert time.monotonic() - started >= 0.5
        unfinished.note_driver("taken over", {})
    assert "elsewhere.example" in said[0]
    assert "--take-over" in said[0]
    with pytest.raises(LeaseLost):
        other.note_driver("no", {})


@pytest.mark.parametrize("step", [-DAY_S, 0.001, DAY_S])
@pytest.mark.usefixtures("quick")
def test_a_heartbeat_that_changes_is_alive_whatever_the_two_clocks_say(
    unfinished: Ledger, other: Ledger, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    held = elsewhere()
    assert other.take_lease(held, replacing=None)
    monkeypatch.setattr(time, "time", lambda: held.heartbeat_at + step)  # the driver's clock jumps
    beat = threading.Timer(0.1, other.heartbeat)
    beat.start()
    with pytest.raises(LeaseHeld, match=r"process 1 on elsewhere\.example.*it lives.*--take-over"), Lease(unfinished):
        pass
    beat.join()
    other.note_driver("still mine", {})


@pytest.mark.usefixtures("quick")
def test_a_lease_that_is_given_back_while_it_is_watched_is_taken_at_once(unfinished: Ledger, other: Ledger) -> None:
    assert other.take_lease(elsewhere(), replacing=None)
    release = threading.Timer(0.1, other.release_lease)
    release.start()
    started = time.monotonic()
    with Lease(unfinished):
        assert time.monotonic() - started < 0.45
    release.join()


@pytest.mark.parametrize("offset", [-DAY_S, DAY_S])
def test_a_local_driver_lives_by_its_process_and_not_by_a_clock(unfinished: Ledger, offset: float) -> None:
    held = living(socket.gethostname())
    assert is_alive(held, held.heartbeat_at + offset)
    assert unfinished.take_lease(held, replacing=None)
    assert sweep_state(unfinished) == "running"
    with pytest.raises(LeaseHeld, match=f"kill -INT {os.getpid()}"), Lease(unfinished):
        pass


@pytest.mark.parametrize("world", ["another boot/pid:[1]", "another boot/pid:[4026531836]"])
@pytest.mark.usefixtures("quick")
def test_after_a_reboot_or_in_another_container_a_pid_says_nothing(unfinished: Ledger, world: str) -> None:
    mine = living(socket.gethostname())
    held = dataclasses.replace(mine, process_started=f"{mine.process_started.partition('@')[0]}@{world}")
    assert is_here(mine)
    assert not is_here(held)
    assert unfinished.take_lease(held, replacing=None)
    started = time.monotonic()
    with Lease(unfinished):
        assert time.monotonic() - started >= 0.5


def test_a_take_over_fences_the_driver_that_lives(unfinished: Ledger, other: Ledger) -> None:
    lost: list[bool] = []
    with Lease(other, on_lost=lambda: lost.append(True)) as theirs:
        with pytest.raises(LeaseHeld), Lease(unfinished):
            pass
        said: list[str] = []
        with Lease(unfinished, take_over=True, say=said.append):
            before = unfinished.events()
            for write in (other.heartbeat, other.complete, other.check_lease, lambda: other.start_training(5)):
                with pytest.raises(LeaseLost):
                    write()
            assert unfinished.events() == before
            unfinished.check_lease()
            theirs._thread.join(timeout=10)
        assert f"process {os.getpid()}" in said[0]
    assert lost == [True]
    assert unfinished.lease() is None


def test_a_take_over_wins_against_heartbeats_that_come_in_between(unfinished: Ledger, other: Ledger) -> None:
    assert other.take_lease(living(socket.gethostname()), replacing=None)
    true: Callable[..., bool] = unfinished.take_lease
    tries: list[bool] = []

    def late(*arguments: object, **named: object) -> bool:
        if not tries:
            other.heartbeat()
        tries.append(true(*arguments, **named))
        return tries[-1]

    unfinished.take_lease = late  # type: ignore[method-assign]
    with Lease(unfinished, take_over=True):
        unfinished.note_driver("mine", {})
    assert tries == [False, True]


def test_leaving_where_nothing_can_be_written_any_more_is_no_error(
    unfinished: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OperationalError("DELETE", {}, Exception("database or disk is full"))

    with Lease(unfinished):
        monkeypatch.setattr(unfinished, "release_lease", full)


def test_the_start_of_a_process_tells_it_from_another_with_its_pid() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        theirs = process_start(process.pid)
        assert theirs not in ("", process_start(os.getpid()))
        assert theirs.partition("@")[2] == process_start(os.getpid()).partition("@")[2]
        process.kill()
    assert process_start(process.pid) == ""


# -- what is not in the ledger ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "call", ["create_run", "log_batch", "log_text", "set_tag", "set_terminated", "set_experiment_tag"]
)
def test_a_driver_that_loses_its_lease_in_the_middle_of_a_pass_writes_no_more_to_mlflow(
    unfinished: Ledger, other: Ledger, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    made: list[str] = []

    def lose() -> None:
        assert other.take_lease(living("elsewhere.example"), replacing=unfinished.lease())

    with Lease(unfinished):
        mirror = Mirror(unfinished, folder, None, "paretune")
        mirror._connect()
        client = mirror._client
        for name in ("create_run", "log_batch", "log_text", "set_tag", "set_terminated", "set_experiment_tag"):
            monkeypatch.setattr(client, name, _noted(name, getattr(client, name), made, call, lose))
        with pytest.raises(LeaseLost):
            mirror.sync()
    assert made[-1] == call  # the one that was under way was the last


def _noted(
    name: str, true: Callable[..., object], made: list[str], call: str, lose: Callable[[], None]
) -> Callable[..., object]:
    """Count a call to MLflow; during the first `call` the lease is lost."""

    def noted(*arguments: object, **named: object) -> object:
        made.append(name)
        if name == call and made.count(call) == 1:
            lose()
        return true(*arguments, **named)

    return noted


@pytest.mark.usefixtures("store")
def test_a_driver_that_has_lost_its_lease_does_not_mark_its_successors_runs_as_killed(
    unfinished: Ledger, other: Ledger, folder: SweepFolder
) -> None:
    with Lease(unfinished):
        Mirror(unfinished, folder, None, "paretune").sync()
        thread = MirrorThread(Mirror(unfinished, folder, None, "paretune"), period_s=60.0)
        thread.start()
        assert other.take_lease(living("elsewhere.example"), replacing=unfinished.lease())
        assert not thread.stop("KILLED", timeout_s=30)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=folder.default_tracking_uri)
    run = client.get_run(unfinished.trial(5).mlflow_run_id or "")
    assert run.info.status == "RUNNING"


@pytest.mark.usefixtures("store")
def test_a_trial_that_ends_before_it_began_has_no_duration_below_zero(
    open_ledger: Callable[..., Ledger], folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    from sweeps.config import parse_sweep
    from sweeps.study import SearchStudy

    ledger = open_ledger(requested=1, created_at=1.8e9)
    clock = itertools.count(1.8e9, -60.0)
    with Lease(ledger), monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: next(clock))
        ledgers.finish(ledger, 0, "plain", 0.9, 100, 90)
        ledger.complete()
        Mirror(ledger, folder, None, "paretune").sync()
    trial = ledger.trial(0)
    assert (trial.ended_at or 0) < trial.created_at
    assert [event.kind for event in ledger.events()][-1] == "completed"  # in the order of what happened
    client = MlflowClient(tracking_uri=folder.default_tracking_uri)
    for run_id in (trial.mlflow_run_id, ledger.sweep().mlflow_run_id):
        run = client.get_run(run_id or "")
        assert run.info.end_time >= run.info.start_time
    config = parse_sweep({"methods": ["plain"], "objectives": ["clean_acc"], "search": {"trials": 1}})
    (told,) = SearchStudy(config, ledger.trials(), ledger.stages()).trials
    assert told.duration is not None
    assert told.duration.total_seconds() >= 0


def test_a_driver_that_loses_its_lease_while_it_starts_a_training_hands_nothing_to_a_worker(
    open_ledger: Callable[..., Ledger], folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeps import coordinator as coordinating
    from sweeps.config import parse_sweep

    ledger = open_ledger(requested=1)
    config = parse_sweep({"methods": ["plain"], "objectives": ["clean_acc"], "search": {"trials": 1}})
    successor = Ledger.at(folder.ledger)

    def sleeps(*_: object) -> None:
        assert successor.take_lease(living("elsewhere.example"), replacing=ledger.lease())

    monkeypatch.setattr(coordinating, "write_token", sleeps)
    with Lease(ledger):
        coordinator = coordinating.Coordinator(config, ledger, folder)
        with pytest.raises(LeaseLost):
            coordinator.next_training()
        assert coordinator.training_numbers == ()
    successor.close()


def test_a_token_that_a_sleeping_driver_left_behind_does_not_stop_its_successors_worker() -> None:
    from trainables.tune import is_superseded

    assert is_superseded("old/1", "new/2")
    assert not is_superseded("new/2", "old/1")
    assert not is_superseded("new/2", "new/2")
    assert is_superseded("one/2", "two/2")
    assert is_superseded("old/10", "stopped")
