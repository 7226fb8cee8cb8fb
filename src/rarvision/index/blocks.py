"""Exact search by blocked float32 matrix products, over any source of rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

__all__ = ["exact_search", "top_k"]

_SCORES = 4_194_304  # similarities held at once, 16 MB: 16,384 rows at 256 queries
_ROWS = 65_536  # rows taken from the source at once: 128 MB at 512 dimensions
_FIRST = 1_024  # rows of the first block; later ones are filtered by what was found in it
_QUERIES = 256


def top_k(scores: Float[np.ndarray, "n m"], k: int) -> Int[np.ndarray, "n k"]:
    """Columns of the k highest scores of each row, highest first, ties by the lower column.

    Args:
        scores: No NaN; ``-inf`` is allowed and comes last.
        k: At most m columns are returned.

    Example:
        >>> top_k(np.array([[0.1, 0.9, 0.9, 0.5]]), 2).tolist()
        [[1, 2]]
    """
    columns = scores.shape[1]
    k = min(k, columns)
    if k == 0:
        return np.empty((scores.shape[0], 0), dtype=np.int64)
    if k * 4 >= columns:
        return np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int64, copy=False)
    chosen = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    worst = np.take_along_axis(scores, chosen, axis=1).min(axis=1, keepdims=True)
    for row in np.flatnonzero((scores >= worst).sum(axis=1) > k):  # a tie across the cut: keep the lower columns
        chosen[row] = np.argsort(-scores[row], kind="stable")[:k]
    chosen.sort(axis=1)
    order = np.argsort(-np.take_along_axis(scores, chosen, axis=1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1).astype(np.int64, copy=False)


def exact_search(
    fetch: Callable[[Int[np.ndarray, " n"] | slice], Float[np.ndarray, "n dim"]],
    total: int,
    queries: Float[np.ndarray, "n dim"],
    k: int,
    allowed: Bool[np.ndarray, " rows"] | None = None,
) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """The k rows of highest inner product with each query, descending, ties by row.

    Args:
        fetch: Gives float32 rows by slice or by row numbers; each row is asked for once in 256 queries.
        total: Number of rows.
        queries: float32.
        k: At least 1 and at most the allowed rows.
        allowed: Flags of the rows that count; None for all. Where they are fewer than half, only those are fetched.
    """
    chosen: Int[np.ndarray, " m"] | None = None
    if allowed is not None and 2 * int(np.count_nonzero(allowed)) < total:
        chosen, allowed = np.flatnonzero(allowed), None
    count = total if chosen is None else len(chosen)
    similarities = np.empty((len(queries), k), dtype=np.float32)
    rows = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), _QUERIES):
        some = queries[start : start + _QUERIES]
        best = _Best(len(some), k)
        offset, size = 0, max(_FIRST, k)
        while offset < count:
            end = min(count, offset + min(size, _ROWS, max(_SCORES // len(some), 1)))
            span = slice(offset, end)
            scores = some @ fetch(span if chosen is None else chosen[span]).T
            if allowed is not None:
                scores[:, ~allowed[span]] = -np.inf
            best.offer(scores, offset)
            offset, size = end, 2 * size
        similarities[start : start + len(some)] = best.scores
        rows[start : start + len(some)] = best.rows if chosen is None else chosen[best.rows]
    return similarities, rows


class _Best:
    """The k best of each query so far. What comes later has higher row numbers, so it must score more to enter."""

    def __init__(self, queries: int, k: int) -> None:
        self.scores: Float[np.ndarray, "n k"] = np.full((queries, k), -np.inf, dtype=np.float32)
        self.rows: Int[np.ndarray, "n k"] = np.full((queries, k), -1, dtype=np.int64)

    def offer(self, scores: Float[np.ndarray, "n m"], offset: int) -> None:
        """Take what is better from a block of rows that starts at `offset`."""
        k = self.scores.shape[1]
        better = scores > self.scores[:, -1:]
        counts = np.count_nonzero(better, axis=1)
        most = int(counts.max())
        if not most:
            return
        if 4 * most >= scores.shape[1]:  # the first block, or a large k: most of it may enter
            columns = top_k(scores, k)
            entering = np.take_along_axis(scores, columns, axis=1)
            entering_rows = columns + offset
        else:
            query, column = np.nonzero(better)
            place = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
            entering = np.full((len(scores), most), -np.inf, dtype=np.float32)
            entering_rows = np.full((len(scores), most), -1, dtype=np.int64)
            entering[query, place] = scores[query, column]
            entering_rows[query, place] = column + offset
        pooled = np.concatenate((self.scores, entering), axis=1)
        keep = np.argsort(-pooled, axis=1, kind="stable")[:, :k]
        self.scores = np.take_along_axis(pooled, keep, axis=1)
        self.rows = np.take_along_axis(np.concatenate((self.rows, entering_rows), axis=1), keep, axis=1)
