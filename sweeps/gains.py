"""Whether the best method gains more than chance over the baseline: one sentence, from paired verdicts. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sweeps.columns import is_done
from sweeps.confirm_cost import SUGGESTED_SEEDS
from sweeps.paired import Counts, count_pairs
from sweeps.records import LAUNCHED, Split, State, TrialRecord
from sweeps.snapshot import Snapshot, accuracy

BASELINE = "plain"
"""Label of the method that others are measured against; where a sweep has none, the runner-up is."""


@dataclass(frozen=True)
class Gain:
    """The best trial of one method against the best of another, by robust accuracy."""

    best: TrialRecord
    """Exact."""
    baseline: TrialRecord
    """Of another method; the highest value of its trials, which may be a bound."""
    split: Split
    """Whose images `counts` are of: test if both went through the whole cascade there."""
    counts: Counts
    """A is `best`, B is `baseline`."""

    @property
    def is_bound(self) -> bool:
        """Whether the baseline's verdicts are not final. They can only fall, so that the gain can only grow."""
        return self.split == "validation" and not self.baseline.exact

    @property
    def outcome(self) -> str:
        """Return "exceeds", "less", "within", or "open": within the interval, but the baseline may still fall."""
        low, high = self.counts.interval
        if low > 0:
            return "exceeds"
        if self.is_bound:
            return "open"
        return "less" if high < 0 else "within"


def gain_of(snapshot: Snapshot) -> Gain | str:
    """Return the gain of the best method, or the sentence that says why none can be told.

    The best method is that of the exact trial with the highest robust accuracy; `plain` stands aside, because it is
    what the others are measured against. A baseline's trial may be a bound, an upper one: what is above that is above
    the baseline whatever its missing attacks would find.
    """
    valued = [t for t in snapshot.trials if t.state is State.FINISHED and t.robust_acc is not None]
    labels = list(dict.fromkeys(t.label for t in snapshot.trials))
    if len(labels) < 2:
        return "all trials are of one method, so that there is no other to gain on."
    with_baseline = BASELINE in labels
    exact = [t for t in valued if t.exact and not (with_baseline and t.label == BASELINE)]
    if not exact:
        whose = f"of a method other than {BASELINE} " if with_baseline else ""
        return f"no robust accuracy {whose}is exact yet; there are only upper bounds, or nothing."
    best = max(exact, key=_rank)
    others = [t for t in valued if (t.label == BASELINE if with_baseline else t.label != best.label)]
    if not others:
        return f"no trial of {BASELINE if with_baseline else 'another method'} has a robust accuracy."
    return _paired(snapshot, best, max(others, key=_rank))


def _rank(trial: TrialRecord) -> tuple[float, float, int]:
    return trial.robust_acc or 0.0, trial.clean_acc or 0.0, -trial.number


def _paired(snapshot: Snapshot, best: TrialRecord, baseline: TrialRecord) -> Gain | str:
    splits: tuple[Split, ...] = ("validation",)
    if snapshot.is_test_exact(best) and snapshot.is_test_exact(baseline):
        splits = ("test", "validation")
    for split in splits:
        a, b = standing(snapshot, best, split), standing(snapshot, baseline, split)
        if a is not None and b is not None and a.size and a.shape == b.shape:
            return Gain(best, baseline, split, count_pairs(a, b))
    return f"trials {best.number} and {baseline.number} have no attack in common whose verdicts are of the same images."


def standing(snapshot: Snapshot, trial: TrialRecord, split: Split) -> NDArray[np.bool_] | None:
    """Return which images (images,) withstood all of the launched cascade that has run; None before its first attack,
    and where an attack kept no verdicts."""
    mine = [s for s in snapshot.stages_of(trial, split) if s.plan == LAUNCHED and s.cumulative and is_done(s)]
    verdicts = [s.verdicts for s in mine if s.verdicts is not None]
    if not verdicts or len(verdicts) < len(mine) or len({v.shape for v in verdicts}) > 1:
        return None
    return np.asarray(np.logical_and.reduce(verdicts), dtype=bool)


def gain_sentence(snapshot: Snapshot) -> str:
    """Say whether the best method's gain in robust accuracy exceeds its 95 % interval, and what the figure rests on."""
    gain = gain_of(snapshot)
    if isinstance(gain, str):
        return f"Whether the best method gains anything cannot be said: {gain}"
    counts, (low, high) = gain.counts, gain.counts.interval
    at_least = "at least " if gain.is_bound else ""
    found = (
        f"Its best, trial {gain.best.number}, withstands the attacks on {_share(counts, True)} of the {counts.images} "
        f"{gain.split} images, the best of {gain.baseline.label}, trial {gain.baseline.number}, on the same images on "
        f"{'at most ' if gain.is_bound else ''}{_share(counts, False)}: a difference of {at_least}"
        f"{counts.difference:+.3f} [{low:+.3f}, {high:+.3f}] (clean accuracy {accuracy(gain.best.clean_acc)} against "
        f"{accuracy(gain.baseline.clean_acc)})"
    )
    missing = f"not all attacks on trial {gain.baseline.number} have run, and it can only fall"
    verdict = {
        "exceeds": f"The gain of {gain.best.label} over {gain.baseline.label} exceeds its 95 % interval",
        "within": f"The gain of {gain.best.label} over {gain.baseline.label} does not exceed its 95 % interval: it may "
        "be chance",
        "less": f"{gain.best.label} gains nothing over {gain.baseline.label}, it is worse by more than its 95 % "
        "interval",
        "open": f"Whether {gain.best.label} gains over {gain.baseline.label} cannot be said: {missing}",
    }[gain.outcome]
    return f"{verdict}. {found}."


def caution(snapshot: Snapshot) -> str:
    """Say what no interval in the sweep covers, the choice among many trials and the seeds, and what settles it."""
    gain = gain_of(snapshot)
    finished = len(snapshot.in_state(State.FINISHED))
    picked = f"The best of {finished} trials were picked on these validation images, which flatters them"
    if not isinstance(gain, str) and gain.split == "test":
        picked = f"The best of {finished} trials were picked on validation images, the gain is of test images"
    seeds = "each figure is of one seed" if not snapshot.replicates else "most figures are of one seed"
    return f"{picked}; {seeds}. {_settling(snapshot)}"


def _settling(snapshot: Snapshot) -> str:
    if snapshot.confirming is not None and snapshot.confirming.result is not None:
        return "What became of the front with new seeds stands under Confirmation."
    command = f"confirm {snapshot.sweep.name} --seeds {SUGGESTED_SEEDS}"
    return f"`{command}` trains the front again with new seeds, judges it on test images, and settles both."


def gain_rows(snapshot: Snapshot) -> list[tuple[str, str]]:
    """Return the paired table behind the sentence as (name, figure) pairs; empty where there is none."""
    gain = gain_of(snapshot)
    if isinstance(gain, str):
        return []
    counts, (low, high) = gain.counts, gain.counts.interval
    a, b = gain.best.number, gain.baseline.number
    return [
        ("withstood by both", str(counts.both)),
        (f"by trial {a} alone", str(counts.only_a)),
        (f"by trial {b} alone", str(counts.only_b)),
        ("by neither", str(counts.neither)),
        ("difference [95 %, Newcombe]", f"{counts.difference:+.3f} [{low:+.3f}, {high:+.3f}]"),
        ("p (McNemar, exact)", f"{counts.p_value:.2g}"),
    ]


def _share(counts: Counts, first: bool) -> str:
    return accuracy((counts.both + (counts.only_a if first else counts.only_b)) / counts.images)
