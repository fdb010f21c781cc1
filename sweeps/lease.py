"""The lease: at most one driver writes a sweep's ledger.

A driver that died on this machine is noticed at once, by its pid and the start of that process. Of one elsewhere only
the heartbeat can be seen, and clocks may differ or jump: whoever wants its lease watches for `LIFETIME_S`, by a clock
of its own that never goes back, whether the heartbeat still changes. A driver that was stopped and wakes up after
another has taken over finds its lease lost at its next write (`Ledger` checks inside the transaction), so that two
drivers never both write.
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
WATCH_S = 0.2
"""Between two looks at another driver's heartbeat."""


def is_alive(lease: LeaseRecord, now: float) -> bool:
    """Return whether the lease's driver lives, for a display that cannot wait.

    Here its process decides; elsewhere the age of its heartbeat, which is only as good as the two clocks agree.
    """
    if is_here(lease):
        return process_start(lease.pid) == lease.process_started
    return abs(now - lease.heartbeat_at) < LIFETIME_S


def is_here(lease: LeaseRecord) -> bool:
    """Return whether a pid of the lease means a process that can be seen from here.

    It does not after a reboot, and neither in another container that has the same host name.
    """
    theirs = lease.process_started.partition("@")[2]
    return lease.host == socket.gethostname() and theirs in ("", _world())


def process_start(pid: int) -> str:
    """Return a process's start time and where that counts (``ticks@boot/pids``); empty if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        state, *rest = stat.rpartition(")")[2].split()
        return "" if state == "Z" else f"{rest[18]}@{_world()}"
    except (OSError, IndexError):
        return "" if Path("/proc/self/stat").exists() else _signal_zero(pid)


def _world() -> str:
    """Name this boot of this machine and its process numbers; empty where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


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

    def __init__(
        self,
        ledger: Ledger,
        on_lost: Callable[[], None] = lambda: None,
        *,
        take_over: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Choose how to get it.

        Args:
            on_lost: called once, from the heartbeat's thread, when another driver has taken over.
            take_over: take the lease whoever holds it; that driver can write nothing more.
            say: takes a line when another driver's heartbeat has to be watched, and when its lease is taken.
        """
        self._ledger = ledger
        self._on_lost = on_lost
        self._take_over = take_over
        self._say = say
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease-heartbeat", daemon=True)

    def __enter__(self) -> Lease:
        held = self._ledger.lease()
        if held is not None and not self._take_over:
            held = self._given_up(held)
        if held is not None:
            self._say(f"taking over the lease of process {held.pid} on {held.host}.")
        pid, now = os.getpid(), time.time()
        mine = LeaseRecord(str(uuid.uuid4()), socket.gethostname(), pid, process_start(pid), now, now)
        if not self._take(mine, held):
            raise LeaseHeld("another driver took this sweep's lease at the same moment; look at `status`.")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        try:
            self._ledger.release_lease()
        except SQLAlchemyError as error:  # the disk is full or gone: the end of this process releases it too
            log.warning("the lease could not be given back: %s", error)

    def _given_up(self, held: LeaseRecord) -> LeaseRecord | None:
        """Return the lease of a driver that is gone, None if it has been given back; LeaseHeld if the driver lives."""
        if is_here(held):
            if process_start(held.pid) == held.process_started:
                raise LeaseHeld(_refusal(held, f"Stop it first (kill -INT {held.pid}), then resume."))
            return held
        self._say(
            f"process {held.pid} on {held.host} holds the lease and cannot be seen from here; "
            f"watching its heartbeat for {LIFETIME_S:.0f} s. --take-over does not wait."
        )
        until = time.monotonic() + LIFETIME_S
        while time.monotonic() < until:
            time.sleep(WATCH_S)
            now = self._ledger.lease()
            if now is None:
                return None
            if (now.owner, now.heartbeat_at) != (held.owner, held.heartbeat_at):
                raise LeaseHeld(_refusal(now, "Its heartbeat has just changed: it lives. Stop it there, then resume."))
        return held

    def _take(self, mine: LeaseRecord, held: LeaseRecord | None) -> bool:
        """Try once; a forced take-over again, because a heartbeat may come in between."""
        while not self._ledger.take_lease(mine, replacing=held):
            if not self._take_over:
                return False
            held = self._ledger.lease()
        return True

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            try:
                self._ledger.heartbeat()
            except LeaseLost:
                self._on_lost()
                return
            except SQLAlchemyError as error:  # locked, disk full: the next beat may get through
                log.warning("no heartbeat: %s", error)


def _refusal(held: LeaseRecord, step: str) -> str:
    fence = "`resume NAME --take-over` takes its lease all the same; it can write nothing more from then on."
    return f"another driver runs this sweep: process {held.pid} on {held.host}. {step} {fence}"
