"""Prior knowledge: finished trials of another sweep that inform the sampler, if both sweeps asked the same question.

They stand in the study before the sweep's own trials. They are never on the front and never counted toward the total.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from search_spaces.domains import Choice, Domain, IntRange, LogUniform
from search_spaces.errors import ConfigurationChanged
from sweeps.config import SweepConfig, parse_sweep
from sweeps.differences import ABSENT, configuration_diff
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.records import LAUNCHED, PlannedStage, PriorTrial, State
from sweeps.requests import counted
from sweeps.study import told_values


@dataclass(frozen=True)
class Prior:
    """What can be taken over from another sweep."""

    trials: tuple[PriorTrial, ...]
    outside: int
    """Finished trials that were left out, because a parameter lies outside of what is searched here."""


def learn(
    storage: Path,
    name: str,
    config: SweepConfig,
    planned: Sequence[PlannedStage],
    data_digest: str,
    say: Callable[[str], None],
) -> tuple[PriorTrial, ...]:
    """Return the finished trials of the sweep of that name, and say how many they are; as `read_prior`."""
    other = Ledger.at(SweepFolder.existing(storage, name).ledger)
    try:
        found = read_prior(other, config, first_stage(planned), data_digest)
    finally:
        other.close()
    left = f"; {found.outside} more lie outside of what is searched here" if found.outside else ""
    say(f"prior knowledge: {counted(len(found.trials), 'finished trial')} of {name}{left}")
    return found.trials


def read_prior(other: Ledger, config: SweepConfig, objective: PlannedStage | None, data_digest: str) -> Prior:
    """Return the finished trials of another sweep as prior knowledge of one with this configuration.

    Args:
        objective: the stage by which this sweep measures robust accuracy for its search; None if it attacks nothing.
        data_digest: of this sweep's images.
    Raises: ConfigurationChanged with the differences, if objectives, images, the attack of the search, parents or the
        searched parameters are not the same; ranges and lists of values may differ.
    """
    sweep = other.sweep()
    theirs = parse_sweep(sweep.document)
    mine = _question(config, objective, data_digest)
    differences = configuration_diff(_question(theirs, first_stage(sweep.planned_stages), sweep.data_digest), mine)
    if config.grid is not None:
        differences.append("search.sampler: a grid has nothing to learn from other trials")
    if differences:
        lines = "\n".join(f"  {line}" for line in differences)
        raise ConfigurationChanged(
            f"the trials of {sweep.name!r} are no prior knowledge for this sweep; there -> here:\n{lines}\n"
            "Objectives, images, the first attack, parents and the searched parameters have to be the same."
        )
    domains = config.domains()
    stages = {s.number: s for s in other.stages() if s.split == "validation" and s.position == 0}
    finished = [trial for trial in other.trials([State.FINISHED]) if trial.params]
    inside = [t for t in finished if all(domains[name].contains(value) for name, value in t.params.items())]
    spoken = {name: distribution_to_json(distribution_of(domain)) for name, domain in domains.items()}
    trials = tuple(
        PriorTrial(
            sweep=sweep.name,
            number=trial.number,
            label=trial.label,
            params=trial.params,
            distributions={name: spoken[name] for name in trial.params},
            values=told_values(trial, stages.get(trial.number), sweep.objectives),
        )
        for trial in inside
    )
    return Prior(trials, len(finished) - len(inside))


def first_stage(planned: Sequence[PlannedStage]) -> PlannedStage | None:
    """Return the stage whose robust accuracy a search is told; None if it attacks nothing."""
    return next((s for s in planned if (s.plan, s.split, s.position) == (LAUNCHED, "validation", 0)), None)


def distribution_of(domain: Domain) -> BaseDistribution:
    """Return Optuna's name for a domain, as a trial that draws from it gets it."""
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.options)
    if isinstance(domain, IntRange):
        return IntDistribution(domain.low, domain.high, step=domain.step)
    return FloatDistribution(domain.low, domain.high, log=isinstance(domain, LogUniform))


def _question(config: SweepConfig, objective: PlannedStage | None, data_digest: str) -> dict[str, Any]:
    """Return what two sweeps must share for the trials of one to mean something to the other: a method's label names a
    parent, and says nothing of what that is."""
    return {
        "objectives": list(config.objectives),
        "images": data_digest,
        "attack": _attack(objective) if "robust_acc" in config.objectives else ABSENT,
        "parents": {parent.name: parent.plain() for parent in config.parents},
        "parameters": {name: type(domain).__name__ for name, domain in sorted(config.domains().items())},
    }


def _attack(stage: PlannedStage | None) -> Mapping[str, Any] | str:
    """Return what decides the verdicts of a stage: neither its name nor its batches do."""
    if stage is None:
        return ABSENT
    asked = ("attack", "config", "threat", "images", "seed")
    return {name: value for name, value in asdict(stage).items() if name in asked}
