"""The two-level bootstrap and what is read off it, on simulated trainings."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sweeps import confirmation
from sweeps.confirmation import (
    Repeated,
    confirm,
    degrees_of_freedom,
    image_shares,
    resample,
    seed_weights,
    student,
    undominated,
)
from sweeps.pareto import front

SIZES = {"validation": 400, "test": 500}


def repeated(number: int, seeds: int, images: int = 100, seed: int = 0, **changes: Any) -> Repeated:
    """A configuration whose trainings differ in their seeds and whose images differ in how hard they are."""
    rng = np.random.default_rng([number, seed])
    accuracies = 0.9 + 0.02 * rng.standard_normal(seeds)
    verdicts = rng.random((seeds, images)) < np.linspace(0.2, 0.9, images)
    found = {
        "selected": {"clean_acc": 0.93, "robust_acc": 0.6},
        "clean": {"validation": accuracies, "test": accuracies - 0.01},
        "robust": {"validation": verdicts[:, ::2], "test": verdicts},
    }
    return Repeated(number, **{**found, **changes})


def drawn_again(verdicts: NDArray[np.bool_], draws: int, seed: int) -> list[list[float]]:
    """The definition of `image_shares`, image by image."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        chosen = [int(rng.integers(0, verdicts.shape[1])) for _ in range(verdicts.shape[1])]
        found.append([sum(bool(model[i]) for i in chosen) / len(chosen) for model in verdicts])
    return found


def test_drawn_images_move_a_mean_as_the_slow_definition_does() -> None:
    verdicts = np.random.default_rng(1).random((3, 40)) < 0.6
    quick, slow = image_shares(verdicts, 4000, np.random.default_rng(2)), np.array(drawn_again(verdicts, 2000, 3))
    assert quick.mean(0) == pytest.approx(verdicts.mean(1), abs=0.01)
    assert np.cov(quick.T) == pytest.approx(np.cov(slow.T), abs=6e-4)


def test_images_are_drawn_in_pieces_without_a_change_of_law(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = np.random.default_rng(1).random((2, 30)) < 0.5
    monkeypatch.setattr(confirmation, "_AT_ONCE", 70)
    found = image_shares(verdicts, 501, np.random.default_rng(0))
    assert found.shape == (501, 2)
    assert found.mean(0) == pytest.approx(verdicts.mean(1), abs=0.02)
    assert set(np.round(found.ravel() * 30, 6) % 1) == {0.0}


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_weights_of_seeds_give_the_variance_that_independent_trainings_have(seeds: int) -> None:
    values = np.random.default_rng(seeds).standard_normal(seeds)
    weights = seed_weights(seeds, 200_000, np.random.default_rng(0))
    assert weights.sum(1) == pytest.approx(1.0)
    assert float((weights @ values).var()) == pytest.approx(values.var(ddof=1) / seeds, rel=0.02)


def test_seeds_times_images_are_the_slow_definition_on_few_of_both() -> None:
    """Every pair of resamples is as likely: of 2 seeds and 3 images there are 4 and 27."""
    verdicts = np.array([[True, False, False], [True, True, False]])
    ends = []
    for seeds in itertools.product(range(2), repeat=2):
        weight = [0.5 + 2**0.5 * (seeds.count(s) / 2 - 0.5) for s in range(2)]
        for images in itertools.product(range(3), repeat=3):
            ends.append(sum(weight[s] * sum(verdicts[s, i] for i in images) / 3 for s in range(2)))
    row = repeated(0, 2, robust={"validation": verdicts, "test": verdicts})
    drawn = resample([row], SIZES, draws=60_000)["robust_acc", "test"][:, 0]
    assert drawn.mean() == pytest.approx(np.mean(ends), abs=0.005)
    assert drawn.var() == pytest.approx(np.var(ends), rel=0.03)
    for end in {round(value, 9) for value in ends}:
        assert (drawn <= end + 1e-6).mean() == pytest.approx(np.mean(np.array(ends) <= end + 1e-6), abs=0.01)


def test_intervals_cover_the_truth_although_there_are_three_seeds() -> None:
    """Seeds, images, and how a seed takes an image all vary; the truth is the mean over all that there could be."""
    rng, hits, narrow, count = np.random.default_rng(5), 0, 0, 400
    for _ in range(count):
        hard, luck = rng.normal(0, 0.2, 60), rng.normal(0, 0.12, 3)
        chance = np.clip(0.5 + hard[None] + luck[:, None], 0, 1)  # symmetric about 0.5, which is the truth
        verdicts = rng.random((3, 60)) < chance
        row = repeated(0, 3, robust={"validation": verdicts, "test": verdicts})
        estimate = confirm([row], SIZES, draws=400, seed=int(rng.integers(1 << 30))).rows[0].estimates
        low, high = estimate["robust_acc", "test"].low, estimate["robust_acc", "test"].high
        assert low is not None
        assert high is not None
        hits += low <= 0.5 <= high
        plain = [verdicts[rng.integers(0, 3, 3)][:, rng.integers(0, 60, 60)].mean() for _ in range(120)]
        narrow += bool(np.quantile(plain, 0.025) <= 0.5 <= np.quantile(plain, 0.975))
    assert 0.93 <= hits / count <= 0.995
    assert narrow / count < 0.92, "seeds drawn with replacement and nothing else: what the stretching is for"


def test_identical_models_differ_by_nothing_because_their_images_are_drawn_together() -> None:
    verdicts = np.tile(np.random.default_rng(0).random(80) < 0.5, (3, 1))
    twins = [repeated(n, 3, robust={"validation": verdicts, "test": verdicts}) for n in (4, 7)]
    drawn = resample(twins, SIZES, draws=500)["robust_acc", "test"]
    assert np.ptp(drawn[:, 0]) > 0.1
    assert np.ptp(drawn[:, 0] - drawn[:, 1]) < 1e-12


def test_clean_accuracies_vary_with_their_seeds_and_with_the_images_of_the_whole_split() -> None:
    steady = {split: np.full(3, 0.8) for split in ("validation", "test")}
    drawn = resample([repeated(0, 3, clean=steady)], SIZES, draws=20_000)
    for split, size in SIZES.items():
        assert drawn["clean_acc", split].var() == pytest.approx(0.8 * 0.2 / size, rel=0.05)  # type: ignore[index]
    luck = np.array([0.7, 0.8, 0.9])
    drawn = resample([repeated(0, 3, clean={"validation": luck, "test": luck})], SIZES, draws=20_000)
    assert drawn["clean_acc", "test"].var() == pytest.approx(0.01 / 3 + 0.8 * 0.2 / 500, rel=0.05)


def test_undominated_points_are_the_front_of_each_draw() -> None:
    points = np.random.default_rng(0).integers(0, 4, (50, 6, 2)) / 4
    for draw, kept in zip(points, undominated(points), strict=True):
        assert np.flatnonzero(kept).tolist() == front([tuple(point) for point in draw])


def test_means_and_spreads_are_those_of_the_seeds() -> None:
    row = repeated(3, 4)
    found = confirm([row], SIZES, draws=200).rows[0]
    robust = row.robust["test"].mean(1)
    estimate = found.estimates["robust_acc", "test"]
    assert (found.number, found.seeds) == (3, 4)
    assert estimate.mean == pytest.approx(robust.mean())
    assert estimate.std == pytest.approx(robust.std(ddof=1))
    assert estimate.low is not None
    assert estimate.high is not None
    assert 0 <= estimate.low < estimate.mean < estimate.high <= 1


def test_a_single_seed_has_no_spread_no_interval_and_no_sure_place() -> None:
    found = confirm([repeated(0, 1), repeated(1, 3)], SIZES, draws=200)
    assert [row.keeps for row in found.rows] == [None, None]
    alone = found.rows[0].estimates["clean_acc", "test"]
    assert (alone.std, alone.low, alone.high) == (None, None, None)
    assert found.rows[1].estimates["clean_acc", "test"].low is not None


def test_a_place_is_kept_as_often_as_the_means_allow() -> None:
    """The first leads in clean accuracy by far, the second is behind everywhere, the third and fourth are alike."""
    easy = np.random.default_rng(0).random(200)
    levels = {0: (0.95, 0.2), 1: (0.6, 0.1), 2: (0.8, 0.6), 3: (0.8, 0.6)}
    rows = []
    for number, (clean, robust) in levels.items():
        seeds = clean + np.array([-0.01, 0.0, 0.01])
        verdicts = np.stack([easy < robust + change for change in (-0.02, 0.0, 0.02)])
        rows.append(
            repeated(
                number,
                3,
                clean={"validation": seeds, "test": seeds},
                robust={"validation": verdicts, "test": verdicts},
            )
        )
    found = confirm(rows, SIZES, draws=2000)
    assert [row.on_front for row in found.rows] == [True, False, True, True]
    first, behind, one, other = (row.keeps for row in found.rows)
    assert first == pytest.approx(1.0, abs=0.03)
    assert behind == pytest.approx(0.0, abs=0.03)
    assert one is not None
    assert 0.4 < one < 0.95
    assert one == pytest.approx(other, abs=0.1)


def test_a_front_of_other_objectives_is_made_of_clean_and_robust_means() -> None:
    rows = [repeated(n, 3) for n in range(3)]
    both = confirm(rows, SIZES, ("clean_acc", "robust_acc"), draws=200)
    assert confirm(rows, SIZES, ("clean_acc", "feature_cosine"), draws=200) == both
    alone = confirm(rows, SIZES, ("clean_acc",), draws=200)
    best = max(rows, key=lambda row: float(row.clean["test"].mean())).number
    assert [row.number for row in alone.rows if row.on_front] == [best]


def test_optimism_is_what_selection_added_and_its_interval_is_student_s() -> None:
    rows = [repeated(n, 3, selected={"clean_acc": 0.95, "robust_acc": 0.7}) for n in range(4)]
    found = confirm(rows, SIZES, draws=200)
    added = np.array([0.7 - row.robust["validation"].mean() for row in rows])
    half = 3.182446 * added.std(ddof=1) / 2  # t(3) at 97.5 %, from a table; √4
    assert found.optimism["robust_acc"].mean == pytest.approx(added.mean())
    assert found.optimism["robust_acc"].low == pytest.approx(added.mean() - half, rel=1e-5)
    shift = np.mean([row.robust["validation"].mean() - row.robust["test"].mean() for row in rows])
    assert found.shift["robust_acc"].mean == pytest.approx(shift)
    assert found.shift["robust_acc"].low is not None
    assert found.shift["robust_acc"].low < shift
    assert student(np.array([0.1])).low is None


def test_degrees_of_freedom_are_those_of_the_level_that_varies() -> None:
    assert degrees_of_freedom(0.1, 3, 0.0, 100) == pytest.approx(2)
    assert degrees_of_freedom(0.0, 3, 0.1, 100) == pytest.approx(99)
    assert 2 < degrees_of_freedom(0.1, 3, 0.1, 100) < 99
    assert degrees_of_freedom(0.0, 3, 0.0, 100) == float("inf")


def test_the_same_verdicts_give_the_same_answer() -> None:
    rows = [repeated(0, 3), repeated(1, 2)]
    assert confirm(rows, SIZES, draws=300) == confirm(rows, SIZES, draws=300)


def test_ten_configurations_with_three_seeds_and_a_thousand_images_take_about_a_second() -> None:
    rows = [repeated(n, 3, images=1000) for n in range(10)]
    confirm(rows, SIZES, draws=10)
    began = time.process_time()
    confirm(rows, SIZES)
    assert time.process_time() - began < 4, "alone it is below one; the machine may be shared"
