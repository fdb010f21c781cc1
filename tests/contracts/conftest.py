"""The examples are plugins, and keep what every method, attack and data set must keep."""

from __future__ import annotations

from pathlib import Path

from trainables.registry import load_plugins

# before the suites are collected, because they list what is registered
load_plugins(sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py")))
