"""The search: configuration, ledger, study, coordinator, evaluation, MLflow mirror, report; `load` for notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.loaded import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # imported when it is asked for: the command line must start at once
        from sweeps.loaded import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
