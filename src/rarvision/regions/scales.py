"""Fitting the crop's scale to the object's size on a labelled set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from rarvision.errors import OptionError
from rarvision.regions.rules import SIZE_LIMITS, AdaptiveScale
from rarvision.types import Box

__all__ = ["TABLE_12_SCALES", "ScaleFit", "accuracy_by_size", "fit_adaptive_scale"]

TABLE_12_SCALES: Final = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.6, 2.8, 3.0)
"""The grid of the paper's Table 12."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScaleFit:
    """What fitting found.

    Attributes:
        rule: The best scale of each class of size.
        scales: The grid, ascending.
        accuracies: One row a scale, one column a class of size, smallest objects first.
        fitted: Of each class, whether there was an object of it; where not, its scale is the rule's that was given.
    """

    rule: AdaptiveScale
    scales: tuple[float, ...]
    accuracies: Float[np.ndarray, "scales classes"]
    fitted: tuple[bool, ...]


def fit_adaptive_scale(
    accuracy: Callable[[float], Sequence[float]],
    *,
    scales: Iterable[float] = TABLE_12_SCALES,
    start: AdaptiveScale | None = None,
    counts: Sequence[int] | None = None,
) -> ScaleFit:
    """Find the best scale for each class of size; of equal ones the smallest, which shows more of the object.

    With ``counts``, a class has a scale of its own only where that is better than the best single scale of all by more
    than one standard error of the difference: on a few hundred objects a flat curve has its best place by chance.

    Args:
        accuracy: Called once with each scale: makes the crops of a labelled set at that one scale, recognises them, and
            returns the accuracy of each class of size (or AP: anything of which more is better), NaN for a class
            without objects; `accuracy_by_size` computes it. Do not give it the set that is then reported on.
        scales: The grid.
        start: The limits between the classes, and the scales of classes without objects; `AdaptiveScale` by default.
        counts: Objects of each class, where ``accuracy`` gives shares of right answers; None takes the best scale of
            each class as it is.

    Raises:
        OptionError: The grid is empty or repeats a scale; ``accuracy`` returned another number of values; or one that
            is NaN at some scales only; or no class has an object.

    Source: the paper's appendix to Table 12: the scales are chosen on the training set.

    >>> found = {1.0: (33.6, 63.5, 72.4), 1.6: (43.2, 68.3, 69.6), 2.6: (47.4, 61.0, 59.6)}  # Table 12, with blur
    >>> fit_adaptive_scale(found.__getitem__, scales=found).rule.scales
    (2.6, 1.6, 1.0)
    """
    begun = AdaptiveScale() if start is None else start
    grid = tuple(sorted(map(float, scales)))
    if not grid or len(set(grid)) < len(grid):
        raise OptionError(f"scales must be different numbers, at least one, got {grid!r}")
    classes = len(begun.scales)
    rows = []
    for scale in grid:
        row = tuple(map(float, accuracy(scale)))
        if len(row) != classes:
            raise OptionError(
                f"accuracy must return {classes} values, one a class of size, got {row!r} at scale {scale}"
            )
        rows.append(row)
    table: Float[np.ndarray, "scales classes"] = np.array(rows)
    missing = np.isnan(table)
    if (missing.any(axis=0) & ~missing.all(axis=0)).any():
        raise OptionError("accuracy returned NaN at some scales only: a class has objects at every scale or at none")
    if missing.all():
        raise OptionError("no class of size has an object: there is nothing to fit on")
    fitted = tuple(bool(there) for there in ~missing.any(axis=0))
    places = table.argmax(axis=0) if counts is None else _clearly_best(table, counts, fitted)
    best = tuple(grid[int(places[number])] if there else begun.scales[number] for number, there in enumerate(fitted))
    return ScaleFit(rule=AdaptiveScale(limits=begun.limits, scales=best), scales=grid, accuracies=table, fitted=fitted)


def _clearly_best(
    table: Float[np.ndarray, "scales classes"], counts: Sequence[int], fitted: Sequence[bool]
) -> Int[np.ndarray, " classes"]:
    """The place of each class's scale: the best single one's, unless another is better by a standard error."""
    objects = np.array(counts, dtype=np.float64)
    if objects.shape != (table.shape[1],) or (objects[list(fitted)] < 1).any():
        raise OptionError(f"counts must be the objects of each of the {table.shape[1]} classes, got {list(counts)!r}")
    shares = np.where(np.array(fitted), table, 0.0)
    if shares.min() < 0.0 or shares.max() > 1.0:
        raise OptionError("with counts, accuracy must return shares of right answers, 0 to 1")
    objects = np.where(np.array(fitted), objects, 0.0)
    single = int((shares @ objects).argmax())
    best = shares.argmax(axis=0)
    columns = np.arange(len(objects))
    spread = shares * (1.0 - shares) / np.maximum(objects, 1.0)
    error = np.sqrt(spread[best, columns] + spread[single])
    places: Int[np.ndarray, " classes"] = np.where(shares[best, columns] - shares[single] > error, best, single)
    return places


def accuracy_by_size(
    correct: Sequence[bool], boxes_xyxy: Sequence[Box], *, limits: tuple[float, ...] = SIZE_LIMITS
) -> tuple[float, ...]:
    """Share of correct answers in each class of size, smallest objects first; NaN for a class without objects.

    Args:
        correct: Of each box, whether it was recognised.
        boxes_xyxy: The boxes, clipped to their images.
        limits: Areas between the classes, pixels, ascending.

    Raises:
        OptionError: There are not as many boxes as answers, or the limits are not ascending.

    >>> accuracy_by_size([True, False, True], [(0, 0, 9, 9), (0, 0, 8, 8), (0, 0, 200, 100)])
    (0.5, nan, 1.0)
    """
    if len(correct) != len(boxes_xyxy):
        raise OptionError(f"there must be an answer for each box, got {len(correct)} and {len(boxes_xyxy)}")
    rule = AdaptiveScale(limits=limits, scales=(1.0,) * (len(limits) + 1))
    right, total = [0] * len(rule.scales), [0] * len(rule.scales)
    for answer, box in zip(correct, boxes_xyxy, strict=True):
        number = rule.size_class(box)
        right[number] += bool(answer)
        total[number] += 1
    return tuple(hits / n if n else math.nan for hits, n in zip(right, total, strict=True))
