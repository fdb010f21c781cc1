"""Names of places in an object store: ``s3://bucket/prefix?region=…``; credentials are never part of one."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

OPTIONS = {
    "s3": ("region", "scheme", "endpoint_override"),
    "gs": ("scheme", "endpoint_override"),
}
"""Scheme → what may stand behind the question mark: where the server is. Pyarrow would take keys there too."""


@dataclass(frozen=True)
class ObjectUri:
    """A bucket and a prefix in it."""

    scheme: str
    path: str
    """Bucket and prefix, without a slash at either end."""
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def read(cls, text: str) -> ObjectUri:
        """Read ``s3://bucket/prefix?option=value``.

        Raises: ValueError: what is wrong with it and what is allowed; a key that stands in it is not repeated.
        """
        scheme, _, _ = text.partition("://")
        if scheme not in OPTIONS or "://" not in text:
            begins = re.match(r"[a-z0-9]*(:/*|/+)(?!.*@)", text)  # where there is an @, what stands before it is a key
            found = f"{begins[0]}…" if begins else "…"
            raise ValueError(f"it should begin with {' or '.join(f'{name}://' for name in OPTIONS)}; found {found!r}")
        parts = urlsplit(text)
        if "@" in parts.netloc:
            raise ValueError("keys belong into the environment (AWS_ACCESS_KEY_ID …) or the machine's role; found one")
        options = tuple(parse_qsl(parts.query, keep_blank_values=True))
        allowed = OPTIONS[scheme]
        if any(name not in allowed for name, _ in options) or parts.fragment:
            raise ValueError(
                f"behind the question mark {', '.join(allowed)} are allowed, and no keys, which belong into the "
                "environment (AWS_ACCESS_KEY_ID …) or the machine's role; found something else"
            )
        path = f"{parts.netloc}{parts.path}".strip("/")
        if not parts.netloc or "//" in path:
            raise ValueError(f"it should be {scheme}://BUCKET or {scheme}://BUCKET/PREFIX; found no bucket or a gap")
        return cls(scheme, path, options)

    def joined(self, *names: str) -> ObjectUri:
        """Return a place below this one."""
        return ObjectUri(self.scheme, "/".join((self.path, *names)), self.options)

    def parted(self) -> tuple[ObjectUri, str]:
        """Return the place that this one is directly below, and its name there; the place is no whole bucket."""
        parent, _, name = self.path.rpartition("/")
        return ObjectUri(self.scheme, parent, self.options), name

    def __str__(self) -> str:
        query = f"?{urlencode(self.options, safe=':/')}" if self.options else ""
        return f"{self.scheme}://{self.path}{query}"

    @property
    def mirror(self) -> Path:
        """The folder of this machine, not shared, for copies of what is there: in the system's temporary folder."""
        return mirror_root() / self.scheme / self.path


def mirror_root() -> Path:
    """Return the folder in which this user's copies are, on this machine alone."""
    return Path(tempfile.gettempdir()) / f"paretune-{os.getuid()}"


def is_object_uri(place: str | Path) -> bool:
    """Return whether a place is in an object store. is_object_uri("s3://bucket/sweep")  # True"""
    return isinstance(place, str) and place.partition("://")[0] in OPTIONS
