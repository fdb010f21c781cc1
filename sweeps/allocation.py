"""Which method the next trial is of, when every method of a sweep is given the same. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweeps.sections import Allocation


@dataclass
class Spent:
    """What one method has been given so far."""

    trials: int = 0
    """Trials in whatever state, failed ones too."""
    seconds: dict[int, float] = field(default_factory=dict)
    """Training of its closed trials, by number."""

    @property
    def expected_seconds(self) -> float:
        """What its trials take once all of them are closed, if the open ones take what the others took in the mean."""
        return sum(self.seconds.values()) * self.trials / len(self.seconds) if self.seconds else 0.0


def next_label(allocation: Allocation, labels: Sequence[str], spent: dict[str, Spent]) -> str:
    """Return the method of the next trial.

    Args:
        allocation: "equal" counts trials, "equal_seconds" what their training takes.
        labels: of the method entries, in the order of the file, which decides between equals.
        spent: by label; a method that is not there has got nothing.
    """
    got = {label: spent.get(label, Spent()) for label in labels}
    if allocation == "equal_seconds" and all(one.seconds for one in got.values()):
        return min(labels, key=lambda label: got[label].expected_seconds)
    return min(labels, key=lambda label: got[label].trials)  # nothing is known yet about how long they take
