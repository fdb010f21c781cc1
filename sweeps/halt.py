"""Why a driver should stop: what its phases, Tune's hooks and the signal handlers share."""

from __future__ import annotations


class Halt:
    """Why the driver should stop, if it should: the user's wish, or an error of its own."""

    def __init__(self) -> None:
        self.requested = False
        self.error: str | None = None

    def lose(self) -> None:
        """Note that the lease is another's."""
        self.error = "another driver has taken over this sweep's lease; this one writes nothing more."

    def __bool__(self) -> bool:
        return self.requested or self.error is not None
