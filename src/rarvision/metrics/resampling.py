"""How sure a figure is: bootstrap intervals over images and seeds, and paired tests between two rows.

All of it is vectorised: images with the same values are one cell, and a resample draws how often each cell is taken;
where nearly every image has a value of its own, places are drawn instead. Both are the same bootstrap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer

from rarvision.errors import InputError, OptionError
from rarvision.metrics.pairs import check_pairs

__all__ = [
    "PairedTest",
    "bootstrap_interval",
    "mcnemar_exact",
    "mean_per_class_interval",
    "paired_test",
]

RESAMPLES = 10_000
_ROUNDING = 1e-12
_BLOCK = 4_000_000  # numbers held at once
_FEW_CELLS = 64  # up to which, or to a twentieth of the images, drawing their counts is faster than drawing places

Values = Sequence[float] | Float[np.ndarray, "..."] | Bool[np.ndarray, "..."]


def bootstrap_interval(
    values: Values, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, resampling images; and seeds, where there are several.

    Args:
        values: One value an image, shape (images,), such as 1.0 for right and 0.0 for wrong; or (seeds, images), the
            same images under each seed: seeds and images are then drawn anew, independently of each other.
        confidence: Share of resampled means inside, 0 to 1 exclusive.
        resamples: Number of resamples.
        seed: Of the resampling.

    Returns:
        Lower and upper end, in the unit of the values.

    Raises:
        InputError: No value, another shape, or one that is no finite number.
        OptionError: A confidence or number of resamples out of range.
    """
    low, high = _quantiles(_resampled(_rows(values), resamples=resamples, seed=seed), confidence)
    return low, high


def mean_per_class_interval(
    correct: Sequence[bool] | Bool[np.ndarray, " n"],
    labels: Sequence[str],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the accuracy averaged over the true categories, resampling images.

    A category that a resample does not hold is left out of that resample's average.

    Args:
        correct: Whether each answer is right.
        labels: The true names.
        confidence: As of `bootstrap_interval`.
        resamples: As of `bootstrap_interval`.
        seed: As of `bootstrap_interval`.

    Returns:
        Lower and upper end, 0 to 1.
    """
    check_pairs(correct, labels, "answers and labels")
    _check_options(confidence, resamples)
    places = np.unique(np.asarray(labels), return_inverse=True)[1]
    cells, counts = np.unique(2 * places + np.asarray(correct, dtype=bool), return_counts=True)
    classes = cells // 2
    starts = np.flatnonzero(np.concatenate(([True], np.diff(classes) > 0)))
    rng, found = np.random.default_rng(seed), []
    for size in _blocks(resamples, len(cells)):
        drawn = rng.multinomial(len(labels), counts / counts.sum(), size=size)
        held = np.add.reduceat(drawn, starts, axis=1)
        right = np.add.reduceat(drawn * (cells % 2), starts, axis=1)
        shares = np.divide(right, held, out=np.zeros(held.shape), where=held > 0)
        found.append(shares.sum(axis=1) / (held > 0).sum(axis=1))
    return _quantiles(np.concatenate(found), confidence)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedTest:
    """The difference of two rows on the same images: second minus first.

    Attributes:
        n: Images.
        seeds: Rows of images that each was run in.
        first: Mean of the first row.
        second: Mean of the second.
        difference: Of the means.
        interval: Bootstrap interval of the difference, over images, and over seeds where there are several.
        confidence: Of the interval.
        p_bootstrap: Two-sided: twice the share of resampled differences on the rarer side of 0, ties with 0 included.
            Never below 2 / (resamples + 1), which is what so many resamples can tell.
        only_first: Images that the first alone has right; None where the values are not right or wrong, or where there
            are several seeds.
        only_second: The same of the second.
        p_mcnemar: McNemar's exact two-sided test of these two; None likewise.
        resamples: How many.
    """

    n: int
    seeds: int
    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    confidence: float
    p_bootstrap: float
    only_first: int | None
    only_second: int | None
    p_mcnemar: float | None
    resamples: int


def paired_test(
    first: Values, second: Values, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> PairedTest:
    """Whether two rows differ by more than the choice of the images explains: paired bootstrap, and McNemar's test.

    Args:
        first: One value an image, shape (images,), or (seeds, images); as of `bootstrap_interval`.
        second: The same images in the same order, and as many seeds.
        confidence: Of the interval of the difference.
        resamples: Number of resamples.
        seed: Of the resampling.

    Raises:
        InputError: Other shapes, no value, or one that is no finite number.
        OptionError: A confidence or number of resamples out of range.

    Example:
        >>> test = paired_test([1, 0, 0, 0, 1, 0], [1, 1, 1, 1, 1, 1])
        >>> round(test.difference, 3), test.only_first, test.only_second, test.p_mcnemar
        (0.667, 0, 4, 0.125)
    """
    one, two = _rows(first), _rows(second)
    if one.shape != two.shape:
        raise InputError(f"expected two rows of the same shape (seeds, images): got {one.shape} and {two.shape}")
    means = _resampled(two - one, resamples=resamples, seed=seed)
    low, high = _quantiles(means, confidence)
    rarer = min(int((means <= _ROUNDING).sum()), int((means >= -_ROUNDING).sum()))
    binary = len(one) == 1 and bool(np.isin(one, (0.0, 1.0)).all() and np.isin(two, (0.0, 1.0)).all())
    only_first, only_second = int((one > two).sum()), int((two > one).sum())
    return PairedTest(
        n=one.shape[1],
        seeds=len(one),
        first=float(one.mean()),
        second=float(two.mean()),
        difference=float(two.mean() - one.mean()),
        interval=(low, high),
        confidence=confidence,
        p_bootstrap=min(1.0, 2 * (rarer + 1) / (resamples + 1)),
        only_first=only_first if binary else None,
        only_second=only_second if binary else None,
        p_mcnemar=mcnemar_exact(only_first, only_second) if binary else None,
        resamples=resamples,
    )


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """McNemar's exact two-sided p value: how rare so uneven a split is, where either side is as likely.

    Args:
        only_first: Images that the first alone has right.
        only_second: Images that the second alone has right.

    Returns:
        0 to 1; 1 where they differ on no image.

    Raises:
        InputError: A number below 0.

    Example:
        >>> mcnemar_exact(1, 8)
        0.0390625
    """
    if min(only_first, only_second) < 0:
        raise InputError(f"expected numbers of images, 0 or more, got {only_first} and {only_second}")
    from scipy.special import bdtr

    return min(1.0, 2.0 * float(bdtr(min(only_first, only_second), only_first + only_second, 0.5)))


def _rows(values: Values) -> Float[np.ndarray, "seeds images"]:
    rows = np.asarray(values, dtype=np.float64)
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.size == 0:
        raise InputError("expected at least one value, got none")
    if rows.ndim != 2:
        raise InputError(f"expected values of shape (images,) or (seeds, images), got {rows.shape}")
    if not np.isfinite(rows).all():
        raise InputError(f"expected finite values, got {int((~np.isfinite(rows)).sum())} that are not")
    return rows


def _check_options(confidence: float, resamples: int) -> None:
    if not 0.0 < confidence < 1.0 or resamples < 1:
        raise OptionError(f"confidence must lie in (0, 1) and resamples be at least 1, got {confidence}, {resamples}")


def _quantiles(means: Float[np.ndarray, " b"], confidence: float) -> tuple[float, float]:
    _check_options(confidence, len(means))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _blocks(resamples: int, width: int) -> Iterator[int]:
    """Sizes of the parts in which resamples are drawn, so that little is held at once."""
    size = max(1, _BLOCK // width)
    yield from (min(size, resamples - start) for start in range(0, resamples, size))


def _resampled(
    rows: Float[np.ndarray, "seeds images"], *, resamples: int, seed: int
) -> Float[np.ndarray, " resamples"]:
    """The mean over seeds and images in each resample."""
    _check_options(0.5, resamples)
    rng = np.random.default_rng(seed)
    seeds, n = rows.shape
    cells, counts = np.unique(rows, axis=1, return_counts=True) if seeds > 1 else _distinct(rows)
    if len(counts) <= max(_FEW_CELLS, n // 20):
        per_seed = [rng.multinomial(n, counts / n, size=size) @ cells.T / n for size in _blocks(resamples, len(counts))]
    else:
        drawn = (rng.integers(0, n, size=(size, n), dtype=np.uint32) for size in _blocks(resamples, n))
        per_seed = [np.stack([row[places].mean(axis=1) for row in rows], axis=1) for places in drawn]
    means = np.concatenate(per_seed)
    if seeds == 1:
        return np.asarray(means[:, 0])
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    return np.asarray((means * weights).sum(axis=1))


def _distinct(rows: Float[np.ndarray, "1 images"]) -> tuple[Float[np.ndarray, "1 c"], Integer[np.ndarray, " c"]]:
    values, counts = np.unique(rows, return_counts=True)
    return values[None], counts
