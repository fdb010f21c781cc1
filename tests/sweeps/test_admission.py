from __future__ import annotations

from typing import Any

from cluster.packing import Device, Node
from cluster.resources import GB
from cluster.room import Grant
from sweeps.admission import Admission
from sweeps.measured_memory import MEASURED, Need, Needs
from sweeps.memory_classes import MemoryClass
from sweeps.probing import LEAST_ATTACK_SHARE, fitted
from sweeps.records import Event
from sweeps.resources_section import ResourcesSection

SMALL, LARGE = MemoryClass("small", "s", 64), MemoryClass("large", "l", 64)


def node(name: str, memory: int | None, count: int = 1, accelerator: str = "") -> Node:
    kind = f"{memory} GB"
    size = None if memory is None else memory * GB
    return Node(name, 32, tuple(Device(name, index, kind, size, accelerator) for index in range(count)))


def need(of: MemoryClass, gb: float | None, device: str = "80 GB", purpose: Any = "training") -> Need:
    return Need(purpose, of.label, of.parts, of.images, device, None if gb is None else int(gb * GB), {})


def admission(nodes: list[Node], needs: Needs, **resources: Any) -> Admission:
    wanted = ResourcesSection(**resources)
    return Admission(wanted, fitted(wanted, nodes, needs), nodes, needs)


def test_each_class_gets_the_share_that_it_was_measured_to_need() -> None:
    needs = Needs([need(SMALL, 8), need(LARGE, 30)])
    found = admission([node("a", 80)], needs)
    assert found.grant(SMALL, 1, []) == Grant(1.0, 0.1)
    assert found.grant(LARGE, 1, []) == Grant(1.0, 0.38)
    assert (found.at_once(SMALL), found.at_once(LARGE)) == (7, 1), "0.25 is kept for attacks, which were not measured"
    assert found.grant(LARGE, 1, [Grant(1.0, 0.38)]) is None
    assert found.has_room([LARGE, SMALL], [Grant(1.0, 0.38)])
    assert not found.has_room([LARGE], [Grant(1.0, 0.38)])


def test_a_share_of_a_large_device_is_not_a_share_of_a_small_one() -> None:
    nodes = [node("a", 80, accelerator="A100"), node("b", 24, accelerator="L4")]
    needs = Needs([need(SMALL, 20), need(SMALL, 18, device="24 GB"), need(SMALL, 6, purpose="attack")])
    found = admission(nodes, needs)
    assert found.request(SMALL).gpus == {"A100": 0.25, "L4": 0.75}
    grants: list[Grant] = []
    while (grant := found.grant(SMALL, 1, grants)) is not None:
        grants.append(grant)
    assert sorted((g.kind or "", g.gpus) for g in grants) == [*[("A100", 0.25)] * 3, ("L4", 0.75)]


def test_a_class_that_was_not_measured_takes_what_a_larger_one_of_its_kind_takes_or_the_most() -> None:
    needs = Needs([need(MemoryClass("s", "s", 32), 4), need(MemoryClass("s", "s", 128), 16), need(LARGE, 40)])
    assert needs.of("training", SMALL) == {"80 GB": 16 * GB}
    assert needs.of("training", MemoryClass("s", "s", 256)) == {"80 GB": 40 * GB}
    assert needs.of("attack", SMALL) == {}
    assert needs.most("training") == 40 * GB
    assert needs.of("training", SMALL).get("24 GB") is None
    elsewhere = admission([node("b", 24, 2)], needs)
    assert elsewhere.request(SMALL).gpus == {"": 0.67}, "on another kind the most that was measured on any"


def test_what_fits_on_no_device_gets_a_whole_one_and_fails_there_with_its_reason() -> None:
    needs = Needs([need(LARGE, None), need(SMALL, 8)])
    found = admission([node("a", 80, 2)], needs)
    grant = found.grant(LARGE, 1, [])
    assert grant is not None
    assert (grant.gpus, grant.is_whole) == (1.0, True)


def test_numbers_that_are_pinned_stay_whatever_was_measured() -> None:
    needs = Needs([need(SMALL, 8)])
    assert admission([node("a", 80)], needs, gpus=0.5).request(SMALL).gpus == 0.5
    assert admission([node("a", 80)], needs, memory_gb=40).request(SMALL).gpus == {"": 0.5}
    assert admission([node("a", None)], Needs()).request(SMALL).gpus == 0.75
    assert admission([node("a", None)], needs).request(SMALL).gpus == {"": 0.75}, "its memory is not known"


def test_attacks_are_cut_where_they_leave_no_room_for_one_training() -> None:
    one = [node("a", 80)]
    tight = fitted(ResourcesSection(), one, Needs([need(LARGE, 60), need(SMALL, 32, purpose="attack")]))
    assert (tight.trial_gpus, tight.evaluation_gpus, tight.concurrent) == (0.75, 0.25, 1)
    full = fitted(ResourcesSection(), one, Needs([need(LARGE, 79), need(SMALL, 32, purpose="attack")]))
    assert (full.trial_gpus, full.evaluation_gpus) == (0.9, LEAST_ATTACK_SHARE)
    two = fitted(ResourcesSection(), [node("a", 80, 2)], Needs([need(LARGE, 79), need(SMALL, 32, purpose="attack")]))
    assert (two.trial_gpus, two.evaluation_gpus, two.concurrent) == (0.99, 0.4, 1), "the second device is the attacks'"


def test_nodes_that_come_and_go_change_who_has_room() -> None:
    needs = Needs([need(LARGE, 60)])
    found = admission([node("a", 80)], needs)
    running = [Grant(1.0, 0.75)]
    assert found.grant(LARGE, 1, running) is None
    both = [node("a", 80), node("b", 80)]
    found.follow(fitted(ResourcesSection(), both, needs), both)
    assert found.grant(LARGE, 1, running) == Grant(1.0, 0.75)


def test_a_lost_kind_of_device_is_waited_for_and_no_smaller_one_is_tried_instead() -> None:
    large, small = node("a", 80, accelerator="A100"), node("b", 24, accelerator="L4")
    needs = Needs([need(LARGE, 30), need(LARGE, None, device="24 GB"), need(SMALL, 6), need(SMALL, 6, device="24 GB")])
    found = admission([large, small], needs)
    assert found.request(LARGE).gpus == {"A100": 0.38}
    found.follow(fitted(ResourcesSection(), [small], needs), [small])
    assert found.request(LARGE).gpus == {"A100": 0.38}
    assert (found.holds(LARGE, 1), found.holds(SMALL, 1)) == (False, True)
    assert found.grant(LARGE, 1, []) == Grant(1.0, 0.38, "A100")
    assert admission([small], needs).grant(LARGE, 1, []) == Grant(1.0, 0.75, None, True), "a driver that starts there"


def test_a_share_is_not_cut_because_a_node_was_lost() -> None:
    needs = Needs([need(LARGE, 72)])
    both = [node("a", 80), node("b", 80)]
    found = admission(both, needs)
    assert found.grant(LARGE, 1, []) == Grant(1.0, 0.9)
    found.follow(fitted(ResourcesSection(), both, needs), both[:1])
    assert found.grant(LARGE, 1, []) == Grant(1.0, 0.9), "it waits in Ray"
    assert found.at_once(LARGE) == 0


def test_a_kind_that_nobody_measured_gets_the_most_that_any_kind_needs_though_a_small_one_was_too_small() -> None:
    needs = Needs([need(LARGE, 30), need(LARGE, None, device="24 GB")])
    nodes = [node("a", 80, accelerator="A100"), node("b", 24, accelerator="L4"), node("c", 120, accelerator="H200")]
    assert admission(nodes, needs).request(LARGE).gpus == {"A100": 0.38, "H200": 0.25}
    assert admission(nodes[1:], Needs([need(LARGE, None, device="24 GB")])).request(LARGE).gpus == {
        "L4": 1.0,
        "H200": 1.0,
    }


def test_on_devices_that_ray_does_not_name_a_share_is_enough_on_every_kind() -> None:
    nodes = [node("a", 80), node("b", 24, accelerator="L4")]
    needs = Needs([need(SMALL, 8), need(SMALL, 12, device="24 GB"), need(LARGE, 30), need(LARGE, None, "24 GB")])
    found = admission(nodes, needs)
    assert found.request(SMALL).gpus == {"": 0.5, "L4": 0.5}
    assert found.request(LARGE).gpus == {"": 1.0, "L4": 1.0}, "Ray might put it on the L4"


def test_the_answer_whether_there_is_room_follows_what_runs_and_the_nodes() -> None:
    needs = Needs([need(LARGE, 60)])
    found = admission([node("a", 80)], needs)
    running = [Grant(1.0, 0.75)]
    assert not found.has_room([LARGE], running)
    assert found.has_room([LARGE], [])
    assert not found.has_room([LARGE], running)
    both = [node("a", 80), node("b", 80)]
    found.follow(fitted(ResourcesSection(), both, needs), both)
    assert found.has_room([LARGE], running)


def test_a_share_that_is_pinned_is_not_cut_for_attacks_that_were_measured_to_need_more() -> None:
    needs = Needs([need(SMALL, 30, purpose="attack")])
    found = fitted(ResourcesSection(gpus=0.75), [node("a", 80)], needs)
    assert (found.trial_gpus, found.evaluation_gpus, found.concurrent) == (0.75, 0.25, 1)
    assert admission([node("a", 80)], needs, gpus=0.75).grant(SMALL, 1, []) == Grant(1.0, 0.75, None, True)
    whole = fitted(ResourcesSection(gpus=2), [node("a", 80, 3)], needs)
    assert (whole.trial_gpus, whole.evaluation_gpus) == (2, 0.38)
    pinned = {"gpus": 0.25}
    left = fitted(ResourcesSection(evaluation=pinned), [node("a", 80)], Needs([need(LARGE, 76)]))
    assert (left.trial_gpus, left.evaluation_gpus) == (0.95, 0.25), "a training gets what they leave"


def test_a_measurement_that_another_version_has_written_is_none() -> None:
    mine = need(SMALL, 8).plain()
    older = {name: value for name, value in mine.items() if name != "peak"}
    events = [Event(1, 0.0, None, MEASURED, detail) for detail in (older, {**mine, "more": 1}, mine)]
    assert Needs.read(events[:2]).most("training") is None
    assert Needs.read(events).most("training") == 8 * GB


def test_of_classes_that_cover_one_the_smallest_counts_whatever_was_measured_first() -> None:
    needs = Needs([need(MemoryClass("s", "s", 256), 32), need(MemoryClass("s", "s", 128), 16)])
    assert needs.of("training", SMALL) == {"80 GB": 16 * GB}


def test_a_kind_of_device_that_joins_is_asked_for_too() -> None:
    first, second = node("a", 80, accelerator="A100"), node("b", 40, accelerator="L40S")
    found = admission([first], Needs([need(SMALL, 8)]))
    assert found.request(SMALL).gpus == {"A100": 0.1}
    found.follow(fitted(ResourcesSection(), [first], Needs([need(SMALL, 8)])), [first, second])
    assert found.request(SMALL).gpus == {"A100": 0.1, "L40S": 0.2}


def test_a_share_is_rounded_up_and_never_down() -> None:
    assert admission([node("a", 80)], Needs([need(SMALL, 8.1)])).request(SMALL).gpus == {"": 0.11}


def test_no_more_train_at_once_than_are_wanted_and_a_machine_alone_has_the_cores_that_ray_is_told_of() -> None:
    needs = Needs([need(SMALL, 8)])
    assert admission([node("a", 80)], needs, concurrent=2).at_once(SMALL) == 2
    laptop = Node("here", 2, started_here=True)
    assert admission([laptop], Needs(), concurrent=5).at_once(SMALL) == 5
    assert admission([laptop], Needs()).at_once(SMALL) == 2
    assert admission([laptop], Needs(), cpus=4).at_once(SMALL) == 1, "more threads than cores, as it was asked for"
    assert admission([Node("b", 2)], Needs(), concurrent=5).at_once(SMALL) == 1, "on a cluster the attacks have a core"


def test_a_device_whose_memory_became_known_counts_by_it() -> None:
    found = admission([node("a", None, accelerator="A100")], Needs([need(SMALL, 8)]))
    assert found.request(SMALL).gpus == {"A100": 0.75}
    found.follow(fitted(ResourcesSection(), [node("a", 80)], Needs()), [node("a", 80, accelerator="A100")])
    assert found.request(SMALL).gpus == {"A100": 0.1}
