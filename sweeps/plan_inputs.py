"""What a plan is made for: the nodes, described or those of this machine, and the seconds of a sweep that has run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cluster.connect import connect, prepare_environment, this_machine
from cluster.described import nodes_of, read_nodes
from cluster.device_memory import with_memory
from cluster.packing import Node
from cluster.resources import Shares
from search_spaces.errors import ConfigError, Problem
from sweeps.config import parse_sweep
from sweeps.folder import SweepFolder
from sweeps.forecast import describe
from sweeps.ledger import Ledger
from sweeps.measured_memory import MEASURED, Needs
from sweeps.wall_time import Measured, measure
from sweeps.yaml_source import read_document


def nodes_to_plan(
    on: str | None, address: str | None = None, say: Callable[[str], None] = lambda text: None
) -> list[Node]:
    """Return the nodes that ``--on`` describes, in short or by a settings file, or those of a cluster at ``--address``.

    Without either it is this machine.

    Args:   say: takes a line about the cluster's token, where there is something to say.
    Raises: ConfigError with every mistake; ClusterError if the cluster cannot be joined.
    """
    if on is not None and address is not None:
        problem = "--on describes nodes that are not here, --address names some that are; found both."
        raise ConfigError([Problem((), problem, "Give one of them.", source="--on")])
    if address is not None:
        return nodes_there(address, say)
    if on is None:
        return [this_machine()]
    if not on.endswith((".yaml", ".yml")):
        return read_nodes(on)
    document, source = read_document(Path(on))
    nodes, problems = nodes_of(document)
    if problems:
        raise source.refusal(problems)
    return nodes


def nodes_there(address: str, say: Callable[[str], None]) -> list[Node]:
    """Return the nodes of a cluster that runs, with the memory of their GPUs, and leave it again."""
    prepare_environment()
    import ray

    found: list[Node] = []

    def look(nodes: Sequence[Node]) -> Shares:
        found.extend(node for node in with_memory(nodes) if node.cpus or node.devices)
        return Shares(1, 1.0, 0.0, 1, 1.0, 0.0)

    connect(address, look, Path(os.devnull), say)
    ray.shutdown()
    return found


def seconds_of(name: str, storage: Path) -> Measured:
    """Return what the trials of a sweep took, time and memory.

    Raises: SweepNotFound; ConfigError if none of its trials has been trained.
    """
    ledger = Ledger.at(SweepFolder.existing(storage, name).ledger)
    try:
        sweep, trials, stages = ledger.sweep(), ledger.trials(), ledger.stages()
        shares = ledger.driver_events("resources")
        needs = Needs.read(ledger.driver_events(MEASURED))
    finally:
        ledger.close()
    plan = describe(parse_sweep(sweep.document))
    had = shares[-1].detail if shares else {}
    models = ", ".join(plan.model.names)
    measured = measure(name, trials, stages, sweep.planned_stages, plan.data.train, had, models)
    if measured is None:
        problem = f"no trial of {name} has been trained to its end, so that nothing is known of its time."
        raise ConfigError([Problem((), problem, "Name a sweep that has run.", source="--like")])
    return replace(measured, needs=needs)
