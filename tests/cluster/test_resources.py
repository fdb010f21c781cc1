from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cluster.described import read_nodes
from cluster.packing import Device, Node
from cluster.resources import (
    GB,
    Shares,
    lay_out,
    plan_shares,
    shares_by_kind,
    shortage,
    unfit,
)

AUTO = {
    "concurrent": None,
    "trial_cpus": 1.0,
    "trial_gpus": None,
    "evaluation_workers": None,
    "evaluation_cpus": 1.0,
    "evaluation_gpus": None,
}


def machine(cpus: float, gpus: int) -> list[Node]:
    """One machine on which Ray is started for the sweep."""
    return [Node("here", cpus, tuple(Device("here", index) for index in range(gpus)), started_here=True)]


def test_a_laptop_without_gpu_trains_on_every_core_with_evaluation_beside() -> None:
    shares = plan_shares(machine(2, 0), **AUTO)
    assert shares == Shares(2, 1.0, 0.0, 1, 1.0, 0.0)


def test_one_gpu_is_divided_between_training_and_evaluation() -> None:
    shares = plan_shares(machine(16, 1), **AUTO)
    assert (shares.concurrent, shares.trial_gpus, shares.evaluation_gpus) == (1, 0.75, 0.25)


def test_a_pinned_gpu_share_decides_how_many_trials_fit() -> None:
    shares = plan_shares(machine(64, 2), **{**AUTO, "trial_gpus": 0.25})
    assert shares.concurrent == 3 + 4  # one quarter of the first device is evaluation's


def test_a_pinned_number_of_trials_wins() -> None:
    assert plan_shares(machine(8, 0), **{**AUTO, "concurrent": 3}).concurrent == 3


@given(
    cpus=st.integers(1, 64),
    gpus=st.integers(0, 8),
    share=st.sampled_from([0.1, 0.25, 0.3, 0.5, 0.75, 1.0]),
    attack=st.sampled_from([0.1, 0.25, 0.5]),
)
def test_planned_gpu_shares_never_exceed_the_devices(cpus: int, gpus: int, share: float, attack: float) -> None:
    shares = plan_shares(
        machine(cpus, gpus),
        **{**AUTO, "trial_gpus": share if gpus else 0.0, "evaluation_gpus": attack if gpus else 0.0},
    )
    used = shares.concurrent * shares.trial_gpus + shares.evaluation_workers * shares.evaluation_gpus
    assert shares.concurrent >= 1
    assert used <= gpus + 1e-9 or shares.concurrent == 1


def test_draining_workers_fit_where_the_trials_were() -> None:
    assert Shares(2, 1, 0, 1, 1, 0).draining_workers == 2
    assert Shares(2, 4, 0, 1, 2, 0).draining_workers == 4
    assert Shares(3, 1, 0.75, 1, 1, 0.25).draining_workers == 3


@given(gpus=st.integers(0, 3), share=st.sampled_from([0.0, 0.5, 1.0, 2.0]), attack=st.sampled_from([0.0, 0.25, 1.0]))
def test_one_training_beside_the_attacks_fits_or_it_is_said_what_is_lacking(
    gpus: int, share: float, attack: float
) -> None:
    shares = plan_shares(machine(8, gpus), **{**AUTO, "trial_gpus": share, "evaluation_gpus": attack})
    whole = [1.0] * gpus
    if attack and whole:
        whole[0] -= attack
    fits = sum(whole) >= share if share > 1 else any(left >= share for left in whole) or not share
    fits = fits and (not attack or bool(gpus))
    assert (shortage(shares, machine(8, gpus)) == "") is fits


def test_what_is_lacking_is_said_in_numbers() -> None:
    found = shortage(plan_shares(machine(8, 1), **{**AUTO, "trial_gpus": 1.0}), machine(8, 1))
    assert found == "a training needs 1 GPU and the attacks 0.25 beside; found 1 GPU and 8 CPUs"


def test_trainings_at_once_are_what_fits_on_each_node_and_not_on_their_sum() -> None:
    three_cores = [Node("a", 3, ()), Node("b", 3, ())]
    shares = plan_shares(three_cores, **{**AUTO, "trial_cpus": 2.0})
    assert shares.concurrent == 2  # 6 cores would be three trainings of two
    assert plan_shares(three_cores, **AUTO).concurrent == 5  # a core is the attacks'
    assert plan_shares(read_nodes("2*(1x24GB,8cpu)"), **{**AUTO, "trial_gpus": 0.6}).concurrent == 2


def test_a_share_is_the_memorys_part_of_a_device_on_each_kind_its_own() -> None:
    memory = {"trial_memory_bytes": 20 * GB, "evaluation_memory_bytes": 5.5 * GB}
    large = plan_shares(read_nodes("2x80GB"), **AUTO, **memory)
    assert (large.trial_gpus, large.evaluation_gpus, large.concurrent) == (0.25, 0.07, 3 + 4)
    small = plan_shares(read_nodes("2x24GB"), **AUTO, **memory)
    assert (small.trial_gpus, small.evaluation_gpus, small.concurrent) == (0.84, 0.23, 1)
    mixed = read_nodes("2x24GB+2x80GB")
    both = plan_shares(mixed, **AUTO, **memory)
    assert (both.trial_gpus, both.evaluation_gpus, both.by_kind) == (0.84, 0.23, {"24 GB": 0.84, "80 GB": 0.25})
    assert both.concurrent == 1 + 4 + 4, "on each kind its own share; one small device is the attacks'"


def test_shares_by_kind_are_rounded_up_and_leave_out_what_is_too_small() -> None:
    nodes = read_nodes("1x80GB,1xbig:30GB,1x8GB,1xa100")
    assert shares_by_kind(10 * GB, nodes) == {"80 GB": 0.13, "big 30 GB": 0.34}
    assert shares_by_kind(8 * GB, nodes)["8 GB"] == 1.0


def test_memory_that_a_device_lacks_or_does_not_tell_is_said() -> None:
    mixed = read_nodes("1x80GB+1x8GB")
    assert unfit("an attack", 12 * GB, mixed, on_any=True).endswith("device that has less (8 GB)")
    assert unfit("a training", 12 * GB, mixed, on_any=False) == "", "Ray is asked for the other kind"
    assert "less (8 GB, 80 GB)" in unfit("a training", 99 * GB, read_nodes("1x8GB+1x80GB"), on_any=False)
    unlike = Node("a", 8, tuple(Device("a", i, f"{gb} GB", gb * GB) for i, gb in enumerate((80, 8))))
    assert unfit("a training", 12 * GB, [unlike], on_any=False).endswith("less (8 GB)"), "which Ray cannot tell apart"
    assert "the memory of a100 is not known" in unfit("an attack", 12 * GB, read_nodes("1xa100,1x80GB"), on_any=True)
    assert unfit("a training", 12 * GB, read_nodes("4x80GB"), on_any=True) == ""


def test_a_cluster_whose_nodes_have_too_few_cores_is_refused_and_one_without_nodes_is_waited_for() -> None:
    shares = plan_shares([Node("a", 2), Node("b", 2)], **{**AUTO, "trial_cpus": 4.0})
    found = shortage(shares, [Node("a", 2), Node("b", 2)])
    assert found == "a training needs 4 CPUs of one node and the attacks 1 beside; found 0 GPUs and 4 CPUs on 2 nodes"
    assert shortage(shares, [Node("head", 0)]) == ""


@given(
    cpus=st.lists(st.integers(1, 16), min_size=1, max_size=4),
    gpus=st.integers(0, 4),
    share=st.sampled_from([0.1, 0.3, 0.5, 1.0]),
    each=st.sampled_from([1.0, 2.0, 3.0]),
)
def test_all_that_is_planned_at_once_has_a_place(cpus: list[int], gpus: int, share: float, each: float) -> None:
    nodes = [
        Node(f"n{place}", count, tuple(Device(f"n{place}", index) for index in range(gpus)))
        for place, count in enumerate(cpus)
    ]
    shares = plan_shares(nodes, **{**AUTO, "trial_gpus": share if gpus else None, "trial_cpus": each})
    if shortage(shares, nodes) == "":
        assert lay_out(shares, nodes).unplaced == ()
        more = replace(shares, concurrent=shares.concurrent + 1)
        assert [unplaced.count for unplaced in lay_out(more, nodes).unplaced] == [1]
