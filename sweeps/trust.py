"""Whether a trial's robustness can be believed: the signs of an attack that failed rather than of a model that held.

A model that hides its gradients looks robust to attacks that follow them. The signs are those of Athalye et al. 2018
(arXiv:1802.00420, section 3.1), Carlini et al. 2019 (arXiv:1902.06705) and Croce and Hein 2020 (arXiv:2003.01690), read
off what the attacks have counted and image by image from their verdicts. A flag is a reason to look, no proof. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, permutations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sweeps.columns import LEGACY_BUDGET, SURROGATE, Cell, Column, cell_of, columns_of, is_done
from sweeps.records import PlannedStage, StageRecord

FEW_IMAGES = 2
"""So many images prove nothing: our choice, because random starts and rounding move that many between two runs."""
MOST_FLAT = 0.01
"""Share of attacked images whose gradient may be exactly zero: our choice, because float32 leaves next to none in a
model that its attacks can follow, and each is an image that was not attacked at all."""
LARGEST_SCALE = 50.0
"""Mean spread of the clean logits, the largest less the smallest: our choice, because float32 rounds the probability of
the true class to 1 once it leads by 17 logits, and with it most of the cross-entropy's gradient to zero."""
MOST_BY_DLR = 0.10
"""Share of the images that a loss blind to the scale of the logits may break after APGD-CE: our choice, because on
models that hide nothing the two differ by a few points, and more shows that the cross-entropy was no guide."""
GREY = 0.5
"""From this ε in L∞ on every image can be made the same uniform grey, so that a model can be right about one class."""
MOST_MISMATCHES = 1e-3
"""Share of attacked images on which the attack's own pass and the judging one may disagree: our choice, because
verdicts at the border flip with the batch shape, and one image in a thousand changes no conclusion."""

DLR = ("apgd_dlr", "apgd_t")
"""Attacks whose loss does not change with the scale of the logits."""
BLIND = ("square",)
"""Attacks that use no gradient."""
SINGLE_STEP = ("fgsm",)
"""Attacks that may overshoot: a large ε need not bring them to zero."""

MEANING = {
    "zero-gradients": "Gradients are exactly zero where an attack starts, so that it has nowhere to go.",
    "logit-scale": "Logits are so far apart that the cross-entropy's gradient vanishes in float32.",
    "dlr-beats-ce": "A loss that ignores the scale of the logits finds what the cross-entropy misses.",
    "square-alone": "An attack without gradients finds what all attacks with gradients miss.",
    "robust-to-grey": "Images survive an ε at which every image can be made the same grey.",
    "rises-with-epsilon": "Accuracy rises with ε, though the larger ball contains the smaller one.",
    "weaker-beats-stronger": "An attack that takes fewer passes finds what one with more of them misses.",
    "transfer-beats-own": "An attack made on another model finds what as strong a one on the model itself misses.",
    "mismatches": "The attack and the judge see different predictions on too many images.",
}
"""What each code says about the model or the attack."""


class Flag(NamedTuple):
    """A reason not to trust a trial's robust accuracy."""

    code: str
    """Key of MEANING."""
    text: str
    """One sentence, with the numbers."""


class _Result(NamedTuple):
    """What one attack (a cascade up to a column counts as one) left of a set of images."""

    column: Column
    cell: Cell
    standing: NDArray[np.bool_]
    passes: int | None
    """Most forward passes for one image; None if an attack does not say."""

    @property
    def name(self) -> str:
        return self.column.title()

    @property
    def images(self) -> tuple[str, int, int]:
        """What names the images: split, number and seed."""
        stage = self.column.stages[0]
        return self.column.split, stage.images, stage.seed


def flags_of(stages: Sequence[StageRecord], planned: Iterable[PlannedStage]) -> tuple[Flag, ...]:
    """Return a trial's flags, in the order of MEANING. Args: stages: of that trial; planned: of the sweep."""
    columns = columns_of(planned)
    done = [stage for stage in stages if is_done(stage)]
    results = list(_results(columns, done))
    cascades = list(_cascades(columns, done))
    return (
        *_zero_gradients(done),
        *_logit_scale(done),
        *_dlr_beats_ce(cascades),
        *_square_alone(cascades),
        *_robust_to_grey(results),
        *_rises_with_epsilon(results),
        *_weaker_beats_stronger(results),
        *_transfer_beats_own(results),
        *_mismatches(done),
    )


def count_mismatches(stages: Iterable[StageRecord]) -> tuple[int, int]:
    """Return how many images the attacks' own passes and the judging ones disagreed on, and how many were attacked."""
    counted = [s.facts for s in stages if s.state == "done" and "mismatches" in s.facts]
    return round(sum(f["mismatches"] for f in counted)), round(sum(f.get("attacked", 0) for f in counted))


# -- from what the attacks counted ------------------------------------------------------------------------------------


def _zero_gradients(done: Sequence[StageRecord]) -> Iterator[Flag]:
    """At most one flag for a split: that of the attack with the largest share."""
    for split in dict.fromkeys(stage.split for stage in done):
        found = []
        for stage in done:
            flat, attacked = stage.facts.get("flat", 0), stage.facts.get("attacked", 0)
            if stage.split == split and flat > FEW_IMAGES and flat > MOST_FLAT * attacked:
                found.append((flat / attacked, round(flat), round(attacked), stage.attack))
        if found:
            share, flat, attacked, attack = max(found)
            others = f"; {len(found) - 1} other attack{'s' * (len(found) > 2)} saw the like" if len(found) > 1 else ""
            text = f"{flat} of {attacked} {split} images ({share:.1%}) have a gradient of exactly zero at the start of"
            yield Flag("zero-gradients", f"{text} {attack}{others}.")


def _logit_scale(done: Sequence[StageRecord]) -> Iterator[Flag]:
    scale = max((stage.facts.get("logit_scale", 0.0) for stage in done), default=0.0)
    if scale > LARGEST_SCALE:
        text = f"the largest and the smallest logit of a clean image are {scale:.3g} apart on average"
        yield Flag("logit-scale", f"{text}, more than {LARGEST_SCALE:g}.")


def _mismatches(done: Sequence[StageRecord]) -> Iterator[Flag]:
    count, attacked = count_mismatches(done)
    if count > MOST_MISMATCHES * attacked:
        text = f"on {count} of {attacked} attacked images the attack's own pass and the judging one disagree"
        yield Flag("mismatches", f"{text}: more than {MOST_MISMATCHES:.1%}.")


# -- from the verdicts of one cascade ---------------------------------------------------------------------------------


def _cascades(
    columns: Iterable[Column], done: Iterable[StageRecord]
) -> Iterator[list[tuple[PlannedStage, StageRecord]]]:
    """Yield, for every plan and split, the cascade's stages that are done, in order."""
    found = {(stage.split, stage.position): stage for stage in done if stage.verdicts is not None}
    cascades: dict[tuple[str, str], list[tuple[PlannedStage, StageRecord]]] = {}
    for column in columns:
        for part in column.stages if column.cumulative else ():
            if (stage := found.get((part.split, part.position))) is not None:
                cascades.setdefault((part.split, part.plan), []).append((part, stage))
    yield from cascades.values()


def _broken(cascade: Sequence[tuple[PlannedStage, StageRecord]], place: int) -> int:
    """Count the images that a stage broke of those that the one before it left."""
    before, after = cascade[place - 1][1].verdicts, cascade[place][1].verdicts
    return 0 if before is None or after is None else int((before & ~after).sum())


def _dlr_beats_ce(cascades: Iterable[Sequence[tuple[PlannedStage, StageRecord]]]) -> Iterator[Flag]:
    for cascade in cascades:
        attacks = [part.attack for part, _ in cascade]
        if "apgd_ce" not in attacks:
            continue
        start = attacks.index("apgd_ce")
        count = sum(_broken(cascade, i) for i in range(start + 1, len(attacks)) if attacks[i] in DLR)
        part, stage = cascade[start]
        images = stage.images or 0
        if count > FEW_IMAGES and count > MOST_BY_DLR * images:
            text = f"attacks on the DLR loss broke {count} of {images} {part.split} images ({count / images:.1%}) that"
            yield Flag("dlr-beats-ce", f"{text} withstood {part.label}.")


def _square_alone(cascades: Iterable[Sequence[tuple[PlannedStage, StageRecord]]]) -> Iterator[Flag]:
    for cascade in cascades:
        guided = False
        for place, (part, _) in enumerate(cascade):
            if part.attack not in BLIND:
                guided = True
            elif guided and (count := _broken(cascade, place)) > FEW_IMAGES:
                text = f"{part.label} broke {count} {part.split} images that every attack with gradients before it left"
                yield Flag("square-alone", f"{text} standing.")


# -- from the verdicts of two attacks ---------------------------------------------------------------------------------


def _results(columns: Iterable[Column], done: Sequence[StageRecord]) -> Iterator[_Result]:
    ran = {(stage.split, stage.position) for stage in done}
    for column in columns:
        cell = cell_of(column, done)
        if cell.done and cell.verdicts is not None:
            parts = [p for p in (*column.before, *column.stages) if (p.split, p.position) in ran]
            most = [part.passes[1] for part in parts if part.passes is not None]
            yield _Result(column, cell, cell.verdicts, sum(most) if len(most) == len(parts) else None)


def _robust_to_grey(results: Iterable[_Result]) -> Iterator[Flag]:
    for result in results:
        column, threat = result.column, result.column.threat
        large = threat["norm"] == "linf" and threat["epsilon"] >= GREY
        large = large and LEGACY_BUDGET not in threat and SURROGATE not in threat
        single = any(part.attack in SINGLE_STEP for part in column.stages)
        survivors = result.cell.survivors or 0
        if large and not single and not column.cumulative and result.cell.exact and survivors > FEW_IMAGES:
            text = f"{survivors} of {result.cell.images} {column.split} images withstand {result.name}"
            yield Flag("robust-to-grey", f"{text}, with which all can be made the same grey.")


def _rises_with_epsilon(results: Sequence[_Result]) -> Iterator[Flag]:
    alone = [result for result in results if not result.column.cumulative and result.cell.exact]
    for near, far in permutations(alone, 2):
        if near.column.threat["epsilon"] >= far.column.threat["epsilon"] or _kind(near) != _kind(far):
            continue
        only_far = int((far.standing & ~near.standing).sum())
        if only_far > FEW_IMAGES and far.standing.sum() > near.standing.sum():
            rise = f"accuracy rises from {near.cell.figure} under {near.name} to {far.cell.figure} under {far.name}"
            yield Flag("rises-with-epsilon", f"{rise}: {only_far} images withstand only the larger ball.")


def _kind(result: _Result) -> tuple[Any, ...]:
    """Name images, norm, surrogate, attack and all of its configuration but the length of a step, which goes with ε."""
    parts = tuple((p.attack, {k: v for k, v in p.config.items() if k != "step_size"}) for p in result.column.stages)
    return result.images, result.column.threat["norm"], result.column.threat.get(SURROGATE), parts


def _weaker_beats_stronger(results: Sequence[_Result]) -> Iterator[Flag]:
    for pair in combinations(results, 2):
        threat = pair[0].column.threat
        if pair[0].images != pair[1].images or threat != pair[1].column.threat or SURROGATE in threat:
            continue  # that more steps on another model transfer better is nothing to rely on
        if pair[0].passes is None or pair[1].passes is None or pair[0].passes == pair[1].passes:
            continue
        weaker, stronger = sorted(pair, key=lambda result: result.passes or 0)
        count = int((stronger.standing & ~weaker.standing).sum())
        if count > FEW_IMAGES:
            costs = f"at most {weaker.passes:,} passes an image against {stronger.passes:,}"
            yield Flag(
                "weaker-beats-stronger", f"{weaker.name} broke {count} images that {stronger.name} left ({costs})."
            )


def _transfer_beats_own(results: Sequence[_Result]) -> Iterator[Flag]:
    for own, transferred in permutations(results, 2):
        threat = {SURROGATE: None, **transferred.column.threat}
        if not threat.pop(SURROGATE) or own.column.threat != threat or own.images != transferred.images:
            continue
        if own.passes is None or transferred.passes is None or own.passes < transferred.passes:
            continue
        count = int((own.standing & ~transferred.standing).sum())
        if count > FEW_IMAGES:
            yield Flag("transfer-beats-own", f"{transferred.name} broke {count} images that {own.name} left.")
