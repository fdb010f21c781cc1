"""Changing a sweep under way: what keeps its results comparable is recorded, what does not is refused with a diff."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from search_spaces.errors import ConfigurationChanged
from sweeps.config import SweepConfig, parse_sweep
from sweeps.differences import configuration_diff
from sweeps.ledger import Ledger
from sweeps.records import LAUNCHED, PlannedStage, SweepRecord


@dataclass(frozen=True)
class Change:
    """What a driver writes into the ledger before it goes on."""

    document: Mapping[str, Any]
    """The configuration from here on."""
    stages: tuple[PlannedStage, ...]
    """All that are planned: those of the launched plan with their new batch size, those of other plans as they were."""
    requested: int
    lines: tuple[str, ...]
    """What differs, one line for each value."""
    forget_runs: bool
    """Whether MLflow's runs are elsewhere from now on."""

    def record(self, ledger: Ledger) -> None:
        """Write it."""
        ledger.change_document(self.document, self.stages, self.requested, self.lines, forget_runs=self.forget_runs)


def plan_change(sweep: SweepRecord, given: SweepConfig, where: str) -> Change | None:
    """Return how a sweep changes to a given configuration, None if it stays as it is.

    Args:   where: the file that was given, for the message.
    Raises: ConfigurationChanged with the differences, if new results could not be compared with the old ones, if the
        total shrank, or if the ledger or the objects would have to move.
    """
    launched = parse_sweep(sweep.document)
    _refuse(configuration_diff(launched.comparable(), given.comparable()), where)
    for name in ("ledger", "storage"):
        before, after = getattr(launched, name), getattr(given, name)
        _refuse(configuration_diff({name: before.plain()}, {name: after.plain()}), where)
    lines = configuration_diff(launched.adjustable(), given.adjustable())
    if not lines:
        return None
    requested = sweep.requested
    if given.trials != launched.trials:
        if given.trials < requested:
            raise ConfigurationChanged(
                f"{where}: search.trials: the sweep has {requested} trials and can only grow; found {given.trials}. "
                f"Write {requested} or more, or leave it at {launched.trials}."
            )
        requested = given.trials
    return Change(
        document={**given.document, **{name: launched.document[name] for name in ("name",) if launched.name}},
        stages=_restaged(sweep.planned_stages, given),
        requested=requested,
        lines=tuple(lines),
        forget_runs=(launched.tracking.uri, launched.tracking.experiment)
        != (given.tracking.uri, given.tracking.experiment),
    )


def check_comparable(sweep: SweepRecord, given: SweepConfig, where: str) -> None:
    """Refuse a configuration that would make new results incomparable with the old ones; ConfigurationChanged."""
    _refuse(configuration_diff(parse_sweep(sweep.document).comparable(), given.comparable()), where)


def _refuse(changes: list[str], where: str) -> None:
    if changes:
        lines = "\n".join(f"  {line}" for line in changes)
        raise ConfigurationChanged(
            f"{where} differs from the configuration that this sweep was launched with:\n{lines}\n"
            "Undo the change, or launch a new sweep under another name; there --prior NAME takes over what this one "
            "has learned."
        )


def _restaged(planned: Sequence[PlannedStage], given: SweepConfig) -> tuple[PlannedStage, ...]:
    """Return the planned stages as the given configuration runs them; which they are stays the same."""
    if given.attacks is None:
        return tuple(planned)
    batch_size, keep_images = given.attacks.batch_size, given.attacks.keep_images
    return tuple(
        replace(stage, batch_size=batch_size, keep_images=keep_images) if stage.plan == LAUNCHED else stage
        for stage in planned
    )
