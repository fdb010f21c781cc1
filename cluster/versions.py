"""Whether the nodes of a cluster run what the driver runs: Python, the packages that decide results, our own code.

Trials of one sweep that ran different versions cannot be compared. A node that differs is refused before any trial
starts, with what differs; one that joins later stops the driver, which loses nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cluster.every_node import PATIENCE_S, Answer, EveryNode, NodeCheck
from search_spaces.errors import MixedEnvironments

OURS = ("search_spaces", "cluster", "trainables", "sweeps")
"""The project's packages: carried to the workers of a cluster that is joined, and compared."""
PACKAGES = ("torch", "torchvision", "timm", "numpy", "ray", "safetensors", "pyautoattack")
"""Packages whose versions may decide a result, or whether processes understand each other."""
MISSING = "none"
ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
"""Of every worker, before torch is imported: segments that grow leave fewer gaps that a share pays for. The older name,
PYTORCH_CUDA_ALLOC_CONF, wins wherever a user has set it."""


class SameEnvironment(NodeCheck):
    """Every node that can take trials runs what this process runs; else MixedEnvironments."""

    def __init__(self, plugins: Sequence[str] = (), patience_s: float = PATIENCE_S) -> None:
        """Args: plugins: files of the sweep; they are read by path, so every node needs them there."""
        self._plugins = tuple(plugins)
        super().__init__(EveryNode(describe, lambda node: (self._plugins,), able=True, patience_s=patience_s))

    def _judge(self, answers: Iterable[Answer]) -> None:
        theirs = {answer.node: answer.problem or answer.value for answer in answers}
        if theirs and (lines := differences(describe(self._plugins), theirs)):
            raise MixedEnvironments(
                "nodes of the cluster run something else than this process:\n"
                + "\n".join(f"  {line}" for line in lines)
                + "\nTheir trials could not be compared. Install the same versions there (`pip install -c "
                "constraints.txt -e .`), or take these nodes out of the cluster."
            )


def describe(plugins: Iterable[str] = ()) -> dict[str, str]:
    """Return what this process runs, without importing it: name → version or digest, ``none`` for what is missing."""
    found = {"python": platform.python_version()}
    found |= {name: _version(name) for name in PACKAGES}
    found["project"] = source_digest()
    return found | {f"plugin {path}": _file_digest(Path(path)) for path in plugins}


def differences(mine: Mapping[str, str], answers: Mapping[str, Mapping[str, str] | str]) -> list[str]:
    """Return a table as lines, a row for each node and thing that differs; empty if none does.

    Args: answers: by node, what it runs, or why it has not said so.

    differences({"torch": "2.15.0"}, {"gpu-2": {"torch": "2.14.1"}})[1]  # "gpu-2  torch  2.14.1  2.15.0"
    """
    rows = []
    for node, theirs in sorted(answers.items()):
        if isinstance(theirs, str):
            rows.append((node, theirs, "", ""))
            continue
        for name in [*mine, *(name for name in theirs if name not in mine)]:
            there, here = theirs.get(name, MISSING), mine.get(name, MISSING)
            if there != here:
                rows.append((node, name, there, here))
    if not rows:
        return []
    table = [("node", "what", "there", "here"), *rows]
    widths = [max(len(row[column]) for row in table if row[2] or column == 0) for column in range(4)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def source_digest(packages: Sequence[str] = OURS) -> str:
    """Return a digest of the Python files of packages, found as an import would find them, without importing them."""
    digest = hashlib.sha256()
    for name in packages:
        folder = package_folder(name)
        if folder is None:
            digest.update(f"{name} {MISSING}\n".encode())
            continue
        for path in sorted(folder.rglob("*.py")):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{name}/{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:12]


def package_folder(name: str) -> Path | None:
    """Return the folder of a package that could be imported; None if there is none."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def carried() -> dict[str, Any]:
    """Return the runtime environment of the workers of a joined cluster: the project's code, and torch's allocator as
    this process has it."""
    folders = [str(folder) for folder in map(package_folder, OURS) if folder is not None]
    variables = {name: os.environ.get(name, value) for name, value in ALLOCATOR.items()}
    return {"py_modules": folders, "excludes": ["**/__pycache__"], "env_vars": variables}


def _version(name: str) -> str:
    """Return a version without the build that follows a plus: a driver without a GPU may have another one."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return MISSING


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        return error.strerror or MISSING
