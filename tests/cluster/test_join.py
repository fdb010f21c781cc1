"""Joining a cluster: what a machine gives, whom it waits for, when it leaves, and that it ends nothing of others."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cluster.join
from cluster.authentication import TOKEN, TOKEN_PATH
from cluster.ending import VARIABLE
from cluster.head import head_folder, read_address, replace_text, with_token
from cluster.join import Asked, Capacity, End, Joining, capacity_of, leaving_on_signals
from cluster.ray_node import END_S, LEAVE_S, free_port, own_address
from search_spaces.errors import ClusterError


def test_slurm_says_what_a_job_has_and_when_it_ends_and_elsewhere_the_machine_does() -> None:
    slurm = {"SLURM_CPUS_ON_NODE": "8", "SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_END_TIME": "1700000000"}
    assert capacity_of(slurm, 64, 4, None) == Capacity(8, 1, 1_700_000_000 - LEAVE_S - END_S)
    assert capacity_of({**slurm, "SLURM_CPUS_PER_TASK": "6"}, 64, 4, None).cpus == 6
    assert capacity_of({}, 12, 2, None) == Capacity(12, 2, None)
    assert capacity_of(slurm, 64, 4, until=1000.0).leaves_at == 1000 - LEAVE_S - END_S
    assert capacity_of({"SLURM_JOB_END_TIME": "Unknown"}, 1, 0, None).leaves_at is None


class FakeNode:
    """A Ray node that does as the test says."""

    made: list[FakeNode]

    def __init__(self, words: Any, host: str, environment: dict[str, str]) -> None:
        self.words, self.environment = words, environment
        self.there, self.did = True, list[str]()
        self.end_file = Path(environment[VARIABLE])
        self.end_at: str | None = None
        self.made.append(self)

    def wait(self, going_on: Callable[[], bool]) -> bool:
        return going_on()

    @property
    def is_there(self) -> bool:
        return self.there

    def leave(self) -> None:
        self.end_at = self.end_file.read_text()
        self.did.append("leave")

    def kill(self) -> None:
        self.did.append("kill")


class World:
    """A head, a clock that runs as soon as somebody waits, and what happens when."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = head_folder(tmp_path, "s")
        self.folder.mkdir()
        self.now = 1000.0
        self.events: dict[float, Callable[[], object]] = {}
        self.answering, self.complete = True, False
        self.said: list[str] = []
        self.asked = Asked()
        self.asked.event.wait = self.wait  # type: ignore[assignment, method-assign]
        FakeNode.made = []
        clock = type("Clock", (), {"time": lambda _: self.now, "monotonic": lambda _: self.now})()
        monkeypatch.setattr(cluster.join, "time", clock)
        monkeypatch.setattr(cluster.join, "RayNode", FakeNode)
        monkeypatch.setattr(cluster.join, "answers", lambda address: self.answering)

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        for at in sorted(at for at in self.events if at <= self.now):
            self.events.pop(at)()
        assert self.now < 1e5, self.said
        return False

    def head(self, address: str = "127.0.0.1:6379") -> None:
        replace_text(self.folder / "address", address)

    def run(self, leaves_at: float | None = None, wait_s: float = 60) -> End:
        return Joining(
            self.folder, Capacity(2, 1, leaves_at), lambda: self.complete, wait_s, self.said.append, self.asked
        ).run()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_a_head_that_comes_later_is_waited_for_and_joined_with_its_token_until_the_sweep_is_finished(
    world: World,
) -> None:
    def finish() -> None:
        world.complete = True
        (world.folder / "address").unlink()

    world.events = {1030: world.head, 1100: finish}
    assert world.run() is End.COMPLETE
    (node,) = FakeNode.made
    assert node.words == ("--address=127.0.0.1:6379", "--num-cpus=2", "--num-gpus=1")
    assert node.environment[TOKEN_PATH] == str(world.folder / "token")
    assert node.did == ["kill"], "there is nobody to drain for"


def test_a_head_that_never_comes_is_an_error_that_says_what_to_start(world: World) -> None:
    with pytest.raises(ClusterError, match=r"no head has come in 1 minutes.*cluster start --head"):
        world.run()
    assert FakeNode.made == []


def test_a_sweep_that_is_finished_already_is_not_waited_for(world: World) -> None:
    world.complete = True
    assert world.run() is End.COMPLETE
    assert world.now == 1000


def test_another_head_is_joined_where_the_first_one_is_gone_and_none_at_last(world: World) -> None:
    world.head()
    world.events = {
        1020: lambda: world.head("127.0.0.1:7000"),
        1050: (world.folder / "address").unlink,
    }
    assert world.run() is End.HEAD_GONE
    assert [node.words[0] for node in FakeNode.made] == ["--address=127.0.0.1:6379", "--address=127.0.0.1:7000"]
    assert [node.did for node in FakeNode.made] == [["kill"], ["kill"]]
    assert world.now > 1050 + 60


def test_a_head_that_does_not_answer_is_given_up_after_a_while(world: World) -> None:
    world.head()
    world.events = {1020: lambda: setattr(world, "answering", False)}
    assert world.run() is End.HEAD_GONE
    assert 1020 + cluster.join.PATIENCE_S + 60 <= world.now <= 1020 + cluster.join.PATIENCE_S + 70


def test_a_node_leaves_when_its_time_is_up_and_its_workers_have_known_when(world: World) -> None:
    world.head()
    known: list[str] = []
    world.events = {1010: lambda: known.append(FakeNode.made[0].end_file.read_text())}
    assert world.run(leaves_at=1200) is End.TIME
    assert known == ["1200\n"]
    (node,) = FakeNode.made
    assert node.did == ["leave", "kill"]
    assert world.now == 1200
    assert not node.end_file.parent.exists()


def test_a_node_that_is_asked_to_leave_tells_its_workers_that_its_end_is_now(world: World) -> None:
    world.head()
    world.events = {1040: world.asked.event.set}
    assert world.run() is End.TIME
    assert FakeNode.made[0].end_at == "1040\n"
    assert FakeNode.made[0].did == ["leave", "kill"]


@pytest.mark.parametrize(("gone_at", "end"), [(1190, End.TIME), (1030, End.TOO_SHORT)])
def test_a_node_that_was_drained_because_nothing_fits_any_more_comes_again_only_if_that_was_late(
    world: World, gone_at: float, end: End
) -> None:
    world.head()
    world.events = {gone_at: lambda: setattr(FakeNode.made[0], "there", False)}
    assert world.run(leaves_at=1200) is end


def test_a_node_without_an_end_that_ray_has_ended_joins_again(world: World) -> None:
    world.head()

    def finish() -> None:
        world.complete = True
        (world.folder / "address").unlink()

    world.events = {1020: lambda: setattr(FakeNode.made[0], "there", False), 1060: finish}
    assert world.run() is End.COMPLETE
    assert len(FakeNode.made) == 2


def test_a_signal_asks_for_leaving_but_slurms_warning_does_not_where_the_end_is_known() -> None:
    for number, knows_end, leaves in (
        (signal.SIGTERM, True, True),
        (signal.SIGUSR1, True, False),
        (signal.SIGUSR1, False, True),
    ):
        asked, before = Asked(), signal.getsignal(number)
        with leaving_on_signals(asked, knows_end):
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        assert asked.event.is_set() is leaves
        assert signal.getsignal(number) is before


def test_the_environment_of_a_node_names_the_token_and_does_not_hold_one(tmp_path: Path) -> None:
    environment = with_token({TOKEN: "secret", "HOME": "/home"}, tmp_path)
    assert "secret" not in environment.values()
    assert environment[TOKEN_PATH] == str(tmp_path / "token")


def test_a_head_that_is_not_there_has_no_address(tmp_path: Path) -> None:
    assert read_address(head_folder(tmp_path, "s")) is None


@pytest.fixture
def listener() -> Iterator[str]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_machine_knows_its_address_on_the_way_to_the_head(listener: str) -> None:
    assert own_address(listener) == "127.0.0.1"
    assert free_port("127.0.0.1") != int(listener.partition(":")[2])


@pytest.mark.slow
@pytest.mark.ray
def test_a_head_and_a_node_live_and_end_for_themselves_and_the_token_is_private(tmp_path: Path) -> None:
    """In a process of its own: what Ray reads of the environment stays in a process."""
    import subprocess
    import sys

    code = f"""
import os, signal, time
from pathlib import Path
from cluster.head import running_head
from cluster.join import Asked, Capacity, Joining
import threading
folder = Path({str(tmp_path / ".s.head")!r})
with running_head(folder, 0, 0, "127.0.0.1", print) as address:
    asked = Asked()
    joining = Joining(folder, Capacity(2, 0, time.time() + 3600), lambda: False, 60, print, asked)
    ended = []
    thread = threading.Thread(target=lambda: ended.append(joining.run()))
    thread.start()
    import ray
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    from cluster.draining import drain_this_node, staying_nodes
    from cluster.following import joined
    while sum(node.cpus for node in joined()) < 2:
        time.sleep(0.2)

    @ray.remote(num_cpus=1)
    def told():
        from cluster.ending import ends_at
        return ends_at()

    @ray.remote(num_cpus=1)
    def leave():
        drain_this_node("a test", time.time() + 60)
        time.sleep(3)
        return "done"

    print("end known", ray.get(told.remote()) > time.time() + 3000)
    last = leave.remote()
    while len(staying_nodes()) > 1:
        time.sleep(0.1)
    print("what runs goes on", ray.get(last))
    waiting = told.remote()
    print("takes more", bool(ray.wait([waiting], timeout=3)[0]))
    thread.join(30)
    print("left", ended[0].name)
    print("mode", oct((folder / "token").stat().st_mode & 0o777), oct(folder.stat().st_mode & 0o777))
    ray.shutdown()
print("folder", folder.exists())
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    for line in (
        "end known True",
        "what runs goes on done",
        "takes more False",
        "left TOO_SHORT",
        "mode 0o600 0o700",
        "folder False",
    ):
        assert line in said, said


def test_what_a_head_says_is_seen_whole_or_not_at_all(tmp_path: Path) -> None:
    replace_text(tmp_path / "address", "10.0.0.1:6379\n")
    assert read_address(tmp_path) == "10.0.0.1:6379"
    assert [path.name for path in tmp_path.iterdir()] == ["address"]
    assert stat.S_ISREG((tmp_path / "address").stat().st_mode)


def test_the_command_says_what_is_missing_where_no_head_comes(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from run_sweep import app

    words = ["cluster", "join", "s", "--storage", str(tmp_path), "--wait", "0", "--gpus", "0"]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, ClusterError), done.output
    assert f"{tmp_path / '.s.head'}: no head has come" in str(done.exception)


def test_a_head_of_its_own_and_an_address_exclude_each_other(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from run_sweep import app

    command = ["cluster", "start", "s.yaml", "--storage", str(tmp_path), "--head", "--address", "auto"]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, ClusterError), done.output
    assert "--address auto" in str(done.exception)
