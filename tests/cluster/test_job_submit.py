"""`ray job submit`, really run: a rendered command submits a sweep to a Ray on this machine, and another resumes it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.render import DASHBOARD, render
from cluster.settings import parse_settings
from search_spaces.durable_files import make_folder
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.records import State

ROOT = Path(__file__).resolve().parents[2]
SWEEP = """
model: {img_size: 8, patch_size: 4, embed_dim: 24, depth: 1, num_heads: 2}
data: {name: digits, train_images: 100, validation_images: 40, test_images: 40}
training: {epochs: 1, batch_size: 50, warmup_epochs: 0}
attacks: {epsilon: 0.05, images: 20, stages: [{pgd: {steps: 2}}], test: null}
search: {trials: 2}
tracking: {enabled: false}
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif(
        importlib.util.find_spec("aiohttp_cors") is None, reason="jobs need `pip install 'ray[default]'`"
    ),
]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Head:
    """A Ray with a dashboard on loopback, and the commands of a user beside it."""

    def __init__(self, folder: Path) -> None:
        self._home = folder / "home"
        make_folder(self._home)
        programs = folder / "programs"
        programs.mkdir()
        (programs / "ray").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ray.scripts.scripts "$@"\n')
        (programs / "ray").chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**kept, "HOME": str(self._home), "PATH": path, "OMP_NUM_THREADS": "1"}
        self.dashboard = f"http://127.0.0.1:{(port := free_port())}"
        self.ray = Path("/tmp") / f"paretune-{os.getpid()}"  # short: Ray puts sockets there
        self.run("(umask 077 && ray get-auth-token --generate >/dev/null)")
        options = f"--port={free_port()} --dashboard-host=127.0.0.1 --dashboard-port={port} --temp-dir={self.ray}"
        start = f"RAY_AUTH_MODE=token exec ray start --head --block {options} --num-cpus=2 --num-gpus=0"
        with (folder / "head.log").open("w") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", start], env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def run(self, command: str) -> str:
        """Run a user's shell line; it must succeed."""
        done = subprocess.run(
            ["bash", "-c", command], env=self.environment, cwd=self._home, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def wait(self) -> None:
        """Wait until jobs are taken."""
        for _ in range(120):
            with socket.socket() as found:
                if found.connect_ex(("127.0.0.1", int(self.dashboard.rpartition(":")[2]))) == 0:
                    return
            assert self._process.poll() is None, "the head has ended"
            time.sleep(0.5)
        raise AssertionError("no dashboard")

    def close(self) -> None:
        self._process.terminate()  # `ray start --block` takes its processes with it
        self._process.wait(60)
        shutil.rmtree(self.ray, ignore_errors=True)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    started = Head(tmp_path)
    yield started
    started.close()


def test_a_submitted_job_runs_the_sweep_and_the_same_command_goes_on_with_it(head: Head, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SWEEP)
    storage = tmp_path / "runs"
    settings, problems = parse_settings(
        {
            "sweep": {"file": str(tmp_path / "s.yaml"), "name": "s", "storage": str(storage), "project": str(ROOT)},
            "nodes": {"cpus": 2, "gpus": 0},
            "ray": {"head": "localhost", "workers": []},
        },
        "ray",
    )
    assert settings is not None, problems
    (command,) = [line for _, line in render("ray", settings).commands("FILE") if "ray job submit" in line]
    command = command.replace(DASHBOARD, head.dashboard).replace("--no-wait ", "")
    head.wait()
    said = head.run(command)
    assert "succeeded" in said
    ledger = Ledger.at(SweepFolder(storage, "s").ledger)
    assert [trial.state for trial in ledger.trials()] == [State.FINISHED] * 2
    ledger.close()
    assert "nothing to do: the sweep is finished" in head.run(command)
    refused = subprocess.run(
        ["bash", "-c", command.replace("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled")],
        env=head.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode != 0, "without the token no job is taken"
