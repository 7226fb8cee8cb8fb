"""From similarities and rankings to scored boxes: probabilities, the ranker's order, evaluators' presets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from jaxtyping import Float, Float64, Int, Int64

from rarvision.detection.results import Detections
from rarvision.detection.selecting import nms_per_category, top_pairs
from rarvision.detection.vocabulary import Vocabulary
from rarvision.errors import InputError, OptionError
from rarvision.regions import to_xywh

__all__ = [
    "EVALUATOR_PRESETS",
    "EvaluatorPreset",
    "class_probabilities",
    "evaluator_preset",
    "ranked_scores",
    "top_scores",
]

Objectness = Literal["ignored", "product", "geometric-mean"]


def class_probabilities(
    similarities: Float[np.ndarray, "n c"], *, temperature: float = 0.01, background: float | None = None
) -> Float64[np.ndarray, "n c"]:
    """Softmax over the categories of each box.

    Args:
        similarities: Cosines, a row a box, a column a category.
        temperature: They are divided by it.
        background: Similarity of one more class, "nothing", which takes part in the sum; None for no such class.

    Returns:
        Probabilities; the background's is left out, so that rows sum to less than 1 where there is one.
    """
    if not temperature > 0:
        raise OptionError(f"temperature must be above 0, got {temperature}")
    logits = np.asarray(similarities, dtype=np.float64) / temperature
    if not np.isfinite(logits).all():
        raise InputError("similarities must be finite")
    if logits.shape[1] == 0:
        raise InputError("similarities need a column a category, got none")
    top = logits.max(axis=1, keepdims=True)
    if background is not None:
        top = np.maximum(top, background / temperature)
    weights = np.exp(logits - top)
    total = weights.sum(axis=1, keepdims=True)
    if background is not None:
        total = total + np.exp(background / temperature - top)
    probabilities: Float64[np.ndarray, "n c"] = weights / total
    return probabilities


def ranked_scores(
    probabilities: Float[np.ndarray, "n c"], ranked: Int[np.ndarray, "rows k"]
) -> Float64[np.ndarray, "n c"]:
    """Put the ranker's order into retrieval's probabilities.

    The k ranked categories of a box take the k probabilities that retrieval gave them, the first the highest and so on;
    all other categories keep theirs.

    Args:
        probabilities: By retrieval, a row a box, a column a category.
        ranked: Columns of the categories that were ranked, best first; a row with fewer ends in -1, a box that was not
            ranked is all -1.

    Example:
        >>> ranked_scores(np.array([[0.6, 0.3, 0.1]]), np.array([[1, 0]]))
        array([[0.3, 0.6, 0.1]])
    """
    scores = np.array(probabilities, dtype=np.float64)
    rows, places = _ranked(scores, ranked)
    columns = ranked[rows, places]
    taken = np.full(ranked.shape, -np.inf)
    taken[rows, places] = scores[rows, columns]
    taken = -np.sort(-taken, axis=1)
    scores[rows, columns] = taken[rows, places]
    return scores


def top_scores(
    probabilities: Float[np.ndarray, "n c"], ranked: Int[np.ndarray, "rows k"]
) -> Float64[np.ndarray, "n c"]:
    """One category a box: the first of the ranking with the highest probability among the ranked; all others 0.

    A box that was not ranked keeps its most probable category. Arguments are those of `ranked_scores`.

    Example:
        >>> top_scores(np.array([[0.6, 0.3, 0.1]]), np.array([[1, 0]]))
        array([[0. , 0.6, 0. ]])
    """
    scores = ranked_scores(probabilities, ranked)
    if scores.shape[1] == 0:
        raise InputError("probabilities need a column a category, got none")
    first = ranked[:, 0] if ranked.shape[1] else np.full(len(scores), -1)
    best = np.where(first >= 0, first, scores.argmax(axis=1))
    only = np.zeros_like(scores)
    rows = np.arange(len(scores))
    only[rows, best] = scores[rows, best]
    return only


def _ranked(
    scores: Float64[np.ndarray, "n c"], ranked: Int[np.ndarray, "rows k"]
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """Rows and places of what was ranked."""
    if len(ranked) != len(scores):
        raise InputError(f"expected as many rows: {len(scores)} of probabilities, {len(ranked)} of rankings")
    if ranked.size and (ranked.min() < -1 or ranked.max() >= scores.shape[1]):
        raise InputError(f"ranked columns must lie in 0 to {scores.shape[1] - 1}, or be -1")
    given = ranked >= 0
    if (given[:, 1:] & ~given[:, :-1]).any():
        raise InputError("a ranking has a category after -1; -1 stands at the end alone")
    ordered = np.sort(ranked, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise InputError("a ranking names a category twice")
    rows, places = np.nonzero(given)
    return rows, places


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatorPreset:
    """How scores become detections: published numbers differ by it as much as by the method.

    Attributes:
        name: For reports.
        source: Whose protocol it is.
        temperature: Of the softmax over similarities.
        background: Similarity of the class "nothing" in that softmax; None for no such class.
        min_score: Only scores above it.
        nms_iou: Overlap above which the lower score of a category is dropped; None for no suppression.
        per_image: Detections of an image at most.
        objectness: What a proposal's objectness does to its scores: nothing, multiplied, or the root of the product.
    """

    name: str
    source: str
    temperature: float = 0.01
    background: float | None = None
    min_score: float = 0.0
    nms_iou: float | None = None
    per_image: int = 300
    objectness: Objectness = "ignored"

    def probabilities(self, similarities: Float[np.ndarray, "n c"]) -> Float64[np.ndarray, "n c"]:
        """Retrieval's probabilities by this protocol: see `class_probabilities`."""
        return class_probabilities(similarities, temperature=self.temperature, background=self.background)

    def detections(
        self,
        image_id: int,
        boxes_xyxy: Float[np.ndarray, "n 4"],
        scores: Float[np.ndarray, "n c"],
        *,
        vocabulary: Vocabulary,
        objectness: Float[np.ndarray, " n"] | Sequence[float] | None = None,
    ) -> Detections:
        """Choose an image's detections.

        Args:
            image_id: Its number.
            boxes_xyxy: Pixels.
            scores: A row a box, a column a category, as `probabilities`, `ranked_scores` and `top_scores` give them.
            vocabulary: What the columns are.
            objectness: Of each box; needed unless the preset ignores it.

        Returns:
            The highest score first.
        """
        if scores.shape != (len(boxes_xyxy), len(vocabulary)):
            raise InputError(
                f"expected scores of {len(boxes_xyxy)} boxes x {len(vocabulary)} categories, got {scores.shape}"
            )
        if not np.isfinite(scores).all():
            raise InputError(f"image {image_id}: scores must be finite")
        values, (rows, columns) = self.chosen(boxes_xyxy, scores, objectness=objectness)
        return Detections(
            image_ids=np.full(len(rows), image_id, dtype=np.int64),
            category_ids=vocabulary.ids[columns],
            boxes_xywh=to_xywh(boxes_xyxy)[rows],
            scores=values,
            vocabulary=vocabulary,
        )

    def chosen(
        self,
        boxes_xyxy: Float[np.ndarray, "n 4"],
        scores: Float[np.ndarray, "n c"],
        *,
        objectness: Float[np.ndarray, " n"] | Sequence[float] | None = None,
    ) -> tuple[Float64[np.ndarray, " m"], tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]]:
        """What `detections` chooses: scores with objectness, the highest first, and their rows and columns."""
        scores = self._with_objectness(scores, objectness)
        if self.nms_iou is None:
            rows, columns = top_pairs(scores, limit=self.per_image, min_score=self.min_score)
        else:
            rows, columns = nms_per_category(
                boxes_xyxy, scores, iou=self.nms_iou, limit=self.per_image, min_score=self.min_score
            )
        return scores[rows, columns].astype(np.float64), (rows, columns)

    def _with_objectness(
        self, scores: Float[np.ndarray, "n c"], objectness: Float[np.ndarray, " n"] | Sequence[float] | None
    ) -> Float[np.ndarray, "n c"]:
        if self.objectness == "ignored":
            return scores
        if objectness is None or len(objectness) != len(scores):
            raise InputError(f"preset {self.name}: needs the objectness of each of the {len(scores)} boxes")
        weights = np.asarray(objectness, dtype=np.float64)[:, None]
        if not ((weights >= 0) & np.isfinite(weights)).all():
            raise InputError("objectness must be finite and not negative to weigh scores")
        product: Float[np.ndarray, "n c"] = scores * weights
        return product if self.objectness == "product" else np.sqrt(product)


EVALUATOR_PRESETS = {
    preset.name: preset
    for preset in (
        EvaluatorPreset(name="lvis", source="LVIS: the 300 highest scores of an image, boxes and categories together"),
        EvaluatorPreset(
            name="regionclip",
            source="RegionCLIP: softmax with background at T = 0.01, above 1e-4, suppression at 0.5, 300 an image",
            background=0.0,
            min_score=1e-4,
            nms_iou=0.5,
        ),
        EvaluatorPreset(
            name="regionspot",
            source="RegionSpot: the 900 highest scores of an image, no suppression (LVIS then counts 300)",
            per_image=900,
        ),
        EvaluatorPreset(
            name="tokenize-anything",
            source="Tokenize Anything: probability above 0.001, suppression at 0.5, 300 an image",
            min_score=1e-3,
            nms_iou=0.5,
        ),
    )
}
"""The presets by name."""


def evaluator_preset(name: str) -> EvaluatorPreset:
    """The preset of that name: ``lvis``, ``regionclip``, ``regionspot`` or ``tokenize-anything``.

    Change a setting with `dataclasses.replace`, and give it a name of its own.

    Raises:
        OptionError: There is none.
    """
    if name not in EVALUATOR_PRESETS:
        raise OptionError(f"no evaluator preset {name!r}; there are {', '.join(EVALUATOR_PRESETS)}")
    return EVALUATOR_PRESETS[name]
