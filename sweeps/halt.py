"""Why a driver should stop: what its phases, Tune's hooks and the signal handlers share."""

from __future__ import annotations

import traceback

from search_spaces.errors import LeaseLost, ParentError, StorageError
from search_spaces.storage import storage_problem

TAKEN_OVER = "another driver has taken over this sweep's lease; this one writes nothing more."


class Halt:
    """Why the driver should stop, if it should: the user's wish, or an error of its own."""

    def __init__(self) -> None:
        self.requested = False
        self.error: str | None = None
        self.storage = False
        """Whether the storage cannot be written, and `error` is a sentence that says so."""
        self.parent = False
        """Whether a model that trials start from cannot be had, and `error` is a sentence that says so."""
        self.lost = False
        """Whether the lease is another's: nothing may be written or removed any more."""

    def lose(self) -> None:
        """Note that the lease is another's."""
        self.error, self.lost = TAKEN_OVER, True

    def fail(self, error: BaseException) -> None:
        """Note an error of the driver, unless there is one: what stopped it is said, what followed is not.

        A storage that cannot be written, a lease that is another's, or a parent that cannot be had is said in a
        sentence; all else as a traceback.
        """
        if self.error is not None:
            return
        if isinstance(error, LeaseLost):
            self.lose()
        elif isinstance(error, ParentError):
            self.error, self.parent = str(error), True
        elif isinstance(error, StorageError):
            self.error, self.storage = str(error), True
        elif problem := storage_problem(error):
            self.error, self.storage = f"the sweep's folder cannot be written: {problem}.", True
        else:
            self.error = "".join(traceback.format_exception(error))

    def __bool__(self) -> bool:
        return self.requested or self.error is not None
