"""A command of the user's that is told how a driver ended."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from typing import Literal

from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.summary import status

LONGEST_S = 60.0
"""A hook that takes longer is ended (our choice)."""


def notify(
    command: str | None, folder: SweepFolder, how: Literal["finished", "failed"], say: Callable[[str], None]
) -> None:
    """Run the command in a shell; whatever becomes of it, the sweep stays as it is.

    The environment has PARETUNE_SWEEP, PARETUNE_FOLDER and PARETUNE_EVENT; `status --json` is its standard input.

    Args: command: None does nothing; how: "failed" is the driver's own failure, not a trial's; say: takes a line if the
        command fails, takes too long or cannot be started.
    """
    if command is None:
        return
    told = {"PARETUNE_SWEEP": folder.name, "PARETUNE_FOLDER": str(folder.root), "PARETUNE_EVENT": how}
    ledger = Ledger.at(folder.ledger)
    try:
        found = json.dumps(status(ledger))
    finally:
        ledger.close()
    try:
        ended = subprocess.run(
            command,
            shell=True,
            env={**os.environ, **told},
            input=found,
            text=True,
            capture_output=True,
            timeout=LONGEST_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        say(f"notify: the command was ended after {LONGEST_S:.0f} s.")
        return
    if ended.returncode:
        said = (ended.stderr or ended.stdout).strip()[-300:]
        say(f"notify: the command ended with code {ended.returncode}. {said}".rstrip())
