"""The examples do what their texts say, and run together; what every method must keep, they keep in tests/contracts."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import run_sweep
from sweeps import load
from sweeps.config import read_sweep
from trainables.attack import Threat
from trainables.method import Batch
from trainables.registry import find, load_plugins
from trainables.worst_case import WorstCase

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SWEEP = ROOT / "examples" / "extended.yaml"
SMALL = ["data.images=100", "training.epochs=1", "training.warmup_epochs=0", "attacks.images=8"]


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    load_plugins(EXAMPLES)


def test_label_smoothing_is_the_cross_entropy_against_the_smoothed_target() -> None:
    method = find("methods", "label_smoothing")
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(5, 4, generator=generator), torch.tensor([0, 3, 1, 1, 2])
    batch = Batch(logits, labels)
    loss = method(method.Config(smoothing=0.2), 1).loss(torch.nn.Identity(), batch, batch)
    expected = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total = sum(torch.tensor(row).exp().tolist())
        for k, value in enumerate(row):
            target = 0.8 * (k == label) + 0.2 / 4
            expected -= target * (value - float(torch.tensor(total).log())) / 5
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_more_tries_of_random_noise_fool_more_images_and_none_again() -> None:
    attack = find("attacks", "random_noise")
    origin, ids = torch.full((40, 1, 2, 2), 0.5), torch.arange(40)
    asked: list[int] = []

    def model(images: torch.Tensor) -> torch.Tensor:
        """Wrong where the first pixel is brighter than 0.58: one draw of ten in a ball of radius 0.1."""
        asked.append(len(images))
        return torch.stack([0.58 - images[:, 0, 0, 0], images[:, 0, 0, 0] - 0.58], 1)

    fallen = []
    for tries in (1, 5, 60):
        worst = WorstCase(origin, torch.zeros(40, dtype=torch.long))
        attack(attack.Config(tries=tries), Threat(epsilon=0.1)).run(model, worst, 0, ids)
        fallen.append(int((worst.lead > 0).sum()))
    assert 0 < fallen[0] < fallen[1] < fallen[2]
    assert fallen[2] >= 38
    assert asked[0] == 40
    assert asked[-1] < 10


def test_a_shape_covers_the_pixels_that_its_definition_says() -> None:
    shapes = importlib.import_module(find("datasets", "coloured_shapes").__module__)
    size, place, radius = 16, (0.45, 0.6), 0.3
    count = len(shapes.SHAPES)
    centres, radii = torch.tensor(place).view(1, 2, 1, 1).repeat(count, 1, 1, 1), torch.full((count, 1, 1), radius)
    covered = shapes.cover(torch.arange(count), centres, radii, size)
    for row in range(size):
        for column in range(size):
            y, x = ((row + 0.5) / size - place[0]) / radius, ((column + 0.5) / size - place[1]) / radius
            inside = abs(y) <= 1 and abs(x) <= 1
            narrow = min(abs(x), abs(y)) <= 0.35
            expected = [x * x + y * y <= 1, inside, inside and abs(x) <= (y + 1) / 2, inside and narrow]
            assert covered[:, row, column].tolist() == expected


def test_the_example_sweep_asks_for_all_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = read_sweep(SWEEP)
    assert config.attacks is not None
    assert config.data.name == "coloured_shapes"
    assert [entry.label for entry in config.methods] == ["plain", "label_smoothing", "label_smoothing+adversarial"]
    assert config.attacks.stages[0].attack == "random_noise"
    assert "label_smoothing.smoothing" in config.domains()


def test_a_trial_of_all_three_runs_in_the_foreground(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    settings = [part for value in SMALL for part in ("--set", value)]
    arguments = ["run_sweep.py", "trial", str(SWEEP), "--method", "label_smoothing", *settings]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        run_sweep.main()
    printed = capsys.readouterr()
    assert not ended.value.code, printed
    assert '"smoothing": 0.1' in printed.out
    assert "random_noise" in printed.out
    assert "robust 0." in printed.out


@pytest.mark.slow
@pytest.mark.ray
def test_a_real_sweep_of_all_three_reaches_its_front(tmp_path: Path) -> None:
    settings = [part for value in SMALL for part in ("--set", value)]
    command = [sys.executable, "run_sweep.py", "launch", str(SWEEP), *settings, "--set", "search.trials=3"]
    command += ["--storage", str(tmp_path)]
    environment: dict[str, Any] = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = load(tmp_path / "extended")
    assert sorted(sweep.trials["method"]) == ["label_smoothing", "label_smoothing+adversarial", "plain"]
    assert set(sweep.attacks["attack"]) == {"random_noise", "pgd"}
    assert len(sweep.front)
