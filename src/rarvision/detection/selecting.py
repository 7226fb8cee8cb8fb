"""Which pairs of box and category become detections: the highest scores, and suppression by category."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int64

from rarvision.errors import OptionError
from rarvision.regions import box_iou

__all__ = ["nms_per_category", "top_pairs"]

_BLOCK = 4096


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
