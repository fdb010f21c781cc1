"""A whole sweep on the real Ray, launched and resumed: who loads the images."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COUNTED = """
import os
from pathlib import Path
from trainables.datasets.digits import Digits, DigitsConfig

class CountedConfig(DigitsConfig):
    '''Digits that note who loads them.'''
    name: str = "counted"

class Counted(Digits):
    '''In `loaded`, a line with the process for each time.'''
    Config = CountedConfig

    def load(self):
        with open(os.environ["COUNTED"], "a") as file:
            file.write(f"{os.getpid()}\\n")
        return super().load()
"""
SWEEP = """
model: {img_size: 8, patch_size: 4, embed_dim: 24, depth: 1, num_heads: 2}
data: {name: counted, train_images: 100, validation_images: 40, test_images: 40}
training: {epochs: 1, batch_size: 50, warmup_epochs: 0}
attacks: {epsilon: 0.05, images: 20, stages: [{pgd: {steps: 2}}], test: null}
search: {trials: 3}
tracking: {enabled: false}
"""


@pytest.mark.slow
@pytest.mark.ray
def test_a_sweeps_images_are_loaded_by_its_driver_alone(tmp_path: Path) -> None:
    (tmp_path / "counted.py").write_text(COUNTED)
    (tmp_path / "s.yaml").write_text(f"plugins: [{tmp_path / 'counted.py'}]\n{SWEEP}")
    loaded = tmp_path / "loaded"

    def run(*arguments: str) -> list[str]:
        command = [sys.executable, str(ROOT / "run_sweep.py"), *arguments, "--storage", str(tmp_path / "runs")]
        environment = {**os.environ, "COUNTED": str(loaded), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = loaded.read_text().splitlines() if loaded.exists() else []
        loaded.unlink(missing_ok=True)
        return lines

    assert len(run("launch", "s.yaml", "--name", "s", "--trials", "1")) == 1, "created, trained and judged on one load"
    assert len(run("resume", "s", "--trials", "3")) == 1, "two trials more, in a driver that had not created the sweep"
