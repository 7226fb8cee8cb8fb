"""How much stated probabilities are worth: calibration, Brier score, AUROC, risk and coverage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from rarvision.errors import InputError, OptionError
from rarvision.metrics.pairs import check_pairs

__all__ = [
    "area_under_roc",
    "brier_score",
    "expected_calibration_error",
    "false_positive_rate_at",
    "risk_coverage",
]


def expected_calibration_error(
    probabilities: Sequence[float] | Float[np.ndarray, " n"],
    correct: Sequence[bool] | Bool[np.ndarray, " n"],
    *,
    bins: int = 15,
) -> float:
    """Mean distance between stated probability and accuracy over equal-width bins, weighted by count; 0 is best.

    Args:
        probabilities: Stated probability of each answer, 0 to 1.
        correct: Whether each answer was right.
        bins: Number of bins over [0, 1]; a probability of 1 belongs to the last.
    """
    stated, right = np.asarray(probabilities, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    check_pairs(stated, right, "probabilities and outcomes")
    if bins < 1:
        raise OptionError(f"bins must be at least 1, got {bins}")
    if stated.min() < 0.0 or stated.max() > 1.0 + 1e-6:
        raise InputError(f"probabilities must lie in [0, 1], got {stated.min()} to {stated.max()}")
    which = np.minimum((stated * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(which, weights=stated - right, minlength=bins)
    return float(np.abs(gaps).sum() / stated.size)


def brier_score(
    probabilities: Sequence[float] | Float[np.ndarray, " n"], correct: Sequence[bool] | Bool[np.ndarray, " n"]
) -> float:
    """Mean squared distance between the stated probability and the outcome (1 right, 0 wrong); 0 is best.

    Args:
        probabilities: Stated probability of each answer, 0 to 1.
        correct: Whether each answer was right.
    """
    stated, right = np.asarray(probabilities, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    check_pairs(stated, right, "probabilities and outcomes")
    return float(((stated - right) ** 2).mean())


def area_under_roc(
    values: Sequence[float] | Float[np.ndarray, " n"], positive: Sequence[bool] | Bool[np.ndarray, " n"]
) -> float:
    """Probability that a positive has a higher value than a negative, ties counted half; 0.5 says nothing, 1 is best.

    Args:
        values: Higher for what is thought positive.
        positive: What is.

    Returns:
        NaN where there are only positives, or none.

    Example:
        >>> area_under_roc([0.9, 0.8, 0.3, 0.3], [True, False, True, False])
        0.625
    """
    given, flags = np.asarray(values, dtype=np.float64), np.asarray(positive, dtype=bool)
    check_pairs(given, flags, "values and flags")
    positives = int(flags.sum())
    negatives = len(flags) - positives
    if not positives or not negatives:
        return float("nan")
    _, place, counts = np.unique(given, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # mean rank of ties, from 1
    return float((ranks[flags].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def false_positive_rate_at(
    values: Sequence[float] | Float[np.ndarray, " n"],
    positive: Sequence[bool] | Bool[np.ndarray, " n"],
    *,
    true_positive_rate: float = 0.95,
) -> float:
    """Share of negatives taken for positive, at the highest threshold that finds this share of the positives.

    Args:
        values: Higher for what is thought positive.
        positive: What is.
        true_positive_rate: Share of the positives that must be found, above 0 and at most 1.

    Returns:
        0 is best; NaN where there are only positives, or none.

    Source: FPR at 95 % TPR, as out-of-distribution detection reports it.
    """
    given, flags = np.asarray(values, dtype=np.float64), np.asarray(positive, dtype=bool)
    check_pairs(given, flags, "values and flags")
    if not 0.0 < true_positive_rate <= 1.0:
        raise OptionError(f"true_positive_rate must lie above 0 and at most at 1, got {true_positive_rate}")
    if flags.all() or not flags.any():
        return float("nan")
    needed = int(np.ceil(true_positive_rate * flags.sum() - 1e-9))
    threshold = np.sort(given[flags])[::-1][needed - 1]
    return float((given[~flags] >= threshold).mean())


def risk_coverage(
    confidences: Sequence[float] | Float[np.ndarray, " n"], correct: Sequence[bool] | Bool[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Share of wrong answers among those that are given, against the share that is given, surest first.

    Args:
        confidences: Of each answer; answers of the same confidence are given together.
        correct: Whether each answer was right.

    Returns:
        Coverage, ascending to 1, and risk, both 0 to 1. The mean of the risk over the answers is the area under the
        curve (AURC); lower is better.
    """
    sure, right = np.asarray(confidences, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    check_pairs(sure, right, "confidences and outcomes")
    order = np.argsort(-sure, kind="stable")
    ends = np.flatnonzero(np.concatenate((np.diff(sure[order]) < 0, [True])))
    given = ends + 1.0
    return given / len(sure), np.cumsum(1.0 - right[order])[ends] / given
