"""Asking every node of a cluster the same question, those too that join later: a small task pinned to each."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cluster.draining import staying_nodes

PATIENCE_S = 60.0
"""A node may take so long to start a worker and to answer (our choice)."""
LOOK_S = 30.0
"""Between two looks for nodes that have joined."""
POLL_S = 0.05


@dataclass(frozen=True)
class Answer:
    """What a node has said."""

    identity: str
    """Ray's id of the node."""
    node: str
    """Its name for people: host, and the beginning of its id."""
    value: Any
    """What the task returned; None if there is a problem."""
    problem: str
    """Why there is no answer, as the end of a sentence about the node; empty if there is one."""


@dataclass(frozen=True)
class _Asked:
    """A node that has been asked."""

    identity: str
    name: str
    at: float
    """By the clock that never goes back."""


class EveryNode:
    """Asks the nodes of the cluster that this process has joined, this process's own left out."""

    def __init__(
        self,
        question: Callable[..., Any],
        arguments: Callable[[str], tuple[Any, ...]],
        able: bool = False,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Args: question: runs on each node; arguments: for it, from the node's id, called before that node is asked;
        able: ask only nodes that have CPUs or GPUs to give."""
        self._question = question
        self._arguments = arguments
        self._able = able
        self._patience_s = patience_s
        self._known: set[str] = set()
        self._asked: dict[Any, _Asked] = {}
        self._looked_at: float | None = None

    def all_answers(self) -> Iterator[Answer]:
        """Ask every node that there is, and yield each answer as it comes; a cluster of one node is not asked."""
        self._looked_at = time.monotonic()
        self._ask_new()
        while self._asked:
            yield from self._hear()
            if self._asked:
                time.sleep(POLL_S)

    def new_answers(self) -> Iterator[Answer]:
        """Ask the nodes that are new since `all_answers`, and yield what has come; most calls return at once."""
        now = time.monotonic()
        if self._looked_at is None:
            return
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._ask_new()
        if self._asked:
            yield from self._hear()

    def _ask_new(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        mine = ray.get_runtime_context().get_node_id()
        for node in staying_nodes():
            identity = node["NodeID"]
            if not node["Alive"] or identity == mine or identity in self._known:
                continue
            self._known.add(identity)
            if self._able and not can_work(node):
                continue
            pinned = NodeAffinitySchedulingStrategy(identity, soft=False)
            task = ray.remote(max_retries=0, num_cpus=0, scheduling_strategy=pinned)(self._question)
            name = f"{node['NodeManagerHostname']} ({identity[:8]})"
            self._asked[task.remote(*self._arguments(identity))] = _Asked(identity, name, time.monotonic())

    def _hear(self) -> Iterator[Answer]:
        import ray

        ready, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
        for reference in ready:
            asked = self._asked.pop(reference)
            try:
                yield Answer(asked.identity, asked.name, ray.get(reference), "")
            except ray.exceptions.NodeDiedError:  # it has left again: there is nobody to answer for
                continue
            except ray.exceptions.TaskUnschedulableError as error:
                if _stays(asked.identity):
                    yield Answer(asked.identity, asked.name, None, f"could not be asked: {str(error).splitlines()[0]}")
            except ray.exceptions.RayError as error:
                yield Answer(asked.identity, asked.name, None, f"could not be asked: {str(error).splitlines()[0]}")
        for reference, asked in list(self._asked.items()):
            if time.monotonic() - asked.at > self._patience_s:
                ray.cancel(reference, force=True)
                del self._asked[reference]
                if _stays(asked.identity):
                    yield Answer(asked.identity, asked.name, None, f"has not answered in {self._patience_s:g} s")


class NodeCheck(ABC):
    """Something that must hold on every node of the cluster that this process has joined."""

    def __init__(self, nodes: EveryNode) -> None:
        """Args: nodes: with the question."""
        self._nodes = nodes

    def require(self) -> None:
        """Return once it is known to hold on every node; a cluster of one node is not asked.

        Raises: a SweepError that names who differs, and what helps.
        """
        self._judge(self._nodes.all_answers())

    def look(self) -> None:
        """Ask the nodes that are new since `require`, and hear what has come; most calls return at once.

        Raises: as `require`.
        """
        self._judge(self._nodes.new_answers())

    @abstractmethod
    def _judge(self, answers: Iterable[Answer]) -> None:
        """Raise the error that the answers deserve, if any."""


def _stays(identity: str) -> bool:
    """Whether a node is there and takes work; of one that leaves there is nothing to know."""
    return any(node["NodeID"] == identity and node["Alive"] for node in staying_nodes())


def can_work(node: dict[str, Any]) -> bool:
    """Whether a node, as ``ray.nodes()`` lists it, has CPUs or GPUs for trials and attacks."""
    return any(node.get("Resources", {}).get(kind, 0) > 0 for kind in ("CPU", "GPU"))
