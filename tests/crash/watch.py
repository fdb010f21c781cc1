"""Watching what a process writes under a folder, and whether it stands inside a point of `search_spaces.faults`."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import sqlalchemy as sa

from search_spaces import faults

CHANGING = frozenset(
    f"os.{name}" for name in ("rename", "remove", "rmdir", "link", "symlink", "truncate", "chmod", "utime")
) | frozenset(f"shutil.{name}" for name in ("rmtree", "move", "copyfile", "copytree", "unpack_archive"))
"""Audit events of the interpreter, beside `open`; a folder says nothing by being there."""
FREE = re.compile(r"s/trials/\d+/log\.txt|s/driver\.log|journal\.txt|s/scratch(/.*)?|s/\.probe\.\d+\.tmp")
"""Files that nothing reads back, by their path in the storage folder."""


class Watch:
    """Puts down the points that are reached, in order, and every write under `storage` that stands outside one."""

    _hooked: ClassVar[Watch | None] = None

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        self.points: list[str] = []
        self.strays: list[str] = []
        self._depth = 0

    def __enter__(self) -> Watch:
        enter, leave, reach = faults.Durable.__enter__, faults.Durable.__exit__, faults._reach

        def entering(write: faults.Durable) -> faults.Durable:
            found = enter(write)
            self._depth += 1
            return found

        def leaving(write: faults.Durable, *error: Any) -> None:
            self._depth -= 1
            leave(write, *error)

        def reaching(point: str, file: Path | None = None) -> None:
            self.points.append(point)
            reach(point, file)

        faults.Durable.__enter__ = entering  # type: ignore[method-assign]
        faults.Durable.__exit__ = leaving  # type: ignore[method-assign]
        faults._reach = reaching
        sa.event.listen(sa.Engine, "before_cursor_execute", self._statement)
        Watch._hooked = self
        sys.addaudithook(_audit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Watch._hooked = None

    def write(self) -> None:
        """Leave what was found beside the sweep, for the process that asked."""
        (self.storage / "watch.json").write_text(json.dumps({"points": self.points, "strays": self.strays}))

    def event(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Take an audit event of the interpreter."""
        if self._depth or not (name in CHANGING or (name == "open" and _writes(arguments))):
            return
        paths = [Path(os.fsdecode(part)) for part in arguments if isinstance(part, str | bytes | os.PathLike)]
        mine = [path.relative_to(self.storage).as_posix() for path in paths if path.is_relative_to(self.storage)]
        self.strays += [f"{name} {path}" for path in mine if not FREE.fullmatch(path)]

    def _statement(self, connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        word = statement.split(maxsplit=1)[0].upper()
        if not self._depth and word in ("INSERT", "UPDATE", "DELETE", "CREATE", "DROP", "ALTER", "REPLACE"):
            self.strays.append(f"{connection.engine.url}: {statement[:80]}")


def _writes(arguments: tuple[Any, ...]) -> bool:
    """Return whether an `open` event is one for writing: (path, mode, flags), the mode None for os.open."""
    _, mode, flags = arguments
    if mode is not None:
        return bool(set(str(mode)) & set("wax+"))
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND))


def _audit(name: str, arguments: tuple[Any, ...]) -> None:
    if Watch._hooked is not None:
        Watch._hooked.event(name, arguments)
