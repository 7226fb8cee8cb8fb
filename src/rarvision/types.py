"""The records that travel through the pipeline: frozen, keyword-only, checked at birth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from rarvision.errors import ImageError, InputError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "Box",
    "Candidate",
    "CategoryScores",
    "Entry",
    "LevelAnswer",
    "Modality",
    "Neighbour",
    "Prediction",
    "Ranking",
    "RankingStatus",
    "Sample",
    "box_suffix",
    "check_box",
]

Modality = Literal["image", "text"]
RankingStatus = Literal["ranked", "repaired", "fallback", "skipped"]
Box = tuple[float, float, float, float]
"""Left, upper, right, lower: pixels of the upright image, right and lower outside; fractions are allowed."""


def _require(condition: bool, message: str) -> None:  # noqa: FBT001 - it reads as an assertion
    if not condition:
        raise InputError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image with, perhaps, its label.

    Attributes:
        source: Where it comes from (a path, a URL, or a stable name such as ``fieldguide:birds/…``); unique in a set.
        image: A path, the bytes of an image file, or a decoded PIL image; opened late, by
            `rarvision.images.load_image`.
        label: The category's name, or None where unknown.
        metadata: Anything else, JSON values only.
        box_xyxy: The part of the image that is meant, see `Box`; what lies outside the image is cut off. None for all
            of it.
        image_size: Width and height of the upright image that the box was given for, pixels; None where not known. An
            image of another size is refused, as the box would show something else.
    """

    source: str
    image: Path | bytes | Image
    label: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    box_xyxy: Box | None = None
    image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _require(bool(self.source), "Sample.source must not be empty")
        _require(self.label is None or bool(self.label.strip()), f"{self.source}: label must not be blank")
        if self.box_xyxy is not None:
            check_box(self.box_xyxy, self.source)

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise `ImageError` where an image of this width and height is not the one that the box was given for."""
        if self.image_size is None or size == self.image_size:
            return
        (width, height), turned = self.image_size, size == self.image_size[::-1]
        raise ImageError(
            f"{self.source}: the box was given for an image of {width} x {height} pixels, and the upright image has "
            f"{size[0]} x {size[1]}; "
            + (
                "boxes are of the upright image: was it annotated without its EXIF orientation? Store it without"
                if turned
                else "give the images that were annotated, or annotations for these"
            )
        )


def box_suffix(box: Box | None) -> str:
    """What tells the sources of several boxes of one image apart, after the image's own name."""
    if box is None:
        return ""
    return "#xyxy=" + ",".join(str(int(edge)) if edge == int(edge) else repr(float(edge)) for edge in box)


def check_box(box: Box, source: str) -> None:
    """Raise `InputError`, naming the source, unless it is a box with an inside."""
    left, upper, right, lower = box if len(box) == 4 else (math.nan,) * 4
    _require(
        all(map(math.isfinite, (left, upper, right, lower))) and left < right and upper < lower,
        f"{source}: box_xyxy must be four numbers, left < right and upper < lower, got {box!r}",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One entry of the memory: an image's or a text's vector belongs to a category.

    Attributes:
        id: Stable number, never reused within a memory.
        category: The category's name.
        modality: ``image`` or ``text``.
        source: The image's source, or the encoded text.
        metadata: JSON values.
    """

    id: int
    category: str
    modality: Modality
    source: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(bool(self.category.strip()), f"entry {self.id}: category must not be blank")
        _require(self.modality in ("image", "text"), f"modality must be 'image' or 'text', got {self.modality!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbour:
    """An entry found by a search, with its cosine similarity to the query (higher is closer, -1 to 1)."""

    entry: Entry
    similarity: float

    def __post_init__(self) -> None:
        _require(math.isfinite(self.similarity), f"similarity must be finite, got {self.similarity}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A category that retrieval proposes.

    Attributes:
        category: Its name.
        similarity: Retrieval's score after aggregation and fusion; cosine-like, higher is closer.
        exemplars: Ids of the memory's entries of this category that were found, closest first.
        image_similarity: By the category's images alone; None where it has none, or they were not asked.
        text_similarity: By its texts alone, on the scale of the images' where both are fused; None likewise.
        probability: After the pipeline: calibrated probability that this is the answer; None before.
    """

    category: str
    similarity: float
    exemplars: tuple[int, ...] = ()
    image_similarity: float | None = None
    text_similarity: float | None = None
    probability: float | None = None

    def __post_init__(self) -> None:
        _require(math.isfinite(self.similarity), f"{self.category!r}: similarity must be finite")
        _require(
            self.probability is None or 0.0 <= self.probability <= 1.0 + 1e-6,
            f"{self.category!r}: probability must lie in [0, 1], got {self.probability}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """A ranker's verdict over n candidates.

    Attributes:
        order: Permutation of ``range(n)``: positions in the candidate list, best first.
        log_scores: One a candidate, in the order of the candidate list (not of ``order``): log-probability
            up to a constant, higher is better; None where the strategy gives an order only.
        status: ``ranked`` as answered; ``repaired``: something was missing, doubled or misspelt, and completed from
            retrieval's order, or the question lacked the worked example that it was to have; ``fallback``: nothing
            usable, retrieval's order; ``skipped``: not asked, since retrieval was sure enough, retrieval's order.
        reason: Why it is not ``ranked``; None for ``ranked``.
        raw: The answer as it came, None where the strategy reads probabilities.
        strategy: The strategy's name.
        unanswered: ``fallback`` because no answer could be had (the server was down), not because it could not be read:
            asked another time, the MLLM may answer. A run that goes on asks again.
    """

    order: tuple[int, ...]
    strategy: str
    log_scores: tuple[float, ...] | None = None
    status: RankingStatus = "ranked"
    reason: str | None = None
    raw: str | None = None
    unanswered: bool = False

    def __post_init__(self) -> None:
        n = len(self.order)
        _require(sorted(self.order) == list(range(n)), f"order must be a permutation of range({n}), got {self.order}")
        _require(
            self.log_scores is None or len(self.log_scores) == n,
            f"log_scores must have {n} values, got {self.log_scores}",
        )
        _require(
            self.log_scores is None or not any(math.isnan(v) or v == math.inf for v in self.log_scores),
            f"log_scores must be finite or -inf, got {self.log_scores}",
        )
        _require(self.status in get_args(RankingStatus), f"unknown status {self.status!r}")
        _require(
            (self.status == "ranked") == (self.reason is None),
            f"a reason goes with every status but ranked: status {self.status!r}, reason {self.reason!r}",
        )
        _require(
            not self.unanswered or (self.status == "fallback" and self.raw is None),
            f"unanswered goes with fallback and without an answer: status {self.status!r}, raw {self.raw!r}",
        )


@dataclass(frozen=True, slots=True, eq=False)
class CategoryScores:
    """Retrieval's scores of all categories for one image.

    Attributes:
        names: The categories, shared by all images of a batch.
        values: Cosine-like, higher is closer; ``-inf`` where a category could not be scored.
    """

    names: tuple[str, ...] = field(repr=False)
    values: Float[np.ndarray, " c"] = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelAnswer:
    """The most probable group of categories at one level of a taxonomy.

    Attributes:
        level: The level's name, such as ``genus``.
        name: The group's; at the last level the category's.
        probability: Sum over the candidates that lie in it, 0 to 1.
    """

    level: str
    name: str
    probability: float

    def __post_init__(self) -> None:
        _require(
            0.0 <= self.probability <= 1.0 + 1e-6,
            f"{self.level} {self.name!r}: probability must lie in [0, 1], got {self.probability}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The answer for one image.

    Attributes:
        source: The sample's source.
        label: The most probable category.
        probability: Its probability.
        candidates: All candidates with probabilities, most probable first.
        unknown_probability: Probability that the true category was not retrieved; together with those of
            ``candidates`` it sums to 1.
        retrieved: The candidates' categories in retrieval's order, which is what ``ranking.order`` counts in.
        ranking: The ranker's verdict; None where there is no ranker.
        unknown: Whether the answer is "unknown": ``unknown_probability`` reached the threshold. ``label`` is then the
            least unlikely of the candidates.
        levels: With a taxonomy: the most probable group at each level, the coarsest first; empty without.
        sure: The deepest of ``levels`` that is sure, that is, whose probability reaches the threshold; None where not
            even the coarsest does, or where there is no taxonomy.
        outside: Candidates that the taxonomy lacks: they count at their own level only.
        fit: What the probabilities rest on, see `rarvision.calibration.FitStatus`.
        scores: Of all categories, where the recogniser keeps them; else None.
        retrieval_ms: Wall time of encoding and search for this image, milliseconds (its share of the batch).
        ranking_ms: The same for the ranker.
    """

    source: str
    label: str
    probability: float
    candidates: tuple[Candidate, ...]
    unknown_probability: float
    retrieved: tuple[str, ...]
    ranking: Ranking | None = None
    unknown: bool = False
    levels: tuple[LevelAnswer, ...] = ()
    sure: LevelAnswer | None = None
    outside: tuple[str, ...] = ()
    fit: str = "unfitted"
    scores: CategoryScores | None = field(default=None, compare=False, repr=False)
    retrieval_ms: float = 0.0
    ranking_ms: float = 0.0

    def __post_init__(self) -> None:
        _require(bool(self.candidates), f"{self.source}: a prediction needs at least one candidate")
        _require(
            self.label == self.candidates[0].category,
            f"{self.source}: label {self.label!r} is not the first candidate {self.candidates[0].category!r}",
        )

    @property
    def answer(self) -> str | None:
        """The label, or None for "unknown"."""
        return None if self.unknown else self.label
