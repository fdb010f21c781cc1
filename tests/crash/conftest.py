"""What the crash tests share: the process that forks sweeps, and a disk that can be filled."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.disks import ROOM, mounted
from tests.crash.inline import Nursery


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """A process that has imported everything, once per session: its start takes seconds."""
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; it takes root."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted("-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(place))
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
