"""Staging: what a sweep needs is fetched before it begins, said before it is fetched, and then no network is needed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants

import run_sweep
from search_spaces.errors import ConfigError, ModelError
from sweeps import creation, runner
from sweeps.commands import opening
from sweeps.config import parse_sweep, read_sweep
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.plan import describe
from sweeps.prefetch import check_fit, pretrained_models, stage, to_fetch
from sweeps.records import SweepRecord
from tests.trainables.archives import Web, serve, use_small_sets
from trainables.dataset import load_splits
from trainables.datasets.cifar10 import Cifar10

ROOT = Path(__file__).resolve().parents[2]
MODEL = {"img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 1, "num_heads": 2}
YAML = """
model: {img_size: 8, patch_size: 2, embed_dim: 24, depth: 1, num_heads: 2}
data: {name: cifar10}
training: {epochs: 1}
objectives: [clean_acc]
search: {trials: 2}
"""
PRETRAINED = """
model: {name: test_vit, pretrained: true, resampling: block_sum, img_size: 8, patch_size: 4, qkv_bias: false}
data: {train_images: 20, validation_images: 10, test_images: 10}
training: {epochs: 1}
objectives: [clean_acc]
"""


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    (tmp_path / "web").mkdir()
    with serve(tmp_path / "web") as running:
        use_small_sets(monkeypatch, tmp_path / "web", running.address)
        yield running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a sweep on CIFAR-10 in s.yaml."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "s.yaml").write_text(YAML)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command in this process and return what it printed; its exit code must be `code`."""

    def call(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["run_sweep.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            run_sweep.main()
        printed = capsys.readouterr()
        assert (ended.value.code or 0) == code, printed
        return printed.out + printed.err

    return call


def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cifar10.source, "url", "http://127.0.0.1:1/cifar-10-python.tar.gz")


def sweep(**sections: Any) -> Any:
    return parse_sweep({"model": MODEL, "objectives": ["clean_acc"], **sections})


# Data


def test_the_default_root_is_where_the_file_was_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_sweep(folder / "s.yaml")
    assert config.document["data"]["root"] == str(folder / "data")
    assert read_sweep(folder / "s.yaml", ["data.root=elsewhere"]).data.plain()["root"] == str(folder / "elsewhere")
    monkeypatch.chdir("/")
    assert parse_sweep(config.document).data == config.data


def test_data_are_said_before_they_are_fetched_and_once_only(web: Web, folder: Path) -> None:
    config, said = read_sweep(folder / "s.yaml"), []
    assert "to be downloaded from" in to_fetch(config)[0]
    (staged,) = stage(config, said.append)
    assert [line.split("; ")[0] for line in said] == [f"there is no folder {folder / 'data' / 'cifar-10-batches-py'}"]
    assert staged.place == folder / "data" / "cifar-10-batches-py"
    assert staged.size == sum(file.stat().st_size for file in staged.place.iterdir())
    asked = len(web.fetched)
    assert stage(config, said.append) == [staged]
    assert to_fetch(config) == []
    assert (len(said), len(web.fetched)) == (1, asked)


def test_data_of_the_users_own_are_named_and_not_measured(tmp_path: Path) -> None:
    pixels, labels = np.zeros((8, 8, 8), np.uint8), np.arange(8) % 2
    np.savez(tmp_path / "own.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    (staged,) = stage(sweep(data={"name": "arrays", "path": str(tmp_path / "own.npz")}), print)
    assert str(staged) == f"data set arrays: {tmp_path / 'own.npz'}"
    assert [str(item) for item in stage(sweep(), print)] == ["data set digits: comes with the installation"]


def test_prefetch_shows_what_is_where_and_finds_it_there_the_second_time(
    web: Web, folder: Path, run: Callable[..., str]
) -> None:
    first = run("prefetch", "s.yaml")
    assert "to be downloaded from" in first
    assert f"data set cifar10: {folder / 'data' / 'cifar-10-batches-py'}, 0.4 MB" in first
    assert "HF_HUB_OFFLINE=1" in first
    second = run("prefetch", "s.yaml", "--set", "data.download=false")
    assert "to be downloaded" not in second
    assert "0.4 MB" in second


def test_prefetch_without_network_is_bad_input(
    web: Web, folder: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable(monkeypatch)
    assert "cannot be downloaded" in run("prefetch", "s.yaml", code=2)


def test_plan_shows_sizes_and_what_would_be_fetched_without_network(
    web: Web, folder: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable(monkeypatch)
    monkeypatch.setattr(opening.out, "width", 300)
    text = run("plan", "s.yaml")
    assert "to be downloaded from http://127.0.0.1:1/cifar-10-python.tar.gz, by `launch` or `prefetch`" in text
    assert "48 training, 12 validation, 30 test images; 3 classes, 3 channels" in text
    assert not (folder / "data").exists()


def test_plan_names_the_line_of_data_that_are_missing_and_may_not_be_downloaded(
    web: Web, folder: Path, run: Callable[..., str]
) -> None:
    (folder / "s.yaml").write_text(YAML.replace("cifar10}", "cifar10, download: false}"))
    text = run("plan", "s.yaml", code=2)
    assert "s.yaml:3: data.download: there is no folder" in text


def test_launch_fails_before_anything_is_created(
    web: Web, folder: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable(monkeypatch)
    text = run("launch", "s.yaml", code=2)
    assert "run_sweep.py prefetch FILE" in text
    assert not (folder / "runs").exists()


def test_a_resume_whose_data_are_gone_fails_before_ray_starts(
    web: Web, folder: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = SweepFolder(folder / "runs", "s")
    place.root.mkdir(parents=True)
    place.config.write_text(YAML)
    document = read_sweep(folder / "s.yaml").document
    ledger = Ledger.at(place.ledger)
    ledger.create(SweepRecord("id", "s", 0.0, 2, document, ("clean_acc",), (), {}, "data"))
    ledger.close()
    monkeypatch.setattr(runner, "prepare_environment", lambda: None)
    monkeypatch.setattr(runner, "connect", lambda *_: pytest.fail("Ray was started"))
    unreachable(monkeypatch)
    assert "cannot be downloaded" in run("resume", "s", code=2)


# Weights


def test_the_weights_of_every_model_that_may_be_drawn_are_wanted() -> None:
    names = ["vit_tiny_patch16_224", "vit_small_patch16_224"]
    searched = {"name": names, "pretrained": [False, True], "drop_path": {"uniform": [0, 0.1]}}
    assert pretrained_models(parse_sweep({"model": searched, "objectives": ["clean_acc"]})) == names
    assert pretrained_models(sweep(model={**MODEL, "pretrained": True})) == names[:1]
    assert pretrained_models(sweep()) == []


def test_a_model_that_never_was_pretrained_is_a_mistake_in_the_file() -> None:
    model = {"name": "vit_small_patch16_18x2_224", "pretrained": True}
    with pytest.raises(
        ConfigError, match=r"model\.pretrained: timm has no pretrained weights of vit_small_patch16_18x2"
    ):
        sweep(model=model)


def test_plan_says_what_is_left_out_of_weights_and_that_they_are_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = {"name": "test_vit", "img_size": 8, "patch_size": 2, "pretrained": True}
    plan = describe(sweep(model=model))
    assert plan.left_out == ("pretrained test_vit: head has 1000 classes, not 10; starts anew.",)
    assert "the weights of test_vit are not in the cache" in plan.to_fetch[0]
    with pytest.raises(ModelError, match=r"pretrained test_vit: .*blocks"):
        describe(sweep(model={**model, "depth": 2}))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        describe(sweep(model=model))


def test_weights_that_do_not_fit_stop_a_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    from trainables.config import ModelConfig
    from trainables.vit import build_model

    model = build_model(ModelConfig(**MODEL), num_classes=10, channels=1, mean=(0.5,), std=(0.5,))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    fitting = sweep(model={**MODEL, "weights": str(tmp_path / "w.safetensors")})
    splits = load_splits(fitting.data, 8, with_selection=False)
    assert check_fit(fitting, splits) == []
    assert [item.what for item in stage(fitting, print)] == ["weights", "data set digits"]
    wider = sweep(model={**MODEL, "embed_dim": 48, "weights": str(tmp_path / "w.safetensors")})
    with pytest.raises(ModelError, match="differently shaped"):
        creation.create_sweep(wider, SweepFolder(tmp_path / "runs", "s"), print)
    assert not (tmp_path / "runs").exists()


class Hub(BaseHTTPRequestHandler):
    """One file of one repository, as the hub answers for it."""

    content = b""

    def do_HEAD(self) -> None:
        found = self.path.endswith("/timm/test_vit.r160_in1k/resolve/main/model.safetensors")
        self.send_response(200 if found else 404)
        self.send_header("X-Repo-Commit", "1" * 40)
        if found:
            self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(self.content)) if found else "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        if "model.safetensors" in self.path:
            self.wfile.write(self.content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def test_prefetched_weights_train_with_the_hub_forbidden_and_gone(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save

    Hub.content = save(timm.create_model("test_vit").state_dict())
    (tmp_path / "s.yaml").write_text(PRETRAINED)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "no_proxy": "127.0.0.1"}
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_ENDPOINT"):
        environment.pop(name, None)

    def call(*commands: str, **changes: str) -> str:
        code = (
            "import runpy, sys\n"
            f"for command in {commands!r}:\n"
            "    sys.argv = ['run_sweep.py', *command.split()]\n"
            f"    try: runpy.run_path({str(ROOT / 'run_sweep.py')!r}, run_name='__main__')\n"
            "    except SystemExit as end: assert not end.code, end.code\n"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=tmp_path, env={**environment, **changes}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        fetched = call("prefetch s.yaml", HF_ENDPOINT=address)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert "to be fetched from timm/test_vit.r160_in1k" in fetched
    assert f"snapshots/{'1' * 40}/model.safetensors" in fetched
    offline = call("prefetch s.yaml", "trial s.yaml", HF_ENDPOINT=address, HF_HUB_OFFLINE="1")
    assert "to be fetched" not in offline
    assert "pretrained test_vit: head has 1000 classes, not 10; starts anew." in offline
    assert "pretrained test_vit: 6 qkv biases left out, because model.qkv_bias is false." in offline
    assert "trained: clean" in offline
