"""From similarities and a ranker's verdict to probabilities.

The answer's distribution over the candidates is a log-linear mix: ``log p = prior + weight * ranker`` up to a constant,
so a weight of 0 is retrieval alone, 1 multiplies the two as if they were independent evidence, and ``"replace"`` (the
limit of a growing weight) is the ranker alone, as in the paper. Beside the candidates stands "none of these was
retrieved", whose probability is logistic in retrieval's best similarity, its margin over the second, and how sure the
mix is of its first.
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
    "Parts",
    "RankerWeight",
    "check_weight",
    "log_softmax",
    "mix",
    "mixed_log_probs",
    "order_log_scores",
    "prior_log_scores",
    "ranker_log_scores",
    "unknown_features",
    "unknown_probability",
]

RankerWeight = float | Literal["replace"]
_BELOW_REPORTED = 1.0
_MOST_ODDS = 20.0
_FURTHER = 0.05  # what each place after the second costs, beside what the second does


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The parameters of the mix; the defaults are for cosine-like similarities of CLIP models.

    They are guesses, but for ``order_decay``: on the field guide's validation categories 3 nats a place, the
    further ones as dear as the second, let a generated list correct retrieval (87 to 94 %) and more changed nothing.

    Attributes:
        prior_temperature: Retrieval's log-prior is similarity / prior_temperature; smaller trusts retrieval more.
        ranker_temperature: The ranker's log-scores are divided by it; larger trusts them less.
        ranker_weight: Weight of the ranker's log-scores beside retrieval's: 0 is retrieval alone.
        order_decay: For rankings without scores: nats that it costs not to come first; each further place costs a
            twentieth of that.
        unknown_intercept: Log-odds of "not retrieved" at similarity 0 and margin 0.
        unknown_similarity: Change of the log-odds by unit of the best candidate's similarity.
        unknown_margin: Change by unit of the best candidate's margin over the second.
        unknown_confidence: Change by nat of the log-odds that the mix gives its first candidate among all.
        unknown_image_margin: Change by unit of the first's margin over the others by the images alone.
        unknown_text_margin: The same by the texts alone.
        reject_above: Above this probability of "not retrieved" the answer is "unknown"; None never says so.
        fitted: Whether the values were fitted on data; False for the defaults.
    """

    prior_temperature: float = 0.02
    ranker_temperature: float = 1.0
    ranker_weight: float = 1.0
    order_decay: float = 3.0
    unknown_intercept: float = -1.5
    unknown_similarity: float = -1.0
    unknown_margin: float = -10.0
    unknown_confidence: float = 0.0
    unknown_image_margin: float = 0.0
    unknown_text_margin: float = 0.0
    reject_above: float | None = None
    fitted: bool = False

    def __post_init__(self) -> None:
        for record_field in fields(self):
            value = getattr(self, record_field.name)
            if value is not None and not math.isfinite(value):
                raise OptionError(f"Calibration.{record_field.name} must be finite, got {value}")
        for name in ("prior_temperature", "ranker_temperature", "order_decay"):
            if getattr(self, name) <= 0:
                raise OptionError(f"Calibration.{name} must be above 0, got {getattr(self, name)}")
        if self.ranker_weight < 0:
            raise OptionError(f"Calibration.ranker_weight must be at least 0, got {self.ranker_weight}")
        if self.reject_above is not None and not 0.0 <= self.reject_above <= 1.0:
            raise OptionError(f"Calibration.reject_above must lie between 0 and 1, got {self.reject_above}")


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
    """Log-probabilities for a bare order: not to come first costs ``decay`` nats, each further place a twentieth.

    Where a list is wrong about the first, it hardly tells where the true name stands: further places that cost as much
    as the first step would make a ranker that is right in 84 % of the images look worse than retrieval, by their
    likelihood, for the few names that it puts last.

    Args:
        order: Positions of the candidates, best first.
        decay: Above 0.

    Returns:
        One value a candidate, in the order of the candidates.
    """
    scores = np.empty(len(order), dtype=np.float64)
    places = np.arange(len(order), dtype=np.float64)
    scores[np.asarray(order, dtype=np.intp)] = -decay * np.where(places > 0, 1.0 + _FURTHER * (places - 1.0), 0.0)
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


def mixed_log_probs(
    similarities: Sequence[float] | Float[np.ndarray, " n"],
    order: Sequence[int] | None,
    log_scores: Sequence[float] | None,
    calibration: Calibration,
    weight: RankerWeight | None = None,
) -> Float[np.ndarray, " n"]:
    """Log-probabilities of the candidates, given that one of them is right.

    Args:
        similarities: Retrieval's, one a distinct candidate.
        order: The ranker's order of them, best first; None where it was not asked, or gave nothing.
        log_scores: Its scores, where it gave any.
        calibration: The parameters.
        weight: In place of the calibration's ``ranker_weight``.
    """
    prior = prior_log_scores(similarities, calibration.prior_temperature)
    if order is None:
        return prior
    ranker = ranker_log_scores(order, log_scores, calibration)
    return mix(prior, ranker, calibration.ranker_weight if weight is None else weight)


Parts = tuple[Sequence[float | None] | None, Sequence[float | None] | None]
"""Similarities of the candidates by images alone, and by texts alone; None where there are none."""


def unknown_features(
    similarities: Sequence[float] | Float[np.ndarray, " n"],
    log_probs: Float[np.ndarray, " n"],
    parts: Parts = (None, None),
) -> Float[np.ndarray, " 5"]:
    """What "not retrieved" and the gate judge by.

    Args:
        similarities: Of distinct candidates.
        log_probs: What the mix, or retrieval alone, says of them.
        parts: Similarities by images alone and by texts alone.

    Returns:
        The best similarity; its margin over the second; the log-odds of the likeliest candidate among all, cut at 20
        nats; the margin over the others that retrieval's first has by images alone, and by texts alone (below 0 where
        another is nearer; 0 where there is nothing to compare).
    """
    values = np.asarray(similarities, dtype=np.float64)
    if values.size < 2:
        return np.array([values[0] if values.size else -1.0, 0.0, 0.0, 0.0, 0.0])
    first = int(values.argmax())
    rest = np.delete(log_probs, int(log_probs.argmax()))
    others = float(rest.max() + np.log(np.exp(rest - rest.max()).sum())) if np.isfinite(rest.max()) else -np.inf
    odds = min(float(log_probs.max()) - others, _MOST_ODDS)
    margins = [_margin(part, first) for part in (list(values), *parts)]
    return np.array([values[first], margins[0], odds, *margins[1:]])


def _margin(values: Sequence[float | None] | None, first: int) -> float:
    if values is None:
        return 0.0
    own, others = values[first], [v for i, v in enumerate(values) if i != first and v is not None]
    return own - max(others) if own is not None and others else 0.0


def unknown_probability(
    similarities: Sequence[float] | Float[np.ndarray, " n"],
    calibration: Calibration,
    log_probs: Float[np.ndarray, " n"] | None = None,
    parts: Parts = (None, None),
) -> float:
    """Probability that the true category is none of the candidates; a lone candidate has no margin.

    Args:
        similarities: Retrieval's similarities of distinct categories, in any order.
        calibration: The parameters.
        log_probs: What the mix says of the candidates; by default retrieval's prior.
        parts: See `unknown_features`.
    """
    if len(similarities) == 0:
        return 1.0
    if log_probs is None:
        log_probs = prior_log_scores(similarities, calibration.prior_temperature)
    slopes = (
        calibration.unknown_similarity,
        calibration.unknown_margin,
        calibration.unknown_confidence,
        calibration.unknown_image_margin,
        calibration.unknown_text_margin,
    )
    features = unknown_features(similarities, log_probs, parts).tolist()
    log_odds = calibration.unknown_intercept + sum(s * f for s, f in zip(slopes, features, strict=True))
    return float(np.exp(-np.logaddexp(0.0, -log_odds)))
