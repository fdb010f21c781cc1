from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.packing import Device, Node, Request
from cluster.room import Grant, Room

ATTACKS = Request("attack", 1, 1.0, 0.25, reserved=True)


def node(name: str, gpus: int, accelerator: str = "", cpus: float = 16) -> Node:
    return Node(name, cpus, tuple(Device(name, i, f"{accelerator} 80 GB", None, accelerator) for i in range(gpus)))


def asked(gpus: float | dict[str, float], cpus: float = 1.0) -> Request:
    return Request("training", 1, cpus, gpus)


def test_trainings_get_room_until_the_device_is_full_beside_the_attacks() -> None:
    room, running = Room([node("a", 1)], ATTACKS), []
    while (grant := room.grant(asked(0.25), running)) is not None:
        running.append(grant)
    assert len(running) == 3
    assert running[0].resources() == {"CPU": 1.0, "GPU": 0.25}


def test_small_and_large_shares_lie_side_by_side() -> None:
    room = Room([node("a", 2)], ATTACKS)
    running = [Grant(1.0, 0.6), Grant(1.0, 0.6)]
    assert room.grant(asked(0.5), running) is None
    small = room.grant(asked(0.4), running)
    assert small is not None
    assert room.grant(asked(0.4), [*running, small]) is None
    assert room.grant(asked(0.15), [*running, small]) == Grant(1.0, 0.15)


def test_where_ray_tells_kinds_apart_a_training_gets_the_share_of_the_kind_that_has_room() -> None:
    room = Room([node("a", 1, "A100"), node("b", 1, "L4")], replace(ATTACKS, gpus={"A100": 0.25}))
    request = asked({"A100": 0.3, "L4": 0.9})
    running: list[Grant] = []
    for _ in range(3):
        grant = room.grant(request, running)
        assert grant is not None
        running.append(grant)
    assert room.grant(request, running) is None
    assert sorted((g.kind, g.gpus) for g in running) == [("A100", 0.3), ("A100", 0.3), ("L4", 0.9)]
    assert {"CPU": 1.0, "GPU": 0.9, "accelerator_type:L4": 0.001} in [grant.resources() for grant in running]


def test_with_one_kind_ray_is_asked_for_no_kind() -> None:
    room = Room([node("a", 2, "A100")], ATTACKS)
    grant = room.grant(asked({"A100": 0.5}), [])
    assert grant is not None
    assert grant.resources() == {"CPU": 1.0, "GPU": 0.5}


def test_a_kind_on_which_nothing_fits_is_not_used() -> None:
    room = Room([node("a", 1, "L4"), node("b", 1, "A100")], Request("attack", 0, 1.0))
    first = room.grant(asked({"A100": 0.5}), [])
    assert first is not None
    assert first.kind == "A100"
    second = room.grant(asked({"A100": 0.5}), [first])
    assert second is not None
    assert room.grant(asked({"A100": 0.5}), [first, second]) is None, "the L4 idles"


def test_with_nothing_running_the_first_one_waits_inside_ray() -> None:
    for nodes in ([], [node("head", 0, cpus=0)]):
        room = Room(nodes, ATTACKS)
        assert room.grant(asked(0.5), []) == Grant(1.0, 0.5)
        assert room.grant(asked(0.5), [Grant(1.0, 0.5)]) is None
        assert room.grant(asked({"A100": 0.25, "L4": 0.9}), []) == Grant(1.0, 0.25)


def test_more_at_once_than_wanted_get_nothing() -> None:
    room = Room([node("a", 4)], ATTACKS, most=2)
    assert room.grant(asked(0.1), [Grant(1.0, 0.1)]) is not None
    assert room.grant(asked(0.1), [Grant(1.0, 0.1)] * 2) is None


def test_what_had_not_enough_gets_more_up_to_what_the_attacks_leave_and_is_whole_then() -> None:
    alone = Room([node("a", 1)], ATTACKS)
    assert [alone.grown(asked(0.3), times).gpus for times in (1, 2, 4)] == [0.3, 0.6, 0.75]
    assert alone.grown(asked({"": 0.3}), 4).gpus == {"": 0.75}
    whole = alone.grant(alone.grown(asked(0.3), 4), [])
    assert whole is not None
    assert whole.is_whole
    part = alone.grant(asked(0.3), [])
    assert part is not None
    assert not part.is_whole
    assert Room([node("a", 2)], ATTACKS).grown(asked(0.3), 4).gpus == 1.0, "the attacks are on the other device"
    assert alone.grown(asked(2.0), 4).gpus == 2.0, "whole devices stay as many"


@pytest.mark.parametrize(("times", "cpus"), [(1, 2.0), (2, 4.0), (4, 7.0), (100, 7.0)])
def test_without_gpus_it_gets_more_cores_and_so_fewer_run_at_once(times: float, cpus: float) -> None:
    room = Room([Node("a", 8)], Request("attack", 1, 1.0, reserved=True))
    grown = room.grown(asked(0.0, cpus=2.0), times)
    assert grown.cpus == cpus
    grant = room.grant(grown, [])
    assert grant == Grant(cpus), "a share of the cores is no whole device"


def test_what_runs_is_laid_out_so_that_it_fits_whatever_came_first() -> None:
    room = Room([node("a", 2)], Request("attack", 0, 1.0))
    small, whole = Grant(1.0, 0.3), Grant(1.0, 1.0, None, True)
    assert room.grant(asked(0.7), [small, whole, small]) is None, "0.4 are left"
    assert room.grant(asked(0.4), [small, whole, small]) == Grant(1.0, 0.4)


def test_a_whole_device_is_free_where_small_shares_can_lie_on_one() -> None:
    room = Room([node("a", 2)], Request("attack", 0, 1.0))
    assert room.grant(asked(1.0), [Grant(1.0, 0.3), Grant(1.0, 0.3)]) == Grant(1.0, 1.0, None, True)
    mixed = Room([node("a", 2, "A100"), node("b", 1, "L4")], Request("attack", 0, 1.0))
    running = [Grant(1.0, 0.3, "A100"), Grant(1.0, 0.3, "A100"), Grant(1.0, 0.9, "L4")]
    assert mixed.grant(asked({"A100": 1.0}), running) == Grant(1.0, 1.0, "A100", True)
    found = mixed.grant(asked({"A100": 0.5, "L4": 1.0}), running)
    assert found is not None
    assert (found.gpus, found.kind) == (0.5, "A100")


def test_the_kind_is_taken_of_which_a_device_has_most_left_whatever_runs_on_others() -> None:
    mixed = Room([node("a", 2, "A100"), node("b", 1, "L4")], Request("attack", 0, 1.0))
    either = asked({"A100": 0.4, "L4": 0.5})
    small, whole = Grant(1.0, 0.3, "A100"), Grant(1.0, 1.0, "A100", True)
    for running in ([small, small], [small, whole, small]):
        found = mixed.grant(either, running)
        assert found is not None
        assert found.kind == "L4"


def test_what_waits_for_a_kind_that_is_not_there_takes_the_room_of_no_other() -> None:
    room = Room([node("b", 1, "L4")], ATTACKS, before={"A100": 1.0})
    waits = Grant(1.0, 0.5, "A100")
    assert room.grant(asked({"A100": 0.5}), []) == waits, "no share of an L4"
    assert room.grant(asked({"L4": 0.75}), [waits]) == Grant(1.0, 0.75, "L4", True)
    assert room.grant(asked({"A100": 0.5}), [waits]) is None


def test_what_had_not_enough_asks_for_a_device_that_has_it_and_is_whole_only_where_none_has_more() -> None:
    room = Room([node("a", 1, "A100"), node("b", 1, "L4")], Request("attack", 0, 1.0))
    request = asked({"A100": 0.25, "L4": 0.9})
    assert room.grown(request, 1).gpus == {"A100": 0.25, "L4": 0.9}
    assert room.grown(request, 2).gpus == {"A100": 0.5}, "a whole L4 is less than twice as much"
    assert room.grown(request, 9).gpus == {"A100": 1.0}
    on_small = room.grant(asked({"A100": 0.25, "L4": 1.0}), [Grant(1.0, 1.0, "A100")])
    assert on_small == Grant(1.0, 1.0, "L4", is_whole=False), "an A100 has more"
    on_large = room.grant(room.grown(request, 9), [])
    assert on_large == Grant(1.0, 1.0, "A100", is_whole=True)
    any_of_two = Room([node("a", 2)], ATTACKS).grant(asked(0.75), [Grant(1.0, 1.0, None, True)])
    assert any_of_two == Grant(1.0, 0.75), "beside the attacks; the other device has more"


def test_no_training_asks_for_what_it_could_never_have_if_ray_put_the_attacks_on_the_only_device_of_a_kind() -> None:
    room = Room([node("a", 1, "L4"), node("b", 1, "A100"), node("c", 2, "H200")], ATTACKS)
    assert room.most_gpus == {"L4": 0.75, "A100": 0.75, "H200": 1.0}
    assert room.grown(asked({"A100": 0.3, "L4": 0.9}), 1).gpus == {"A100": 0.3}
    assert Room([node("a", 1), node("b", 1)], ATTACKS).most_gpus == {"": 1.0}, "Ray finds the one that is free"
    taken = Room([node("a", 1)], replace(ATTACKS, gpus=1.0))
    assert taken.grown(asked({"": 0.5}), 1).gpus == {"": 0.5}, "it does not train without a GPU"
    apart = Room([node("a", 1, "L4"), node("b", 1, "A100")], replace(ATTACKS, gpus=1.0))
    assert apart.grown(asked({"A100": 0.3, "L4": 0.9}), 1).gpus == {"A100": 0.3}


def test_what_could_be_had_before_a_node_was_lost_is_waited_for() -> None:
    both = Room([node("a", 1), node("b", 1)], ATTACKS)
    assert both.most_gpus == {"": 1.0}
    one = Room([node("a", 1)], ATTACKS, before=both.most_gpus)
    assert one.grown(asked({"": 0.9}), 1).gpus == {"": 0.9}, "not cut to what the attacks leave of one"
    assert one.grant(asked({"": 0.9}), []) == Grant(1.0, 0.9)
    assert one.at_once(asked({"": 0.9}), 9) == 0
    assert both.at_once(asked({"": 0.3}), 9) == 5
    assert Room([node("a", 1)], ATTACKS, most=2).at_once(asked(0.1), 9) == 2


def test_running_ones_are_laid_out_by_cores_too() -> None:
    room = Room([Node("a", 8), Node("b", 8)], Request("attack", 0, 1.0))
    assert room.grant(asked(0.0, cpus=8), [Grant(2.0), Grant(2.0)]) == Grant(8.0)
    assert room.grant(asked(0.0, cpus=8), [Grant(2.0)] * 5) is None


shares = st.integers(1, 100).map(lambda hundredths: hundredths / 100)


@given(
    st.lists(st.sampled_from([("A100", 1), ("A100", 2), ("L4", 1), ("L4", 3)]), min_size=1, max_size=4),
    st.lists(st.dictionaries(st.sampled_from(["A100", "L4"]), shares, min_size=1), min_size=1, max_size=12),
)
def test_whatever_is_granted_no_kind_of_device_is_given_away_more_than_once(
    has: list[tuple[str, int]], wanted: list[dict[str, float]]
) -> None:
    room = Room([node(f"n{i}", count, kind) for i, (kind, count) in enumerate(has)], Request("attack", 0, 1.0))
    kinds = {kind for kind, _ in has}
    running: list[Grant] = []
    for gpus in wanted:
        grant = room.grant(asked(gpus), running)
        if grant is not None and (running or set(gpus) & kinds):
            running.append(grant)
    for kind in kinds:
        of_kind = [g.gpus for g in running if g.kind == kind or len(kinds) == 1]
        assert sum(of_kind) <= sum(count for name, count in has if name == kind) + 1e-9
