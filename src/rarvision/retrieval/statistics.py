"""What the memory's own images tell about its scores: their scale, their hubs, and the weight of texts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

__all__ = ["Hubness", "Scale", "TextWeightFit", "best_weight", "hub_offsets", "mean_and_spread"]

Hubness = Literal["none", "mean", "csls", "softmax"]

_CSLS_NEIGHBOURS: Final = 10
_SOFTMAX_SHARPNESS: Final = 30.0
DEFAULT_TEXT_WEIGHT: Final = 0.5
_GRID: Final = tuple(round(0.05 * step, 2) for step in range(21))


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Scores of categories that are not the query's own: what maps text scores onto the scale of image scores."""

    image_mean: float = 0.0
    text_mean: float = 0.0
    ratio: float = 1.0

    def to_image(self, text_scores: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
        """Text scores on the scale of image scores."""
        return self.image_mean + self.ratio * (text_scores - self.text_mean)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextWeightFit:
    """How the share of text scores changes what the memory's own images, left out one at a time, are taken for.

    Attributes:
        weight: The best share; 0.5 where nothing could be fitted.
        curve: Share of the text score, 0 to 1, and share of images whose first candidate is right, 0 to 1.
        images: Images asked. Those that are alone in their category are not: without them it has no images.
    """

    weight: float
    curve: tuple[tuple[float, float], ...]
    images: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"weight": self.weight, "images": self.images, "curve": [list(point) for point in self.curve]}


def mean_and_spread(scores: Float[np.ndarray, "n c"], wrong: Bool[np.ndarray, "n c"]) -> tuple[float, float] | None:
    """Mean, and root mean square of each row's deviations, of the scores of wrong categories; None without any."""
    used = np.isfinite(scores) & wrong
    counts = used.sum(axis=1)
    rows = counts > 0
    if not rows.any():
        return None
    kept = np.where(used, scores, 0.0)[rows]
    means = kept.sum(axis=1) / counts[rows]
    deviations = np.where(used[rows], kept - means[:, None], 0.0)
    return float(means.mean()), float(np.sqrt((deviations**2).sum() / counts[rows].sum()))


def hub_offsets(
    scores: Float[np.ndarray, "n c"], wrong: Bool[np.ndarray, "n c"], method: Hubness
) -> Float[np.ndarray, " c"]:
    """How much too near each category is to images that are not its own; to be subtracted from its scores.

    Args:
        scores: Of n images of the memory for c categories, cosine-like; ``-inf`` where a category has no score.
        wrong: Where the image is not of the category; only there scores count.
        method: ``mean``: the mean score. ``csls``: half the mean of the 10 highest (Conneau et al., "Word translation
            without parallel data", 2018: the other half of the correction belongs to the query and changes no order).
            ``softmax``: ``log(mean(exp(30 * score))) / 30`` (the inverted softmax of Smith et al., "Offline bilingual
            word vectors", 2017). ``none``: zero.

    Returns:
        One offset a category, their mean 0; 0 for a category without scores.
    """
    used = np.isfinite(scores) & wrong
    counts = used.sum(axis=0)
    offsets = np.zeros(scores.shape[1])
    there = counts > 0
    if method == "none" or not there.any():
        return offsets
    kept = np.where(used, scores, -np.inf)[:, there]
    if method == "mean":
        found = np.where(used, scores, 0.0)[:, there].sum(axis=0) / counts[there]
    elif method == "csls":
        highest = -np.sort(-kept, axis=0)[:_CSLS_NEIGHBOURS]
        taken = np.isfinite(highest)
        found = np.where(taken, highest, 0.0).sum(axis=0) / taken.sum(axis=0) / 2.0
    else:
        peak = kept.max(axis=0)
        total = np.exp(_SOFTMAX_SHARPNESS * (kept - peak)).sum(axis=0)
        found = peak + np.log(total / counts[there]) / _SOFTMAX_SHARPNESS
    offsets[there] = found - found.mean()
    return offsets


def best_weight(
    image: Float[np.ndarray, "n c"], text: Float[np.ndarray, "n c"], own: Int[np.ndarray, " n"]
) -> TextWeightFit:
    """The share of text scores at which most images are first taken for what they are.

    Args:
        image: Image scores, ``-inf`` where there is none.
        text: Text scores on the same scale, likewise.
        own: Column of each image's category.

    Returns:
        The fit; of equally good shares the one nearest 0.5.
    """
    curve = []
    for weight in _GRID:
        best = mixed(image, text, weight).argmax(axis=1)
        curve.append((weight, float((best == own).mean()) if len(own) else 0.0))
    if not len(own):
        return TextWeightFit(weight=DEFAULT_TEXT_WEIGHT, curve=(), images=0)
    weight = max(curve, key=lambda point: (point[1], -abs(point[0] - DEFAULT_TEXT_WEIGHT), point[0]))[0]
    return TextWeightFit(weight=weight, curve=tuple(curve), images=len(own))


def mixed(image: Float[np.ndarray, "n c"], text: Float[np.ndarray, "n c"], weight: float) -> Float[np.ndarray, "n c"]:
    """``(1 - weight) * image + weight * text``; the one there is where the other is ``-inf``."""
    with np.errstate(invalid="ignore"):  # 0 * inf, replaced by the next line
        both = (1.0 - weight) * image + weight * text
    return np.where(np.isneginf(image), text, np.where(np.isneginf(text), image, both))


def spaced(count: int, most: int) -> Int[np.ndarray, " n"]:
    """At most ``most`` of ``count`` rows, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def without(
    query: Float[np.ndarray, " dim"], others: Float[np.ndarray, "m dim"], measured: Float[np.ndarray, "k dim"]
) -> float:
    """Similarity of an image to the mean of its category's others, over the length of the mean of ``measured``.

    ``-inf`` where there are no others. With ``measured`` the same as ``others`` it is the cosine to their mean.
    """
    if not len(others):
        return -math.inf
    norm = float(np.linalg.norm(measured.mean(axis=0, dtype=np.float64)))
    return float(query @ others.mean(axis=0, dtype=np.float64)) / norm if norm > 1e-12 else 0.0
