"""What a sweep came to in a few lines that a newcomer understands: what to take, why, and how sure it is. Pure."""

from __future__ import annotations

from sweeps.choosing import knee_of
from sweeps.gains import caution, gain_sentence
from sweeps.records import State, TrialRecord
from sweeps.snapshot import Snapshot, accuracy, searched

NAMES = {"clean_acc": "clean accuracy", "robust_acc": "robust accuracy", "feature_cosine": "feature cosine"}


def advice(snapshot: Snapshot) -> list[tuple[str, str]]:
    """Return lines as (name, text): what to take, at its ends, why, the gain, how sure; empty before there is a front.

    A trial is called ``trial 7`` in all of them, so that a page can make links of it.
    """
    front = snapshot.front
    if not front:
        return []
    knee = knee_of(snapshot)
    lines = [("Take", _take(snapshot, knee))]
    if len(front) > 1:
        ends = [(o, max(front, key=lambda t, o=o: t.value(o) or 0.0)) for o in snapshot.sweep.objectives]  # type: ignore[misc]
        told = (f"{NAMES[o]} alone: {_named(snapshot, t)}" for o, t in ends)
        lines.append(("Or", "; ".join(f"for {text}" for text in told) + "."))
    lines.append(("Why", _why(snapshot)))
    if "robust_acc" in snapshot.sweep.objectives:
        lines += [("Gain", gain_sentence(snapshot)), ("How sure", _how_sure(snapshot, knee or front[0]))]
    return lines


def _take(snapshot: Snapshot, knee: TrialRecord | None) -> str:
    front = snapshot.front
    if knee is not None:
        return (
            f"{_named(snapshot, knee)}. It is the knee of the front: past it, a little of one costs much of the other."
        )
    if len(front) == 1:
        alone = "It is best in both" if len(snapshot.sweep.objectives) == 2 else "It is best"
        return f"{_named(snapshot, front[0])}. {alone}."
    return "one of the front's two ends; between them no trial stands out, so that it is a matter of what counts more."


def _named(snapshot: Snapshot, trial: TrialRecord) -> str:
    """``trial 11 (adversarial, epsilon=0.0727): clean 0.983, robust 0.797 [0.718, 0.858]``"""
    drawn = searched(trial, snapshot.short_names)
    what = trial.label if drawn == "–" else f"{trial.label}, {drawn}"
    figures = [f"clean {accuracy(trial.clean_acc)}"] if trial.clean_acc is not None else []
    if trial.robust_acc is not None:
        figures.append(f"robust {snapshot.robust(trial)}")
    if trial.feature_cosine is not None:
        figures.append(f"feature cosine {accuracy(trial.feature_cosine)}")
    return f"trial {trial.number} ({what}): {', '.join(figures)}"


def _why(snapshot: Snapshot) -> str:
    count, finished = len(snapshot.front), len(snapshot.in_state(State.FINISHED))
    by_label = {label: sum(t.label == label for t in snapshot.front) for label in snapshot.colours}
    shares = ", ".join(f"{'all' if n == count > 1 else n} of {label}" for label, n in by_label.items() if n)
    if len(snapshot.sweep.objectives) == 1:
        return f"no other of the {finished} finished trials is better ({shares})."
    trials = f"{count} trials are" if count != 1 else "1 trial is"
    return (
        f"{trials} on the front, {shares}: no other of the {finished} finished trials is better in one accuracy "
        "without being worse in the other."
    )


def _how_sure(snapshot: Snapshot, trial: TrialRecord) -> str:
    parts = [] if snapshot.is_settled() else ["The front is not settled: attacks are still to run."]
    flagged = sorted(snapshot.flags.keys() & snapshot.on_front)
    if flagged:
        numbers = ", ".join(f"trial {n}" for n in flagged)
        parts.append(f"Attacks may have failed on {numbers}: see the warnings.")
    if trial.test_robust_acc is not None:
        parts.append(
            f"On test images, which chose nothing, trial {trial.number} has clean {accuracy(trial.test_clean_acc)} and "
            f"robust {snapshot.test_robust(trial)}."
        )
    return " ".join([*parts, caution(snapshot)])
