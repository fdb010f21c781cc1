"""Confirmation: what a front that was chosen on single trainings comes to with new seeds on new images. Pure.

A front is the best of many trials on the same validation images, so that its figures are too good on average: the luck
of a seed and of the images was selected too. New seeds of the same configurations have none of that luck.

Every accuracy here is a mean over two levels that cross: seeds (trainings) and images. Both are drawn again by the
pigeonhole bootstrap: a seed's weight times an image's weight, the images drawn once for all configurations, because all
are judged on the same ones.

Source: Owen 2007 (Annals of Applied Statistics 1, 386-411), who shows that for crossed levels its variance is, if
    anything, a little too large; Bouthillier et al. 2021 (MLSys, arXiv:2103.03098) and Agarwal et al. 2021 (NeurIPS,
    arXiv:2108.13264) on why trainings, not only test images, are the sample.
Differs: with three or five seeds the percentile bootstrap is far too narrow (Davison and Hinkley 1997, section
    3.8: a resample of n values varies by (n - 1)/n of what it should, and knows no Student tails). The seeds' weights
    are therefore stretched by sqrt(n/(n - 1)) (Rao and Wu 1988, JASA 83, 231-241), and the deviations of each
    configuration by t/z with the degrees of freedom of Satterthwaite 1946 (Biometrics Bulletin 2, 110-114).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweeps.records import Split

DRAWS = 10_000
SPLITS: tuple[Split, ...] = ("validation", "test")
FIGURES = ("clean_acc", "robust_acc")
FEWEST_SEEDS = 2
"""Fewer have no spread, and without one there is no interval."""
_AT_ONCE = 4_000_000
"""Images that are drawn at once, over all draws: 32 MB of numbers."""
Floats = NDArray[np.float64]
Key = tuple[str, Split]
"""A figure and the images that it is of."""


@dataclass(frozen=True)
class Repeated:
    """A configuration of the front and its trainings with new seeds."""

    number: int
    """Of the trial in the search."""
    selected: Mapping[str, float]
    """The figures in FIGURES that it was chosen by: one seed, validation images."""
    clean: Mapping[Split, Floats]
    """(seeds,) accuracy on the whole split."""
    robust: Mapping[Split, NDArray[np.bool_]]
    """(seeds, images) still correct after all attacks, in the same order of images for all configurations."""

    @property
    def seeds(self) -> int:
        return len(self.clean["test"])

    def values(self, key: Key) -> Floats:
        """Return the accuracy of each seed, (seeds,)."""
        figure, split = key
        return self.clean[split] if figure == "clean_acc" else self.robust[split].mean(1)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; fractions in [0, 1], or differences of such."""

    mean: float
    std: float | None
    """Over seeds, n - 1; None of a single one, or where it is no mean over seeds."""
    low: float | None
    high: float | None
    """The 95 % interval of the mean; None where there is no spread to take it from."""

    def public(self) -> dict[str, Any]:
        """Return it as the export shows it."""
        return {"mean": self.mean, "std": self.std, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Confirmed:
    """What became of one configuration."""

    number: int
    seeds: int
    selected: Mapping[str, float]
    estimates: Mapping[Key, Estimate]
    on_front: bool
    """Of the means on test images."""
    keeps: float | None
    """Share of the draws in which it is on that front; None if a configuration has a single seed."""


@dataclass(frozen=True)
class Confirmation:
    """What became of a front."""

    rows: tuple[Confirmed, ...]
    optimism: Mapping[str, Estimate]
    """By figure: what the search said minus the mean of the new seeds on the same validation images, mean over the
    configurations."""
    shift: Mapping[str, Estimate]
    """By figure: mean of the new seeds on validation images minus that on test images, mean over the configurations."""


def confirm(
    repeated: Sequence[Repeated],
    sizes: Mapping[str, int],
    objectives: Sequence[str] = FIGURES,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Confirmation:
    """Return what the new seeds come to; the same for the same verdicts, however often it is asked.

    Args:
        repeated: at least one configuration, each with at least one seed.
        sizes: images of "validation" and "test", on all of which the clean accuracies are.
        objectives: make the front of the means; where one of them is not in FIGURES, all of FIGURES do.
    """
    drawn = resample(repeated, sizes, draws=draws, seed=seed)
    stretched = {key: _stretch(repeated, key, sizes, values) for key, values in drawn.items()}
    figures = tuple(objectives) if set(objectives) <= set(FIGURES) else FIGURES
    keys: list[Key] = [(name, "test") for name in figures]
    means = np.stack([_means(repeated, key) for key in keys], -1)
    on_front = undominated(means[None])[0]
    sure = all(row.seeds >= FEWEST_SEEDS for row in repeated)
    places = np.stack([stretched[key] for key in keys], -1).round(12)  # or twins would differ by rounding
    shares = undominated(places).mean(0)
    rows = [
        Confirmed(
            number=row.number,
            seeds=row.seeds,
            selected=row.selected,
            estimates={key: _estimate(row.values(key), values[:, place]) for key, values in stretched.items()},
            on_front=bool(on_front[place]),
            keeps=float(shares[place]) if sure else None,
        )
        for place, row in enumerate(repeated)
    ]
    optimism = {
        name: student(np.array([row.selected[name] for row in repeated]) - _means(repeated, (name, "validation")))
        for name in FIGURES
        if all(name in row.selected for row in repeated)
    }
    shift = {name: _shift(repeated, drawn, name, sure) for name in FIGURES}
    return Confirmation(tuple(rows), optimism, shift)


def resample(
    repeated: Sequence[Repeated], sizes: Mapping[str, int], *, draws: int = DRAWS, seed: int = 0
) -> dict[Key, Floats]:
    """Draw seeds and images again; returns the means (draws, configurations) by figure and split.

    A seed is drawn for both splits and both figures at once. Of robust accuracies the images are drawn, once for all
    configurations. Of clean ones the ledger has counts of the whole split and no verdicts: their images are one
    binomial draw for each configuration, as if all its seeds failed on the same images, which is an upper limit.
    """
    rng = np.random.default_rng(seed)
    weights = [seed_weights(row.seeds, draws, rng) for row in repeated]
    ends = np.cumsum([row.seeds for row in repeated])[:-1]
    found: dict[Key, Floats] = {}
    for split in SPLITS:
        shares = image_shares(np.concatenate([row.robust[split] for row in repeated]), draws, rng)
        parts = np.split(shares, ends, axis=1)
        found["robust_acc", split] = np.stack(
            [(weight * part).sum(1) for weight, part in zip(weights, parts, strict=True)], 1
        )
        clean = [
            weight @ row.clean[split] + _binomial(row.clean[split], sizes[split], draws, rng)
            for weight, row in zip(weights, repeated, strict=True)
        ]
        found["clean_acc", split] = np.stack(clean, 1)
    return found


def seed_weights(seeds: int, draws: int, rng: np.random.Generator) -> Floats:
    """Draw seeds with replacement; returns their weights (draws, seeds), each row with sum 1.

    The deviations from 1/seeds are stretched so that a mean of independent values varies as much as it should (Rao and
    Wu 1988); a weight may be below 0. A single seed has the weight 1.
    """
    if seeds == 1:
        return np.ones((draws, 1))
    counts = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws)
    stretched: Floats = 1 / seeds + math.sqrt(seeds / (seeds - 1)) * (counts / seeds - 1 / seeds)
    return stretched


def image_shares(verdicts: NDArray[np.bool_], draws: int, rng: np.random.Generator) -> Floats:
    """Draw images with replacement, once for all models; returns the accuracy of each model in each draw.

    Args: verdicts: (models, images). Returns: (draws, models).
    """
    images = verdicts.shape[1]
    flags = verdicts.T.astype(np.float32)
    at_once = max(1, _AT_ONCE // images)
    parts = []
    for first in range(0, draws, at_once):
        count = min(at_once, draws - first)
        drawn = rng.integers(0, images, (count, images)) + images * np.arange(count)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=count * images).reshape(count, images)
        parts.append(counts.astype(np.float32) @ flags)  # whole numbers below 2²⁴, so that float32 is exact
    shares: Floats = np.concatenate(parts).astype(np.float64) / images
    return shares


def undominated(points: Floats) -> NDArray[np.bool_]:
    """Return which points no other dominates, draw by draw; equal points all stay.

    Args: points: (draws, configurations, figures). Returns: (draws, configurations).
    """
    kept = np.ones(points.shape[:2], dtype=bool)
    for place in range(points.shape[1]):
        one = points[:, place : place + 1]
        dominated = np.all(points >= one, axis=-1) & np.any(points > one, axis=-1)
        kept[:, place] = ~dominated.any(axis=1)
    return kept


def student(values: Floats) -> Estimate:
    """Return the mean of independent values (n,) with Student's 95 % interval; a single one has none.

    The configurations are what varies: each has its own luck, and the images, the same on both sides, cancel.
    """
    mean = float(values.mean())
    if len(values) < FEWEST_SEEDS:
        return Estimate(mean, None, None, None)
    half = _quantile(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(mean, None, mean - half, mean + half)


def degrees_of_freedom(by_seeds: float, seeds: int, by_images: float, images: int) -> float:
    """Return those of a sum of two variances of a mean (Satterthwaite 1946); infinite if nothing varies."""
    parts = by_seeds**2 / (seeds - 1) + by_images**2 / max(images - 1, 1)
    return (by_seeds + by_images) ** 2 / parts if parts else math.inf


def _stretch(repeated: Sequence[Repeated], key: Key, sizes: Mapping[str, int], drawn: Floats) -> Floats:
    """Stretch the deviations of each configuration's draws (draws, configurations) by t/z."""
    means = _means(repeated, key)
    factors = [_quantile(_freedom(row, key, sizes)) / _quantile(math.inf) for row in repeated]
    stretched: Floats = means + np.array(factors) * (drawn - means)
    return stretched


def _freedom(row: Repeated, key: Key, sizes: Mapping[str, int]) -> float:
    if row.seeds < FEWEST_SEEDS:
        return math.inf
    values = row.values(key)
    by_seeds = float(values.var(ddof=1)) / row.seeds
    if key[0] == "clean_acc":
        images, share = sizes[key[1]], float(values.mean())
        return degrees_of_freedom(by_seeds, row.seeds, share * (1 - share) / images, images)
    per_image = row.robust[key[1]].mean(0)
    images = len(per_image)
    by_images = float(per_image.var(ddof=1)) / images if images > 1 else 0.0
    return degrees_of_freedom(by_seeds, row.seeds, by_images, images)


def _estimate(values: Floats, drawn: Floats) -> Estimate:
    mean = float(values.mean())
    if len(values) < FEWEST_SEEDS:
        return Estimate(mean, None, None, None)
    low, high = np.clip(np.quantile(drawn, (0.025, 0.975)), 0, 1)
    return Estimate(mean, float(values.std(ddof=1)), float(low), float(high))


def _shift(repeated: Sequence[Repeated], drawn: Mapping[Key, Floats], figure: str, sure: bool) -> Estimate:
    """Return what two splits differ by: the same trainings on both, the images of each drawn for themselves."""
    mean = float((_means(repeated, (figure, "validation")) - _means(repeated, (figure, "test"))).mean())
    if not sure:
        return Estimate(mean, None, None, None)
    draws = (drawn[figure, "validation"] - drawn[figure, "test"]).mean(1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return Estimate(mean, None, float(low), float(high))


def _means(repeated: Sequence[Repeated], key: Key) -> Floats:
    return np.array([row.values(key).mean() for row in repeated])


def _binomial(shares: Floats, images: int, draws: int, rng: np.random.Generator) -> Floats:
    """Draw by how much the images move an accuracy of which only the shares are known, (draws,)."""
    share = float(shares.mean())
    moved: Floats = rng.binomial(images, share, size=draws) / images - share
    return moved


def _quantile(freedom: float) -> float:
    """Return Student's 97.5 % quantile."""
    from scipy.special import ndtri, stdtrit

    return float(ndtri(0.975) if math.isinf(freedom) else stdtrit(freedom, 0.975))
