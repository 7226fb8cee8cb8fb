"""Detections in the official results format, and proposals: boxes of a detector that knows no categories."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float, Int, Int64

from rarvision.detection.annotations import Annotations
from rarvision.detection.files import LIMIT_BYTES, read_json
from rarvision.detection.vocabulary import Vocabulary
from rarvision.errors import DatasetError, InputError, OptionError
from rarvision.regions import check_boxes_xywh, to_xywh, to_xyxy

__all__ = [
    "Detections",
    "ImageProposals",
    "Proposals",
    "read_detections",
    "read_proposals",
    "write_detections",
]

_EXPECTED = "a results file (a list of image_id, category_id, bbox, score)"
_BLOCK = 50_000


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Detections:
    """Scored boxes of any number of images, in columns.

    Attributes:
        image_ids: Of each box.
        category_ids: Of each box.
        boxes_xywh: Pixels: left, upper, width, height, as results files have them.
        scores: Of each box, higher is surer.
        vocabulary: What the category ids mean; None where that is not known, as after reading a results file.

    Raises:
        DatasetError: The columns differ in length, a number is not finite, or a size is negative.
    """

    image_ids: Int64[np.ndarray, " n"]
    category_ids: Int64[np.ndarray, " n"]
    boxes_xywh: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    vocabulary: Vocabulary | None = None

    def __post_init__(self) -> None:
        lengths = {len(column) for column in (self.image_ids, self.category_ids, self.boxes_xywh, self.scores)}
        if len(lengths) > 1 or self.boxes_xywh.shape[1:] != (4,):
            raise DatasetError(f"detections need columns of one length, got {sorted(lengths)}")
        check_boxes_xywh(self.boxes_xywh, lambda i: f"detection {i} (image {self.image_ids[i]})")
        wrong = np.flatnonzero(~np.isfinite(self.scores))
        if len(wrong):
            raise DatasetError(f"detection {wrong[0]}: the score must be finite, got {self.scores[wrong[0]]}")
        if self.vocabulary is not None:
            self.vocabulary.columns(self.category_ids)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def boxes_xyxy(self) -> Float[np.ndarray, "n 4"]:
        """Pixels: left, upper, right, lower."""
        return to_xyxy(self.boxes_xywh, notation="xywh", allow_empty=True)

    @classmethod
    def concatenate(cls, parts: Iterable[Detections]) -> Detections:
        """All of them, in order.

        Raises:
            DatasetError: Their vocabularies differ.
        """
        parts = list(parts)
        if not parts:
            return cls(
                image_ids=np.zeros(0, dtype=np.int64),
                category_ids=np.zeros(0, dtype=np.int64),
                boxes_xywh=np.zeros((0, 4)),
                scores=np.zeros(0),
            )
        known = [part.vocabulary for part in parts if part.vocabulary is not None]
        for vocabulary in known[1:]:
            known[0].check_covers(vocabulary)
        return cls(
            image_ids=np.concatenate([part.image_ids for part in parts]),
            category_ids=np.concatenate([part.category_ids for part in parts]),
            boxes_xywh=np.concatenate([part.boxes_xywh for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
            vocabulary=known[0] if known else None,
        )


def write_detections(path: str | Path, detections: Detections) -> None:
    """Write the official results file, a list of ``image_id, category_id, bbox`` (xywh) and ``score``.

    The file appears when it is complete. Numbers are written so that reading gives the same ones.
    """
    path = Path(path)
    fresh = path.with_name(path.name + ".part")
    with fresh.open("w", encoding="ascii") as file:
        file.write("[")
        for start in range(0, len(detections), _BLOCK):
            part = slice(start, start + _BLOCK)
            rows = zip(
                detections.image_ids[part].tolist(),
                detections.category_ids[part].tolist(),
                detections.boxes_xywh[part].tolist(),
                detections.scores[part].tolist(),
                strict=True,
            )
            block = [{"image_id": i, "category_id": c, "bbox": box, "score": score} for i, c, box, score in rows]
            file.write((",\n" if start else "") + json.dumps(block)[1:-1])
        file.write("]\n")
    fresh.replace(path)


@dataclass(slots=True)
class _DetectionRow:
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float


@dataclass(slots=True)
class _ProposalRow:
    image_id: int
    bbox: tuple[float, float, float, float]
    score: float


def read_detections(
    path: str | Path, *, vocabulary: Vocabulary | None = None, limit_bytes: int = LIMIT_BYTES
) -> Detections:
    """Read a results file of the COCO and LVIS format; an empty list is no detections.

    Args:
        path: The file.
        vocabulary: What it was made for, if known. The file itself has ids alone: results for LVIS v0.5 cannot be told
            from those for v1.
        limit_bytes: A larger file is refused.

    Raises:
        DatasetError: The file is missing, truncated or not of the format, or has a category that is unknown.
        MissingExtraError: The extra ``detection`` is not installed.
    """
    path = Path(path)
    rows = read_json(path, list[_DetectionRow], limit_bytes=limit_bytes, expected=_EXPECTED)
    try:
        return Detections(
            image_ids=np.array([row.image_id for row in rows], dtype=np.int64),
            category_ids=np.array([row.category_id for row in rows], dtype=np.int64),
            boxes_xywh=np.array([row.bbox for row in rows], dtype=np.float64).reshape(-1, 4),
            scores=np.array([row.score for row in rows], dtype=np.float64),
            vocabulary=vocabulary,
        )
    except (InputError, OverflowError) as error:
        raise DatasetError(f"{path}: {error}") from None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageProposals:
    """The boxes proposed for one image.

    Attributes:
        image_id: Its number.
        boxes_xyxy: Pixels, the most likely object first.
        objectness: How likely each is an object, whatever it is; higher is likelier.
    """

    image_id: int
    boxes_xyxy: Float[np.ndarray, "n 4"]
    objectness: Float[np.ndarray, " n"]


@final
class Proposals(Mapping[int, ImageProposals]):
    """The boxes proposed for each image, by its id; an image without boxes is not a key, and `of` gives it none.

    Args:
        image_ids: Of each box.
        boxes_xywh: Pixels.
        objectness: Of each box.
        per_image: Keep as many of an image, those of the highest objectness.
        min_objectness: Keep those above it.

    The same box of an image is one proposal, with its highest objectness: detectors write a box once for each category.
    """

    def __init__(
        self,
        image_ids: Int[np.ndarray, " n"],
        boxes_xywh: Float[np.ndarray, "n 4"],
        objectness: Float[np.ndarray, " n"],
        *,
        per_image: int | None = None,
        min_objectness: float | None = None,
    ) -> None:
        if per_image is not None and per_image < 1:
            raise OptionError(f"per_image must be at least 1, got {per_image}")
        check_boxes_xywh(boxes_xywh, lambda i: f"proposal {i} (image {image_ids[i]})")
        if not np.isfinite(objectness).all():
            raise DatasetError("objectness must be finite")
        keep = np.ones(len(image_ids), dtype=bool) if min_objectness is None else objectness > min_objectness
        order = np.lexsort((-objectness, image_ids))
        order = order[keep[order]]
        if len(order):
            _, image = np.unique(image_ids[order], return_inverse=True)
            keys = np.column_stack((image.astype(np.float64), boxes_xywh[order]))
            _, first = np.unique(keys, axis=0, return_index=True)  # the first has the highest objectness
            order = order[np.sort(first)]
        ids, starts = np.unique(image_ids[order], return_index=True)
        ends = np.append(starts, len(order))[1:].tolist()
        self._boxes = to_xyxy(boxes_xywh[order], notation="xywh", allow_empty=True)
        self._objectness = np.asarray(objectness, dtype=np.float64)[order]
        self._spans = {
            int(id_): slice(int(start), end if per_image is None else min(end, int(start) + per_image))
            for id_, start, end in zip(ids, starts, ends, strict=True)
        }

    def __getitem__(self, image_id: int) -> ImageProposals:
        span = self._spans[image_id]
        return ImageProposals(image_id=image_id, boxes_xyxy=self._boxes[span], objectness=self._objectness[span])

    def __iter__(self) -> Iterator[int]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def of(self, image_id: int) -> ImageProposals:
        """The boxes of an image, perhaps none."""
        if image_id in self._spans:
            return self[image_id]
        return ImageProposals(image_id=image_id, boxes_xyxy=np.zeros((0, 4)), objectness=np.zeros(0))

    @property
    def boxes_count(self) -> int:
        """How many boxes there are over all images."""
        return sum(span.stop - span.start for span in self._spans.values())

    @classmethod
    def of_images(
        cls, images: Sequence[ImageProposals], *, per_image: int | None = None, min_objectness: float | None = None
    ) -> Proposals:
        """The boxes of several images together; options are those of the class."""
        nothing = np.zeros((0, 4))
        counts = [len(image.objectness) for image in images]
        return cls(
            np.repeat(np.array([image.image_id for image in images], dtype=np.int64), counts),
            to_xywh(np.concatenate([nothing, *(image.boxes_xyxy for image in images)])),
            np.concatenate([nothing[:, 0], *(image.objectness for image in images)]),
            per_image=per_image,
            min_objectness=min_objectness,
        )

    def detections(self) -> Detections:
        """The boxes as the official results file has them, objectness as score, for `write_detections`.

        The category is 1 for all, as class-agnostic evaluation takes it: proposals have none, and `read_proposals` does
        not look at it.
        """
        images = list(self.values())
        counts = [len(image.objectness) for image in images]
        nothing = np.zeros((0, 4))
        return Detections(
            image_ids=np.repeat(np.array(list(self), dtype=np.int64), counts),
            category_ids=np.ones(sum(counts), dtype=np.int64),
            boxes_xywh=to_xywh(np.concatenate([nothing, *(image.boxes_xyxy for image in images)])),
            scores=np.concatenate([nothing[:, 0], *(image.objectness for image in images)]),
        )

    @classmethod
    def from_annotations(cls, annotations: Annotations) -> Proposals:
        """The annotated boxes, each of objectness 1, crowds left out: the paper's setting with ground-truth boxes.

        Source: the paper's section 4.4.
        """
        kept = ~annotations.crowd
        return cls(
            annotations.image_ids[annotations.box_images[kept]],
            annotations.boxes_xywh[kept],
            np.ones(int(kept.sum())),
        )


def read_proposals(
    path: str | Path,
    *,
    annotations: Annotations | None = None,
    per_image: int | None = None,
    min_objectness: float | None = None,
    limit_bytes: int = LIMIT_BYTES,
) -> Proposals:
    """Read a detector's boxes from a results file of the COCO and LVIS format; its categories do not matter.

    Args:
        path: The file; ``score`` is the objectness.
        annotations: Whose images they are of: a check.
        per_image: Keep as many of an image, those of the highest objectness.
        min_objectness: Keep those above it.
        limit_bytes: A larger file is refused.

    Raises:
        DatasetError: The file is missing, truncated or not of the format, or has an image that is unknown.
        MissingExtraError: The extra ``detection`` is not installed.
    """
    path = Path(path)
    rows: list[Any] = read_json(path, list[_ProposalRow], limit_bytes=limit_bytes, expected=_EXPECTED)
    try:
        image_ids = np.array([row.image_id for row in rows], dtype=np.int64)
        if annotations is not None:
            annotations.places(image_ids)
        return Proposals(
            image_ids,
            np.array([row.bbox for row in rows], dtype=np.float64).reshape(-1, 4),
            np.array([row.score for row in rows], dtype=np.float64),
            per_image=per_image,
            min_objectness=min_objectness,
        )
    except (DatasetError, OverflowError) as error:
        raise DatasetError(f"{path}: {error}") from None
