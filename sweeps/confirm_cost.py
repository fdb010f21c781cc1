"""What confirming a front would take, from the seconds that its members took in the search."""

from __future__ import annotations

from collections.abc import Sequence

from sweeps.columns import last_of_cascade
from sweeps.folder import SweepFolder
from sweeps.parents import children_of
from sweeps.records import IMPORTED, LAUNCHED, Split, TrialRecord
from sweeps.snapshot import Snapshot, duration

SUGGESTED_SEEDS = 3
"""Our choice: the fewest that show a spread whose interval is of use."""


def work_seconds(snapshot: Snapshot, chosen: Sequence[TrialRecord], seeds: int) -> float:
    """Return the seconds of workers that so many new seeds of some trials take: training, and attacks on both splits.

    Each part takes what it took in the search; where the search has judged no test images, as much per image as the
    validation images took. What they start from is trained once for all.
    """
    numbers = {trial.number for trial in chosen}
    parents = [p for p in snapshot.parents if numbers & set(children_of(p, snapshot.trials))]
    each = sum((trial.train_seconds or 0.0) + _attack_seconds(snapshot, trial) for trial in chosen)
    return sum(parent.train_seconds or 0.0 for parent in parents) + seeds * each


def cost_in_words(snapshot: Snapshot, chosen: Sequence[TrialRecord], seeds: int) -> str:
    """Return ``4 configurations × 3 seeds, about 9.0 min of work if it goes as it did in the search``."""
    count, took = len(chosen), duration(work_seconds(snapshot, chosen, seeds))
    configurations = f"{count} configuration{'s' * (count != 1)} × {seeds} seed{'s' * (seeds != 1)}"
    return f"{configurations}, about {took} of work if it goes as it did in the search"


def suggestion(snapshot: Snapshot, folder: SweepFolder) -> str | None:
    """Return the command that confirms a finished search and its cost; None where there is nothing to confirm."""
    is_search = not snapshot.sweep.document.get("confirms") and snapshot.sweep.planned_stages
    brought = any(trial.label == IMPORTED for trial in snapshot.trials)
    if not is_search or brought or not snapshot.front or not snapshot.is_settled():
        return None
    cost = cost_in_words(snapshot, snapshot.front, SUGGESTED_SEEDS)
    return f"{folder.command('confirm')} --seeds {SUGGESTED_SEEDS}    ({cost})"


def more_seeds(snapshot: Snapshot, folder: SweepFolder) -> str:
    """Return the command that adds seeds to a confirmation. Args: folder: of the confirming sweep."""
    confirms = snapshot.sweep.document["confirms"]
    search = SweepFolder(folder.storage, confirms["sweep"])
    named = "" if folder.name == default_name(search.name) else f" --as {folder.name}"
    chosen = ",".join(map(str, confirms["trials"]))
    seeds = snapshot.sweep.requested // len(confirms["trials"])
    return f"{search.command('confirm')}{named} --trials {chosen} --seeds {seeds + SUGGESTED_SEEDS}"


def default_name(sweep: str) -> str:
    """Return what the confirmation of a sweep is called."""
    return f"{sweep}-confirm"


def _attack_seconds(snapshot: Snapshot, trial: TrialRecord) -> float:
    on_validation = _seconds(snapshot, trial, "validation")
    if snapshot.is_test_exact(trial):
        return on_validation + _seconds(snapshot, trial, "test")
    sizes = {split: _images(snapshot, split) for split in ("validation", "test")}
    return on_validation * (1 + (sizes["test"] or sizes["validation"]) / max(1, sizes["validation"]))


def _seconds(snapshot: Snapshot, trial: TrialRecord, split: Split) -> float:
    return sum(s.seconds or 0.0 for s in snapshot.stages_of(trial, split) if s.plan == LAUNCHED)


def _images(snapshot: Snapshot, split: Split) -> int:
    last = last_of_cascade(snapshot.columns, split)
    return 0 if last is None else last.stages[-1].images
