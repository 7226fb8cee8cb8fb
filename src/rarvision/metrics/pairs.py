"""What every metric refuses: lists of different lengths, and empty ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rarvision.errors import InputError

__all__ = ["check_pairs"]


def check_pairs(first: Sequence[object] | np.ndarray, second: Sequence[object] | np.ndarray, what: str) -> None:
    """Raise `InputError` unless both are of the same length, and not empty.

    Args:
        first: One thing an image.
        second: Another one.
        what: What they are, for the message: "answers and labels".
    """
    if len(first) != len(second):
        raise InputError(f"expected as many {what}: got {len(first)} and {len(second)}")
    if len(first) == 0:
        raise InputError(f"expected at least one of the {what}, got none")
