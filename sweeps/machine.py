"""Whether a machine or a cluster has what a sweep needs, and how it is shared."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.authentication import agree
from cluster.connect import prepare_environment, require_reachable, this_machine
from cluster.device_memory import with_memory
from cluster.packing import Node
from cluster.resources import Shares
from search_spaces.errors import ConfigError
from sweeps.config import SweepConfig
from sweeps.measured_memory import Needs
from sweeps.probing import fitted


def enough(config: SweepConfig, nodes: Sequence[Node], needs: Needs | None = None) -> Shares:
    """Return who gets how much of these nodes; ConfigError if one training has no room there, for which Ray would wait
    for ever. Args: needs: what was measured, if anything."""
    if problems := config.resources.problems(nodes):
        raise ConfigError(problems)
    return fitted(config.resources, nodes, needs or Needs())


def known_nodes(config: SweepConfig, nodes: Sequence[Node], before: Sequence[Node] = ()) -> Sequence[Node]:
    """Return the nodes with the memory of their devices, if that decides anything. Args: before: as `with_memory`."""
    return with_memory(nodes, before) if config.resources.asks_for_memory else nodes


def require_machine(config: SweepConfig, address: str | None) -> None:
    """Refuse before anything is written what cannot run here: a cluster that is not there or refuses the token,
    GPUs that a machine lacks.

    Raises: ClusterError; ConfigError. What a cluster has is known when it has been joined.
    """
    if address is not None:
        require_reachable(address)
        prepare_environment()  # before anything imports Ray
        agree(address, lambda text: None)  # what there is to say is said when it is joined
    elif config.resources.asks_for_gpus:
        enough(config, [this_machine()])
