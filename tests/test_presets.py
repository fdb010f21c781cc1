"""Every preset: it is complete and legal, its plan can be shown, and it runs through at the smoke scale."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from sweeps.config import SweepConfig, read_sweep
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.plan import describe, render
from sweeps.records import State
from sweeps.summary import front_of

ROOT = Path(__file__).resolve().parents[1]
PRESETS = {path.stem: path for path in sorted((ROOT / "sweeps" / "presets").glob("*.yaml"))}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random colour images of ten classes, in place of the data that a preset would read or fetch."""
    random = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("images") / "random.npz"
    x, y = random.integers(0, 256, (700, 32, 32, 3), dtype=np.uint8), np.arange(700) % 10  # more than a batch of 512
    np.savez(file, x_train=x, y_train=y, x_test=x[:100], y_test=y[:100])
    return file


def read(name: str, images: Path, *overrides: str) -> SweepConfig:
    data = [] if name == "quickstart" else [f"data={{name: arrays, path: {images}}}"]
    return read_sweep(PRESETS[name], [*data, *overrides])


def shown(config: SweepConfig) -> str:
    stream = io.StringIO()
    Console(file=stream, width=120).print(render(describe(config)))
    return stream.getvalue()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_plan_whole_and_shrunk(name: str, images: Path) -> None:
    config = read(name, images)
    assert f"{config.name}: {config.trials} trials" in shown(config)
    small = read_sweep(PRESETS[name], (), "smoke")
    assert f"{small.name}: {len(config.methods)} trials" in shown(small)
    assert small.name == f"{config.name}-smoke"


@pytest.mark.parametrize("name", ["jasmin_cifar10", "jasmin_cifar100"])
def test_the_papers_rows_come_first_or_alone_with_three_seeds(name: str, images: Path) -> None:
    config = read(name, images)
    rows = [config.known_params(number) for number in range(31)]
    labels = [row["method"] for row in rows if row is not None]
    assert (labels.count("plain"), labels.count("msvp"), labels.count("jasmin")) == (1, 12, 18)
    assert len({str(row) for row in rows}) == 31
    assert config.known_params(31) is None
    assert config.trials > 31
    grid = read(name, images, "search.sampler=grid", "search.replicates=3", "attacks.evaluate=all")
    assert grid.trials == 93
    assert [grid.known_params(number) for number in range(62, 93)] == rows


@pytest.mark.parametrize("name", ["jasmin_cifar10", "jasmin_cifar100"])
def test_jasmins_recipe_is_the_papers(name: str, images: Path) -> None:
    config = read(name, images)
    model, training = config.model.at_defaults(), config.training.at_defaults()
    assert (model.patch_size, model.qkv_bias, model.pretrained) == (4, False, True)
    assert (training.optimizer, training.momentum, training.weight_decay) == ("sgd", 0.9, 1e-4)
    assert (training.epochs, training.batch_size, training.schedule) == (40, 512, "cosine")
    assert training.flip
    assert training.mixup > 0
    assert training.cutmix > 0


def test_robustness_tokens_have_the_papers_recipe_rows_and_attack(images: Path) -> None:
    config = read("robustness_tokens_dinov2", images)
    training, (entry,) = config.training.at_defaults(), config.methods
    tokens = entry.spaces["robustness_tokens"].at_defaults()
    assert (training.optimizer, training.learning_rate, training.weight_decay) == ("adamw", 1e-3, 0)
    assert (training.batch_size, training.clip_norm) == (8, None)
    assert (tokens.steps, tokens.cos_dim, tokens.head) == (30, 1, "fitted")
    assert tokens.epsilon == pytest.approx(8 / 255 * 0.225, rel=0.01)  # 0.225: the mean of ImageNet's three σ
    rows = [config.known_params(number) for number in range(16)]
    named = {(row["model.name"], row["robustness_tokens.count"]) for row in rows if row is not None}
    assert len(named) == 16
    assert {(row["robustness_tokens.count"], row["robustness_tokens.updates"]) for row in rows if row is not None} == {
        (0, 50),
        (10, 50),
    }
    assert config.known_params(16) is None
    assert config.attacks is not None
    published = config.attacks.columns["PUBLISHED"]
    assert (published.surrogate, published.threat.epsilon) == ("backbone", 8 / 255)
    assert (published.config.steps, published.config.step_size) == (30, 0.01)  # type: ignore[attr-defined]
    assert published.config.legacy_normalized_budget  # type: ignore[attr-defined]
    assert all(stage.surrogate is None for stage in config.attacks.stages)


def test_specformers_recipe_is_the_published_codes(images: Path) -> None:
    config = read("specformer_cifar", images)
    training, msvp = config.training.at_defaults(), config.methods[1].spaces["msvp"].at_defaults()
    assert (training.batch_size, training.epochs, training.final_learning_rate) == (64, 40, 1e-4)
    assert (training.mixup, training.cutmix, training.mixup_probability) == (0.8, 1.0, 0.3)
    assert training.decay_everything
    assert msvp.slice == "in"
    examples = [[row[f"msvp.weight_{part}"] for part in "qkv"] for row in map(config.known_params, (1, 2)) if row]
    assert examples == [[1e-5, 1e-5, 1e-5], [5e-3, 6e-4, 7e-5]]


def test_the_nullspace_recipe_is_the_published_codes(images: Path) -> None:
    config = read("nullspace_imagenet", images)
    model, training = config.model.at_defaults(), config.training.at_defaults()
    method = config.methods[1].spaces["nullspace"].at_defaults()
    assert (model.img_size, model.patch_size, model.pretrained) == (224, 32, True)
    assert (training.optimizer, training.batch_size, training.epochs, training.select) == ("adamw", 128, 10, "best")
    assert (training.weight_decay, training.warmup_epochs, training.schedule) == (1e-4, 0, "cosine")
    assert (method.rounds, method.image_share, method.weight) == (3, 0.1, 1)
    chosen = config.known_params(1)
    assert chosen is not None
    assert chosen["training.learning_rate"] == 1e-4
    assert [chosen[f"nullspace.{name}"] for name in ("limit", "noise_learning_rate", "tolerance")] == [3, 0.1, 0.01]


def smoke_run(name: str, storage: Path) -> None:
    command = [sys.executable, str(ROOT / "run_sweep.py"), "launch", str(PRESETS[name]), "--scale", "smoke"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command += ["--storage", str(storage)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=storage, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--scale smoke" in done.stdout
    config = read_sweep(PRESETS[name], (), "smoke")
    assert config.name is not None
    ledger = Ledger.at(SweepFolder.existing(storage, config.name).ledger)
    trials = ledger.trials()
    assert [trial.state for trial in trials] == [State.FINISHED] * len(config.methods)
    assert [trial.label for trial in trials] == [entry.label for entry in config.methods]
    assert front_of(trials, config.objectives)
    assert ledger.sweep().completed_at is not None
    assert all(trial.mlflow_run_id for trial in trials)
    ledger.close()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs_through_at_the_smoke_scale(name: str, tmp_path: Path) -> None:
    smoke_run(name, tmp_path)
