"""How long a person waits after `launch` until the first weights have moved: a whole process, Ray's start included.

    python -m benchmarks.run first_step

The quickstart with one epoch and two trials: what comes before the first step is the same as without that.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Row, measured
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "python -m benchmarks.run first_step"
ONE_EPOCH = ["--trials", "2", "--set", "training.epochs=1", "--set", "training.warmup_epochs=0"]
LAUNCH = ["launch", "sweeps/presets/quickstart.yaml", "--name", "first", *ONE_EPOCH]
REPEATS = 3


def rows() -> Iterator[Row]:
    """Seconds from the start of the process to the end of the first optimizer step, and where they went."""
    waits = [_launch() for _ in range(REPEATS)]
    middle = sorted(waits, key=lambda wait: wait["first step"])[REPEATS // 2]
    parts = ", ".join(f"{name} after {seconds:.1f} s" for name, seconds in middle.items())
    steps = [wait["first step"] for wait in waits]
    yield measured("first_step", steps, "s", COMMAND, at_most=20, peer=f"the median: {parts}")


def _launch() -> dict[str, float]:
    """Return when the stages of a start were reached, in seconds since the process was started."""
    with tempfile.TemporaryDirectory() as storage:
        began = time.time()
        command = [sys.executable, str(ROOT / "run_sweep.py"), *LAUNCH, "--storage", storage]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        ledger = Ledger.at(SweepFolder(Path(storage), "first").ledger)
        events = ledger.events()
        ledger.close()
    first = {event.kind: event.at - began for event in reversed(events)}
    steps = [event.detail["first_step_at"] for event in events if "first_step_at" in event.detail]
    return {
        "ledger": first["created"],
        "driver": first["driver started"],
        "Ray and first proposal": first["proposed"],
        "first step": min(steps) - began,
    }
