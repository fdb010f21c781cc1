"""Plain fine-tuning: the baseline that every method is compared with."""

from __future__ import annotations

from trainables.config import MethodConfig
from trainables.method import Method


class Plain(Method[MethodConfig]):
    """Cross-entropy and nothing else: every hook is the default."""
