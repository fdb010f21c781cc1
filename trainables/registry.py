"""Finding methods, attacks and data sets by name: one file each, imported only when it is asked for.

``trainables/methods/jasmin.py`` holds the class ``Jasmin`` and is ``jasmin`` in YAML. A file outside the project is
added with ``plugins: [path/to/my_method.py]``; its stem is its key, its class the stem in CamelCase.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from search_spaces.errors import SweepError

Kind = Literal["methods", "attacks", "datasets"]

_plugins: dict[str, ModuleType] = {}


class UnknownName(SweepError, KeyError):
    """No method, attack or data set of that name."""

    def __init__(self, kind: Kind, key: str) -> None:
        close = difflib.get_close_matches(key, names(kind), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        super().__init__(f"unknown name {key!r} among the {kind}; allowed: {', '.join(names(kind))}.{hint}")

    def __str__(self) -> str:
        return str(self.args[0])


def names(kind: Kind) -> list[str]:
    """Return the names that YAML may use for this kind, sorted."""
    return sorted(built_in_names(kind) + [key for key, module in _plugins.items() if _fits(module, key, kind)])


def built_in_names(kind: Kind) -> list[str]:
    """Return the names that need no plugin, sorted."""
    package = importlib.import_module(f"trainables.{kind}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def find(kind: Kind, key: str) -> Any:
    """Return the class registered under a name; UnknownName if there is none."""
    if key in _plugins and _fits(_plugins[key], key, kind):
        return getattr(_plugins[key], class_name(key))
    if key not in names(kind):
        raise UnknownName(kind, key)
    return getattr(importlib.import_module(f"trainables.{kind}.{key}"), class_name(key))


def class_name(key: str) -> str:
    """Return the class that a file defines: ``image_folder`` → ``ImageFolder``."""
    return "".join(part.capitalize() for part in key.split("_"))


def load_plugins(paths: Iterable[str | Path]) -> None:
    """Import plugin files; SweepError if one is missing, raises an exception, or lacks its class."""
    for path in map(Path, paths):
        key = path.stem
        if key in _plugins:
            continue
        spec = importlib.util.spec_from_file_location(f"paretune_plugin_{key}", path)
        if spec is None or spec.loader is None or not path.is_file():
            raise SweepError(f"plugin {path}: no such Python file.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where pydantic looks up the annotations of the plugin's configuration
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[spec.name]
            raise SweepError(f"plugin {path}{_line_in(path, error)}: {type(error).__name__}: {error}.") from error
        if not hasattr(module, class_name(key)):
            raise SweepError(f"plugin {path}: it must define a class {class_name(key)}.")
        _plugins[key] = module


def _line_in(path: Path, error: Exception) -> str:
    """Return ":12", the line of a plugin at which its import ended; empty if it is not known."""
    if isinstance(error, SyntaxError):
        return f":{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f":{lines[-1]}" if lines else ""


def _fits(module: ModuleType, key: str, kind: Kind) -> bool:
    base = {"methods": "Method", "attacks": "Attack", "datasets": "Dataset"}[kind]
    return any(parent.__name__ == base for parent in getattr(module, class_name(key)).__mro__)
