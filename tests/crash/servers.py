"""An MLflow server that can be killed and comes back at the same address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

from sweeps.tracking_ui import start_ui, stop_ui


class Server:
    """An MLflow server on a port that stays its own, whether it runs or not."""

    def __init__(self, database: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.database = database
        self.address = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process, _ = start_ui(f"sqlite:///{self.database}", self.port)

    def kill(self) -> None:
        """`kill -9` of the server and its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        if self._process is not None:
            stop_ui(self._process)
