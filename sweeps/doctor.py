"""What `doctor` says: verdicts over facts that `sweeps.doctor_facts` has gathered, each with one remedy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from rich.text import Text

from cluster.resources import GB
from sweeps.disk import MARGIN_BYTES, in_words

State = Literal["good", "warning", "bad"]
SIGNS: dict[State, tuple[str, str]] = {"good": ("✓", "green"), "warning": ("!", "yellow"), "bad": ("✗", "red")}

OLDEST_PYTHON = (3, 11)
ROOM_BYTES = 5_000_000_000
"""Less free than this is worth a warning: a ViT-B trial has 1 to 4 GB on the disk (our choice)."""
CLOCK_S = 2.0
"""The storage's clock may differ so far: leases and figures of time are by seconds (our choice)."""
NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "lustre", "beegfs", "gpfs", "ceph")
"""Where locks depend on how it is mounted, and sqlite's write-ahead log is not meant for several machines."""
SHOWN = 4
"""Packages named in one line."""


@dataclass(frozen=True)
class Finding:
    """One line of `doctor`."""

    name: str
    state: State
    found: str
    remedy: str = ""
    """What to do; empty if and only if all is well."""


@dataclass(frozen=True)
class Device:
    """A GPU, as NVML names it."""

    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Accelerators:
    """GPUs, and what torch can do with them."""

    cores: int
    """CPU cores that this process may use."""
    devices: tuple[Device, ...] = ()
    driver: str = ""
    """Version of the NVIDIA driver; empty where there is none."""
    torch_cuda: str = ""
    """CUDA version that torch was built with; empty for a build without."""
    usable: int = 0
    """Devices that torch can use."""
    hidden: bool = False
    """CUDA_VISIBLE_DEVICES leaves some out."""
    problem: str = ""
    """Why NVML, which is there, does not answer, in its words."""


@dataclass(frozen=True)
class StorageFacts:
    """A storage folder, tried."""

    place: str
    problem: str = ""
    """Why a file could not be written, synced, renamed or read, in the system's words."""
    locks: bool = True
    """Whether a lock of one process keeps another one out."""
    free_bytes: int = 0
    kind: str = ""
    """Type of the file system; empty where it is unknown."""
    clock_ahead_s: float = 0.0
    """By how much a new file's time is later than this machine's clock."""


@dataclass(frozen=True)
class RayFacts:
    """What came of starting Ray, or of joining it."""

    address: str | None
    seconds: float = 0.0
    problem: str = ""
    nodes: int = 0
    token: str = ""
    """Where the token comes from; empty if none is asked for."""
    said: tuple[str, ...] = field(default=())
    """Lines about the token."""


def judge_python(version: tuple[int, int, int]) -> Finding:
    """Say whether this Python will do."""
    text = ".".join(map(str, version))
    if version[:2] < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        return Finding("Python", "bad", f"{text}, and {wanted} or later is needed", f"make .venv with Python {wanted}")
    return Finding("Python", "good", text)


def judge_packages(wanted: dict[str, str], found: dict[str, str], required: Iterable[str]) -> Finding:
    """Compare versions. Args: wanted: of constraints.txt; found: installed; required: without which nothing runs.

    What is in constraints.txt, not installed and not required (tools, builds for GPUs) is nobody's fault.
    """
    remedy = "pip install -c constraints.txt -e ."
    missing = sorted(name for name in required if name not in found)
    if missing:
        return Finding("packages", "bad", f"missing: {_some(missing)}", remedy)
    if not wanted:
        return Finding(
            "packages",
            "warning",
            "there is no constraints.txt beside the project, so versions are not compared",
            "run from a copy of the project, or compare with its constraints.txt by hand",
        )
    there = {name: version for name, version in wanted.items() if name in found}
    different = sorted(name for name, version in there.items() if found[name].partition("+")[0] != version)
    if different:
        listed = _some([f"{name} {found[name]} instead of {wanted[name]}" for name in different])
        return Finding("packages", "warning", f"{len(different)} differ from constraints.txt: {listed}", remedy)
    return Finding("packages", "good", f"{len(there)} in the versions of constraints.txt")


def _some(items: list[str]) -> str:
    return ", ".join(items[:SHOWN]) + (f" and {len(items) - SHOWN} more" if len(items) > SHOWN else "")


def judge_devices(there: Accelerators) -> Finding:
    """Say whether torch can use the GPUs that there are."""
    if there.problem:
        found = f"NVIDIA's library is there and does not answer: {there.problem}"
        return Finding("GPUs", "bad", found, "restart the machine or container, so that driver and library agree again")
    if not there.devices:
        return Finding("GPUs", "good", f"no GPU: trials run on CPU cores, of which there are {there.cores}")
    names = _some([f"{device.name} ({device.memory_bytes / GB:.0f} GB)" for device in there.devices])
    found = f"{len(there.devices)}: {names}; driver {there.driver}"
    if not there.torch_cuda:
        return Finding(
            "GPUs", "bad", f"{found}; torch is built without CUDA", "install torch's CUDA build, as pytorch.org says"
        )
    found += f", torch with CUDA {there.torch_cuda}"
    if there.hidden:
        return Finding("GPUs", "good", f"{found}; CUDA_VISIBLE_DEVICES leaves {there.usable} of them")
    if there.usable < len(there.devices):
        return Finding(
            "GPUs",
            "bad",
            f"{found}; torch can use {there.usable} of them",
            f"update the driver to one for CUDA {there.torch_cuda}, or install a torch built for an older CUDA",
        )
    return Finding("GPUs", "good", found)


def judge_sharing(gpus: int, server: bool, running: bool) -> Finding:
    """Say whether processes on one GPU compute at once. Args: server: nvidia-cuda-mps-control is installed."""
    if not gpus:
        return Finding("CUDA MPS", "good", "not needed without a GPU")
    if running:
        return Finding("CUDA MPS", "good", "running: trials that share a GPU compute at once")
    if server:
        found = "available: a sweep starts it with its own Ray; without it trials that share a GPU take turns"
        return Finding("CUDA MPS", "good", found)
    return Finding(
        "CUDA MPS",
        "warning",
        "nvidia-cuda-mps-control is not there: trials that share a GPU take turns",
        "install it with the driver, or give each trial a whole GPU (resources.gpus: 1)",
    )


def judge_storage(facts: StorageFacts) -> Iterator[Finding]:
    """Say whether sweeps can live in a folder: files, locks, room, clock."""
    if facts.problem:
        remedy = "choose a folder that you may write with --storage, or put that right"
        yield Finding("storage", "bad", f"{facts.place}: {facts.problem}", remedy)
        return
    kind = f" ({facts.kind})" if facts.kind else ""
    server = "keep the ledger on a server (ledger.url), or the storage on a local disk"
    if not facts.locks:
        found = f"{facts.place}{kind}: a lock of one process does not keep another one out, and sqlite needs that"
        yield Finding("storage", "bad", found, server)
    elif facts.kind.lower() in NETWORK_FILE_SYSTEMS:
        found = f"{facts.place} is on {facts.kind}: sqlite is not meant for drivers on several machines there"
        yield Finding("storage", "warning", found, server)
    else:
        yield Finding("storage", "good", f"{facts.place}{kind}: written, synced, renamed, read, locked")
    yield _judge_room(facts)
    yield _judge_clock(facts.clock_ahead_s)


def _judge_room(facts: StorageFacts) -> Finding:
    found = f"{in_words(facts.free_bytes)} free in {facts.place}"
    remedy = "make room (`gc NAME` shows what a sweep no longer needs), or choose another --storage"
    if facts.free_bytes < MARGIN_BYTES:
        return Finding("disk", "bad", f"{found}; no driver starts with less than {in_words(MARGIN_BYTES)}", remedy)
    if facts.free_bytes < ROOM_BYTES:
        return Finding("disk", "warning", f"{found}; `plan` says what a sweep needs", remedy)
    return Finding("disk", "good", found)


def _judge_clock(ahead_s: float) -> Finding:
    if abs(ahead_s) > CLOCK_S:
        found = f"the storage's clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's"
        return Finding("clock", "warning", found, "let both take their time from the same NTP server")
    return Finding("clock", "good", "this machine's and the storage's agree")


def judge_tracking(where: str, problem: str, version: str, ours: str) -> Finding:
    """Say whether MLflow can be written. Args: version: of the server, empty for a database; ours: of this machine."""
    if problem:
        remedy = "start it, or correct tracking.uri; sweeps run without it and `sync` completes it later"
        return Finding("MLflow", "bad", f"{where}: {problem}", remedy)
    if version and version.split(".")[0] != ours.split(".")[0]:
        found = f"{where} is MLflow {version}, and {ours} is here"
        return Finding("MLflow", "warning", found, f"install mlflow {version.split('.')[0]} here, or update the server")
    return Finding("MLflow", "good", where + (f" answers, version {version}" if version else ""))


def judge_weights(cache: str, writable: bool, offline: bool) -> Finding:
    """Say whether pretrained weights can be fetched."""
    if offline:
        return Finding("weights", "good", f"{cache}, offline: only what is there (`prefetch` says what is missing)")
    if not writable:
        found = f"{cache} cannot be written: pretrained weights cannot be fetched"
        return Finding("weights", "bad", found, "let HF_HOME name a folder that you may write")
    return Finding("weights", "good", f"{cache} can be written")


def judge_browser(browser: str) -> Finding:
    """Say whether there is a browser, which only tests need."""
    return Finding("browser", "good", browser or "none; only the tests of pages need one")


def judge_ray(facts: RayFacts) -> Finding:
    """Say whether Ray runs, how fast, and whether it asks for a token."""
    where = "a local Ray" if facts.address is None else f"Ray at {facts.address}"
    if facts.problem:
        if facts.address is None:
            remedy = (
                "look for a full /tmp, too few processes or files (ulimit), or a firewall on this host's own address"
            )
        else:
            remedy = "take HOST:PORT and the token from the head node (`ray start --head`, `ray get-auth-token`)"
        return Finding("Ray", "bad", f"{where}: {facts.problem}", remedy)
    nodes = f", {facts.nodes} node{'s' * (facts.nodes != 1)}" if facts.address is not None else ""
    found = f"{where} answers after {facts.seconds:.1f} s{nodes}"
    if not facts.token:
        found += "; it asks for no token: whoever reaches it may run code there"
        return Finding(
            "Ray", "warning", found, "start it with RAY_AUTH_MODE=token, or leave that unset for a local one"
        )
    if facts.said:
        return Finding("Ray", "good", f"{found}; {' '.join(facts.said)}")
    return Finding("Ray", "good", f"{found}; its token is in {facts.token}")


def line(finding: Finding, width: int) -> Text:
    """Return a finding as a line for the terminal, its remedy on a line of its own. Args: width: of the names."""
    sign, colour = SIGNS[finding.state]
    text = Text.assemble((f"{sign} ", colour), (f"{finding.name:<{width}}  ", "bold"), finding.found)
    if finding.remedy:
        text.append(f"\n{'':<{width + 4}}→ {finding.remedy}", colour)
    return text
