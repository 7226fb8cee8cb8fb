"""From neighbours and mean directions to one image score for each category."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from rarvision.memory import Hits
from rarvision.retrieval.checks import Aggregate

__all__ = ["aggregated"]

_BREAK_TIES = 1e-6


def aggregated(
    hits: Hits,
    prototypes: Float[np.ndarray, "n c"],
    codes: Int[np.ndarray, " c"],
    aggregate: Aggregate,
    *,
    neighbours: int,
    prototype_weight: float,
    sharpness: float,
) -> Float[np.ndarray, "n c"]:
    """Image scores; what each aggregate is, and the options, `rarvision.retrieval.Retriever` says.

    Args:
        hits: Of n queries.
        prototypes: Similarities to the categories' mean directions, ``-inf`` where a category has no images.
        codes: Category codes, ascending; they hold all those of the hits.
        aggregate: How images make a score.
        neighbours: Nearest images that a share or a sum looks at.
        prototype_weight: Of ``blend``.
        sharpness: Of ``sum`` and ``tip``.
    """
    if aggregate == "prototype":
        return prototypes
    rows = np.broadcast_to(np.arange(len(hits.ids))[:, None], hits.ids.shape)
    columns = np.searchsorted(codes, hits.categories)
    there = hits.ids >= 0
    floor = np.where(there, hits.similarities, np.inf).min(axis=1, keepdims=True)
    nearest = np.where(np.isfinite(prototypes), floor, -np.inf).astype(np.float64)
    np.maximum.at(nearest, (rows[there], columns[there]), hits.similarities[there])
    if aggregate == "nearest":
        return nearest
    if aggregate == "blend":
        return (1.0 - prototype_weight) * nearest + prototype_weight * prototypes
    near = there.copy()
    near[:, neighbours:] = False
    total = np.zeros_like(nearest)
    similarities = hits.similarities[near].astype(np.float64)
    if aggregate == "vote":
        np.add.at(total, (rows[near], columns[near]), 1.0)
        return (total + (nearest + 1.0) / 4.0) / neighbours
    if aggregate == "weighted":
        np.add.at(total, (rows[near], columns[near]), np.maximum(similarities, 0.0))
        return total / neighbours + _BREAK_TIES * nearest
    kernel = np.exp(sharpness * (similarities - 1.0))
    np.add.at(total, (rows[near], columns[near]), kernel)
    with np.errstate(divide="ignore"):
        soft = np.maximum(1.0 + np.log(total) / sharpness, nearest)
    return total + _BREAK_TIES * nearest if aggregate == "tip" else soft
