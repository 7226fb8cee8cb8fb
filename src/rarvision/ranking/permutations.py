"""Showing the candidates in several orders and joining what is answered: cyclic permutations, mean ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from rarvision.errors import OptionError

__all__ = ["JoinedScores", "Permutations", "check_permutations", "join_scores", "mean_ranks", "normalised", "rotations"]

Permutations = int | Literal["all"]
"""In how many orders the candidates are shown: a number from 1, or ``all``: as many as there are candidates."""

_BELOW_REPORTED = 1.0  # nats; as `rarvision.calibration.ranker_log_scores` takes what was not reported


def check_permutations(permutations: Permutations) -> Permutations:
    """The value as it is; raises `OptionError` unless it is ``"all"`` or a whole number from 1."""
    if permutations == "all":
        return permutations
    if isinstance(permutations, bool) or not isinstance(permutations, int) or permutations < 1:
        raise OptionError(f"permutations must be a whole number from 1, or 'all', got {permutations!r}")
    return permutations


def rotations(n: int, permutations: Permutations) -> list[list[int]]:
    """Cyclic permutations of n places, evenly apart, the identity first.

    With ``all`` (or n and more) every name stands at every place once, so that whatever a place adds to a score adds
    the same to every name. Fewer are steps of n / permutations: 2 are the identity and half the way round. They are
    rotations rather than reversals so that every name moves, the middle one too, and so that few are a part of all.

    Args:
        n: Number of names.
        permutations: How many orders, at most n of which are different.

    Returns:
        Orders; ``order[i]`` is the place of the name shown at i.

    Example:
        >>> rotations(5, 2)
        [[0, 1, 2, 3, 4], [2, 3, 4, 0, 1]]
        >>> rotations(3, "all")
        [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
    """
    count = n if permutations == "all" else min(permutations, n)
    return [[(place + step * n // count) % n for place in range(n)] for step in range(count)]


def normalised(scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Log-probabilities over the candidates alone; what was not reported (``-inf``) lies a nat below what was.

    What is not a number makes all of them so.
    """
    reported = scores[scores > -np.inf]
    lowest = float(reported.min()) if reported.size else 0.0
    filled = np.where(scores == -np.inf, lowest - _BELOW_REPORTED, scores)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        log_probs: Float[np.ndarray, " n"] = filled - np.logaddexp.reduce(filled)
    return log_probs


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinedScores:
    """Scores of one image's candidates over several orders, in places of the names as given.

    Attributes:
        log_scores: One a name; ``-inf`` where no order had one. None where nothing can be used.
        reason: What is missing or wrong; None where nothing is.
    """

    log_scores: Float[np.ndarray, " n"] | None
    reason: str | None


def join_scores(orders: Float[np.ndarray, "orders n"]) -> JoinedScores:
    """One score a name from its scores in each order.

    Several orders are averaged as log-probabilities, each normalised over the candidates first. Logarithms, because a
    place's or a letter's prior multiplies a probability: its logarithm is a term that every name gets once over all
    rotations, and that then drops out exactly; a mean of probabilities would keep part of it. Normalised, because the
    share of the probability that falls on anything but the candidates differs from prompt to prompt and says nothing
    about them; so each order counts as one distribution over the same names, and a score that was not reported can be
    put beside the others. One order is left as it is.

    Args:
        orders: Log-scores, a row an order, columns in places of the names as given.
    """
    rows = len(orders)
    each = f" in {rows} orders" if rows > 1 else ""
    wrong = int(np.count_nonzero(np.isnan(orders) | (orders == np.inf)))
    if wrong:
        return JoinedScores(log_scores=None, reason=f"{wrong} of {orders.size} scores{each} are not numbers")
    unreported = orders == -np.inf
    if unreported.all():
        return JoinedScores(log_scores=None, reason="no candidate's score was reported")
    count = int(np.count_nonzero(unreported))
    reason = f"{count} of {orders.size} scores{each} were not reported" if count else None
    if rows == 1:
        return JoinedScores(log_scores=orders[0], reason=reason)
    useful = orders[~unreported.all(axis=1)]
    mean = np.mean([normalised(row) for row in useful], axis=0)
    return JoinedScores(log_scores=np.where(unreported.all(axis=0), -np.inf, mean), reason=reason)


def mean_ranks(orders: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """One order from several: by mean rank (Borda's count), ties as the names were given, which is retrieval's order.

    Args:
        orders: At least one; each a permutation of the same places, best first.

    Example:
        >>> mean_ranks([(2, 0, 1), (0, 2, 1)])
        (0, 2, 1)
    """
    ranks = np.argsort(np.asarray(orders, dtype=np.intp), axis=1)
    return tuple(int(place) for place in np.argsort(ranks.sum(axis=0), kind="stable"))
