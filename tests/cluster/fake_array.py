"""Slurm's part for jobs of one node each, on one machine: what a job has, when it ends, its signal, and its queue.

Real: the scripts, bash, `cluster start --head` and `cluster join`, Ray nodes that are processes of this machine,
signals, exit codes. Stubbed: the queue, which starts every task at once and again when it is requeued; the time limit,
which is an hour, until a file `time-TASK` in FAKE_SLURM_ARRAY is the moment of the signal before it; the environment of
Slurm, which tells a task without a file `silent-TASK` its end. As Slurm's cgroups do, the end of a job ends all of its
processes; one that has met its limit leaves a file `cut-TASK`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.cluster.fake_slurm import directives

HOUR_S = 3600
ALONE = ("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")
POLL_S = 0.1


def submit(script: Path) -> None:
    """Run a job, or each task of an array, until none is requeued; ends with the highest exit code."""
    place = Path(os.environ["FAKE_SLURM_ARRAY"])
    asked = directives(script.read_text())
    assert "requeue" in asked, "a job that is not requeued would be lost"
    array = re.fullmatch(r"1-(\d+)(%\d+)?", asked.get("array", "1-1"))
    assert array is not None
    codes: dict[str, int] = {}
    first = 5000 if "array" in asked else 4000
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # its jobs end with it
    threads = []
    for number in range(1, int(array[1]) + 1):
        task = str(number) if "array" in asked else "head"
        job = _Job(place, script, asked, task, str(first + number), codes)
        threads.append(threading.Thread(target=job.run, daemon=True))
        threads[-1].start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(POLL_S)
    sys.exit(max(codes.values()))


class _Job:
    def __init__(
        self, place: Path, script: Path, asked: dict[str, str], task: str, number: str, codes: dict[str, int]
    ) -> None:
        self.place, self.script, self.asked, self.task, self.number, self.codes = (
            place,
            script,
            asked,
            task,
            number,
            codes,
        )
        self.log = Path(asked["output"].replace("%A", "5000").replace("%a", task).replace("%j", number))

    def run(self) -> None:
        requeue, runs = self.place / f"requeue-{self.number}", 0
        while True:
            code = self._once()
            runs += 1
            (self.place / f"runs-{self.task}").write_text(str(runs))
            if not requeue.exists():
                self.codes[self.task] = code
                return
            requeue.unlink()

    def _once(self) -> int:
        end, now = time.time() + HOUR_S, self.place / f"time-{self.task}"
        is_told = not (self.place / f"silent-{self.task}").exists()
        environment = {
            **os.environ,
            "SLURM_JOB_ID": self.number,
            "SLURM_CPUS_PER_TASK": self.asked["cpus-per-task"],
            **({"SLURM_JOB_END_TIME": str(int(end))} if is_told else {}),
            **({"SLURM_ARRAY_TASK_ID": self.task} if self.task.isdecimal() else {}),
        }
        with self.log.open("ab") as log:
            process = subprocess.Popen((*ALONE, "bash", str(self.script)), env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            if now.exists():
                now.unlink()
                end = time.time() + int(self.asked["signal"].partition("@")[2])
                self._tell(process.pid, signal.SIGUSR1)
            if time.time() >= end:
                (self.place / f"cut-{self.task}").touch()
                process.kill()
            if (self.place / f"requeue-{self.number}").exists():  # Slurm ends the script that asks
                process.kill()
            time.sleep(POLL_S)
        return process.wait()

    def _tell(self, parent: int, number: int) -> None:
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            os.kill(int(child), number)
