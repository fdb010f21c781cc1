"""`make bench`: measure what the documentation claims, and write benchmarks/results.json.

``python -m benchmarks.run attacks front`` measures these groups alone and leaves the other rows as they are.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks import attacks, first_step, front, gpu_sharing, ledger, node_data, report, simulated, steps, storm
from benchmarks.rows import Row, measured

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"
CLI = [sys.executable, str(ROOT / "run_sweep.py")]
PRESETS = sorted((ROOT / "sweeps" / "presets").glob("*.yaml"))


def seconds(arguments: list[str], repeats: int) -> list[float]:
    """Wall time of a whole process, each repeat; it must succeed."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run([*CLI, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        found.append(time.perf_counter() - started)
    return found


def command_rows() -> Iterator[Row]:
    """Wall times of whole commands."""
    with tempfile.TemporaryDirectory() as storage:

        def row(identity: str, command: str, repeats: int, at_most: float) -> Row:
            values = seconds([*command.split(), *([] if command == "--help" else ["--storage", storage])], repeats)
            return measured(identity, values, "s", f"python run_sweep.py {command}", at_most=at_most)

        yield row("quickstart", "launch sweeps/presets/quickstart.yaml", 1, 240)
        yield row("help", "--help", 7, 1)
        yield row("status", "status quickstart --json", 7, 1)
        yield row("report", "report quickstart", 5, 15)
        for preset in PRESETS:
            command = f"launch {preset.relative_to(ROOT)} --scale smoke"
            yield row(f"smoke_{preset.stem}", command, 1, 20)


GROUPS: dict[str, Callable[[], Iterable[Row]]] = {
    "commands": command_rows,
    "first_step": first_step.rows,
    "steps": steps.rows,
    "attacks": attacks.rows,
    "front": front.rows,
    "gpu_sharing": gpu_sharing.rows,
    "simulated": simulated.rows,
    "ledger": ledger.rows,
    "report": report.rows,
    "storm": storm.rows,
    "node_data": node_data.rows,
}


def main(chosen: Sequence[str]) -> None:
    """Measure the chosen groups, or all, and replace their rows."""
    fresh = {row["id"]: row for group in chosen or GROUPS for row in GROUPS[group]()}
    old = json.loads(RESULTS.read_text()) if chosen else []
    kept = {row["id"]: row for row in old} | fresh
    RESULTS.write_text(json.dumps(list(kept.values()), indent=2, ensure_ascii=False) + "\n")
    sys.stdout.write(json.dumps(list(fresh.values()), indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
