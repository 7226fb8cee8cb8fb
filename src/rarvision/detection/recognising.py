"""Recognising all regions of an annotated set, and their average precision: retrieval's and ranking's from one run."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from jaxtyping import Float, Float64, Int64

from rarvision.datasets import Item
from rarvision.detection.evaluation import DetectionReport, Rules, evaluate_detections
from rarvision.detection.regions import RegionDataset
from rarvision.detection.results import Detections
from rarvision.detection.scoring import EvaluatorPreset, evaluator_preset, ranked_scores, top_scores
from rarvision.detection.vocabulary import Vocabulary
from rarvision.errors import DatasetError, InputError
from rarvision.pipeline import Recognizer
from rarvision.queries import RecognitionFailure
from rarvision.runs import RunFile, markdown_table
from rarvision.types import CategoryScores, Prediction, Sample

__all__ = ["RANKED", "RANKED_TOP", "RETRIEVAL", "RegionReport", "evaluate_regions"]

RETRIEVAL: Final = "CLIP"
"""The row of retrieval's probabilities."""
RANKED: Final = "RAR"
"""The row in which the candidates take their probabilities in ranked order."""
RANKED_TOP: Final = "RAR, first name only"
"""The row of one category a box: the first of the ranking."""

_BLOCK: Final = 256  # boxes whose scores of all categories are held together
_MOST_SUPPRESSED: Final = 5_000  # boxes of an image whose overlaps are held together
_MOST_SCORES: Final = 20_000_000  # of boxes and categories, which suppression looks at together
_NEVER: Final = -100.0  # similarity of a category that could not be scored
_STATUSES: Final = ("ranked", "repaired", "fallback", "skipped")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class RegionReport:
    """How well the regions of an annotated set are recognised.

    Attributes:
        rows: Average precision by row: retrieval alone (`RETRIEVAL`), and with a ranker `RANKED` and `RANKED_TOP`.
        detections: What was measured, by row, for `rarvision.detection.write_detections`.
        top1: Share of the annotated boxes whose first name of the vocabulary is right, 0 to 1, by row; empty for
            proposals.
        images: Images with boxes.
        regions: Boxes recognised, failures included.
        left_out: Boxes without an inside, and crowds: not recognised.
        failures: Boxes without an answer; they have no detection.
        errors: The first messages of failures.
        statuses: Number of rankings by status; all 0 without a ranker.
        unanswered: Rankings that fell back since the MLLM gave no answer.
        not_in_memory: Categories of the vocabulary that the memory does not hold: never detected.
        foreign: Categories of the memory that the vocabulary does not have: left out of the probabilities.
        retrieval_ms: Milliseconds a box of encoding and search.
        ranking_ms: The same of ranking.
        ranker: The ranker's name, None for retrieval alone.
        configuration: All that the result depends on.
    """

    rows: Mapping[str, DetectionReport]
    detections: Mapping[str, Detections] = field(repr=False)
    top1: Mapping[str, float]
    images: int
    regions: int
    left_out: int
    failures: int
    errors: tuple[str, ...]
    statuses: Mapping[str, int]
    unanswered: int
    not_in_memory: int
    foreign: int
    retrieval_ms: float
    ranking_ms: float
    ranker: str | None
    configuration: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; without the detections."""
        names = (
            "top1", "images", "regions", "left_out", "failures", "errors", "statuses", "unanswered", "not_in_memory",
            "foreign", "retrieval_ms", "ranking_ms", "ranker", "configuration",
        )  # fmt: skip
        values = {name: getattr(self, name) for name in names}
        return {"rows": {name: row.to_json() for name, row in self.rows.items()}, **values}

    def to_markdown(self) -> str:
        """Two tables: average precision in percent, and what else happened."""
        metrics = list(next(iter(self.rows.values())).metrics)
        lines = [f"| | {' | '.join(metrics)} | top-1 |", "|---|" + "---:|" * (len(metrics) + 1)]
        for name, row in self.rows.items():
            cells = ["-" if value is None else f"{100 * value:.1f}" for value in row.metrics.values()]
            right = f"{100 * self.top1[name]:.1f}" if name in self.top1 else "-"
            lines.append(f"| {name} | {' | '.join(cells)} | {right} |")
        return "\n".join(lines) + "\n\n" + markdown_table(self.table())

    def table(self) -> list[tuple[str, str]]:
        """What else happened, for people."""
        first = next(iter(self.rows.values()))
        rows = [
            ("annotations", str(self.configuration["dataset"])),
            ("encoder", str(self.configuration["encoder"])),
            ("ranker", self.ranker or "none (retrieval only)"),
            ("evaluator", f"{first.evaluator}, rules of {first.rules}, preset {first.preset}"),
            ("images", f"{self.images:,}"),
            ("boxes", f"{self.regions:,} ({self.left_out:,} left out: crowds, or without an inside)"),
            ("failures", f"{self.failures:,}" + (f", such as {self.errors[0]}" if self.errors else "")),
        ]
        if self.not_in_memory or self.foreign:
            missing = f"{self.not_in_memory:,} of the vocabulary are not in the memory"
            rows.append(("categories", f"{missing}, {self.foreign:,} of the memory not in the vocabulary"))
        if RANKED in self.rows:
            rows.append(("rankings", ", ".join(f"{count:,} {name}" for name, count in self.statuses.items() if count)))
            if self.unanswered:
                rows.append(("unanswered", f"{self.unanswered:,}: the same command asks about them again"))
        rows.append(("retrieval", f"{self.retrieval_ms:.1f} ms a box"))
        if RANKED in self.rows:
            rows.append(("ranking", f"{self.ranking_ms:.1f} ms a box"))
        return rows


def evaluate_regions(
    recognizer: Recognizer,
    regions: RegionDataset,
    *,
    preset: EvaluatorPreset | str = "lvis",
    rules: Rules = "lvis",
    out: Path | str | None = None,
    resume: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> RegionReport:
    """Recognise every box of an annotated set, and measure average precision; all rows come from one run.

    A box's probabilities are the preset's softmax over retrieval's scores of all categories. In the row `RANKED` the k
    candidates take their k probabilities in the order of the prediction, others keep theirs; `RANKED_TOP` has the first
    name alone. With ``ranker_weight="replace"`` that order is the ranker's, as in the paper, else the fitted mix's.

    Args:
        recognizer: What is evaluated; its ``crop`` says what is seen of a box.
        regions: Annotated boxes, or proposals for the annotated images, with a folder of images.
        preset: How scores become detections.
        rules: By which average precision is measured.
        out: A JSONL file: a header with the configuration, then a line an image, written as it comes. When the run is
            interrupted, the same call goes on with the image after the last complete line, and tries images again
            with a box that failed, or that the MLLM gave no answer for.
        resume: Whether to go on with an existing ``out``; False starts it anew.
        progress: Called with the number of boxes done, those of earlier runs included, and of all.

    Raises:
        DatasetError: The memory holds none of the vocabulary's categories; there is no box to recognise, or none of
            several images; or an objectness is negative where the preset multiplies by it.
        InputError: ``out`` holds another configuration's results; or the preset suppresses overlaps, and an image has
            more boxes than can be compared (5,000, fewer with many categories).
        MemoryEmptyError: The memory holds nothing.
        ChatError: The MLLM cannot answer, and the recogniser may not fall back.
        MissingExtraError: The extra ``detection`` is not installed.

    Source: section 3.2 and 4.4 of the paper, Tables 3 and 4.
    """
    preset = evaluator_preset(preset) if isinstance(preset, str) else preset
    recognizer = recognizer.with_scores()
    if not len(regions):
        raise DatasetError(
            f"{regions.name}: no box to recognise ({regions.left_out:,} left out: crowds, or without an inside)"
        )
    if preset.objectness != "ignored":
        regions.check_weights()
    columns = _Columns(regions.annotations.vocabulary, recognizer.memory.categories())
    configuration = {
        "rarvision": version("rarvision"),
        "dataset": regions.name,
        "dataset_fingerprint": regions.fingerprint,
        "boxes_fingerprint": regions.boxes_fingerprint,
        "preset": asdict(preset),
        **recognizer.settings,
    }
    names = (RETRIEVAL,) if recognizer.ranker is None else (RETRIEVAL, RANKED, RANKED_TOP)
    plan = _Plan(preset, columns, names, recognizer.k, None if recognizer.ranker is None else recognizer.ranker.name)
    with RunFile(out, configuration, read=_read_line, resume=resume) as file:
        total, done = len(regions), 0
        left: list[tuple[int, Int64[np.ndarray, " m"]]] = []
        for image_id, places in regions.by_image():
            known = file.done.get(str(image_id))
            if known is not None:
                plan.check(known, out)
            if known is not None and not known.failures and not known.unanswered:
                done += len(places)
            else:
                left.append((image_id, places))
        if left:
            regions.check_files()
        if progress is not None:
            progress(done, total)
        for image_id, values in _run(recognizer, regions, left, plan):
            file.add(str(image_id), values, _outcome(values))
            done += values["regions"]
            if progress is not None:
                progress(done, total)
        images = [file.done[str(image_id)] for image_id, _ in regions.by_image()]
    return _report(images, regions, plan, rules, configuration)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Outcome:
    """What is kept in memory of an image."""

    image_id: int
    boxes_xywh: Float64[np.ndarray, "n 4"]
    rows: Mapping[str, tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"], Float64[np.ndarray, " m"]]]
    regions: int
    labelled: int
    right: Mapping[str, int]
    failures: tuple[str, ...]
    statuses: Mapping[str, int]
    unanswered: int
    retrieval_ms: float
    ranking_ms: float


def _outcome(values: Mapping[str, Any]) -> _Outcome:
    for name, columns in values["rows"].items():
        if len({len(column) for column in columns}) != 1:
            raise ValueError(f"image {values['source']}: columns of {name} differ in length")
    return _Outcome(
        image_id=int(values["source"]),
        boxes_xywh=np.array(values["boxes_xywh"], dtype=np.float64).reshape(-1, 4),
        rows={
            name: (np.array(boxes, dtype=np.int64), np.array(ids, dtype=np.int64), np.array(scores, dtype=np.float64))
            for name, (boxes, ids, scores) in values["rows"].items()
        },
        failures=tuple(values["failures"]),
        **{
            name: values[name]
            for name in ("regions", "labelled", "right", "statuses", "unanswered", "retrieval_ms", "ranking_ms")
        },
    )


def _read_line(values: Mapping[str, Any]) -> _Outcome | None:
    """What is known of an image; None where no box had an answer: a server that is down does not tell its model."""
    outcome = _outcome(values)
    return None if outcome.unanswered and outcome.unanswered == sum(outcome.statuses.values()) else outcome


@final
class _Columns:
    """From the memory's names to the vocabulary's columns."""

    def __init__(self, vocabulary: Vocabulary, held: Sequence[str]) -> None:
        self.vocabulary, self.ids = vocabulary, vocabulary.ids
        self._of = {name: column for column, name in enumerate(vocabulary.names)}
        known = sum(name in self._of for name in held)
        if not known:
            raise DatasetError(
                f"the memory holds none of the {len(vocabulary):,} categories of {vocabulary.name}: it has names such "
                f"as {held[0]!r}, these are such as {vocabulary.names[0]!r}. Fill it from the same vocabulary"
                if held
                else "the memory holds no category; add the vocabulary's names, or images"
            )
        self.not_in_memory, self.foreign = len(vocabulary) - known, len(held) - known
        self._names: tuple[str, ...] = ()
        self._places = self._targets = np.zeros(0, dtype=np.int64)

    def similarities(self, scores: CategoryScores) -> Float[np.ndarray, " c"]:
        """Scores by column of the vocabulary."""
        if scores.names is not self._names:
            pairs = [(place, self._of[name]) for place, name in enumerate(scores.names) if name in self._of]
            self._places, self._targets = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
            self._names = scores.names
        row = np.full(len(self.vocabulary), _NEVER)
        values = scores.values[self._places]
        row[self._targets] = np.where(np.isfinite(values), values, _NEVER)
        return row

    def of(self, label: str | None) -> int:
        """The column of an annotated box's category; -2, which nothing equals, for proposals."""
        return -2 if label is None else self._of[label]

    def ranked(self, names: Sequence[str], k: int) -> Int64[np.ndarray, " k"]:
        """Columns of names in their order; those that the vocabulary does not have are left out."""
        known = [self._of[name] for name in names if name in self._of][:k]
        return np.array([*known, *[-1] * (k - len(known))], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How an image's boxes become detections."""

    preset: EvaluatorPreset
    columns: _Columns
    names: Sequence[str]
    k: int
    ranker: str | None

    def check(self, outcome: _Outcome, path: Path | str | None) -> None:
        """Refuse what was read from a damaged line."""
        for name in self.names:
            boxes, ids, _ = outcome.rows.get(name, ([-1], [], []))
            if not np.isin(boxes, np.arange(len(outcome.boxes_xywh))).all() or not np.isin(ids, self.columns.ids).all():
                raise InputError(
                    f"{path}: the line of image {outcome.image_id} is damaged ({name}); delete it to have it done again"
                )


def _run(
    recognizer: Recognizer,
    regions: RegionDataset,
    images: Sequence[tuple[int, Int64[np.ndarray, " m"]]],
    plan: _Plan,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each image's line, as soon as its boxes are recognised."""
    if plan.preset.nms_iou is not None:
        most = min(_MOST_SUPPRESSED, _MOST_SCORES // len(plan.columns.vocabulary))
        for image_id, places in images:
            if len(places) > most:
                raise InputError(
                    f"image {image_id} has {len(places):,} boxes; preset {plan.preset.name} compares all of an image's "
                    f"and takes at most {most:,} with {len(plan.columns.vocabulary):,} categories: keep fewer "
                    "(per_image=…), or take preset lvis"
                )
    on_the_way: deque[Item] = deque()

    def samples() -> Iterator[Sample]:
        for _, places in images:
            for place in places.tolist():
                on_the_way.append(regions.items[place])
                yield regions[place]

    with closing(recognizer.iter_recognize(samples())) as outcomes:
        for image_id, places in images:
            image = _Image(image_id, plan)
            for _ in range(len(places)):
                outcome = next(outcomes)
                image.add(on_the_way.popleft(), outcome)
            yield image_id, image.values()


@final
class _Image:
    """Gathers an image's boxes; the scores of all categories are held for a block of them, with suppression for all."""

    def __init__(self, image_id: int, plan: _Plan) -> None:
        self._id, self._preset, self._columns = image_id, plan.preset, plan.columns
        self._names, self._k = plan.names, plan.k
        self._boxes: list[tuple[float, float, float, float]] = []
        self._objectness: list[float] = []
        self._block: list[tuple[Float[np.ndarray, " c"], Int64[np.ndarray, " k"]]] = []
        self._scored: dict[str, list[Float[np.ndarray, "n c"]]] = {name: [] for name in plan.names}
        self._kept: dict[str, list[tuple[Any, Any, Any]]] = {name: [] for name in plan.names}
        self._taken = self._regions = self._labelled = self._unanswered = 0
        self._right: Counter[str] = Counter()
        self._statuses: Counter[str] = Counter()
        self._failures: list[str] = []
        self._retrieval_ms = self._ranking_ms = 0.0

    def add(self, item: Item, outcome: Prediction | RecognitionFailure) -> None:
        """A box and what it was recognised as."""
        assert item.box_xyxy is not None  # noqa: S101 - every item of a RegionDataset has one
        self._regions += 1
        self._labelled += item.label is not None
        if isinstance(outcome, RecognitionFailure):
            self._failures.append(f"{outcome.source}: {type(outcome.error).__name__}: {outcome.error}")
            return
        assert outcome.scores is not None  # noqa: S101 - the recogniser was told to keep them
        self._boxes.append(item.box_xyxy)
        self._objectness.append(float(item.metadata.get("objectness", 1.0)))
        order = [candidate.category for candidate in outcome.candidates]
        similarities = self._columns.similarities(outcome.scores)
        ranked = self._columns.ranked(order, self._k)
        self._block.append((similarities, ranked))
        wanted = self._columns.of(item.label)
        self._right[RETRIEVAL] += int(similarities.argmax()) == wanted
        if outcome.ranking is not None:
            for name in (RANKED, RANKED_TOP):
                self._right[name] += int(ranked[0]) == wanted
            self._statuses[outcome.ranking.status] += 1
            self._unanswered += outcome.ranking.unanswered
        self._retrieval_ms += outcome.retrieval_ms
        self._ranking_ms += outcome.ranking_ms
        if len(self._block) == _BLOCK:
            self._score()

    def _score(self) -> None:
        if not self._block:
            return
        similarities, ranked = (np.stack(each) for each in zip(*self._block, strict=True))
        self._block = []
        probabilities = self._preset.probabilities(similarities)
        made: dict[str, Callable[[], Float[np.ndarray, "n c"]]] = {
            RETRIEVAL: lambda: probabilities,
            RANKED: lambda: ranked_scores(probabilities, ranked),
            RANKED_TOP: lambda: top_scores(probabilities, ranked),
        }
        for name in self._names:
            self._scored[name].append(made[name]())
            if self._preset.nms_iou is None:
                self._choose(name)
        self._taken = len(self._boxes) if self._preset.nms_iou is None else 0

    def _choose(self, name: str) -> None:
        """The detections among the boxes that were scored since; with those of before, the best of all."""
        if not self._scored[name]:
            return
        scores = np.concatenate(self._scored[name])
        self._scored[name] = []
        rows = slice(self._taken, self._taken + len(scores))
        boxes = np.array(self._boxes[rows], dtype=np.float64).reshape(-1, 4)
        found, places = self._preset.chosen(boxes, scores, objectness=self._objectness[rows])
        self._kept[name].append((rows.start + places[0], places[1], found))
        box, column, score = (np.concatenate(parts) for parts in zip(*self._kept[name], strict=True))
        best = np.argsort(-score, kind="stable")[: self._preset.per_image]
        self._kept[name] = [(box[best], column[best], score[best])]

    def values(self) -> dict[str, Any]:
        """The line of the file."""
        self._score()
        for name in self._names:
            self._choose(name)
        ids = self._columns.vocabulary.ids
        rows = {
            name: [kept[0][0].tolist(), ids[kept[0][1]].tolist(), kept[0][2].tolist()] if kept else [[], [], []]
            for name, kept in self._kept.items()
        }
        used = sorted({box for boxes, _, _ in rows.values() for box in boxes})
        place_of = {box: place for place, box in enumerate(used)}
        return {
            "source": str(self._id),
            "regions": self._regions,
            "boxes_xywh": [_xywh(self._boxes[box]) for box in used],
            "rows": {name: [[place_of[box] for box in boxes], *rest] for name, (boxes, *rest) in rows.items()},
            "labelled": self._labelled,
            "right": {name: self._right[name] for name in self._names},
            "failures": self._failures,
            "statuses": {status: self._statuses[status] for status in _STATUSES},
            "unanswered": self._unanswered,
            "retrieval_ms": self._retrieval_ms,
            "ranking_ms": self._ranking_ms,
        }


def _xywh(box_xyxy: tuple[float, float, float, float]) -> list[float]:
    left, upper, right, lower = box_xyxy
    return [left, upper, right - left, lower - upper]


def _report(
    images: Sequence[_Outcome],
    regions: RegionDataset,
    plan: _Plan,
    rules: Rules,
    configuration: Mapping[str, Any],
) -> RegionReport:
    labelled = sum(image.labelled for image in images)
    detections = {name: _joined(images, name, plan.columns.vocabulary) for name in plan.names}
    failures = [message for image in images for message in image.failures]
    answered = max(1, sum(image.regions for image in images) - len(failures))
    return RegionReport(
        rows={
            name: evaluate_detections(regions.annotations, found, rules=rules, preset=plan.preset.name)
            for name, found in detections.items()
        },
        detections=detections,
        top1={name: sum(image.right[name] for image in images) / labelled for name in plan.names} if labelled else {},
        images=len(images),
        regions=sum(image.regions for image in images),
        left_out=regions.left_out,
        failures=len(failures),
        errors=tuple(failures[:5]),
        statuses={status: sum(image.statuses[status] for image in images) for status in _STATUSES},
        unanswered=sum(image.unanswered for image in images),
        not_in_memory=plan.columns.not_in_memory,
        foreign=plan.columns.foreign,
        retrieval_ms=sum(image.retrieval_ms for image in images) / answered,
        ranking_ms=sum(image.ranking_ms for image in images) / answered,
        ranker=plan.ranker,
        configuration=configuration,
    )


def _joined(images: Sequence[_Outcome], name: str, vocabulary: Vocabulary) -> Detections:
    parts = [(image, *image.rows[name]) for image in images]
    nothing = np.zeros(0)
    return Detections(
        image_ids=np.repeat(
            np.array([image.image_id for image, *_ in parts], dtype=np.int64), [len(boxes) for _, boxes, *_ in parts]
        ),
        category_ids=np.concatenate([nothing.astype(np.int64), *(ids for _, _, ids, _ in parts)]),
        boxes_xywh=np.concatenate([np.zeros((0, 4)), *(image.boxes_xywh[boxes] for image, boxes, _, _ in parts)]),
        scores=np.concatenate([nothing, *(scores for _, _, _, scores in parts)]),
        vocabulary=vocabulary,
    )
