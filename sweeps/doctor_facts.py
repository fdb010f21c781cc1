"""Gathering what `doctor` judges: each fact is tried for real, leaves nothing, and takes a bounded time."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from search_spaces.imports import quick_imports
from sweeps.disk import free_bytes
from sweeps.doctor import (
    Accelerators,
    Device,
    Finding,
    RayFacts,
    StorageFacts,
    judge_browser,
    judge_devices,
    judge_packages,
    judge_python,
    judge_ray,
    judge_sharing,
    judge_storage,
    judge_tracking,
    judge_weights,
)

PROJECT = Path(__file__).resolve().parents[1]
RAY_S = 60.0
"""Ray may take so long to start or to be joined (our choice; a few seconds are usual)."""
SERVER_S = 5.0
"""MLflow's server answers within so many seconds (our choice)."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def findings(storage: Path, address: str | None, tracking: str | None) -> Iterator[Finding]:
    """Yield everything that `doctor` says, as soon as it is known; Ray, which takes longest, comes last.

    Args: address: of a cluster to join; None starts a local Ray. tracking: MLflow's URI; None: the storage's own.
    """
    yield judge_python((sys.version_info.major, sys.version_info.minor, sys.version_info.micro))
    yield judge_packages(constraints(PROJECT / "constraints.txt"), installed(), required())
    there = accelerators()
    yield judge_devices(there)
    yield judge_sharing(len(there.devices), *mps())
    yield from judge_storage(try_storage(storage))
    yield judge_tracking(*try_tracking(tracking, storage))
    yield judge_weights(*weights_cache())
    yield judge_browser(next(filter(None, map(shutil.which, BROWSERS)), ""))
    yield judge_ray(try_ray(address))


def constraints(file: Path) -> dict[str, str]:
    """Return name → version of a file of lines ``name==version``; empty if there is none."""
    if not file.exists():
        return {}
    pairs = (line.partition("==") for line in file.read_text().splitlines() if "==" in line)
    return {_canonical(name): wanted.strip() for name, _, wanted in pairs}


def installed() -> dict[str, str]:
    """Return name → version of all packages; of two of a name the one that an import finds."""
    found: dict[str, str] = {}
    for distribution in distributions():
        found.setdefault(_canonical(distribution.metadata["Name"] or ""), distribution.version)
    return found


def required() -> list[str]:
    """Return the packages without which the project does not run; none known where it is not installed."""
    try:
        lines = requires("paretune") or []
    except PackageNotFoundError:
        return []
    return [_canonical(re.split(r"[\[ ;<>=!~]", line, maxsplit=1)[0]) for line in lines if "extra ==" not in line]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def accelerators() -> Accelerators:
    """Look for GPUs: NVML says what is in the machine, torch what it can use."""
    with quick_imports():
        import torch
    devices, driver, problem = _nvml()
    usable = torch.cuda.device_count()
    if usable and not devices and not problem:  # without nvidia-ml-py
        properties = [torch.cuda.get_device_properties(index) for index in range(usable)]
        devices, driver = tuple(Device(one.name, one.total_memory) for one in properties), "unknown"
    return Accelerators(
        cores=len(os.sched_getaffinity(0)),
        devices=devices,
        driver=driver,
        torch_cuda=torch.version.cuda or "",
        usable=usable,
        hidden="CUDA_VISIBLE_DEVICES" in os.environ,
        problem=problem,
    )


def _nvml() -> tuple[tuple[Device, ...], str, str]:
    """Return the GPUs of the machine, the driver's version, and why NVML fails where it is there."""
    try:
        import pynvml
    except ImportError:
        return (), "", ""
    absent = (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded, pynvml.NVMLError_NoData)
    try:
        pynvml.nvmlInit()
    except absent:
        return (), "", ""
    except pynvml.NVMLError as error:
        return (), "", str(error)
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        devices = [Device(str(pynvml.nvmlDeviceGetName(h)), _memory(pynvml, h)) for h in handles]
        return tuple(devices), str(pynvml.nvmlSystemGetDriverVersion()), ""
    except pynvml.NVMLError as error:
        return (), "", str(error)
    finally:
        pynvml.nvmlShutdown()


def _memory(nvml: Any, handle: Any) -> int:
    return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)


def mps() -> tuple[bool, bool]:
    """Return whether CUDA MPS is installed, and whether its control daemon has opened its pipe."""
    pipes = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    return shutil.which("nvidia-cuda-mps-control") is not None, (pipes / "control").exists()


def try_storage(storage: Path) -> StorageFacts:
    """Write, sync, rename, read and lock a file where the storage folder is, or will be; nothing is left."""
    place = storage.absolute()
    while not place.exists():
        place = place.parent
    probe = place / f".doctor.{os.getpid()}.tmp"
    renamed = probe.with_suffix(".renamed")
    try:
        before = time.time()
        with probe.open("wb") as file:
            file.write(b"?" * 4096)
            file.flush()
            os.fsync(file.fileno())
        after = time.time()
        os.replace(probe, renamed)
        if renamed.read_bytes() != b"?" * 4096:
            return StorageFacts(str(place), "what was written is not what is read")
        written = renamed.stat().st_mtime
        ahead = written - after if written > after else min(0.0, written - before)
        return StorageFacts(str(place), "", _keeps_out(renamed), free_bytes(place), kind_of(place), ahead)
    except OSError as error:
        return StorageFacts(str(place), f"a file cannot be written there: {error.strerror}")
    finally:
        for path in (probe, renamed):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _keeps_out(file: Path) -> bool:
    """Whether a lock on a file, taken here as sqlite takes it, is seen by another process."""
    import fcntl

    other = (
        "import fcntl, sys\n"
        "try: fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except OSError: sys.exit(7)"
    )
    with file.open("r+b") as mine:
        try:
            fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return subprocess.run([sys.executable, "-I", "-S", "-c", other, str(file)], check=False).returncode == 7


def kind_of(place: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Return the type of the file system that a folder is on; empty where the system does not say."""
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return ""
    over = [(mount.encode().decode("unicode_escape"), kind) for _, mount, kind, *_ in lines]
    under = [(len(mount), n, kind) for n, (mount, kind) in enumerate(over) if place.resolve().is_relative_to(mount)]
    return max(under)[2] if under else ""


def try_tracking(uri: str | None, storage: Path) -> tuple[str, str, str, str]:
    """Open MLflow's database for reading, or ask its server. Returns: what `judge_tracking` takes."""
    ours = version("mlflow")
    if uri is not None and uri.startswith(("http://", "https://")):
        return (without_credentials(uri), *_ask_server(uri), ours)
    where = f"sqlite:///{storage.resolve() / 'mlflow.db'}" if uri is None else uri
    if not where.startswith("sqlite:///"):
        return without_credentials(where), "", "", ours  # another database: its own drivers know
    file = Path(where.removeprefix("sqlite:///"))
    if not file.exists():
        return f"{where}, made by the first sweep", "", "", ours
    try:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=SERVER_S)) as database:
            database.execute("SELECT version_num FROM alembic_version").fetchall()
    except sqlite3.Error as error:
        return where, f"cannot be opened ({error})", "", ours
    return f"{where} opens", "", "", ours


def _ask_server(uri: str) -> tuple[str, str]:
    """Return (problem, version) of a server."""
    request = urllib.request.Request(f"{without_credentials(uri).rstrip('/')}/version")
    parts = urlsplit(uri)
    user = parts.username or os.environ.get("MLFLOW_TRACKING_USERNAME")
    if user is not None:
        password = parts.password or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=SERVER_S) as answer:
            found = answer.read(100).decode(errors="replace").strip()
    except urllib.error.HTTPError as error:
        error.close()
        return f"answers {error.code} {error.reason}", ""
    except (OSError, ValueError) as error:
        return f"no server answers ({getattr(error, 'reason', error)})", ""
    if not re.fullmatch(r"\d+\.\d+[\w.]*", found):
        return "what answers is no MLflow server", ""
    return "", found


def without_credentials(uri: str) -> str:
    """Return a URI without the name and password that it may hold."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def weights_cache() -> tuple[str, bool, bool]:
    """Return where pretrained weights are kept, whether that can be written, and whether the hub is not to be asked."""
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE)
    above = place
    while not above.exists():
        above = above.parent
    return str(place), _can_write(above), bool(constants.HF_HUB_OFFLINE)


def _can_write(folder: Path) -> bool:
    probe = folder / f".doctor.{os.getpid()}.tmp"
    try:
        probe.write_bytes(b"?")
        probe.unlink()
    except OSError:
        return False
    return True


def try_ray(address: str | None, patience_s: float = RAY_S) -> RayFacts:
    """Start or join Ray in a process of its own, which is ended with all of its processes if it takes too long."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "sweeps.doctor_ray", *([] if address is None else [address])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))},
        start_new_session=True,
    )
    try:
        printed, complaints = process.communicate(timeout=patience_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return RayFacts(address, problem=f"has not answered in {patience_s:g} s")
    try:
        answer = json.loads(printed.splitlines()[-1])
    except (IndexError, ValueError):
        lines = complaints.strip().splitlines() or [f"ended with code {process.returncode}"]
        return RayFacts(address, problem=lines[-1])
    said = tuple(answer.pop("said"))
    return RayFacts(address, time.monotonic() - began, said=said, **answer)
