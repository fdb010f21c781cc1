"""What people meet when something is wrong, each made for real: where, what was found, what is allowed, what next.

A refused launch leaves nothing behind; a refused command on a sweep changes nothing in it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from tests.crash.disks import mounted
from tests.sweeps import ledgers
from tests.test_cli import ROOT, YAML, Run, run

__all__ = ["run"]

MODEL, DATA = YAML.strip().splitlines()[:2]
ARRAYS = "data: {name: arrays, path: my.npz}"


@dataclass(frozen=True)
class Situation:
    """Something that is wrong, and what is said about it."""

    says: tuple[str, ...]
    """Where, what was found, what is allowed, what next: all in what is printed."""
    change: tuple[str, str] = ("", "")
    """What stands in the sweep's file, and what is written instead of it."""
    more: str = ""
    """Further lines of the file."""
    options: tuple[str, ...] = ()
    prepare: Callable[[Path], object] = field(default=lambda place: None)
    """Makes files beside the sweep's."""
    code: int = 2


def images(**changes: object) -> Callable[[Path], None]:
    """Return what writes my.npz with some arrays that are not as they should be."""
    good = {"x_train": np.zeros((9, 8, 8, 3), np.uint8), "y_train": np.zeros(9, int)}
    good |= {"x_test": good["x_train"], "y_test": good["y_train"]}
    return lambda place: np.savez(place / "my.npz", **{**good, **changes})  # type: ignore[arg-type]


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda place: (place / name).write_text(content)


LAUNCH: Mapping[str, Situation] = {
    "YAML that is none": Situation(("s.yaml:9", "not valid YAML", "expected ',' or '}'"), more="tracking: {uri: x\n"),
    "a section twice": Situation(("s.yaml:8", "search", "there twice", "line 7"), more="search: {trials: 3}\n"),
    "no such file": Situation(("none.yaml", "cannot be read", "No such file"), options=("FILE", "none.yaml")),
    "an unknown key": Situation(
        ("s.yaml:4: training.epoch", "unknown key", "allowed: epochs, batch_size", "Did you mean 'epochs'?"),
        change=("epochs: 1", "epoch: 1"),
    ),
    "a value out of range": Situation(
        ("s.yaml:4: training.epochs", "greater than or equal to 1", "found 0"), change=("epochs: 1", "epochs: 0")
    ),
    "an override out of range": Situation(
        ("--set training.epochs=0", "training.epochs", "greater than or equal to 1", "found 0"),
        options=("--set", "training.epochs=0"),
    ),
    "an unknown model": Situation(
        ("s.yaml:2: model.name", "no model 'vit_tyni_patch16_224'", "Did you mean 'vit_tiny_patch16_224'?"),
        change=("model: {", "model: {name: vit_tyni_patch16_224, "),
    ),
    "an unknown method": Situation(
        ("s.yaml:5: methods[1].jasmine", "unknown name 'jasmine'", "allowed: ", "adversarial", "Did you mean"),
        change=("jasmin", "jasmine"),
    ),
    "weights that are not there": Situation(
        ("s.yaml:2: model.weights", "no such file", "my.safetensors"),
        change=("model: {", "model: {weights: my.safetensors, "),
    ),
    "weights that are damaged": Situation(
        ("model.weights", "my.safetensors cannot be read as weights"),
        change=("model: {", "model: {weights: my.safetensors, "),
        prepare=text("my.safetensors", "no weights, only words that go on for a while"),
    ),
    "data that is not there": Situation(("s.yaml:3: data.path", "there is no file", "my.npz"), change=(DATA, ARRAYS)),
    "data that is no archive": Situation(
        ("s.yaml:3: data.path", "my.npz is no .npz file"), change=(DATA, ARRAYS), prepare=text("my.npz", "junk")
    ),
    "images of a wrong shape": Situation(
        ("my.npz: x_train", "shape (9, 8, 7, 3)", "expected square images (n, H, W) or (n, H, W, C)"),
        change=(DATA, ARRAYS),
        prepare=images(x_train=np.zeros((9, 8, 7, 3), np.uint8)),
    ),
    "images of a wrong type": Situation(
        ("my.npz: x_test", "type int64", "expected uint8, or floats in [0, 1]"),
        change=(DATA, ARRAYS),
        prepare=images(x_test=np.zeros((9, 8, 8, 3), np.int64)),
    ),
    "a plugin with an exception": Situation(
        ("s.yaml:8: plugins[0]", "mine.py:2", "RuntimeError: not today"),
        more="plugins: [mine.py]\n",
        prepare=text("mine.py", "import os\nraise RuntimeError('not today')\n"),
    ),
    "a plugin that is no Python": Situation(
        ("s.yaml:8: plugins[0]", "mine.py:1", "SyntaxError"),
        more="plugins: [mine.py]\n",
        prepare=text("mine.py", "def f(:\n"),
    ),
    "an MLflow address of no known kind": Situation(
        ("s.yaml:8: tracking.uri", "begin with http://, https://, sqlite:", "found 'htp://x:5000'"),
        more="tracking: {uri: 'htp://x:5000'}\n",
    ),
    "no Ray at the address": Situation(
        ("--address 127.0.0.1:PORT", "no Ray cluster answers", "refused", "HOST:PORT", "ray start --head", "local Ray"),
        options=("--address", "127.0.0.1:PORT"),
    ),
    "the address of a Ray client": Situation(
        ("--address ray://127.0.0.1:10001", "expected HOST:PORT"), options=("--address", "ray://127.0.0.1:10001")
    ),
    "a storage folder that is a file": Situation(
        ("nothing can be written into", "s.yaml", "Not a directory", "Nothing was started"),
        options=("--storage", "s.yaml"),
        code=3,
    ),
}


@pytest.mark.parametrize("name", LAUNCH)
def test_a_launch_that_cannot_work_is_refused_and_leaves_nothing(name: str, run: Run, tmp_path: Path) -> None:
    situation = LAUNCH[name]
    changed = YAML.replace(*situation.change) if any(situation.change) else YAML
    assert name in ("no such file",) or changed != YAML or situation.more or situation.options
    (tmp_path / "s.yaml").write_text(changed + situation.more)
    situation.prepare(tmp_path)
    before = sorted(tmp_path.iterdir())
    file, options, port = "s.yaml", list(situation.options), _free_port()
    if options[:1] == ["FILE"]:
        file, options = options[1], []
    options = [option.replace("PORT", port) for option in options]
    said = run("launch", file, *options, cwd=tmp_path, code=situation.code)
    for part in situation.says:
        assert part.replace("127.0.0.1:PORT", f"127.0.0.1:{port}") in said
    assert "Traceback" not in said
    assert sorted(path for path in tmp_path.iterdir() if path.name != "__pycache__") == before


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPUs")
@pytest.mark.parametrize("asked", ["{gpus: 0.5}", "{evaluation: {gpus: 0.25}}"])
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(asked: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(f"{YAML}resources: {asked}\n")
    said = run("launch", "s.yaml", cwd=tmp_path, code=2)
    for part in ("resources.gpus", "found 0 GPUs and", "gpus: auto takes what is there", "--address"):
        assert part in said
    assert not (tmp_path / "runs").exists()


def test_weights_that_no_network_can_fetch_are_refused(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(YAML.replace(MODEL, "model: {name: vit_tiny_patch16_224, pretrained: true}"))
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "COLUMNS": "120"}
    command = [sys.executable, str(ROOT / "run_sweep.py"), "launch", "s.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=offline, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    for part in ("model.pretrained", "vit_tiny_patch16_224", "are not in the cache", "prefetch FILE", "model.weights"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    """An unfinished sweep without a driver."""
    folder = SweepFolder(tmp_path / "runs", "digits")
    ledgers.unfinished(folder).close()
    (tmp_path / "s.yaml").write_text(YAML)
    return folder


def test_a_name_that_is_taken_points_to_resume(run: Run, sweep: SweepFolder, tmp_path: Path) -> None:
    before = sweep.ledger.read_bytes()
    said = run("launch", "s.yaml", "--name", "digits", cwd=tmp_path, code=2)
    assert "sweep 'digits' exists in" in said
    assert "python run_sweep.py resume digits" in said
    assert sweep.ledger.read_bytes() == before


def test_a_name_that_is_nearly_right_is_guessed(run: Run, sweep: SweepFolder, tmp_path: Path) -> None:
    said = run("status", "digit", cwd=tmp_path, code=2)
    assert "no sweep 'digit' in runs (sweeps there: digits). Did you mean 'digits'?" in said


def test_a_ledger_of_another_version_says_which_and_what_to_do(run: Run, sweep: SweepFolder, tmp_path: Path) -> None:
    _execute(sweep, "UPDATE sweep SET schema_version = 1")
    for command in (("status", "digits"), ("resume", "digits"), ("report", "digits")):
        said = run(*command, cwd=tmp_path, code=2)
        assert "the ledger has schema 1, this version reads" in said
        assert "the version that launched the sweep" in said
        assert "Traceback" not in said


@pytest.mark.parametrize("command", ["status", "resume", "report"])
def test_a_ledger_that_is_damaged_says_what_is_left(command: str, run: Run, sweep: SweepFolder, tmp_path: Path) -> None:
    for extra in sweep.root.glob("ledger.db-*"):
        extra.unlink()
    sweep.ledger.write_bytes(b"not a database " * 1000)
    said = run(command, "digits", cwd=tmp_path, code=3)
    for part in ("ledger.db is damaged", "weights and verdicts", ".recover"):
        assert part in said
    assert "Traceback" not in said
    assert sweep.ledger.read_bytes() == b"not a database " * 1000


def test_a_sweep_that_runs_elsewhere_is_left_alone(run: Run, sweep: SweepFolder, tmp_path: Path) -> None:
    ledger = Ledger.at(sweep.ledger)
    with Lease(ledger):
        count = len(ledger.events())
        said = run("resume", "digits", cwd=tmp_path, code=2)
        assert len(ledger.events()) == count
    ledger.close()
    for part in (f"process {os.getpid()} on", "kill -INT", "--take-over"):
        assert part in said


def test_a_disk_that_is_too_small_stops_the_driver_before_ray_starts(run: Run, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(YAML)
    small = tmp_path / "small"
    small.mkdir()
    mounted("-t", "tmpfs", "-o", "size=8m", "none", str(small))
    try:
        said = run("launch", "s.yaml", "--storage", "small", cwd=tmp_path, code=3)
        folder = SweepFolder(small, "s")
        ledger = Ledger.at(folder.ledger)
        assert [event.kind for event in ledger.events()][-1] == "driver crashed"
        ledger.close()
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=False)
    for part in (str(small), "are free, and", "are needed", "Make room", "Nothing is lost", "resume s --storage"):
        assert part in said
    assert "Traceback" not in said


def test_a_read_only_storage_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(YAML)
    fixed = tmp_path / "fixed"
    fixed.mkdir()
    mounted("-t", "tmpfs", "-o", "size=1m,ro", "none", str(fixed))
    try:
        said = run("launch", "s.yaml", "--storage", "fixed", cwd=tmp_path, code=3)
    finally:
        subprocess.run(["umount", "--lazy", str(fixed)], check=False)
    for part in ("nothing can be written into", str(fixed), "Read-only file system", "Nothing was started"):
        assert part in said


def test_a_loss_that_is_no_number_names_epoch_and_step(run: Run, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(YAML)
    wild = ("--method", "plain", "--set", "training.learning_rate=1e30", "--set", "training.clip_norm=null")
    said = run("trial", "s.yaml", *wild, "--set", "training.epochs=3", cwd=tmp_path, code=2)
    assert "epoch" in said
    assert "step" in said
    assert "Traceback" not in said


def test_an_mlflow_server_that_is_away_is_named_and_the_ledger_stays(
    run: Run, sweep: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    address = f"http://127.0.0.1:{_free_port()}"
    document = json.dumps({"methods": ["plain"], "attacks": {}, "tracking": {"uri": address}})
    _execute(sweep, "UPDATE sweep SET document = :d", d=document)
    said = run("sync", "digits", cwd=tmp_path, code=2)
    for part in ("MLflow is not up to date", address, "The ledger has everything", "sync digits"):
        assert part in said
    assert "Traceback" not in said


def _execute(sweep: SweepFolder, sql: str, **values: str) -> None:
    import sqlalchemy as sa

    ledger = Ledger.at(sweep.ledger)
    with ledger._engine.begin() as connection:
        connection.execute(sa.text(sql), values)
    ledger.close()
