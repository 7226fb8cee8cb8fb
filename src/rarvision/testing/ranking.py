"""The contract of a ranker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from rarvision.errors import InputError
from rarvision.ranking.base import BaseRanker
from rarvision.types import Ranking

__all__ = ["check_ranker"]

_LISTS: tuple[tuple[str, ...], ...] = (
    ("tulip", "rose", "daisy"),
    (),
    ("rose",),
    ("rose", "rose"),
    ("daisy", "tulip", "daisy", "rose", "tulip"),
    ("Black-eyed Susan's", 'the "Great" auk', "salt, pepper", "Boeing [707]", "老虎", "first\nsecond"),
    ("daisy", "rose"),
)


def check_ranker(ranker: BaseRanker, images: Sequence[Image.Image] | None = None) -> None:
    """Assert what every ranker must hold, on lists of none, one, repeated, many and awkward names.

    Args:
        ranker: The ranker; asked a few dozen times.
        images: RGB images to rank for; plain colours by default.

    Raises:
        AssertionError: With what was expected and what came.
    """
    pool = list(images or [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")])
    chosen = [pool[i % len(pool)] for i in range(len(_LISTS))]
    _require(bool(ranker.name), "name must not be empty")
    batch = ranker.rank_batch(chosen, _LISTS)
    _require(len(batch) == len(_LISTS), f"expected {len(_LISTS)} rankings of a batch, got {len(batch)}")
    for image, names, ranking in zip(chosen, _LISTS, batch, strict=True):
        _check_ranking(ranking, names)
        alone = ranker.rank(image, names)
        _require(_agree(alone, ranking), f"alone and in a batch must agree: {alone} against {ranking} for {names}")
    if ranker.parallel_calls > 1:
        with ThreadPoolExecutor(min(ranker.parallel_calls, len(_LISTS))) as threads:
            found = list(threads.map(ranker.rank, chosen, _LISTS))
        _require(all(map(_agree, found, batch)), f"from several threads and in a batch must agree: {found}, {batch}")
    _require(ranker.rank_batch([], []) == [], "an empty batch must give an empty list")
    try:
        ranker.rank_batch(chosen[:1], _LISTS[:2])
    except InputError:
        pass
    else:
        _require(condition=False, message="one image and two lists must raise InputError")


def _check_ranking(ranking: Ranking, names: Sequence[str]) -> None:
    _require(
        sorted(ranking.order) == list(range(len(names))),
        f"order must be a permutation of range({len(names)}), got {ranking.order}",
    )
    if len(set(names)) < 2:
        _require(ranking.status == "ranked", f"nothing to rank must be 'ranked', got {ranking.status!r} for {names}")
    ranked = [names[place] for place in ranking.order]
    starts = [name for i, name in enumerate(ranked) if i == 0 or ranked[i - 1] != name]
    _require(len(starts) == len(set(starts)), f"places of a repeated name must stay together, got {ranked}")
    if ranking.log_scores is not None:
        scores = [ranking.log_scores[place] for place in ranking.order]
        _require(scores == sorted(scores, reverse=True), f"log_scores must fall along the order, got {scores}")


def _agree(first: Ranking, second: Ranking) -> bool:
    """Same outcome, scores to within rounding (batches pad)."""
    a, b = first.log_scores, second.log_scores
    if (a is None) != (b is None) or first.status != second.status:
        return False
    if a is None or b is None:
        return first.order == second.order
    close = all(math.isclose(x, y, rel_tol=1e-3, abs_tol=1e-3) for x, y in zip(a, b, strict=True))
    swapped = [x for x, y in zip(first.order, second.order, strict=True) if x != y]
    return close and all(any(abs(a[x] - a[y]) <= 2e-3 for y in swapped if y != x) for x in swapped)


def _require(condition: bool, message: str) -> None:  # noqa: FBT001 - it reads as an assertion
    if not condition:
        raise AssertionError(message)
