from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.resources import Shares, plan_shares, shortage

AUTO = {
    "concurrent": None,
    "trial_cpus": 1.0,
    "trial_gpus": None,
    "evaluation_workers": None,
    "evaluation_cpus": 1.0,
    "evaluation_gpus": None,
}


def test_a_laptop_without_gpu_trains_on_every_core_with_evaluation_beside() -> None:
    shares = plan_shares(2, 0, **AUTO)
    assert shares == Shares(2, 1.0, 0.0, 1, 1.0, 0.0)


def test_one_gpu_is_divided_between_training_and_evaluation() -> None:
    shares = plan_shares(16, 1, **AUTO)
    assert (shares.concurrent, shares.trial_gpus, shares.evaluation_gpus) == (1, 0.75, 0.25)


def test_a_pinned_gpu_share_decides_how_many_trials_fit() -> None:
    shares = plan_shares(64, 2, **{**AUTO, "trial_gpus": 0.25})
    assert shares.concurrent == 3 + 4  # one quarter of the first device is evaluation's


def test_a_pinned_number_of_trials_wins() -> None:
    assert plan_shares(8, 0, **{**AUTO, "concurrent": 3}).concurrent == 3


@given(
    cpus=st.integers(1, 64),
    gpus=st.integers(0, 8),
    share=st.sampled_from([0.1, 0.25, 0.3, 0.5, 0.75, 1.0]),
    attack=st.sampled_from([0.1, 0.25, 0.5]),
)
def test_planned_gpu_shares_never_exceed_the_devices(cpus: int, gpus: int, share: float, attack: float) -> None:
    shares = plan_shares(
        cpus, gpus, **{**AUTO, "trial_gpus": share if gpus else 0.0, "evaluation_gpus": attack if gpus else 0.0}
    )
    used = shares.concurrent * shares.trial_gpus + shares.evaluation_workers * shares.evaluation_gpus
    assert shares.concurrent >= 1
    assert used <= gpus + 1e-9 or shares.concurrent == 1


def test_draining_workers_fit_where_the_trials_were() -> None:
    assert Shares(2, 1, 0, 1, 1, 0).draining_workers == 2
    assert Shares(2, 4, 0, 1, 2, 0).draining_workers == 4
    assert Shares(3, 1, 0.75, 1, 1, 0.25).draining_workers == 3


def test_a_larger_share_means_fewer_trainings_and_never_more_than_a_device_has_left() -> None:
    one = plan_shares(8, 1, **{**AUTO, "trial_gpus": 0.25})
    assert (one.concurrent, one.largest_gpus) == (3, 0.75)
    assert [(s.concurrent, s.trial_gpus) for s in (one.grown(2), one.grown(3), one.grown(100))] == [
        (1, 0.5),
        (1, 0.75),
        (1, 0.75),
    ]
    two = plan_shares(8, 2, **{**AUTO, "trial_gpus": 0.25})
    assert (two.concurrent, two.largest_gpus) == (7, 1.0)
    assert (two.grown(4).concurrent, two.grown(4).trial_gpus) == (1, 1.0)
    assert one.grown(1) == one


def test_without_gpus_it_is_the_cores_that_grow_up_to_all_of_them() -> None:
    eight = plan_shares(8, 0, **AUTO)
    assert [(s.concurrent, s.trial_cpus) for s in (eight.grown(2), eight.grown(3), eight.grown(64))] == [
        (4, 2.0),
        (2, 3.0),
        (1, 8.0),
    ]


@given(
    gpus=st.integers(0, 4),
    share=st.sampled_from([0.1, 0.25, 0.5, 0.75]),
    times=st.sampled_from([1, 1.5, 2, 8, 1024]),
)
def test_grown_shares_fit_where_the_usual_ones_did(gpus: int, share: float, times: float) -> None:
    usual = plan_shares(16, gpus, **{**AUTO, "trial_gpus": share if gpus else None})
    grown = usual.grown(times)
    room = max(usual.concurrent * usual.trial_gpus, usual.largest_gpus)
    assert grown.concurrent >= 1
    assert grown.concurrent * grown.trial_gpus <= room + 1e-9
    assert grown.concurrent * grown.trial_cpus <= usual.concurrent * usual.trial_cpus
    assert grown.trial_gpus <= 1


@given(gpus=st.integers(0, 3), share=st.sampled_from([0.0, 0.5, 1.0, 2.0]), attack=st.sampled_from([0.0, 0.25, 1.0]))
def test_one_training_beside_the_attacks_fits_or_it_is_said_what_is_lacking(
    gpus: int, share: float, attack: float
) -> None:
    shares = plan_shares(8, gpus, **{**AUTO, "trial_gpus": share, "evaluation_gpus": attack})
    whole = [1.0] * gpus
    if attack and whole:
        whole[0] -= attack
    fits = sum(whole) >= share if share > 1 else any(left >= share for left in whole) or not share
    fits = fits and (not attack or bool(gpus))
    assert (shortage(shares, 8, gpus) == "") is fits


def test_what_is_lacking_is_said_in_numbers() -> None:
    found = shortage(plan_shares(8, 1, **{**AUTO, "trial_gpus": 1.0}), 8, 1)
    assert found == "a training needs 1 GPU and the attacks 0.25 beside; found 1 GPU and 8 CPUs"
