"""CUDA MPS: processes that share a GPU compute at the same time, where they would only take turns without it.

NVIDIA's control daemon is started for a Ray that this process starts on its own machine, and stopped when that ends.
Its pipes and logs are in a folder of the machine's own, named after the sweep's: a daemon whose driver was killed is
found there by the next one, which uses it and stops it. A daemon of somebody else is used and left alone.

What is shared is more than time: an error of one process that breaks its CUDA context ends its neighbours' too, whose
trials are then tried again. Running out of memory is no such error.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PROGRAM = "nvidia-cuda-mps-control"
PIPES, LOGS, VISIBLE = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY", "CUDA_VISIBLE_DEVICES"
ANSWER_S = 10.0
"""The daemon starts, answers and ends within so many seconds, or it is left (our choice; one is usual)."""
Say = Callable[[str], None]


@contextmanager
def mps(folder: Path, *, wanted: bool, say: Say = lambda text: None) -> Iterator[dict[str, str]]:
    """Let processes that start within the block share GPUs by MPS, if that is wanted and can be had.

    Within the block the variables by which CUDA finds the daemon are in this process's environment, which those that it
    starts inherit. What keeps MPS from being used is said and is no error.

    Args:
        folder: of the sweep; only its name is used.
        wanted: whether processes will share a device and MPS is allowed.
        say: takes a line where something is started, found, or does not work.

    Yields: those variables; none where CUDA finds the daemon by itself, or there is none.
    """
    own = variables(home_of(folder))
    ready = shutil.which(PROGRAM) is not None and _begin(own, wanted, say)
    if not ready:
        yield {}
        return
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield own
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _stop(own, say)


def home_of(folder: Path) -> Path:
    """Return where the daemon of a sweep has its pipes and logs: on this machine, and short, because pipes must be."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"paretune-mps-{os.getuid()}-{name}"


def variables(home: Path) -> dict[str, str]:
    """Return by which variables CUDA finds the daemon of that folder."""
    return {PIPES: str(home / "pipe"), LOGS: str(home / "log")}


def counts_alike(visible: str | None) -> bool:
    """Return whether the daemon and its clients mean the same devices. Pure.

    The daemon numbers the devices that it sees from 0, and its clients choose by these numbers: 2,3 would be 0,1.

    Args: visible: CUDA_VISIBLE_DEVICES; None if it is not set.

    counts_alike("0,1"), counts_alike("GPU-5f3a"), counts_alike("2,3")  # (True, True, False)
    """
    if visible is None:
        return True
    named = [name.strip() for name in visible.split(",")]
    return named == [str(number) for number in range(len(named))] or all("-" in name[1:] for name in named)


def _begin(own: Mapping[str, str], wanted: bool, say: Say) -> bool:
    """Return whether a daemon of our own answers, started now if need be; end one that nobody wants any more."""
    left = Path(own[PIPES]).exists() and _answers(own)
    foreign = os.environ.get(PIPES) != own[PIPES] and _answers({})
    if not wanted or foreign:
        if left:
            _stop(own, say)
        if wanted and foreign:
            say("CUDA MPS: a daemon runs here already; it is used, and left as it is")
        return False
    if left:
        say("CUDA MPS: the daemon of a driver that ended before is used")
        return True
    if not counts_alike(visible := os.environ.get(VISIBLE)):
        say(f"CUDA MPS is not used: it counts devices from 0, and {VISIBLE} is {visible}; with UUIDs it would be")
        return False
    return _start(own, say)


def _start(own: Mapping[str, str], say: Say) -> bool:
    home = Path(own[PIPES]).parent
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        if home.is_symlink() or home.stat().st_uid != os.getuid():
            say(f"CUDA MPS is not used: {home} belongs to somebody else")
            return False
        for place in own.values():
            Path(place).mkdir(exist_ok=True)
        code = _run(["-d"], "", own)
    except (OSError, subprocess.SubprocessError) as error:
        say(f"CUDA MPS is not used: {PROGRAM} -d fails ({error})")
        return False
    if code or not _answers(own):
        _ask("quit", own)
        say(f"CUDA MPS is not used: the daemon does not answer (code {code}); its log is in {own[LOGS]}")
        return False
    say("CUDA MPS: processes that share a GPU compute at the same time")
    return True


def _stop(own: Mapping[str, str], say: Say) -> None:
    """End our daemon, and with it its pipes and logs; its clients have ended before."""
    if _ask("quit", own) and not _answers(own):
        shutil.rmtree(Path(own[PIPES]).parent, ignore_errors=True)
    else:
        say(f"CUDA MPS: the daemon does not end; `echo quit | {PIPES}={own[PIPES]} {PROGRAM}` ends it")


def _answers(where: Mapping[str, str]) -> bool:
    """Return whether a daemon runs there. Args: where: variables; empty is where CUDA itself would look."""
    return _ask("get_server_list", where)


def _ask(text: str, where: Mapping[str, str]) -> bool:
    try:
        return _run([], f"{text}\n", where) == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _run(arguments: list[str], text: str, where: Mapping[str, str]) -> int:
    """Run the program and return its code. A daemon would keep a pipe open for ever, so that nothing is read."""
    return subprocess.run(
        [PROGRAM, *arguments],
        input=text.encode(),
        env={**os.environ, **where},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=ANSWER_S,
        check=False,
    ).returncode
