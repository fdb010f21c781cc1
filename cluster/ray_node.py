"""One Ray node as a process of this one: `ray start --block` with its own folder, ended without touching any other.

On SIGTERM Ray drains its node, waits until nothing runs there, and ends what it has started, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cluster.head_watch import answers
from search_spaces.errors import ClusterError

LEAVE_S = 30.0
"""What runs when a node leaves has so many seconds to come to a break (our choice)."""
END_S = 15.0
"""Ray's processes then end within so many seconds, or are killed (our choice)."""
START_S = 120.0
"""A node is there within so many seconds (our choice: a file system that is shared is slow to import from)."""
LAST_LINES = 8
"""Of what Ray said, in an error."""


class RayNode:
    """A node that lives until it is told to leave, or is killed."""

    def __init__(self, words: Sequence[str], host: str, environment: Mapping[str, str]) -> None:
        """Start it, and return at once. Args: words: options of ``ray start``; host: this machine's address."""
        self._port = free_port(host)
        self._folder = Path(tempfile.mkdtemp(prefix="pt-"))  # short: sockets lie in it, whose names may have 107 bytes
        self._log = self._folder / "start.log"
        common = (f"--node-ip-address={host}", f"--node-manager-port={self._port}", f"--temp-dir={self._folder}")
        ports = ("--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats")
        command = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *common, *ports, *words)
        self._address = f"{host}:{self._port}"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env={**environment, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(LEAVE_S)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # the terminal's Ctrl-C is for us alone
            )

    def wait(self, going_on: Callable[[], bool] = lambda: True) -> bool:
        """Return True when it is there, False if `going_on` does. Raises ClusterError if it cannot be started."""
        end = time.monotonic() + START_S
        while not self.is_there:
            if not going_on():
                return False
            if self._process.poll() is not None or time.monotonic() > end:
                said = "\n".join(self._log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:])
                self.kill()
                raise ClusterError(f"no Ray node could be started at {self._address}. `ray start` says:\n{said}")
            time.sleep(0.2)
        return True

    @property
    def is_there(self) -> bool:
        """Whether it runs; one that was drained ends by itself as soon as nothing runs on it."""
        return self._process.poll() is None and answers(self._address)

    def leave(self) -> None:
        """Take nothing new, let what runs come to a break for a while, and end; at most some 45 s."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(LEAVE_S + END_S if self.is_there else END_S)
        self.kill()

    def kill(self) -> None:
        """End it now, with all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def free_port(host: str) -> int:
    """Return a port of this machine on which nothing listens at the moment."""
    with socket.socket() as taken:
        taken.bind((host, 0))
        return int(taken.getsockname()[1])


def own_address(towards: str) -> str:
    """Return this machine's address as another one sees it. Args: towards: HOST:PORT of that; nothing is sent."""
    host, _, port = towards.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        route.connect((host, int(port)))
        return str(route.getsockname()[0])
