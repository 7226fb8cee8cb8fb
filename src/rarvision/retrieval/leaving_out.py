"""A memory's images as queries, each left out of it; and how well they recognise one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Int

from rarvision.errors import MemoryEmptyError
from rarvision.index import top_k
from rarvision.memory import Hits, Memory
from rarvision.retrieval.checks import at_least_one

__all__ = ["Held", "LeaveOneOut", "dropped", "leave_one_out"]


@dataclass(frozen=True, kw_only=True)
class Held:
    """Queries that are the memory's own images, each left out of it: entry ids, and category codes.

    ``even``: what is left of the own category counts as if it still had as many images. ``foreign``: the own category
    is no candidate.
    """

    ids: Int[np.ndarray, " n"]
    own: Int[np.ndarray, " n"]
    even: bool = False
    foreign: bool = False


def dropped(hits: Hits, ids: Int[np.ndarray, " n"]) -> Hits:
    """Neighbours without the entry that each query is."""
    order = np.argsort(hits.ids == ids[:, None], axis=1, kind="stable")  # itself to the end
    similarities, found, categories = (
        np.take_along_axis(array, order, axis=1) for array in (hits.similarities, hits.ids, hits.categories)
    )
    gone = found == ids[:, None]
    return Hits(
        similarities=np.where(gone, np.float32(-np.inf), similarities),
        ids=np.where(gone, -1, found),
        categories=np.where(gone, -1, categories),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaveOneOut:
    """How well the memory's images recognise one another; shares from 0 to 1.

    Attributes:
        top1: Images whose nearest other image is of their category.
        recall_at_5_images: Images with one of their category among the 5 nearest other images.
        recall_at_5_categories: Images whose category is among the 5 nearest categories, each by its nearest image.
        entries: Images asked; those that are alone in their category cannot be found and count as missed.
        categories: Categories of these images.
    """

    top1: float
    recall_at_5_images: float
    recall_at_5_categories: float
    entries: int
    categories: int

    def to_dict(self) -> dict[str, float | int]:
        """JSON values."""
        return asdict(self)


def leave_one_out(memory: Memory, *, block: int = 512, progress: Callable[[int], None] | None = None) -> LeaveOneOut:
    """Ask the memory for each of its images, that image left out; by exact cosine search, whatever its index is.

    Args:
        memory: With at least two images.
        block: Queries compared at once.
        progress: Called with the number of images dealt with so far.

    Raises:
        MemoryEmptyError: Fewer than two images.

    Source: the paper's 1-NN baseline; figures for the authors' own memories stand in the tests.
    """
    at_least_one("block", block)
    ids, codes = memory.table("image")
    if len(ids) < 2:
        raise MemoryEmptyError(f"leaving one image out needs at least two, the memory holds {len(ids)}")
    order = np.argsort(codes, kind="stable")  # categories side by side, so that each is one slice
    codes = codes[order]
    vectors = memory.vectors(ids[order])
    categories, starts, positions = np.unique(codes, return_index=True, return_inverse=True)
    nearest_right = image_hits = category_hits = 0
    for start in range(0, len(ids), block):
        rows = np.arange(start, min(start + block, len(ids)))
        scores = vectors[rows] @ vectors.T
        scores[np.arange(len(rows)), rows] = -np.inf
        own = positions[rows]
        closest = top_k(scores, min(5, len(ids) - 1))
        right = positions[closest] == own[:, None]
        nearest_right += int(right[:, 0].sum())
        image_hits += int(right.any(axis=1).sum())
        by_category = np.maximum.reduceat(scores, starts, axis=1)
        best = top_k(by_category, 5)
        found = (best == own[:, None]) & np.isfinite(np.take_along_axis(by_category, best, axis=1))
        category_hits += int(found.any(axis=1).sum())
        if progress is not None:
            progress(int(rows[-1]) + 1)
    total = len(ids)
    return LeaveOneOut(
        top1=nearest_right / total,
        recall_at_5_images=image_hits / total,
        recall_at_5_categories=category_hits / total,
        entries=total,
        categories=len(categories),
    )
