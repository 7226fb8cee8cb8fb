"""How many answers are right: first, among the first k, averaged over categories."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from rarvision.errors import OptionError
from rarvision.metrics.pairs import check_pairs

__all__ = ["hits_at", "mean_per_class_accuracy", "recall_at_k", "topk_accuracy"]


def hits_at(ranked: Sequence[Sequence[str]], labels: Sequence[str], *, k: int = 1) -> Bool[np.ndarray, " n"]:
    """For each image whether its label is among the first k names: what intervals and paired tests resample.

    Args:
        ranked: Names for each image, most probable first; an empty list is a miss.
        labels: The true names.
        k: How many names count.

    Raises:
        InputError: Lists of different lengths, or empty ones.
        OptionError: k below 1.
    """
    check_pairs(ranked, labels, "answers and labels")
    if k < 1:
        raise OptionError(f"k must be at least 1, got {k}")
    return np.fromiter((label in names[:k] for names, label in zip(ranked, labels, strict=True)), bool, len(labels))


def topk_accuracy(ranked: Sequence[Sequence[str]], labels: Sequence[str], *, k: int = 1) -> float:
    """Share of images whose label is among the first k names of the answer, 0 to 1.

    Args:
        ranked: Names for each image, most probable first; an empty list is a miss.
        labels: The true names.
        k: How many names count.
    """
    return float(hits_at(ranked, labels, k=k).mean())


def recall_at_k(retrieved: Sequence[Sequence[str]], labels: Sequence[str], *, k: int = 5) -> float:
    """Share of images whose label is among the first k names that retrieval found, 0 to 1.

    The upper bound of what ranking can reach. Where ``retrieved`` repeats names (the paper's mode, k nearest images),
    a repeat takes a place.

    Source: the paper's Fig. 9 and Table 8.
    """
    return topk_accuracy(retrieved, labels, k=k)


def mean_per_class_accuracy(predicted: Sequence[str | None], labels: Sequence[str]) -> float:
    """Top-1 accuracy of each true category, averaged over the categories, 0 to 1; None is a miss."""
    check_pairs(predicted, labels, "answers and labels")
    hits: dict[str, list[bool]] = defaultdict(list)
    for guess, label in zip(predicted, labels, strict=True):
        hits[label].append(guess == label)
    return sum(sum(values) / len(values) for values in hits.values()) / len(hits)
