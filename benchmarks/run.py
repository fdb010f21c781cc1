"""`make bench`: measure what the documentation claims, and write benchmarks/results.json.

A row is ``{id, value, spread, unit, target, met, peer, command}``; targets that are missed are rows too.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"
CLI = [sys.executable, str(ROOT / "run_sweep.py")]


def seconds(arguments: list[str], repeats: int) -> list[float]:
    """Wall time of a whole process, each repeat; it must succeed."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run([*CLI, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        found.append(time.perf_counter() - started)
    return found


def row(identity: str, values: list[float], target: float, command: str) -> dict[str, Any]:
    """Median and range of some wall times against an upper bound."""
    value = statistics.median(values)
    return {
        "id": identity,
        "value": round(value, 3),
        "spread": [round(min(values), 3), round(max(values), 3)],
        "unit": "s",
        "target": f"<= {target:g}",
        "met": value <= target,
        "peer": None,
        "command": f"python run_sweep.py {command}",
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as storage:
        where = ["--storage", storage]
        quickstart = seconds(["launch", "sweeps/presets/quickstart.yaml", *where], 1)
        rows = [
            row("quickstart", quickstart, 240, "launch sweeps/presets/quickstart.yaml"),
            row("help", seconds(["--help"], 7), 1, "--help"),
            row("status", seconds(["status", "quickstart", "--json", *where], 7), 1, "status quickstart --json"),
            row("report", seconds(["report", "quickstart", *where], 5), 15, "report quickstart"),
        ]
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
    sys.stdout.write(RESULTS.read_text())


if __name__ == "__main__":
    main()
