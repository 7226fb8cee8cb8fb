"""From similarities and a ranker's verdict to probabilities: pure mathematics, nothing is fitted here.

The answer's distribution over the candidates is a log-linear mix: ``log p = prior + weight * ranker`` up to a constant,
so a weight of 0 is retrieval alone, 1 multiplies the two as if they were independent evidence, and ``"replace"`` (the
limit of a growing weight) is the ranker alone, as in the paper. Beside the candidates stands "none of these was
retrieved", whose probability is logistic in retrieval's best similarity and its margin over the second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from jaxtyping import Float

from rarvision.errors import OptionError

__all__ = [
    "Calibration",
    "RankerWeight",
    "check_weight",
    "log_softmax",
    "mix",
    "order_log_scores",
    "prior_log_scores",
    "ranker_log_scores",
    "unknown_probability",
]

RankerWeight = float | Literal["replace"]
_BELOW_REPORTED = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The parameters of the mix; the defaults are for cosine-like similarities of CLIP models.

    They are guesses, but for ``order_decay``: on the field guide's validation categories 3 nats a place let a generated
    list correct retrieval (87 to 94 %) and more changed nothing.

    Attributes:
        prior_temperature: Retrieval's log-prior is similarity / prior_temperature; smaller trusts retrieval more.
        ranker_temperature: The ranker's log-scores are divided by it; larger trusts them less.
        order_decay: For rankings without scores: nats that each place costs, a geometric distribution over places.
        unknown_intercept: Log-odds of "not retrieved" at similarity 0 and margin 0.
        unknown_similarity: Change of the log-odds by unit of the best candidate's similarity.
        unknown_margin: Change by unit of the best candidate's margin over the second.
        fitted: Whether the values were fitted on data; False for the defaults.
    """

    prior_temperature: float = 0.02
    ranker_temperature: float = 1.0
    order_decay: float = 3.0
    unknown_intercept: float = -1.5
    unknown_similarity: float = -1.0
    unknown_margin: float = -10.0
    fitted: bool = False

    def __post_init__(self) -> None:
        for record_field in fields(self):
            value = getattr(self, record_field.name)
            if not math.isfinite(value):
                raise OptionError(f"Calibration.{record_field.name} must be finite, got {value}")
        for name in ("prior_temperature", "ranker_temperature", "order_decay"):
            if getattr(self, name) <= 0:
                raise OptionError(f"Calibration.{name} must be above 0, got {getattr(self, name)}")


def check_weight(weight: RankerWeight) -> RankerWeight:
    """The weight as it is; raises `OptionError` unless it is ``"replace"`` or a finite number from 0 up."""
    if weight == "replace":
        return weight
    if isinstance(weight, str) or not math.isfinite(weight) or weight < 0:
        raise OptionError(f"ranker_weight must be a number from 0 up, or 'replace', got {weight!r}")
    return float(weight)


def log_softmax(log_scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Normalise log-scores so that their exponentials sum to 1; stable for any finite values; ``-inf`` allowed."""
    if log_scores.size == 0:
        return log_scores
    shifted = log_scores - log_scores.max()
    normalised: Float[np.ndarray, " n"] = shifted - np.log(np.exp(shifted).sum())
    return normalised


def prior_log_scores(
    similarities: Sequence[float] | Float[np.ndarray, " n"], temperature: float
) -> Float[np.ndarray, " n"]:
    """Retrieval's log-probabilities of the candidates: softmax of similarity / temperature."""
    return log_softmax(np.asarray(similarities, dtype=np.float64) / temperature)


def order_log_scores(order: Sequence[int], decay: float) -> Float[np.ndarray, " n"]:
    """Log-probabilities for a bare order: each place costs ``decay`` nats.

    Args:
        order: Positions of the candidates, best first.
        decay: Above 0.

    Returns:
        One value a candidate, in the order of the candidates.
    """
    scores = np.empty(len(order), dtype=np.float64)
    scores[np.asarray(order, dtype=np.intp)] = -decay * np.arange(len(order), dtype=np.float64)
    return log_softmax(scores)


def ranker_log_scores(
    order: Sequence[int], log_scores: Sequence[float] | None, calibration: Calibration
) -> Float[np.ndarray, " n"]:
    """The ranker's log-probabilities of the candidates, from its scores or, where it gave none, from its order.

    A score of ``-inf`` was not reported; it is taken to lie a nat below the lowest that was.
    """
    if log_scores is None:
        return order_log_scores(order, calibration.order_decay)
    scores = np.asarray(log_scores, dtype=np.float64)
    reported = scores[np.isfinite(scores)]
    if reported.size < scores.size:
        lowest = reported.min() if reported.size else 0.0
        scores = np.where(np.isfinite(scores), scores, lowest - _BELOW_REPORTED)
    return log_softmax(scores / calibration.ranker_temperature)


def mix(
    prior: Float[np.ndarray, " n"], ranker: Float[np.ndarray, " n"], weight: RankerWeight
) -> Float[np.ndarray, " n"]:
    """Log-linear mix of two log-distributions, normalised.

    Args:
        prior: Retrieval's log-scores.
        ranker: The ranker's log-scores of the same candidates.
        weight: 0 gives the prior; growing weights approach ``"replace"``, the ranker's alone.

    Returns:
        Log-probabilities over the candidates.
    """
    if prior.shape != ranker.shape:
        raise OptionError(f"prior and ranker must score the same candidates, got {prior.shape} and {ranker.shape}")
    weight = check_weight(weight)
    return log_softmax(ranker if weight == "replace" else prior + weight * ranker)


def unknown_probability(similarities: Sequence[float] | Float[np.ndarray, " n"], calibration: Calibration) -> float:
    """Probability that the true category is none of the candidates; a lone candidate has no margin.

    Args:
        similarities: Retrieval's similarities of distinct categories, in any order.
        calibration: The parameters.
    """
    ordered = np.sort(np.asarray(similarities, dtype=np.float64))[::-1]
    if ordered.size == 0:
        return 1.0
    margin = ordered[0] - ordered[1] if ordered.size > 1 else 0.0
    log_odds = (
        calibration.unknown_intercept
        + calibration.unknown_similarity * float(ordered[0])
        + calibration.unknown_margin * float(margin)
    )
    return float(np.exp(-np.logaddexp(0.0, -log_odds)))
