"""Joining a sweep's cluster with this machine until the sweep is finished, or the machine's time is up.

The head is found through the folder that it keeps beside the sweep. Where it goes and another comes, that is joined.
"""

from __future__ import annotations

import enum
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.ending import VARIABLE
from cluster.head import read_address, replace_text, with_token
from cluster.head_watch import answers
from cluster.ray_node import END_S, LEAVE_S, RayNode, own_address
from search_spaces.errors import ClusterError

POLL_S = 1.0
PATIENCE_S = 45.0
"""A head that has not answered for so long is lost, as for the driver (`cluster.head_watch`)."""


class End(enum.Enum):
    """Why a machine no longer takes part."""

    COMPLETE = "the sweep is finished"
    HEAD_GONE = "the head is gone and no other has come"
    TIME = "the time of this node is up"
    TOO_SHORT = "nothing that is left to do would end in the time that this node has; give it more"


@dataclass(frozen=True)
class Capacity:
    """What a machine gives to the cluster."""

    cpus: float
    gpus: float
    leaves_at: float | None
    """When it begins to leave, in seconds since the epoch: `LEAVE_S` and `END_S` before its end. None: never."""


@dataclass
class Asked:
    """Whether this machine is to leave at once; a signal sets it."""

    event: threading.Event = field(default_factory=threading.Event)


def capacity_of(environment: Mapping[str, str], cores: int, devices: int, until: float | None) -> Capacity:
    """Return what Slurm has given this job, or what there is. Pure.

    Args: cores, devices: of this machine; until: when it ends, in seconds since the epoch; None leaves it to Slurm.
    """
    cpus = _number(environment, "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")
    gpus = _number(environment, "SLURM_GPUS_ON_NODE")
    end = _number(environment, "SLURM_JOB_END_TIME") if until is None else until
    leaves_at = None if end is None else end - LEAVE_S - END_S
    if gpus is None:  # Slurm shows a job without GPUs none
        gpus = devices
    return Capacity(cores if cpus is None else cpus, gpus, leaves_at)


def _number(environment: Mapping[str, str], *names: str) -> float | None:
    """Return the first of the variables that is a number."""
    for name in names:
        if environment.get(name, "").isdecimal():
            return float(environment[name])
    return None


class Joining:
    """One machine's part in the cluster of a sweep, from its start to its end."""

    def __init__(
        self,
        head: Path,
        capacity: Capacity,
        is_complete: Callable[[], bool],
        wait_s: float,
        say: Callable[[str], None],
        asked: Asked,
    ) -> None:
        """Args:
        head: folder that the head keeps (`cluster.head`).
        is_complete: whether the sweep is finished; asked only while no head is there.
        wait_s: how long to wait for a head, and for another one.
        """
        self._head, self._capacity, self._is_complete = head, capacity, is_complete
        self._wait_s, self._say, self._asked = wait_s, say, asked

    def run(self) -> End:
        """Take part, and return why it is over. Raises ClusterError if no head has come, or Ray cannot be started."""
        since, joined = time.monotonic(), False
        self._say(f"waiting up to {self._wait_s / 60:g} minutes for the head of the sweep")
        while True:
            if self._is_time:
                return End.TIME
            address = read_address(self._head)
            if address is not None and answers(address):
                joined = True
                if (end := self._work(address)) is not None:
                    return end
                since = time.monotonic()
                self._say(f"the head at {address} is gone; waiting up to {self._wait_s / 60:g} minutes for another")
            elif self._is_complete():
                return End.COMPLETE
            elif time.monotonic() - since > self._wait_s:
                if joined:
                    return End.HEAD_GONE
                raise ClusterError(
                    f"{self._head}: no head has come in {self._wait_s / 60:g} minutes. Expected `cluster start --head` "
                    "of this sweep to run somewhere, with the same --storage; --wait gives it more time."
                )
            self._asked.event.wait(POLL_S)

    @property
    def _is_time(self) -> bool:
        at = self._capacity.leaves_at
        return self._asked.event.is_set() or (at is not None and time.time() >= at)

    def _work(self, address: str) -> End | None:
        """Be a node of the head at an address. Returns None if that is gone."""
        with self._ending() as (environment, end_now):
            words = (f"--address={address}", f"--num-cpus={self._capacity.cpus:g}")
            gpus = f"--num-gpus={self._capacity.gpus:g}"
            node = RayNode((*words, gpus), own_address(address), environment)
            try:
                if node.wait(lambda: not self._is_time):
                    self._say(f"joined {address} with {self._capacity.cpus:g} CPUs and {self._capacity.gpus:g} GPUs")
                since, answered_at = time.time(), time.monotonic()
                while not self._is_time:
                    if answers(address):
                        answered_at = time.monotonic()
                    if read_address(self._head) != address or time.monotonic() - answered_at > PATIENCE_S:
                        return None
                    if not node.is_there:
                        return self._left(since)
                    self._asked.event.wait(POLL_S)
                end_now()
                self._say("leaving: nothing new is taken, what runs comes to a break")
                node.leave()
                return End.TIME
            finally:
                node.kill()

    def _left(self, since: float) -> End | None:
        """Say why a node is no more that nobody here has ended. Args: since: when it joined."""
        at, now = self._capacity.leaves_at, time.time()
        if at is not None:  # no piece of work fits any more; if that was so early, the next time is too short as well
            return End.TIME if at - now < now - since else End.TOO_SHORT
        self._say("Ray has ended this node")
        return None

    @contextmanager
    def _ending(self) -> Iterator[tuple[dict[str, str], Callable[[], None]]]:
        """Keep the file that tells the workers when this node ends; yields their environment, and what ends it now."""
        folder = Path(tempfile.mkdtemp(prefix="pt-ends-"))
        file = folder / "at"

        def note(at: float) -> None:
            replace_text(file, f"{at:.0f}\n")

        if self._capacity.leaves_at is not None:
            note(self._capacity.leaves_at)
        try:
            yield {**with_token(os.environ, self._head), VARIABLE: str(file)}, lambda: note(time.time())
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def leaving_on_signals(asked: Asked, knows_end: bool) -> Iterator[None]:
    """Let SIGINT and SIGTERM ask for leaving while the block runs.

    So does SIGUSR1, which Slurm sends some time before its limit, unless the end is known: until then work goes on.
    """

    def leave(number: int, _: Any) -> None:
        if number != signal.SIGUSR1 or not knows_end:
            asked.event.set()

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
