"""The lease: at most one driver writes a sweep's ledger.

A driver that dies on this host is noticed at once, by its pid; one on another host when its heartbeat is older than
`LIFETIME_S`. A driver that was stopped and wakes up after another has taken over finds its lease lost at its next
write (`Ledger` checks inside the transaction), so that two drivers never both write.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from search_spaces.errors import LeaseHeld, LeaseLost
from sweeps.ledger import Ledger
from sweeps.records import LeaseRecord

log = logging.getLogger("paretune.lease")

HEARTBEAT_S = 2.0
LIFETIME_S = 30.0


def is_alive(lease: LeaseRecord, now: float) -> bool:
    """Return whether the lease's driver can still write: its process lives, or, elsewhere, its heartbeat is fresh."""
    if lease.host == socket.gethostname():
        return process_start(lease.pid) == lease.process_started
    return now - lease.heartbeat_at < LIFETIME_S


def process_start(pid: int) -> str:
    """Return a process's start time as its operating system tells it; empty if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        state, *rest = stat.rpartition(")")[2].split()
        return "" if state == "Z" else rest[18]
    except (OSError, IndexError):
        return "" if Path("/proc/self/stat").exists() else _signal_zero(pid)


def _signal_zero(pid: int) -> str:
    """Without /proc: "?" if the process exists. A reused pid then blocks the lease until it ends."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "?"


class Lease:
    """Holds the lease while the `with` block runs, with a heartbeat in a thread of its own."""

    def __init__(self, ledger: Ledger, on_lost: Callable[[], None] = lambda: None) -> None:
        """Args: on_lost: called once, from the heartbeat's thread, when another driver has taken over."""
        self._ledger = ledger
        self._on_lost = on_lost
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease-heartbeat", daemon=True)

    def __enter__(self) -> Lease:
        pid, now = os.getpid(), time.time()
        held = self._ledger.lease()
        if held is not None and is_alive(held, now):
            raise LeaseHeld(_refusal(held, now))
        mine = LeaseRecord(str(uuid.uuid4()), socket.gethostname(), pid, process_start(pid), now, now)
        if not self._ledger.take_lease(mine, replacing=held):
            raise LeaseHeld("another driver took this sweep's lease at the same moment; look at `status`.")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._ledger.release_lease()

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            try:
                self._ledger.heartbeat()
            except LeaseLost:
                self._on_lost()
                return
            except SQLAlchemyError as error:  # locked, disk full: the next beat may get through
                log.warning("no heartbeat: %s", error)


def _refusal(held: LeaseRecord, now: float) -> str:
    here = held.host == socket.gethostname()
    step = (
        f"Stop it first (kill -INT {held.pid}), then resume."
        if here
        else f"Its heartbeat is {now - held.heartbeat_at:.0f} s old; a lease expires after {LIFETIME_S:.0f} s."
    )
    return f"another driver runs this sweep: process {held.pid} on {held.host}. {step}"
