"""Slurm's part in a test, on one machine: hosts that are namespaces, with addresses, processes and /tmp of their own.

Real: the script, bash, `ray symmetric-run`, two Ray nodes that find each other over a network, signals, exit codes.
Stubbed: the queue (there is none), the time limit (a file `time` in the job's folder is the moment of the signal), the
environment variables of Slurm that the script reads, `srun` (a command is left in a folder that each host watches).

A file `kill` in a host's folder ends all of its processes at once, as if it had lost its power.

Linux with `unshare` and `ip`; everything of a job ends with the first process of its namespaces.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HOSTS = {"pt-node1": "10.213.7.1", "pt-node2": "10.213.7.2"}
JOB = "4711"
NEW = ("unshare", "--mount", "--pid", "--net", "--uts", "--fork", "--mount-proc", "--kill-child")
POLL_S = 0.1


def usable() -> bool:
    """Whether this machine can make such hosts."""
    if not (sys.platform == "linux" and shutil.which("unshare") and shutil.which("ip")):
        return False
    trial = ("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    command = ("unshare", "--user", "--map-root-user", *NEW[1:], *trial)
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def submit(script: Path) -> None:
    """Become a job in namespaces of its own; FAKE_SLURM names its folder. Whoever kills this process ends all of it."""
    root = Path(__file__).resolve().parents[2]
    os.chdir(root)
    os.environ["PYTHONPATH"] = str(root)
    module = (sys.executable, "-m", "tests.cluster.fake_slurm", "controller", str(script.resolve()))
    os.execvp("unshare", ("unshare", "--user", "--map-root-user", *NEW[1:], *module))


def directives(script: str) -> dict[str, str]:
    """Return the options behind #SBATCH."""
    found = re.findall(r'^#SBATCH --([a-z-]+)(?:="?([^"\n]*)"?)?$', script, re.MULTILINE)
    return dict(found)


def controller(script: Path) -> int:
    """Make the hosts, run the script on the first, tell it when its time is up, run it again when it is requeued."""
    place = Path(os.environ["FAKE_SLURM"])
    asked = directives(script.read_text())
    assert "requeue" in asked, "a job that is not requeued would be lost"
    assert asked["signal"].startswith("B:USR1@"), asked["signal"]
    names = list(HOSTS)[: int(asked["nodes"])]
    _hosts(place, names)
    log = Path(asked["output"].replace("%j", JOB))
    restarts = 0
    while True:
        code = _batch(place, script, names, log, restarts)
        if not (place / "requeue").exists():
            return code
        (place / "requeue").unlink()
        restarts += 1


def _hosts(place: Path, names: list[str]) -> None:
    (place / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{HOSTS[n]} {n}\n" for n in names))
    subprocess.run(("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1"), check=True)
    for position, name in enumerate(names):
        (place / name).mkdir()
        module = (sys.executable, "-m", "tests.cluster.fake_slurm", "host", name)
        host = subprocess.Popen((*NEW, *module))
        _until(lambda here=place / name / "up": here.exists())
        # unshare's child has the host's network; its own process keeps ours
        child = Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text().split()[0]
        subprocess.run(("ip", "link", "set", f"v{position}", "netns", child), check=True)
        _write(place / name / "linked", f"v{position}")
        _until(lambda here=place / name / "ready": here.exists())


def host(name: str) -> None:
    """Be a host: its own network, /dev/shm and hosts file; run the commands that are left in its folder, one by one."""
    place = Path(os.environ["FAKE_SLURM"])
    here = place / name
    (here / "up").touch()
    _until((here / "linked").exists)
    link = (here / "linked").read_text()
    scratch = Path(f"/tmp/paretune-{JOB}")
    scratch.mkdir(exist_ok=True)
    for command in (
        ("hostname", name),
        ("ip", "link", "set", "lo", "up"),
        ("ip", "addr", "add", f"{HOSTS[name]}/24", "dev", link),
        ("ip", "link", "set", link, "up"),
        ("mount", "-t", "tmpfs", "tmpfs", "/dev/shm"),
        ("mount", "-t", "tmpfs", "tmpfs", str(scratch)),
        ("mount", "--bind", str(place / "hosts"), "/etc/hosts"),
    ):
        subprocess.run(command, check=True)
    (here / "ready").touch()
    running: dict[str, subprocess.Popen[bytes]] = {}
    while True:
        for order in here.glob("*.order"):
            running[order.stem] = _obey(order)
        for key, process in list(running.items()):
            for sent in here.glob(f"{key}.signal-*"):
                sent.unlink()
                process.send_signal(int(sent.suffix.partition("-")[2]))
            if process.poll() is not None:
                _write(here / f"{key}.code", str(process.returncode))
                del running[key]
        if (here / "kill").exists() and os.getpid() == 1:
            os.kill(-1, signal.SIGKILL)  # everything on this host but its first process
            (here / "kill").rename(here / "killed")
        while os.getpid() == 1 and _reaped(running):  # a namespace's first process is everybody's parent
            pass
        time.sleep(POLL_S)


def _reaped(running: dict[str, subprocess.Popen[bytes]]) -> bool:
    """Bury an orphan, but none of the processes that are waited for elsewhere."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    if found is None or found.si_pid in {process.pid for process in running.values()}:
        return False
    os.waitpid(found.si_pid, 0)
    return True


def _obey(order: Path) -> subprocess.Popen[bytes]:
    environment, words, log = order.read_text().split("\0\0")
    order.unlink()
    with Path(log).open("ab") as out:
        return subprocess.Popen(
            words.split("\0"),
            env=dict(item.split("=", 1) for item in environment.split("\0")),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def _order(name: str, key: str, words: list[str], environment: dict[str, str], log: str) -> None:
    variables = "\0".join(f"{k}={v}" for k, v in environment.items())
    _write(Path(os.environ["FAKE_SLURM"]) / name / f"{key}.order", "\0\0".join((variables, "\0".join(words), log)))


def _batch(place: Path, script: Path, names: list[str], log: Path, restarts: int) -> int:
    """Run the script on the first host. A file `time` asks for the signal before the time limit."""
    key, here = f"batch{restarts}", place / names[0]
    environment = {
        **os.environ,
        "SLURM_JOB_ID": JOB,
        "SLURM_JOB_NODELIST": ",".join(names),
        "SLURM_NNODES": str(len(names)),
        "SLURM_RESTART_COUNT": str(restarts),
        "FAKE_SLURM_LOG": str(log),
    }
    _order(names[0], key, ["bash", str(script)], environment, str(log))
    code, requeued_at = here / f"{key}.code", None
    while not code.exists():
        if (place / "time").exists():
            (place / "time").unlink()
            (here / f"{key}.signal-{signal.SIGUSR1.value}").touch()
        if (place / "requeue").exists() and requeued_at is None:
            requeued_at = time.monotonic()
            (here / f"{key}.signal-{signal.SIGTERM.value}").touch()
        time.sleep(POLL_S)
    (place / f"attempt{restarts}").write_text(code.read_text())
    return int(code.read_text())


def run_step(arguments: list[str]) -> int:
    """Run a command as one task on each host, as srun does; returns the highest exit code."""
    words = list(arguments)
    while words and words[0].startswith("--"):
        words.pop(0)
    place = Path(os.environ["FAKE_SLURM"])
    names, key = os.environ["SLURM_JOB_NODELIST"].split(","), f"step{os.environ['SLURM_RESTART_COUNT']}"
    for position, name in enumerate(names):
        environment = {**os.environ, "SLURM_NODEID": str(position), "SLURM_PROCID": str(position)}
        _order(name, key, words, environment, os.environ["FAKE_SLURM_LOG"])

    def forward(number: int, _: object) -> None:
        for name in names:
            (place / name / f"{key}.signal-{number}").touch()

    signal.signal(signal.SIGTERM, forward)
    codes = [place / name / f"{key}.code" for name in names]
    while not all(code.exists() or (place / name / "dead").exists() for code, name in zip(codes, names, strict=True)):
        time.sleep(POLL_S)
    found = [int(code.read_text()) if code.exists() else 137 for code in codes]
    return max(128 - code if code < 0 else code for code in found)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.rename(path)


def _until(true: object, timeout_s: float = 60) -> None:
    assert callable(true)
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "a host has not come up"
        time.sleep(POLL_S)


if __name__ == "__main__":
    if sys.argv[1] == "host":
        host(sys.argv[2])
    else:
        sys.exit(controller(Path(sys.argv[2])))
