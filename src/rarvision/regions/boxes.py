"""Boxes: the notations that data sets and detectors use, what is a box and what is not, and overlaps.

A region must show something, so its box has an inside; evaluators count boxes of no width or height, too. That is one
switch, ``allow_empty``, off wherever an image is cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Float64

from rarvision.errors import DatasetError, ImageError, InputError, OptionError
from rarvision.types import Box, check_box

__all__ = ["BoxNotation", "box_iou", "check_boxes_xywh", "clipped_box", "to_xywh", "to_xyxy"]

BoxNotation = Literal["xyxy", "xywh", "cxcywh"]
"""``xyxy``: left, upper, right, lower (right and lower outside). ``xywh``: left, upper, width, height, as COCO and LVIS
have them. ``cxcywh``: centre, width, height, as YOLO and DETR have them."""

_FARTHEST: Final = 10.0  # images' sides that a normalised box may reach beyond its image; pixels are more


def to_xyxy(
    boxes: Float[np.ndarray, "n 4"] | Sequence[Sequence[float]],
    *,
    notation: BoxNotation = "xyxy",
    normalised_to: tuple[int, int] | None = None,
    allow_empty: bool = False,
) -> Float64[np.ndarray, "n 4"]:
    """Bring boxes to the one notation that the rest of rarvision takes.

    Args:
        boxes: n boxes of four numbers each.
        notation: What the four numbers are, see `BoxNotation`.
        normalised_to: Width and height of the upright image, pixels, where the numbers are shares of them (1.0 is the
            whole side); None where they are pixels already.
        allow_empty: Let boxes pass whose width or height is 0, as evaluators do; such a box shows nothing and cannot be
            cropped. A negative size is wrong either way.

    Returns:
        float64, n x 4: left, upper, right, lower in pixels, right and lower outside. What lies outside the image is not
        cut off here, see `clipped_box`.

    Raises:
        InputError: Not n x 4 numbers; or a box is NaN, infinite, of negative size or (unless allowed) without an
            inside; the message tells the first one.
        OptionError: ``notation`` or ``normalised_to`` is none.

    >>> to_xyxy([[10, 20, 30, 5]], notation="xywh").tolist()
    [[10.0, 20.0, 40.0, 25.0]]
    >>> to_xyxy([[0.5, 0.5, 0.2, 1.0]], notation="cxcywh", normalised_to=(200, 100)).tolist()
    [[80.0, 0.0, 120.0, 100.0]]
    >>> to_xyxy([[10, 20, 0, 5]], notation="xywh", allow_empty=True).tolist()
    [[10.0, 20.0, 10.0, 25.0]]
    """
    if notation not in get_args(BoxNotation):
        raise OptionError(f"notation must be one of {', '.join(get_args(BoxNotation))}, got {notation!r}")
    given = _numbers(boxes)
    first, second = given[:, :2], given[:, 2:]
    if notation == "xywh":
        second = first + second
    elif notation == "cxcywh":
        first, second = first - second / 2, first + second / 2
    corners: Float64[np.ndarray, "n 4"] = np.concatenate((first, second), axis=1)
    if normalised_to is not None:
        if len(normalised_to) != 2 or min(normalised_to) < 1:
            raise OptionError(f"normalised_to must be width and height in pixels, got {normalised_to!r}")
        if np.abs(corners[np.isfinite(corners)]).max(initial=0.0) > _FARTHEST:
            raise InputError(
                f"normalised boxes are shares of the image, 1.0 its whole side; the largest number is "
                f"{np.abs(corners).max():g}: leave out normalised_to for boxes in pixels"
            )
        corners *= np.array([*normalised_to, *normalised_to], dtype=np.float64)
    good = _sized(corners, corners[:, 2:] - corners[:, :2], allow_empty=allow_empty)
    if not good.all():
        worst = int(np.argmin(good))
        raise InputError(
            f"box {worst} {'is of negative size' if allow_empty else 'has no inside'} or is no number: "
            f"{given[worst].tolist()} read as {notation} "
            f"({int((~good).sum())} of {len(good)} boxes); leave such boxes out"
        )
    return corners


def to_xywh(boxes_xyxy: Float[np.ndarray, "n 4"]) -> Float64[np.ndarray, "n 4"]:
    """From left, upper, right, lower to left, upper, width, height, as results files have them; nothing is checked.

    >>> to_xywh(np.array([[10.0, 20.0, 40.0, 25.0]])).tolist()
    [[10.0, 20.0, 30.0, 5.0]]
    """
    boxes = np.array(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def check_boxes_xywh(boxes: Float64[np.ndarray, "n 4"], where: Callable[[int], str]) -> None:
    """What may stand in an annotation or results file: finite sizes that are not negative; empty boxes are allowed.

    Args:
        boxes: Left, upper, width, height in pixels.
        where: Names a row in the message.

    Raises:
        DatasetError: Naming ``where`` the first wrong row is.
    """
    wrong = np.flatnonzero(~_sized(boxes, boxes[:, 2:], allow_empty=True))
    if len(wrong):
        row = int(wrong[0])
        raise DatasetError(
            f"{where(row)}: the box must be four finite numbers, width and height not negative, got "
            f"{boxes[row].tolist()} as left, upper, width, height ({len(wrong)} such boxes)"
        )


def _sized(
    boxes: Float64[np.ndarray, "n 4"], sizes: Float64[np.ndarray, "n 2"], *, allow_empty: bool
) -> Bool[np.ndarray, " n"]:
    large = np.all(sizes >= 0 if allow_empty else sizes > 0, axis=1)
    sized: Bool[np.ndarray, " n"] = np.isfinite(boxes).all(axis=1) & large
    return sized


def box_iou(first_xyxy: Float[np.ndarray, "n 4"], second_xyxy: Float[np.ndarray, "m 4"]) -> Float64[np.ndarray, "n m"]:
    """Intersection over union of each pair, 0 to 1; 0 where both have no inside."""
    a, b = (np.asarray(boxes, dtype=np.float64) for boxes in (first_xyxy, second_xyxy))
    upper_left = np.maximum(a[:, None, :2], b[None, :, :2])
    sides = np.clip(np.minimum(a[:, None, 2:], b[None, :, 2:]) - upper_left, 0.0, None)
    common = sides[..., 0] * sides[..., 1]
    areas_a, areas_b = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b))
    union = areas_a[:, None] + areas_b[None, :] - common
    overlap: Float64[np.ndarray, "n m"] = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return overlap


def _numbers(boxes: Float[np.ndarray, "n 4"] | Sequence[Sequence[float]]) -> Float64[np.ndarray, "n 4"]:
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
