"""File systems of a test's own, small enough to fill."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOM = 110_000_000
"""Bytes of a small file system: more than a driver wants to be free when it looks."""


def mounted(*arguments: str) -> None:
    """Mount something, or skip the test where that is not allowed."""
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


def fill(storage: Path) -> None:
    """Write until not a byte is left."""
    with (storage / "ballast").open("wb", buffering=0) as file:
        for size in (1_000_000, 4096, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
