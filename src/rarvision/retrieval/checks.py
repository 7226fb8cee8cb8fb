"""Checks of option values."""

from __future__ import annotations

from collections.abc import Sequence

from rarvision.errors import OptionError

__all__ = ["at_least_one", "one_of", "share"]


def one_of(name: str, value: str, known: Sequence[str]) -> None:
    """Raise `OptionError` unless the value is one of those known."""
    if value not in known:
        raise OptionError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def at_least_one(name: str, value: int) -> None:
    """Raise `OptionError` below 1."""
    if value < 1:
        raise OptionError(f"{name} must be at least 1, got {value}")


def share(name: str, value: float) -> None:
    """Raise `OptionError` outside 0 to 1."""
    if not 0.0 <= value <= 1.0:
        raise OptionError(f"{name} must lie between 0 and 1, got {value}")
