"""What a plan is made for: the nodes, described or those of this machine, and the seconds of a sweep that has run."""

from __future__ import annotations

from pathlib import Path

from cluster.connect import this_machine
from cluster.described import nodes_of, read_nodes
from cluster.packing import Node
from search_spaces.errors import ConfigError, Problem
from sweeps.config import parse_sweep
from sweeps.folder import SweepFolder
from sweeps.forecast import describe
from sweeps.ledger import Ledger
from sweeps.wall_time import Measured, measure
from sweeps.yaml_source import read_document


def nodes_to_plan(on: str | None) -> list[Node]:
    """Return the nodes that ``--on`` describes, in short or by a settings file; without it this machine.

    Raises: ConfigError with every mistake.
    """
    if on is None:
        return [this_machine()]
    if not on.endswith((".yaml", ".yml")):
        return read_nodes(on)
    document, source = read_document(Path(on))
    nodes, problems = nodes_of(document)
    if problems:
        raise source.refusal(problems)
    return nodes


def seconds_of(name: str, storage: Path) -> Measured:
    """Return what the trials of a sweep took.

    Raises: SweepNotFound; ConfigError if none of its trials has been trained.
    """
    ledger = Ledger.at(SweepFolder.existing(storage, name).ledger)
    try:
        sweep, trials, stages = ledger.sweep(), ledger.trials(), ledger.stages()
        shares = ledger.driver_events("resources")
    finally:
        ledger.close()
    plan = describe(parse_sweep(sweep.document))
    had = shares[-1].detail if shares else {}
    models = ", ".join(plan.model.names)
    measured = measure(name, trials, stages, sweep.planned_stages, plan.data.train, had, models)
    if measured is None:
        problem = f"no trial of {name} has been trained to its end, so that nothing is known of its time."
        raise ConfigError([Problem((), problem, "Name a sweep that has run.", source="--like")])
    return measured
