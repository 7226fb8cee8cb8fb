"""Average precision by the rules of LVIS, COCO and V3Det, computed by faster-coco-eval.

Categories do not influence each other once LVIS' limit of detections an image is applied. So each category is given
images numbered anew, only those in which it is annotated or detected, and categories of similar size are evaluated
together: the library's work grows with categories times images, which for V3Det's validation set is 394 million pairs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from rarvision.detection.annotations import Annotations
from rarvision.detection.results import Detections
from rarvision.errors import MissingExtraError, OptionError

__all__ = ["DetectionReport", "Rules", "evaluate_detections"]

Rules = Literal["lvis", "coco", "v3det"]
_MAX_DETECTIONS = {"lvis": 300, "coco": 100, "v3det": 300}
_ROWS, _PAIRS = 200_000, 400_000  # what one call of the library gets: annotations and detections; images x categories
_AREAS = 4  # all, small, medium, large


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionReport:
    """Average precision, 0 to 1; None where there is no category, or no object of the size, to average over.

    Attributes:
        rules: By whose rules.
        preset: The evaluator preset that chose the detections, as given; None if not.
        ap: Mean over categories and over overlaps of 0.50 to 0.95 in steps of 0.05.
        ap50: At an overlap of 0.5.
        ap75: At 0.75.
        ap_small: Of objects below 32 x 32 pixels of area.
        ap_medium: From there to 96 x 96.
        ap_large: Above.
        ap_rare: Mean over LVIS' rare categories; None by other rules.
        ap_common: Over its common ones.
        ap_frequent: Over its frequent ones.
        category_ap: `ap` of each category id that has an object.
        images: Number of images.
        objects: Number of annotated boxes.
        detections: Number of detections given.
        max_detections: The limit: LVIS' of an image, else of an image and category.
        evaluator: Library and version.
    """

    rules: Rules
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ap_rare: float | None
    ap_common: float | None
    ap_frequent: float | None
    images: int
    objects: int
    detections: int
    max_detections: int
    evaluator: str
    preset: str | None = None
    category_ap: Mapping[int, float] = field(default_factory=dict, repr=False)

    @property
    def metrics(self) -> dict[str, float | None]:
        """The averages under the names that papers use: AP, AP50, AP75, APs, APm, APl and, for LVIS, APr, APc, APf."""
        found = {
            "AP": self.ap,
            "AP50": self.ap50,
            "AP75": self.ap75,
            "APs": self.ap_small,
            "APm": self.ap_medium,
            "APl": self.ap_large,
        }
        if self.rules == "lvis":
            found |= {"APr": self.ap_rare, "APc": self.ap_common, "APf": self.ap_frequent}
        return found

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return asdict(self) | {"category_ap": {str(id_): ap for id_, ap in self.category_ap.items()}}


def evaluate_detections(
    annotations: Annotations,
    detections: Detections,
    *,
    rules: Rules = "lvis",
    max_detections: int | None = None,
    preset: str | None = None,
) -> DetectionReport:
    """Measure detections against annotations.

    Args:
        annotations: Of the images that were to be detected in, all of which count.
        detections: For these images, in any number and order.
        rules: ``lvis``: the limit is an image's; only categories that are annotated in an image or known to be absent
            count there, surplus ones of a category not exhaustively annotated are ignored, and boxes without area do
            not exist. ``coco`` and ``v3det``: every category counts in every image, crowds are ignored, the limit is
            an image's and category's.
        max_detections: The limit; by default 300, for ``coco`` 100.
        preset: The evaluator preset's name, for the report.

    Raises:
        DatasetError: A detection's image or category is unknown, or its vocabulary is another one.
        OptionError: Unknown rules, or a limit below 1.
        MissingExtraError: faster-coco-eval is not installed.
    """
    if rules not in get_args(Rules):
        raise OptionError(f"rules must be one of {', '.join(get_args(Rules))}, got {rules!r}")
    limit = _MAX_DETECTIONS[rules] if max_detections is None else max_detections
    if limit < 1:
        raise OptionError(f"max_detections must be at least 1, got {limit}")
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise MissingExtraError("evaluating needs faster-coco-eval: pip install 'rarvision[detection]'")
    if detections.vocabulary is not None:
        annotations.vocabulary.check_covers(detections.vocabulary)
    tables = _tables(annotations, detections, federated=rules == "lvis", limit=limit)
    ap = np.full((3, len(annotations.vocabulary), _AREAS), -1.0)  # at all overlaps, at 0.5, at 0.75
    for truth, found in _parts(*tables, len(annotations.vocabulary)):
        columns, values = _evaluate(truth, found, federated=rules == "lvis", limit=limit)
        ap[:, columns] = values
    by_category = ap[0, :, 0]
    ids = annotations.vocabulary.ids
    return DetectionReport(
        rules=rules,
        preset=preset,
        ap=_mean(by_category),
        ap50=_mean(ap[1, :, 0]),
        ap75=_mean(ap[2, :, 0]),
        ap_small=_mean(ap[0, :, 1]),
        ap_medium=_mean(ap[0, :, 2]),
        ap_large=_mean(ap[0, :, 3]),
        ap_rare=_mean(by_category[annotations.vocabulary.group("r")]) if rules == "lvis" else None,
        ap_common=_mean(by_category[annotations.vocabulary.group("c")]) if rules == "lvis" else None,
        ap_frequent=_mean(by_category[annotations.vocabulary.group("f")]) if rules == "lvis" else None,
        images=len(annotations),
        objects=len(annotations.boxes_xywh),
        detections=len(detections),
        max_detections=limit,
        evaluator=f"faster-coco-eval {version('faster-coco-eval')}",
        category_ap={int(ids[i]): float(by_category[i]) for i in np.flatnonzero(by_category >= 0)},
    )


@dataclass(kw_only=True, slots=True, eq=False)
class _Table:
    """Boxes by category: sorted by column, then image; images numbered anew within each category."""

    columns: Int64[np.ndarray, " n"]
    images: Int64[np.ndarray, " n"]
    boxes_xywh: Float[np.ndarray, "n 4"]
    values: Float[np.ndarray, " n"]
    """Areas of what is annotated, scores of what is detected."""
    flags: Bool[np.ndarray, " n"]
    """Whether an annotation is a crowd; whether a detection's category is not exhaustively annotated in the image."""

    def rows(self, chosen: Any) -> _Table:
        return _Table(
            columns=self.columns[chosen],
            images=self.images[chosen],
            boxes_xywh=self.boxes_xywh[chosen],
            values=self.values[chosen],
            flags=self.flags[chosen],
        )


def _tables(annotations: Annotations, detections: Detections, *, federated: bool, limit: int) -> tuple[_Table, _Table]:
    vocabulary = annotations.vocabulary
    truth = _Table(
        columns=vocabulary.columns(annotations.category_ids),
        images=annotations.box_images,
        boxes_xywh=annotations.boxes_xywh,
        values=annotations.areas,
        flags=annotations.crowd & (not federated),
    )
    found = _Table(
        columns=vocabulary.columns(detections.category_ids),
        images=annotations.places(detections.image_ids),
        boxes_xywh=detections.boxes_xywh,
        values=detections.scores,
        flags=np.zeros(len(detections), dtype=bool),
    )
    width = len(vocabulary)
    if federated:
        found = found.rows(_highest(found.images, found.values, limit))
        # LVIS' evaluator leaves out what has no area, annotated or detected, after its limit; COCO's does not.
        found = found.rows(found.boxes_xywh[:, 2] * found.boxes_xywh[:, 3] > 0)
        truth = truth.rows(truth.values > 0)
    annotated = np.zeros(width, dtype=bool)
    annotated[truth.columns] = True
    found = found.rows(annotated[found.columns])  # the others have no precision: no object to find
    if federated:
        negative, lacking = (
            places * width + vocabulary.columns(ids)
            for places, ids in (annotations.negative_pairs, annotations.not_exhaustive_pairs)
        )
        present = truth.images * width + truth.columns
        found = found.rows(np.isin(found.images * width + found.columns, np.concatenate((present, negative))))
        found.flags = np.isin(found.images * width + found.columns, lacking)
    size = len(annotations)
    keys = [table.columns * size + table.images for table in (truth, found)]
    distinct, number = np.unique(np.concatenate(keys), return_inverse=True)
    first = np.searchsorted(distinct, np.arange(width) * size)
    tables = []
    for table, key, numbers in zip((truth, found), keys, np.split(number, [len(truth.columns)]), strict=True):
        table.images = numbers - first[table.columns]
        tables.append(table.rows(np.argsort(key, kind="stable")))
    return tables[0], tables[1]


def _highest(images: Int64[np.ndarray, " n"], scores: Float[np.ndarray, " n"], limit: int) -> Int64[np.ndarray, " m"]:
    """The rows of the highest scores of each image, in their order; of equal scores the earlier."""
    order = np.lexsort((-scores, images))
    ordered = images[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return np.sort(order[rank < limit])


def _parts(truth: _Table, found: _Table, width: int) -> Iterator[tuple[_Table, _Table]]:
    """Whole categories of a similar number of images, a bounded number of rows at a time."""
    starts = [np.searchsorted(table.columns, np.arange(width + 1)) for table in (truth, found)]
    rows = np.diff(starts[0]) + np.diff(starts[1])
    images = np.zeros(width, dtype=np.int64)
    for table in (truth, found):
        np.maximum.at(images, table.columns, table.images + 1)
    chosen: list[int] = []
    held = 0
    todo = np.flatnonzero(np.diff(starts[0]))  # those with an object
    for column in todo[np.argsort(images[todo], kind="stable")].tolist():
        if chosen and (held + rows[column] > _ROWS or (len(chosen) + 1) * images[column] > _PAIRS):
            yield _part(truth, starts[0], chosen), _part(found, starts[1], chosen)
            chosen, held = [], 0
        chosen.append(column)
        held += int(rows[column])
    if chosen:
        yield _part(truth, starts[0], chosen), _part(found, starts[1], chosen)


def _part(table: _Table, starts: Int64[np.ndarray, " c"], columns: list[int]) -> _Table:
    return table.rows(np.concatenate([np.arange(starts[c], starts[c + 1]) for c in sorted(columns)]))


def _evaluate(
    truth: _Table, found: _Table, *, federated: bool, limit: int
) -> tuple[Int64[np.ndarray, " c"], Float64[np.ndarray, "3 c a"]]:
    """The categories of a part, and their average precisions; -1 where there is no object."""
    from faster_coco_eval.core import COCO, COCOeval_faster

    columns = np.unique(truth.columns)
    objects = [
        {"id": i, "image_id": image, "category_id": column, "bbox": box, "area": area, "iscrowd": int(crowd)}
        for i, (image, column, box, area, crowd) in enumerate(_lists(truth), start=1)
    ]
    # Detections that do not count are gone, so that every category may be taken for known to be absent.
    absent = frozenset(columns.tolist())
    images: list[dict[str, Any]] = [
        {"id": i, "neg_category_ids": absent, "not_exhaustive_category_ids": set()}
        for i in range(1 + int(max(truth.images.max(), found.images.max(initial=0))))
    ]
    answers = []
    for i, (image, column, box, score, lacking) in enumerate(_lists(found), start=1):
        answers.append(
            {
                "id": i,
                "image_id": image,
                "category_id": column,
                "bbox": box,
                "area": box[2] * box[3],
                "score": score,
                "iscrowd": 0,
            }
        )
        if lacking:
            images[image]["not_exhaustive_category_ids"].add(column)
    categories = [{"id": column, "name": "", "frequency": "f"} for column in columns.tolist()]
    measured = COCOeval_faster(
        COCO({"images": images, "categories": categories, "annotations": objects}),
        COCO({"images": images, "categories": categories, "annotations": answers}),
        iouType="bbox",
        lvis_style=federated,
    )
    measured.params.maxDets = [limit]
    measured.evaluate()
    measured.accumulate()
    precision = np.asarray(measured.eval["precision"])[..., -1]  # overlaps, recalls, categories, areas
    overlaps = [list(range(precision.shape[0])), [0], [5]]
    return columns, np.stack([precision[chosen].mean(axis=(0, 1)) for chosen in overlaps])


def _lists(table: _Table) -> Iterator[tuple[int, int, list[float], float, bool]]:
    return zip(
        table.images.tolist(),
        table.columns.tolist(),
        table.boxes_xywh.tolist(),
        table.values.tolist(),
        table.flags.tolist(),
        strict=True,
    )


def _mean(values: Float64[np.ndarray, " n"]) -> float | None:
    """Over the categories that have an object."""
    known = values[values > -0.5]
    return float(known.mean()) if len(known) else None
