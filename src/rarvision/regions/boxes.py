"""Boxes in the notations that data sets and detectors use, and what part of an image each one means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import Float

from rarvision.errors import ImageError, InputError, OptionError
from rarvision.types import Box, check_box

__all__ = ["BoxNotation", "clipped_box", "to_xyxy"]

BoxNotation = Literal["xyxy", "xywh", "cxcywh"]
"""``xyxy``: left, upper, right, lower (right and lower outside). ``xywh``: left, upper, width, height, as COCO and LVIS
have them. ``cxcywh``: centre, width, height, as YOLO and DETR have them."""

_FARTHEST: Final = 10.0  # images' sides that a normalised box may reach beyond its image; pixels are more


def to_xyxy(
    boxes: Float[np.ndarray, "n 4"] | Sequence[Sequence[float]],
    *,
    notation: BoxNotation = "xyxy",
    normalised_to: tuple[int, int] | None = None,
) -> Float[np.ndarray, "n 4"]:
    """Bring boxes to the one notation that the rest of rarvision takes.

    Args:
        boxes: n boxes of four numbers each.
        notation: What the four numbers are, see `BoxNotation`.
        normalised_to: Width and height of the upright image, pixels, where the numbers are shares of them (1.0 is the
            whole side); None where they are pixels already.

    Returns:
        float64, n x 4: left, upper, right, lower in pixels, right and lower outside. What lies outside the image is not
        cut off here, see `clipped_box`.

    Raises:
        InputError: Not n x 4 numbers; or a box is NaN, infinite or without an inside; the message tells the first one.
        OptionError: ``notation`` or ``normalised_to`` is none.

    >>> to_xyxy([[10, 20, 30, 5]], notation="xywh").tolist()
    [[10.0, 20.0, 40.0, 25.0]]
    >>> to_xyxy([[0.5, 0.5, 0.2, 1.0]], notation="cxcywh", normalised_to=(200, 100)).tolist()
    [[80.0, 0.0, 120.0, 100.0]]
    """
    if notation not in get_args(BoxNotation):
        raise OptionError(f"notation must be one of {', '.join(get_args(BoxNotation))}, got {notation!r}")
    given = _numbers(boxes)
    first, second = given[:, :2], given[:, 2:]
    if notation == "xywh":
        second = first + second
    elif notation == "cxcywh":
        first, second = first - second / 2, first + second / 2
    corners: Float[np.ndarray, "n 4"] = np.concatenate((first, second), axis=1)
    if normalised_to is not None:
        if len(normalised_to) != 2 or min(normalised_to) < 1:
            raise OptionError(f"normalised_to must be width and height in pixels, got {normalised_to!r}")
        if np.abs(corners[np.isfinite(corners)]).max(initial=0.0) > _FARTHEST:
            raise InputError(
                f"normalised boxes are shares of the image, 1.0 its whole side; the largest number is "
                f"{np.abs(corners).max():g}: leave out normalised_to for boxes in pixels"
            )
        corners *= np.array([*normalised_to, *normalised_to], dtype=np.float64)
    good = np.isfinite(corners).all(axis=1) & (corners[:, :2] < corners[:, 2:]).all(axis=1)
    if not good.all():
        worst = int(np.argmin(good))
        raise InputError(
            f"box {worst} has no inside or is no number: {given[worst].tolist()} read as {notation} "
            f"({int((~good).sum())} of {len(good)} boxes); leave such boxes out"
        )
    return corners


def _numbers(boxes: Float[np.ndarray, "n 4"] | Sequence[Sequence[float]]) -> Float[np.ndarray, "n 4"]:
    try:
        given = np.array(boxes, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"boxes must be n x 4 numbers: {error}") from error
    if given.size == 0:
        return np.empty((0, 4))
    if given.ndim != 2 or given.shape[1] != 4:
        raise InputError(f"boxes must be n x 4 numbers, got an array of shape {given.shape}")
    return given


def clipped_box(box_xyxy: Box, size: tuple[int, int], *, name: str = "box") -> Box:
    """The part of a box that lies in the image, at least one pixel wide and high.

    A box narrower than a pixel is widened to one pixel around its centre, moved inside the image where it leaves it:
    less than a pixel shows nothing.

    Args:
        box_xyxy: Pixels of the upright image.
        size: Width and height of the upright image, pixels.
        name: What to call the box in messages.

    Raises:
        ImageError: It lies outside the image.
        InputError: It is NaN, infinite, or without an inside.

    >>> clipped_box((-5, 10, 30, 400), (100, 50))
    (0.0, 10.0, 30.0, 50.0)
    >>> clipped_box((20.25, 0, 20.75, 8), (100, 50))
    (20.0, 0.0, 21.0, 8.0)
    """
    check_box(box_xyxy, name)
    left, upper, right, lower = map(float, box_xyxy)
    width, height = size
    if left >= width or upper >= height or right <= 0 or lower <= 0:
        raise ImageError(f"{name}: {tuple(box_xyxy)} lies outside the image, which has {width} x {height} pixels")
    left, right = _at_least_a_pixel(max(left, 0.0), min(right, float(width)), width)
    upper, lower = _at_least_a_pixel(max(upper, 0.0), min(lower, float(height)), height)
    return left, upper, right, lower


def _at_least_a_pixel(start: float, end: float, limit: int) -> tuple[float, float]:
    if end - start >= 1.0:
        return start, end
    start = min(max(math.fsum((start, end)) / 2 - 0.5, 0.0), limit - 1.0)
    return start, start + 1.0
