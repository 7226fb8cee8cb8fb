"""How good names are that nobody prescribed: clustering accuracy and semantic similarity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from rarvision.errors import InputError
from rarvision.metrics.pairs import check_pairs

__all__ = ["cluster_hits", "clustering_accuracy", "name_similarities"]


def cluster_hits(
    predicted: Sequence[str | None], labels: Sequence[str]
) -> tuple[Bool[np.ndarray, " n"], dict[str, str]]:
    """For each image whether its predicted name is the one that stands for its category, and which stands for which.

    Each distinct predicted name is a cluster. Clusters and categories are paired one to one, so that as many images as
    possible lie in the cluster of their category; of several such pairings one that pairs the most is taken.

    Args:
        predicted: The answer for each image, any name; None, no answer, lies in no cluster.
        labels: The true names.

    Returns:
        Hits, and the category that each paired name stands for; a name that is left over stands for none.

    Raises:
        InputError: Lists of different lengths, or empty ones.

    Source: clustering accuracy (cACC), the paper's section 4.1 and Table 1, with the Hungarian assignment of its
    evaluators. Only pairs that occur are edges of the assignment, which is sparse: 10,000 categories are no matrix.
    """
    check_pairs(predicted, labels, "answers and labels")
    names = sorted({name for name in predicted if name is not None})
    categories = sorted(set(labels))
    if not names:
        return np.zeros(len(labels), dtype=bool), {}
    place = {name: i for i, name in enumerate(names)}, {name: i for i, name in enumerate(categories)}
    pairs = np.array(
        [(place[0][name], place[1][label]) for name, label in zip(predicted, labels, strict=True) if name is not None]
    )
    edges, counts = np.unique(pairs, axis=0, return_counts=True)
    stands = {names[row]: categories[column] for row, column in _assigned(edges, counts, len(names), len(categories))}
    hits = (name is not None and stands.get(name) == label for name, label in zip(predicted, labels, strict=True))
    return np.fromiter(hits, bool, len(labels)), stands


def _assigned(edges: np.ndarray, counts: np.ndarray, rows: int, columns: int) -> list[tuple[int, int]]:
    """The pairs of a row and a column with the largest sum of counts, each row and column at most once."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    # Every row may stay alone: with a column of its own, whose weight is that of no image. Sparse weights cannot be 0,
    # so each of them is one larger, which adds the same to every assignment.
    alone = np.arange(rows)
    weights = coo_array(
        (
            np.concatenate((counts + 1.0, np.ones(rows))),
            (np.concatenate((edges[:, 0], alone)), np.concatenate((edges[:, 1], columns + alone))),
        ),
        shape=(rows, columns + rows),
    ).tocsr()
    chosen, place = min_weight_full_bipartite_matching(weights, maximize=True)
    return [(int(row), int(column)) for row, column in zip(chosen, place, strict=True) if column < columns]


def clustering_accuracy(predicted: Sequence[str | None], labels: Sequence[str]) -> float:
    """Share of images whose predicted name stands for their category (cACC), 0 to 1; see `cluster_hits`.

    Whether the names mean anything does not count: images of one category are to have one name, which no other has.

    Example:
        >>> clustering_accuracy(["tabby", "tabby", "hound", "tabby"], ["cat", "cat", "dog", "dog"])
        0.75
    """
    return float(cluster_hits(predicted, labels)[0].mean())


def name_similarities(
    predicted: Sequence[str | None], labels: Sequence[str], vectors: dict[str, Float[np.ndarray, " dim"]]
) -> Float[np.ndarray, " n"]:
    """Cosine of the predicted and the true name for each image, -1 to 1; its mean is the sACC.

    Args:
        predicted: The answer for each image; None, no answer, has similarity 0.
        labels: The true names.
        vectors: A unit vector for every name that occurs, see `rarvision.naming.NameEncoder`.

    Raises:
        InputError: Lists of different lengths, empty ones, or a name without a vector.

    Source: semantic similarity (sACC), the paper's section 4.1 and Table 1. Figures by different encoders are not
    comparable: print the encoder's name beside them.
    """
    check_pairs(predicted, labels, "answers and labels")
    missing = sorted({name for name in (*predicted, *labels) if name is not None and name not in vectors})
    if missing:
        raise InputError(f"expected a vector for every name, got none for {missing[0]!r} ({len(missing)} in all)")
    known: dict[tuple[str, str], float] = {}
    for name, label in zip(predicted, labels, strict=True):
        if name is not None and (name, label) not in known:
            known[name, label] = 1.0 if name == label else float(vectors[name] @ vectors[label])
    return np.array(
        [0.0 if name is None else known[name, label] for name, label in zip(predicted, labels, strict=True)]
    )
