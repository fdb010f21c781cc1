"""Watching the head of the joined cluster: without it nothing goes on, and Ray waits a minute and ends the process."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable

LOOK_S = 1.0
RECONNECT_S = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Ray's own limit: after so many seconds without the head it ends the process, whose log alone says why."""
EARLIER = 0.75
"""Of that limit; then the driver says it itself (our choice)."""


class HeadWatch:
    """A thread that calls `on_lost` once when the head has not answered for `patience_s`.

    A thread, because whoever asks Ray anything then waits inside Ray.
    """

    def __init__(self, on_lost: Callable[[str], None], address: str, patience_s: float | None = None) -> None:
        """Args: on_lost: takes the address; called in the thread. address: HOST:PORT of the head."""
        self._on_lost, self._address = on_lost, address
        self._patience_s = EARLIER * float(os.environ.get(RECONNECT_S, 60)) if patience_s is None else patience_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="head-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(2 * LOOK_S)

    def _watch(self) -> None:
        answered_at = time.monotonic()
        while not self._stopped.wait(LOOK_S):
            if answers(self._address):
                answered_at = time.monotonic()
            elif time.monotonic() - answered_at >= self._patience_s and not self._stopped.is_set():
                self._on_lost(self._address)
                return


def answers(address: str) -> bool:
    """Return whether something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=LOOK_S).close()
    except OSError:
        return False
    return True
