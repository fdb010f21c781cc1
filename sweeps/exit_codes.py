"""How the commands end, for the shell (docs/troubleshooting.md)."""

from __future__ import annotations

DONE, SOME_FAILED, BAD_INPUT, DRIVER_FAILED, INTERRUPTED = 0, 1, 2, 3, 130
