"""The process that has imported everything and forks sweeps, once per session: its start takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.inline import Nursery


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()
