"""The token of a local Ray, and what happens at a cluster that wants another one; both with Ray's own processes."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.authentication import MODE, TOKEN, TOKEN_PATH, require_token_file, source_of
from search_spaces.errors import ClusterError

ROOT = Path(__file__).resolve().parents[2]
HEAD = """
import sys, time, ray
from cluster.authentication import guard_local
guard_local(print)
ray.init(address="local", num_cpus=0, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
ASK = """
import os, sys, time
import ray
from search_spaces.errors import ClusterError
from cluster.authentication import agree
began = time.monotonic()
try:
    agree(sys.argv[1], print)
    print("mode", os.environ.get("RAY_AUTH_MODE"))
except ClusterError as error:
    print(error)
assert time.monotonic() - began < 5, "Ray alone takes 20 s"
"""


def _mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_a_new_token_is_private_and_stays(tmp_path: Path) -> None:
    file, said = tmp_path / "ray" / "auth_token", list[str]()
    require_token_file(file, said.append)
    token = file.read_text()
    require_token_file(file, said.append)
    assert (_mode(file), len(token), file.read_text(), said) == (0o600, 64, token, [])
    assert [path.name for path in file.parent.iterdir()] == ["auth_token"]


def test_processes_that_make_a_token_at_once_use_the_same_one(tmp_path: Path) -> None:
    file = tmp_path / "auth_token"

    def make(_: int) -> str:
        require_token_file(file, lambda text: None)
        return file.read_text()

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(make, range(32)))) == 1


def test_a_token_that_others_could_read_is_narrowed_and_that_is_said(tmp_path: Path) -> None:
    file, said = tmp_path / "auth_token", list[str]()
    file.write_text("0" * 64)
    file.chmod(0o644)
    require_token_file(file, said.append)
    assert _mode(file) == 0o600
    assert file.read_text() == "0" * 64
    assert said == [
        f"{file} could be read by others and is 0600 now; a token that was seen is replaced by deleting it."
    ]


def test_a_token_that_cannot_be_kept_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / ".ray").write_text("a file where the folder should be")
    with pytest.raises(
        ClusterError, match=r"auth_token: Ray's token cannot be kept private there .*RAY_AUTH_TOKEN_PATH"
    ):
        require_token_file(tmp_path / ".ray" / "auth_token", lambda text: None)


def test_where_a_token_comes_from_is_said_without_the_token() -> None:
    assert source_of({TOKEN: "secret", TOKEN_PATH: "/some/file"}) == "$RAY_AUTH_TOKEN"
    assert source_of({TOKEN_PATH: "/some/file"}) == "/some/file ($RAY_AUTH_TOKEN_PATH)"
    assert source_of({}).endswith("/.ray/auth_token")


def _environment(home: Path, **chosen: str) -> dict[str, str]:
    """What a process sees whose user lives in `home` and has set no more of Ray's variables than these."""
    clean = {name: value for name, value in os.environ.items() if name not in (MODE, TOKEN, TOKEN_PATH)}
    return {**clean, "HOME": str(home), "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", **chosen}


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("homes")
    for name in ("mine", "stranger"):
        (folder / name).mkdir()
    return folder


@pytest.fixture(scope="module")
def heads(homes: Path) -> Iterator[dict[str, str]]:
    """Addresses of a head that asks for the token in the home `mine`, and of one that asks for none."""
    wanted: dict[str, dict[str, str]] = {"asking": {}, "open": {MODE: "disabled"}}
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-c", HEAD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(homes / "mine", **chosen),
            text=True,
        )
        for name, chosen in wanted.items()
    }
    try:
        yield {name: process.stdout.readline().strip() for name, process in processes.items() if process.stdout}
    finally:
        for process in processes.values():
            process.communicate(timeout=60)


def ask(address: str, environment: Mapping[str, str]) -> str:
    """Return what a process prints that asks a head whether it may join."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, address],
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "InvalidAuthToken" not in done.stderr, "Ray's own line should not reach the terminal"
    return done.stdout.strip()


@pytest.mark.ray
def test_the_right_token_is_used_unasked_and_the_file_is_private(heads: dict[str, str], homes: Path) -> None:
    assert ask(heads["asking"], _environment(homes / "mine")) == "mode token"
    assert _mode(homes / "mine" / ".ray" / "auth_token") == 0o600


@pytest.mark.ray
@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        ({}, r"found none in .*/stranger/\.ray/auth_token\."),
        ({TOKEN: "0" * 64}, r"found \$RAY_AUTH_TOKEN\."),
        ({TOKEN_PATH: "/no/such/file"}, r"found none in /no/such/file \(\$RAY_AUTH_TOKEN_PATH\)\."),
        ({MODE: "disabled"}, r"found \$RAY_AUTH_MODE=disabled, so none is sent\."),
    ],
)
def test_a_refused_token_is_a_clear_error_and_no_wait(
    heads: dict[str, str], homes: Path, chosen: dict[str, str], found: str
) -> None:
    said = ask(heads["asking"], _environment(homes / "stranger", **chosen))
    assert re.search(rf"--address .*: the cluster refuses this token; {found} .*`ray get-auth-token`", said), said
    assert "0" * 64 not in said


@pytest.mark.ray
def test_a_launch_with_a_refused_token_leaves_nothing(heads: dict[str, str], homes: Path, tmp_path: Path) -> None:
    words = ["launch", "sweeps/presets/quickstart.yaml", "--scale", "smoke", "--storage", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, "run_sweep.py", *words, "--address", heads["asking"]],
        cwd=ROOT,
        env=_environment(homes / "stranger", **{TOKEN: "0" * 64}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, "the cluster refuses this token" in done.stderr) == (2, True), done
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_a_cluster_that_asks_for_no_token_is_joined_and_that_is_said(heads: dict[str, str], homes: Path) -> None:
    said = ask(heads["open"], _environment(homes / "stranger"))
    assert (
        said
        == f"the Ray cluster at {heads['open']} asks for no token: whoever reaches it may run code there.\nmode None"
    )
    assert ask(heads["open"], _environment(homes / "mine", **{MODE: "token"})) == "mode token"


@pytest.mark.ray
@pytest.mark.slow
def test_the_token_is_in_nothing_that_a_sweep_writes_or_prints(tmp_path: Path) -> None:
    home, runs = tmp_path / "home", tmp_path / "runs"
    home.mkdir()
    sweep = "sweeps/presets/quickstart.yaml"
    done = subprocess.run(
        [sys.executable, "run_sweep.py", "launch", sweep, "--scale", "smoke", "--storage", str(runs)],
        cwd=ROOT,
        env=_environment(home),
        capture_output=True,
        timeout=500,
        check=True,
    )
    file = home / ".ray" / "auth_token"
    assert _mode(file) == 0o600
    token = file.read_bytes()
    written = [path for path in runs.rglob("*") if path.is_file()]
    assert {"ledger.db", "driver.log", "report.html", "mlflow.db"} <= {path.name for path in written}
    assert [path for path in written if token in path.read_bytes()] == []
    assert token not in done.stdout + done.stderr
