"""Parents in a driver's life: proposed, trained before any trial, handed to their children, or failed."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from search_spaces.errors import ParentError
from sweeps.entries import GivenParent
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.parents import called, parent_of
from sweeps.records import State, TrialRecord
from sweeps.snapshot import last_line
from sweeps.trained_parents import Parent
from trainables.parent import ParentFile

if TYPE_CHECKING:
    from sweeps.config import SweepConfig


class ParentLife:
    """What a coordinator knows of the parents. All of them are trained before the first trial is proposed (our choice:
    a proposal whose parent is missing could not start, and one that is made early lacks results that are to come)."""

    def __init__(self, config: SweepConfig, ledger: Ledger, folder: SweepFolder) -> None:
        self._config, self._ledger, self._folder = config, ledger, folder
        rows = {row.number: row for row in ledger.parents()}
        self.unproposed = [parent for parent in config.trained_parents if parent.number not in rows]
        """In the order in which they are proposed."""
        self._pending = {p.number for p in self.unproposed}
        self._pending |= {number for number, row in rows.items() if row.state is not State.TRAINED}

    @property
    def are_pending(self) -> bool:
        """Whether one is still to be trained, so that no trial may start."""
        return bool(self._pending)

    def propose(self) -> int:
        """Commit the next parent that is not in the ledger; returns its number."""
        parent = self.unproposed.pop(0)
        self._ledger.propose(parent.number, parent.label, parent.config.plain(), {}, {}, parent.seed)
        return parent.number

    def note_trained(self, number: int) -> None:
        """Note that a parent has been trained, which the ledger holds."""
        self._pending.discard(number)

    def note_open(self, number: int) -> None:
        """Note that a parent that had failed is to be trained again."""
        self._pending.add(number)

    def file_of(self, trial: TrialRecord) -> dict[str, Any] | None:
        """Return where a trial finds its parent's weights, for its job; None if it has no parent."""
        name = parent_of(trial)
        if name is None:
            return None
        parent = self._config.parent(name)
        return asdict(given_file(parent) if isinstance(parent, GivenParent) else self._trained_file(parent))

    def _trained_file(self, parent: Parent) -> ParentFile:
        return trained_file(self._ledger.trial(parent.number), self._folder)

    def lose(self, trial: TrialRecord, error: str) -> ParentError:
        """Commit that a trial could not have its parent's weights; returns what stops the driver.

        The trial has not failed: it starts when its parent is there again. A parent that the sweep has trained has
        failed, so that `retry` trains it again. Args: error: the traceback.
        """
        name = parent_of(trial)
        parent = None if name is None else self._config.parent(name)
        if isinstance(parent, Parent):
            if self._ledger.trial(parent.number).state is State.TRAINED:
                self._ledger.fail(parent.number, "checkpoint", error)
            return self.failure(parent.number)
        return ParentError(f"trial {trial.number} cannot start. {last_line(error).partition(': ')[2]}")

    def failure(self, number: int) -> ParentError:
        """Return what the user is told about a parent that has failed for good."""
        row, name = self._ledger.trial(number), self._folder.name
        again = f"When that is put right: {self._folder.command('retry')} --failed"
        return ParentError(
            f"{called(row)} failed: {row.error_kind}, and no trial starts before it is trained. "
            f"`logs {name} {row.label.partition(',')[0]}` says why. {again}"
        )

    def require(self) -> None:
        """Raise ParentError if a parent has failed for good."""
        for row in self._ledger.parents():
            if row.state is State.FAILED:
                raise self.failure(row.number)


def given_file(parent: GivenParent) -> ParentFile:
    """Return where the weights of a checkpoint are."""
    return ParentFile(str(parent.checkpoint), sha256=parent.sha256)


def trained_file(row: TrialRecord, folder: SweepFolder) -> ParentFile:
    """Return where the weights of a parent are that the sweep has trained."""
    return ParentFile(folder.trial_place(row.number), weights_digest=row.weights_digest)
