"""Packing against the slow definition: no plan, of all that there are, places more; and what every plan has to keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.packing import Device, Node, Packing, Request, pack

SHARES = (0.1, 0.25, 0.3, 0.34, 0.5, 0.75, 1.0)
KINDS = ("large", "small")


def node(name: str, cpus: float, kinds: Sequence[str] = ()) -> Node:
    return Node(name, cpus, tuple(Device(name, index, kind) for index, kind in enumerate(kinds)))


@st.composite
def clusters(draw: st.DrawFn, most_nodes: int = 4, most_devices: int = 4) -> list[Node]:
    return [
        node(f"n{place}", draw(st.integers(0, 12)), draw(st.lists(st.sampled_from(KINDS), max_size=most_devices)))
        for place in range(draw(st.integers(0, most_nodes)))
    ]


GPUS = st.one_of(
    st.sampled_from((0.0, *SHARES, 2.0, 3.0)),
    st.dictionaries(st.sampled_from(KINDS), st.sampled_from(SHARES), min_size=1),
)
CPUS = st.sampled_from((0.5, 1.0, 2.0, 3.0))


@st.composite
def wishes(draw: st.DrawFn) -> list[Request]:
    return [
        Request(f"r{place}", draw(st.integers(0, 9)), draw(CPUS), draw(GPUS), reserved=draw(st.booleans()))
        for place in range(draw(st.integers(0, 4)))
    ]


def room_left(nodes: Sequence[Node], packing: Packing) -> list[Node]:
    """The nodes with the devices that still have something; each device's kind, and its rest, as added up by hand."""
    return [
        Node(
            n.name,
            n.cpus - math.fsum(p.cpus for p in packing.placements if p.node == n.name),
            n.devices,
        )
        for n in nodes
    ]


def rest_of(device: Device, packing: Packing) -> float:
    return 1 - math.fsum(p.gpus for p in packing.placements if p.node == device.node and device.index in p.devices)


@given(nodes=clusters(), requests=wishes())
def test_no_node_and_no_device_holds_more_than_it_has(nodes: list[Node], requests: list[Request]) -> None:
    packing = pack(requests, nodes)
    for left in room_left(nodes, packing):
        assert left.cpus >= -1e-6
        assert packing.cpus_left[left.name] == pytest.approx(left.cpus, abs=1e-3)
        for device in left.devices:
            assert rest_of(device, packing) >= -1e-6
            assert packing.gpus_left[device.node, device.index] == pytest.approx(rest_of(device, packing), abs=1e-3)


@given(nodes=clusters(), requests=wishes())
def test_every_request_is_placed_or_unplaced_and_a_share_is_on_one_device(
    nodes: list[Node], requests: list[Request]
) -> None:
    packing = pack(requests, nodes)
    missing = {unplaced.request: unplaced.count for unplaced in packing.unplaced}
    kinds = {(n.name, d.index): d.kind for n in nodes for d in n.devices}
    for request in requests:
        assert packing.count(request.name) + missing.get(request.name, 0) == request.count
        for placement in (p for p in packing.placements if p.request == request.name):
            shares = {request.share(kinds[placement.node, index]) for index in placement.devices}
            if isinstance(request.gpus, float) and request.gpus > 1:
                assert len(set(placement.devices)) == request.gpus
                assert placement.gpus == 1
            else:
                assert len(placement.devices) == (0 if request.gpus == 0 else 1)
                assert shares <= {placement.gpus}
    assert all(unplaced.count > 0 and unplaced.why for unplaced in packing.unplaced)


def fits(request: Request, n: Node, packing: Packing, cpus: float) -> bool:
    if request.cpus > cpus + 1e-9:
        return False
    rests = [(rest_of(device, packing), request.share(device.kind)) for device in n.devices]
    if request.gpus == 0:
        return True
    if isinstance(request.gpus, float) and request.gpus > 1:
        return sum(rest >= 1 - 1e-9 for rest, _ in rests) >= request.gpus
    return any(share is not None and share <= rest + 1e-9 for rest, share in rests)


@given(nodes=clusters(), requests=wishes())
def test_nothing_is_unplaced_while_it_fits_somewhere(nodes: list[Node], requests: list[Request]) -> None:
    packing = pack(requests, nodes)
    wanted = {request.name: request for request in requests}
    for unplaced in packing.unplaced:
        for n in room_left(nodes, packing):
            assert not fits(wanted[unplaced.request], n, packing, n.cpus)


@given(nodes=clusters(), requests=wishes())
def test_the_same_is_planned_for_the_same(nodes: list[Node], requests: list[Request]) -> None:
    assert pack(requests, nodes) == pack(list(requests), list(nodes))


@given(
    nodes=clusters(3, 2),
    cpus=CPUS,
    gpus=st.one_of(
        st.sampled_from((0.25, 0.34, 0.5, 0.75, 1.0, 2.0)),
        st.dictionaries(st.sampled_from(KINDS), st.sampled_from((0.34, 0.5, 1.0)), min_size=1),
    ),
    attacks=st.integers(0, 2),
    attack=st.sampled_from((0.25, 0.5)),
)
def test_no_plan_places_more_trainings_beside_the_same_reservations(
    nodes: list[Node], cpus: float, gpus: float, attacks: int, attack: float
) -> None:
    requests = [Request("attack", attacks, 1.0, attack, reserved=True), Request("training", 20, cpus, gpus)]
    packing = pack(requests, nodes)
    reserved = pack(requests[:1], nodes)
    by_hand = 0
    for n in nodes:
        rests = tuple(round(10_000 * reserved.gpus_left[n.name, d.index]) for d in n.devices)
        needs = tuple(None if (s := requests[1].share(d.kind)) is None else round(10_000 * s) for d in n.devices)
        by_hand += most_on(rests, needs, reserved.cpus_left[n.name], cpus)
    assert packing.count("training") == min(20, by_hand)


@cache
def most_on(rests: tuple[int, ...], needs: tuple[int | None, ...], cpus: float, each: float) -> int:
    """Most trainings that any order of placing them gets onto one node: all are tried."""
    if cpus < each - 1e-9:
        return 0
    best = 0
    if any(need is not None and need > 10_000 for need in needs):
        wanted = max(need for need in needs if need is not None) // 10_000
        free = [place for place, rest in enumerate(rests) if rest == 10_000]
        if len(free) < wanted:
            return 0
        after = tuple(0 if place in free[:wanted] else rest for place, rest in enumerate(rests))
        return 1 + most_on(after, needs, cpus - each, each)
    for place, (rest, need) in enumerate(zip(rests, needs, strict=True)):
        if need is not None and need <= rest:
            after = (*rests[:place], rest - need, *rests[place + 1 :])
            best = max(best, 1 + most_on(after, needs, cpus - each, each))
    return best


@given(nodes=clusters(), share=st.sampled_from((0.1, 0.25, 0.5)), count=st.integers(1, 12))
def test_no_device_gets_a_second_training_while_one_stands_idle(nodes: list[Node], share: float, count: int) -> None:
    packing = pack([Request("training", count, 1.0, share)], nodes)
    held = {(n.name, d.index): 0 for n in nodes for d in n.devices}
    for placement in packing.placements:
        held[placement.node, placement.devices[0]] += 1
    for n in nodes:
        idle = [d for d in n.devices if not held[n.name, d.index]]
        assert not idle or packing.cpus_left[n.name] < 1 or max(held.values()) <= 1


def test_trainings_go_to_every_node_before_any_gets_two() -> None:
    nodes = [node("a", 8, ["large"] * 2), node("b", 8, ["large"] * 2)]
    packing = pack([Request("training", 5, 1.0, 0.5)], nodes)
    assert [(p.node, p.devices) for p in packing.placements] == [
        ("a", (0,)),
        ("b", (0,)),
        ("a", (1,)),
        ("b", (1,)),
        ("a", (0,)),
    ]


def test_reservations_leave_whole_devices_free_and_go_to_different_nodes() -> None:
    nodes = [node("a", 8, ["large"] * 2), node("b", 8, ["large"] * 2)]
    packing = pack([Request("training", 9, 1.0, 1.0), Request("attack", 4, 1.0, 0.25, reserved=True)], nodes)
    attacks = [(p.node, p.devices) for p in packing.placements if p.request == "attack"]
    assert attacks == [("a", (0,)), ("b", (0,)), ("a", (0,)), ("b", (0,))]
    assert packing.count("training") == 2


def test_two_nodes_that_hold_one_and_a_half_hold_two_and_not_three() -> None:
    nodes = [node("a", 3, ["large"]), node("b", 3, ["large"])]
    assert pack([Request("training", 9, 2.0, 0.5)], nodes).count("training") == 2


def test_a_kind_that_is_not_named_gets_nothing() -> None:
    nodes = [node("a", 8, ["small", "large"])]
    packing = pack([Request("training", 3, 1.0, {"large": 0.5})], nodes)
    assert {p.devices for p in packing.placements} == {(1,)}
    assert packing.count("training") == 2


def test_ten_tenths_are_a_device() -> None:
    assert pack([Request("training", 11, 1.0, 0.1)], [node("a", math.inf, ["large"])]).count("training") == 10


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (Request("r", 1, 9.0), "it needs 9 CPUs on one node, and none has more than 8"),
        (Request("r", 1, 1.0, 3.0), "it needs 3 GPUs of one node, and none has more than 2"),
        (Request("r", 1, 1.0, {"small": 0.5}), "it fits on none of the GPUs (large)"),
        (Request("r", 3, 1.0, 1.0), "what is there is taken"),
    ],
)
def test_what_has_no_room_says_why(request_: Request, why: str) -> None:
    (unplaced,) = pack([request_], [node("a", 8, ["large"] * 2)]).unplaced
    assert (unplaced.count, unplaced.why) == (1, why)


def test_without_a_gpu_in_the_cluster_that_is_why() -> None:
    (unplaced,) = pack([Request("r", 2, 1.0, 0.5)], [node("a", 8)]).unplaced
    assert (unplaced.count, unplaced.why) == (2, "it needs a GPU, and no node has one")


def test_names_that_are_not_unique_are_refused() -> None:
    with pytest.raises(ValueError, match="every node needs a name of its own; found a, a"):
        pack([], [node("a", 1), node("a", 1)])


def test_a_thousand_nodes_are_packed_in_a_moment() -> None:
    nodes = [node(f"n{place}", 64, ["large"] * 8) for place in range(1000)]
    assert pack([Request("training", 99_999, 1.0, 0.5)], nodes).count("training") == 16_000
