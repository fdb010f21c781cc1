from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.following import LOOK_S, ClusterWatch, describe, following, trainings_with_room
from cluster.packing import Device, Node
from cluster.resources import Shares

SHARES = Shares(5, 1.0, 1.0, 1, 1.0, 1.0)


def node(name: str, cpus: float, gpus: int) -> Node:
    return Node(name, cpus, tuple(Device(name, index) for index in range(gpus)))


def test_as_many_trainings_have_room_as_gpus_are_left_beside_the_attacks() -> None:
    three = [node(name, 8, 2) for name in "abc"]
    assert trainings_with_room(SHARES, three) == 5
    assert trainings_with_room(SHARES, three[:2]) == 3
    assert trainings_with_room(SHARES, [*three, node("d", 8, 4)]) == 9
    assert trainings_with_room(SHARES, [*three, node("without", 64, 0)]) == 5
    assert trainings_with_room(SHARES, [node("head", 0, 0)]) == 0
    assert trainings_with_room(SHARES, []) == 0


def test_one_training_waits_where_none_has_room_so_that_an_autoscaler_sees_it() -> None:
    assert [following(SHARES, room, None).concurrent for room in (0, 1, 9)] == [1, 1, 9]
    assert [following(SHARES, room, 4).concurrent for room in (0, 3, 9)] == [1, 3, 4]


def test_what_has_changed_is_said_in_one_line() -> None:
    assert describe(["b 1f"], [], 3) == "lost node b 1f: 3 trainings at once"
    assert describe([], ["c 2a", "d 3b"], 1) == "joined by node c 2a, d 3b: 1 training at once"
    assert describe(["b 1f"], [], 0) == "lost node b 1f: no node can take a training: waiting"


def test_a_watch_tells_each_change_once_and_looks_only_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Any = SimpleNamespace(now=0.0)
    there = [node("a", 4, 2)]
    monkeypatch.setattr("cluster.following.time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr("cluster.following.joined", lambda: list(there))
    watch = ClusterWatch(SHARES, None)
    assert watch.shares.concurrent == 1
    there.append(node("b", 4, 2))
    assert watch.look() is None, "it was looked a moment ago"
    clock.now = LOOK_S
    change = watch.look()
    assert change is not None
    assert (change.shares.concurrent, change.text) == (3, "joined by node b: 3 trainings at once")
    assert watch.shares == change.shares
    clock.now = 2 * LOOK_S
    assert watch.look() is None
    there.clear()
    clock.now = 3 * LOOK_S
    lost = watch.look()
    assert lost is not None
    assert lost.text == "lost node a, b: no node can take a training: waiting"
    assert lost.shares.concurrent == 1
    assert (lost.shares.trial_gpus, lost.shares.evaluation_gpus) == (1.0, 1.0)


def test_what_came_and_went_while_the_shares_were_measured_is_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Any = SimpleNamespace(now=0.0)
    monkeypatch.setattr("cluster.following.time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr("cluster.following.joined", lambda: [node("b", 4, 2), node("c", 4, 2)])
    planned = [node("a", 4, 2), node("b", 4, 2)]
    watch = ClusterWatch(SHARES, None, planned=planned)
    assert watch.shares.concurrent == 3
    clock.now = LOOK_S
    change = watch.look()
    assert change is not None
    assert change.text == "lost node a; joined by node c: 3 trainings at once"
    assert [one.name for one in change.nodes] == ["b", "c"]
