from __future__ import annotations

import pytest

from cluster.wait import NoNodes, able_nodes, wait_until


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def wait(counts: list[int], wanted: int, minutes: float = 1) -> tuple[int, list[str], float]:
    """Wait on a cluster that has so many nodes at each look, the last number for ever."""
    clock, said, looks = Clock(), list[str](), iter(counts)
    last = [0]

    def count() -> int:
        last[0] = next(looks, last[0])
        return last[0]

    return wait_until(wanted, count, minutes, said.append, clock, clock.sleep), said, clock.now


def test_a_sweep_starts_as_soon_as_all_nodes_have_come() -> None:
    assert wait([0, 1, 1, 3], 3) == (3, ["0 of 3 nodes are there", "1 of 3 nodes are there"], 15.0)
    assert wait([5], 3) == (5, [], 0.0)


def test_a_sweep_starts_with_those_that_are_there_when_the_time_is_up() -> None:
    there, said, waited = wait([0, 2], 3)
    assert there == 2
    assert said[-1] == "starting with 2 of 3 nodes: the others have not come in 1 minutes"
    assert 60 <= waited <= 65


def test_no_node_at_all_is_an_error() -> None:
    with pytest.raises(NoNodes, match="none of 3 nodes has come in 2 minutes"):
        wait([0], 3, 2)


def test_dead_nodes_and_those_that_are_too_small_do_not_count() -> None:
    nodes: list[dict[str, object]] = [
        {"NodeID": "n", "Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}},
        {"NodeID": "n", "Alive": False, "Resources": {"CPU": 8.0, "GPU": 1.0}},
        {"NodeID": "n", "Alive": True, "Resources": {"memory": 1e9}},
        {"NodeID": "n", "Alive": True, "Resources": {"CPU": 8.0}},
    ]
    assert able_nodes(nodes, 8, 1) == 1
    assert able_nodes(nodes, 8, 0) == 2
