"""Boxes as rows of numbers: forms, overlaps, and non-maximum suppression by category."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float64, Int64

from rarvision.errors import DatasetError, OptionError

__all__ = ["box_iou", "check_boxes_xywh", "nms_per_category", "to_xywh", "to_xyxy", "top_pairs"]

_BLOCK = 4096


def to_xyxy(boxes_xywh: Float[np.ndarray, "n 4"]) -> Float64[np.ndarray, "n 4"]:
    """From left, upper, width, height to left, upper, right, lower."""
    boxes = np.array(boxes_xywh, dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def to_xywh(boxes_xyxy: Float[np.ndarray, "n 4"]) -> Float64[np.ndarray, "n 4"]:
    """From left, upper, right, lower to left, upper, width, height."""
    boxes = np.array(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def check_boxes_xywh(boxes: Float64[np.ndarray, "n 4"], where: Callable[[int], str]) -> None:
    """Sizes are finite and not negative; a box without an inside is allowed, as evaluators do.

    Raises:
        DatasetError: Naming ``where`` the first wrong row is.
    """
    wrong = np.flatnonzero(~np.isfinite(boxes).all(axis=1) | (boxes[:, 2:] < 0).any(axis=1))
    if len(wrong):
        row = int(wrong[0])
        raise DatasetError(
            f"{where(row)}: the box must be four finite numbers, width and height not negative, got "
            f"{boxes[row].tolist()} as left, upper, width, height ({len(wrong)} such boxes)"
        )


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


def top_pairs(
    scores: Float[np.ndarray, "n c"], *, limit: int | None, min_score: float = 0.0
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """The pairs of box and category with the highest scores, highest first.

    Args:
        scores: A row a box, a column a category.
        limit: How many at most; None for all.
        min_score: Only scores above it.

    Returns:
        Rows and columns; of equal scores the lower row, then the lower column comes first.
    """
    _check_limit(limit)
    flat = np.asarray(scores).reshape(-1)
    found = np.flatnonzero(flat > min_score)
    values = flat[found]
    if limit is not None and len(found) > limit:
        last = np.partition(values, len(values) - limit)[len(values) - limit]
        above = values > last
        ties = np.flatnonzero(values == last)[: limit - int(above.sum())]
        above[ties] = True
        found, values = found[above], values[above]
    found = found[np.argsort(-values, kind="stable")].astype(np.int64)
    rows, columns = np.divmod(found, max(1, scores.shape[1]))
    return rows, columns


def nms_per_category(
    boxes_xyxy: Float[np.ndarray, "n 4"],
    scores: Float[np.ndarray, "n c"],
    *,
    iou: float,
    limit: int | None = None,
    min_score: float = 0.0,
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """Greedy non-maximum suppression within each category; every category has the same boxes.

    A box of a category is dropped where one of a higher score (of equal scores, a lower row) was kept whose overlap is
    above ``iou``. That is done from the highest score down over all categories at once, so that it ends when ``limit``
    pairs are kept.

    Args:
        boxes_xyxy: Pixels.
        scores: A row a box, a column a category.
        iou: Overlap, 0 to 1.
        limit: How many pairs at most over all categories; None for all.
        min_score: Only scores above it.

    Returns:
        Rows and columns of the pairs that are kept, highest score first.
    """
    if not 0.0 <= iou <= 1.0:
        raise OptionError(f"iou must lie in [0, 1], got {iou}")
    _check_limit(limit)
    rows, columns = top_pairs(scores, limit=None, min_score=min_score)
    overlaps = box_iou(boxes_xyxy, boxes_xyxy) > iou
    alive = np.ones(scores.shape, dtype=bool)
    kept: list[int] = []
    for start in range(0, len(rows), _BLOCK):
        block = start + np.flatnonzero(alive[rows[start : start + _BLOCK], columns[start : start + _BLOCK]])
        for pair, row, column in zip(block.tolist(), rows[block].tolist(), columns[block].tolist(), strict=True):
            if alive[row, column]:
                kept.append(pair)
                if len(kept) == limit:
                    return rows[kept], columns[kept]
                alive[overlaps[row], column] = False
    return rows[kept], columns[kept]


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise OptionError(f"limit must be at least 1, got {limit}")
