"""The head of an elastic cluster: a Ray of the sweep's own, which machines find through a folder beside the sweep.

::

    STORAGE/.NAME.head/     0700, while the head is there
    ├── token               0600; who holds it may run code on the cluster
    └── address             HOST:PORT
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from cluster.authentication import MODE, TOKEN, TOKEN_PATH, require_token_file, use_token_file
from cluster.ray_node import RayNode, free_port


def head_folder(storage: Path, name: str) -> Path:
    """Return where the head of a sweep says how it is reached."""
    return storage / f".{name}.head"


def read_address(folder: Path) -> str | None:
    """Return HOST:PORT of the head that says that it is there; None if none does."""
    try:
        return (folder / "address").read_text().strip() or None
    except OSError:
        return None


def replace_text(file: Path, text: str) -> None:
    """Write a file of which a reader sees all or nothing; after a loss of power nobody needs it."""
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, file)


def with_token(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return an environment in which Ray shows, or asks for, the head's token."""
    kept = {name: value for name, value in environment.items() if name != TOKEN}
    return {**kept, MODE: "token", TOKEN_PATH: str(folder / "token")}


@contextmanager
def running_head(folder: Path, cpus: float, gpus: float, host: str | None, say: Callable[[str], None]) -> Iterator[str]:
    """Run a head while the block runs, in whose processes and in this one Ray uses its token; yields HOST:PORT.

    Args:
        folder: as `head_folder`; a token that is there from an earlier head is used again.
        cpus, gpus: of this machine, for trials and attacks.
        host: address of this machine at which the others reach it; None leaves it to Ray.

    Raises: ClusterError if no head can be started.
    """
    from ray.util import get_node_ip_address

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    require_token_file(folder / "token", say)
    use_token_file(folder / "token")
    host = host or get_node_ip_address()
    port = free_port(host)
    options = ["--head", f"--port={port}", f"--num-cpus={cpus:g}", f"--num-gpus={gpus:g}", "--include-dashboard=false"]
    if find_spec("grpc") is not None:  # then Ray starts its client server, for all sweeps of a machine on one port
        options.append(f"--ray-client-server-port={free_port(host)}")
    node = RayNode(options, host, os.environ)
    try:
        node.wait()
        replace_text(folder / "address", f"{host}:{port}\n")
        say(f"the head is at {host}:{port}; `cluster join` finds it")
        yield f"{host}:{port}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        node.kill()
