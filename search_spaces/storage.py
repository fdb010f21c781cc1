"""Which errors are the storage's own: full, read-only, gone. They stop a driver, and no trial has failed by them."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from search_spaces.errors import ObjectStoreError

_SIGNS = {
    errno.ENOSPC: ("No space left on device", "database or disk is full"),
    errno.EDQUOT: ("Disk quota exceeded",),
    errno.EROFS: ("Read-only file system", "attempt to write a readonly database"),
    errno.EIO: ("Input/output error", "disk I/O error"),
    errno.ESTALE: ("Stale file handle",),
    errno.ENOTCONN: ("Transport endpoint is not connected",),
}
"""Error number → how the system, sqlite and the libraries that lose the number put it."""
_OBJECTS = re.compile(rf"\b{ObjectStoreError.__name__}: (.+?)\.?$", re.MULTILINE)
"""How a traceback ends that an object store has caused."""


def storage_problem(error: BaseException | str) -> str:
    """Return what is wrong with the storage in the system's words; empty if the error is another's.

    Args: error: an exception, of which causes and contexts are looked at too, or the text of a traceback.
    """
    if isinstance(error, str):
        return _sign_in(error)
    return next((found for part in _chain(error) if (found := _of(part))), "")


def _of(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in _SIGNS:
        return _SIGNS[error.errno][0]
    if isinstance(error, ObjectStoreError):
        return str(error).removesuffix(".")
    return _sign_in(str(error))


def _sign_in(text: str) -> str:
    if said := _OBJECTS.search(text):
        return said[1]
    return next((signs[0] for signs in _SIGNS.values() if any(sign in text for sign in signs)), "")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what led to it, each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        part = waiting.pop(0)
        if part is not None and id(part) not in seen:
            seen.add(id(part))
            yield part
            waiting += [part.__cause__, part.__context__]
