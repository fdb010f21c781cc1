"""What of a sweep's files nothing needs any more, and its removal: `gc`.

Kept in any case: the ledger, the checkpoints of what is still to be trained or may be tried again, final weights unless
those off the front are given up on purpose, those of parents always, and every verdict that a question of a plan can
still ask for.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from search_spaces.errors import SweepError
from search_spaces.faults import durable
from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.pareto import dominates
from sweeps.records import State, SweepRecord, TrialRecord
from sweeps.summary import objective_values
from sweeps.sweep_files import SweepFiles, files_of

OVER = (State.TRAINED, State.EVALUATING, State.FINISHED)
"""States in which the final weights have replaced the checkpoints. A failed trial may be tried again from its own."""
FRESH_S = 60.0
"""A half-written file that was changed since then is left alone, whoever writes it (our choice)."""
_TEMPORARY = re.compile(r"\..+[.-](\d+)(\.tmp)?(-wal|-shm|-journal)?")
"""Names of half-written files carry their writer's pid."""


@dataclass(frozen=True)
class Unneeded:
    """Files of one kind that nothing needs."""

    what: str
    paths: tuple[Path, ...]
    size: int
    """Bytes."""


def find_unneeded(ledger: Ledger, folder: SweepFolder, *, weights: bool = False) -> list[Unneeded]:
    """Return what can go, kind by kind; kinds of which there is nothing are left out.

    Args:   weights: also the final weights of finished trials that an exact one dominates.
    Raises: SweepError if weights are to go before the sweep is finished.
    """
    sweep, trials, files = ledger.sweep(), ledger.trials(), files_of(folder)
    found = [
        ("checkpoints of trained trials", list(_checkpoints([*ledger.parents(), *trials], folder, files))),
        ("half-written files of dead processes", list(_temporary(folder.root))),
        ("Ray Tune's own files", [folder.scratch] if folder.scratch.exists() else []),
        ("verdicts on weights that no trial has", list(_orphans(sweep, trials, ledger, folder, files))),
    ]
    if weights:
        found.append(("final weights of dominated trials", list(_dominated_weights(sweep, trials, folder, files))))
    return [
        Unneeded(what, tuple(paths), sum(files.size(path) for path in paths)) for what, paths in found if len(paths)
    ]


def collect(ledger: Ledger, folder: SweepFolder, *, weights: bool = False) -> list[Unneeded]:
    """Remove what `find_unneeded` names and say what it was; LeaseHeld while a driver runs."""
    with Lease(ledger):
        unneeded = find_unneeded(ledger, folder, weights=weights)
        if unneeded:  # noted first: what is removed must not look lost
            ledger.note_driver("gc", {kind.what: {"count": len(kind.paths), "bytes": kind.size} for kind in unneeded})
        files = files_of(folder)
        with durable("gc.remove") as write:
            for path in (path for kind in unneeded for path in kind.paths):
                files.remove(path, write)
    return unneeded


def _checkpoints(trials: Sequence[TrialRecord], folder: SweepFolder, files: SweepFiles) -> Iterator[Path]:
    for trial in trials:
        place = folder.trial(trial.number)
        is_over = trial.state in OVER and files.is_dir(place / "final")
        if (is_over or trial.state is State.STOPPED) and files.is_dir(place / "checkpoints"):
            yield place / "checkpoints"


def _temporary(root: Path) -> Iterator[Path]:
    """Yield what dead processes left half-written, the outermost folder of each."""
    for top, folders, files in os.walk(root):
        for name in (*list(folders), *files):
            written = _TEMPORARY.fullmatch(name)
            if written is not None and not _is_written(Path(top, name), int(written.group(1))):
                yield Path(top, name)
        folders[:] = [name for name in folders if not name.startswith(".")]


def _is_written(path: Path, pid: int) -> bool:
    """Return whether a half-written file may still have its writer: here, or elsewhere and at it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        try:
            return abs(time.time() - path.stat().st_mtime) < FRESH_S
        except FileNotFoundError:
            return True
    except PermissionError:
        pass
    return True


def _orphans(
    sweep: SweepRecord, trials: Sequence[TrialRecord], ledger: Ledger, folder: SweepFolder, files: SweepFiles
) -> Iterator[Path]:
    """Yield the folders of verdicts that no stage of any trial has found and no planned stage can ask for."""
    places = {place.name: place for place in files.questions(folder.verdicts)}
    if not places:
        return
    known = {stage.digest for stage in ledger.stages()} | set(_questions(sweep, trials))
    yield from (place for digest, place in sorted(places.items()) if digest not in known)


def _questions(sweep: SweepRecord, trials: Sequence[TrialRecord]) -> Iterator[str]:
    """Yield the digests of all that can be asked about the trials' weights: clean passes, and every planned stage."""
    from sweeps.config import parse_sweep
    from trainables.assessment import AttackQuestion, clean_digest
    from trainables.attack import Threat
    from trainables.config import attack_config_type
    from trainables.registry import load_plugins

    load_plugins(parse_sweep(sweep.document).plugins)
    for stage in sweep.planned_stages:
        config = attack_config_type(stage.attack).model_validate(dict(stage.config))
        asked = AttackQuestion(stage.attack, config, Threat(**stage.threat), stage.seed, stage.surrogate)
        own = replace(asked, surrogate=None)  # what it asks of a model that is its own backbone
        for weights in (trial.weights_digest for trial in trials if trial.weights_digest):
            images = f"{sweep.data_digest}/{stage.split}"
            yield asked.digest_for(weights, images)
            yield own.digest_for(weights, images)
            yield clean_digest(weights, images)


def _dominated_weights(
    sweep: SweepRecord, trials: Sequence[TrialRecord], folder: SweepFolder, files: SweepFiles
) -> Iterator[Path]:
    if sweep.completed_at is None:
        raise SweepError(f"the sweep is not finished: its front may still need weights. First {folder.resume_command}")
    points = {t.number: value for t in trials if (value := objective_values(t, sweep.objectives)) is not None}
    settled = [points[t.number] for t in trials if t.exact and t.number in points]
    for number, point in points.items():
        if any(dominates(other, point) for other in settled) and files.is_dir(folder.trial(number) / "final"):
            yield folder.trial(number) / "final"
