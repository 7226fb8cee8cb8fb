"""A recogniser on a labelled dataset -> a report; image by image on disk, so that a long run resumes."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np

from rarvision.datasets.base import Dataset
from rarvision.errors import OptionError
from rarvision.metrics import (
    area_under_roc,
    bootstrap_interval,
    brier_score,
    expected_calibration_error,
    false_positive_rate_at,
    mean_per_class_accuracy,
    recall_at_k,
    risk_coverage,
    topk_accuracy,
)
from rarvision.pipeline import RecognitionFailure, Recognizer
from rarvision.runs import RunFile, labels_by_source, markdown_table
from rarvision.types import Prediction

__all__ = ["EvaluatedImage", "Report", "evaluate"]

_STATUSES = ("ranked", "repaired", "fallback", "skipped")
_CURVE_POINTS = 101


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedImage:
    """One line of an evaluation's file: what was answered for one image, or why nothing was.

    Attributes:
        source: The sample's source.
        label: The true name.
        ranked: Names, most probable first; empty for a failure.
        retrieved: Names in retrieval's order; repeated where the retriever repeats them.
        probability: Stated probability of the first name.
        unknown_probability: Stated probability that the true name was not retrieved.
        unknown: Whether the answer was "unknown".
        status: The ranking's status, None where no ranker was asked.
        reason: Why the ranking is not as answered.
        unanswered: Whether it fell back because the MLLM gave no answer; such an image is done again.
        raw: The MLLM's answer, where it wrote one.
        retrieval_ms: Milliseconds of encoding and search.
        ranking_ms: Milliseconds of ranking.
        error: Class and message of the failure; None where there was an answer.
    """

    source: str
    label: str
    ranked: tuple[str, ...] = ()
    retrieved: tuple[str, ...] = ()
    probability: float = 0.0
    unknown_probability: float = 1.0
    unknown: bool = False
    status: str | None = None
    reason: str | None = None
    unanswered: bool = False
    raw: str | None = None
    retrieval_ms: float = 0.0
    ranking_ms: float = 0.0
    error: str | None = None

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """A line's values, as JSON gives them, without the MLLM's words and with each name once in memory.

        A report over a million images is to fit.
        """
        names = {key: tuple(map(sys.intern, values[key])) for key in ("ranked", "retrieved")}
        return cls(**{**values, **names, "reason": None, "raw": None})

    @classmethod
    def of(cls, outcome: Prediction | RecognitionFailure, label: str) -> EvaluatedImage:
        """What was recognised, beside the truth."""
        if isinstance(outcome, RecognitionFailure):
            return cls(source=outcome.source, label=label, error=f"{type(outcome.error).__name__}: {outcome.error}")
        ranking = outcome.ranking
        return cls(
            source=outcome.source,
            label=label,
            ranked=tuple(candidate.category for candidate in outcome.candidates),
            retrieved=outcome.retrieved,
            probability=outcome.probability,
            unknown_probability=outcome.unknown_probability,
            unknown=outcome.unknown,
            status=None if ranking is None else ranking.status,
            reason=None if ranking is None else ranking.reason,
            unanswered=ranking is not None and ranking.unanswered,
            raw=None if ranking is None else ranking.raw,
            retrieval_ms=outcome.retrieval_ms,
            ranking_ms=outcome.ranking_ms,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """How good a recogniser is on a dataset. All accuracies are shares, 0 to 1, of all n images.

    Attributes:
        n: Images, failures included; a failure counts as wrong.
        failures: Images without an answer.
        top1: Accuracy of the first name.
        top1_interval: Its 95 % bootstrap interval over images.
        topk: Accuracy of the first k ranked names, by k.
        recall: Share whose label is among the first k that retrieval found, by k: what ranking can reach at most.
        retrieval_top1: Accuracy of retrieval's first.
        mean_per_class: Top-1 averaged over the true categories.
        calibration_error: Expected calibration error of the first name's probability, over the answered images; None
            where there are none.
        brier: Brier score of that probability, 0 is best; None likewise.
        auroc_right: Probability that a right answer was given a higher probability than a wrong one; None where all are
            right, or none.
        call_rate: Share of the answered images that the ranker was asked about; None without a ranker.
        rejected: Images that were called "unknown".
        foreign: Images whose label the memory does not hold: "unknown" is the right answer for them, and no other.
        foreign_rejected: Of these, called "unknown".
        open_top1: Share of all images whose answer is right, "unknown" counting as the answer for foreign ones.
        unknown_auroc: Probability that a foreign image was given a higher ``unknown_probability`` than one that the
            memory knows; None where there are no foreign images, or only those.
        unknown_fpr95: Share of the foreign images that are accepted where 95 % of the others are; None likewise.
        top1_accepted: Accuracy over the images that were not called "unknown"; None where there are none.
        statuses: Number of rankings by status; all 0 without a ranker.
        retrieval_ms: Milliseconds an image of encoding and search, mean over the answered images.
        ranking_ms: The same of ranking.
        version: Of this package.
        dataset: The dataset's name.
        encoder: The encoder's name.
        ranker: The ranker's name, None for retrieval alone.
        risk_coverage: Share of images answered, surest first, and share of wrong answers among them, at up to 101
            places.
        configuration: All that the result depends on.
    """

    n: int
    failures: int
    top1: float
    top1_interval: tuple[float, float]
    topk: Mapping[int, float]
    recall: Mapping[int, float]
    retrieval_top1: float
    mean_per_class: float
    calibration_error: float | None
    brier: float | None
    auroc_right: float | None
    call_rate: float | None
    rejected: int
    foreign: int
    foreign_rejected: int
    open_top1: float
    unknown_auroc: float | None
    unknown_fpr95: float | None
    top1_accepted: float | None
    statuses: Mapping[str, int]
    retrieval_ms: float
    ranking_ms: float
    version: str
    dataset: str
    encoder: str
    ranker: str | None
    risk_coverage: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    configuration: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fallback_rate(self) -> float:
        """Share of the rankings that fell back to retrieval's order, of those that were asked for."""
        return self.statuses["fallback"] / max(1, self._asked)

    @property
    def repaired_rate(self) -> float:
        """Share of the rankings that had to be completed or corrected, of those that were asked for."""
        return self.statuses["repaired"] / max(1, self._asked)

    @property
    def _asked(self) -> int:
        return sum(self.statuses.values()) - self.statuses["skipped"]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; the keys of ``topk`` and ``recall`` are texts."""
        values = asdict(self)
        values["top1_interval"] = list(self.top1_interval)
        values["topk"] = {str(k): value for k, value in self.topk.items()}
        values["recall"] = {str(k): value for k, value in self.recall.items()}
        return {**values, "fallback_rate": self.fallback_rate, "repaired_rate": self.repaired_rate}

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def table(self) -> list[tuple[str, str]]:
        """Rows for people: what, and its value with its unit."""
        low, high = self.top1_interval
        rows = [
            ("dataset", self.dataset),
            ("encoder", self.encoder or "unknown"),
            ("ranker", self.ranker or "none (retrieval only)"),
            ("images", f"{self.n:,}"),
            ("failures", f"{self.failures:,}"),
            ("top-1", f"{self.top1:.1%} (95 % interval {low:.1%} to {high:.1%})"),
            *((f"top-{k}", f"{value:.1%}") for k, value in self.topk.items() if k != 1),
            ("retrieval top-1", f"{self.retrieval_top1:.1%}"),
            *((f"recall@{k}", f"{value:.1%}") for k, value in self.recall.items() if k != 1),
            ("mean per class", f"{self.mean_per_class:.1%}"),
        ]
        if self.calibration_error is not None:
            rows.append(("calibration error", f"{self.calibration_error:.3f} ({self.configuration.get('fit')})"))
        if self.brier is not None:
            rows.append(("Brier score", f"{self.brier:.3f}"))
        if self.auroc_right is not None:
            rows.append(("AUROC of right answers", f"{self.auroc_right:.3f}"))
        if self.rejected and self.top1_accepted is not None:
            rows.append(("called unknown", f"{self.rejected:,}; of the others right {self.top1_accepted:.1%}"))
        if self.foreign:
            rows.append(("not in the memory", f"{self.foreign:,}, called unknown {self.foreign_rejected:,}"))
            rows.append(("right, unknown included", f"{self.open_top1:.1%}"))
        if self.unknown_auroc is not None and self.unknown_fpr95 is not None:
            accepted = f"{self.unknown_fpr95:.1%} accepted with 95 % of the others"
            rows.append(("AUROC of unknown", f"{self.unknown_auroc:.3f} ({accepted})"))
        if self.call_rate is not None and self.statuses["skipped"]:
            rows.append(("ranker asked", f"{self.call_rate:.1%} of the images"))
        if self.ranker is not None:
            rows += [("fallback rate", f"{self.fallback_rate:.1%}"), ("repaired rate", f"{self.repaired_rate:.1%}")]
        rows.append(("retrieval", f"{self.retrieval_ms:.1f} ms an image"))
        if self.ranker is not None:
            rows.append(("ranking", f"{self.ranking_ms:.1f} ms an image"))
        return [*rows, ("rarvision", self.version)]

    def to_markdown(self) -> str:
        """A table in Markdown."""
        return markdown_table(self.table())


def evaluate(
    recognizer: Recognizer,
    dataset: Dataset,
    *,
    out: Path | str | None = None,
    resume: bool = True,
    progress: Callable[[int, int], None] | None = None,
    ks: Sequence[int] = (1, 5),
) -> Report:
    """Recognise every image of a dataset and compare with its labels.

    Args:
        recognizer: What is evaluated.
        dataset: Labelled images with unique sources.
        out: A JSONL file: a header with the configuration, then a line an image (`EvaluatedImage`), written as it
            comes. When the run is interrupted, the same call goes on after the last complete line, and tries the
            images again that failed, or that the MLLM gave no answer for; what comes of them is one more line, and of
            an image's lines the last one counts.
        resume: Whether to go on with an existing ``out``; False starts it anew.
        progress: Called with the number of images done, those of earlier runs included, and of all.
        ks: For ``topk`` and ``recall``; those above the recogniser's k are left out, and 1 and k itself are added.

    Returns:
        The report over all images, earlier runs' included.

    Raises:
        DatasetError: The dataset is empty, or has a missing label or a repeated source.
        InputError: ``out`` holds another configuration's results, or is no such file.
        ChatError: The MLLM cannot answer, and the recogniser may not fall back.
    """
    if any(k < 1 for k in ks):
        raise OptionError(f"ks must be at least 1, got {list(ks)}")
    labels = labels_by_source(dataset)
    configuration = {
        "rarvision": version("rarvision"),
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        **recognizer.settings,
    }
    with RunFile(out, configuration, read=_read_line, resume=resume) as file:
        _run(recognizer, dataset, labels, file, progress=progress)
        images = [file.done[source] for source in labels]
    return _report(images, recognizer, dataset, configuration, sorted({1, recognizer.k, *ks}))


def _run(
    recognizer: Recognizer,
    dataset: Dataset,
    labels: Mapping[str, str],
    file: RunFile[EvaluatedImage],
    *,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Recognise what is not done yet, writing each outcome at once."""
    finished = sum(source in file.done for source in labels)
    if progress is not None:
        progress(finished, len(labels))
    left = (dataset[i] for i, item in enumerate(dataset.items) if item.source not in file.done)
    with closing(recognizer.iter_recognize(left)) as outcomes:
        for outcome in outcomes:
            image = EvaluatedImage.of(outcome, labels[outcome.source])
            file.add(image.source, asdict(image), _for_report(image))
            finished += 1
            if progress is not None:
                progress(finished, len(labels))


def _for_report(image: EvaluatedImage) -> EvaluatedImage:
    return EvaluatedImage.read(asdict(image))


def _read_line(values: Mapping[str, Any]) -> EvaluatedImage | None:
    """An image that is done; None for one that failed, or had no answer: it is tried again."""
    image = EvaluatedImage.read(values)
    return image if image.error is None and not image.unanswered else None


def _report(
    images: Sequence[EvaluatedImage],
    recognizer: Recognizer,
    dataset: Dataset,
    configuration: Mapping[str, Any],
    ks: Sequence[int],
) -> Report:
    labels = [image.label for image in images]
    ranked = [image.ranked for image in images]
    retrieved = [image.retrieved for image in images]
    answered = [image for image in images if image.error is None]
    right = [bool(image.ranked) and image.ranked[0] == image.label for image in images]
    counts = Counter(image.status for image in answered if image.status is not None)
    served = [k for k in ks if k <= recognizer.k]
    sure = [min(1.0, image.probability) for image in answered]
    hit = [image.ranked[0] == image.label for image in answered]
    held = set(recognizer.memory.categories())
    foreign = [image.label not in held for image in answered]
    outside = [image.unknown_probability for image in answered]
    some = any(foreign) and not all(foreign)
    accepted = [right for right, image in zip(hit, answered, strict=True) if not image.unknown]
    return Report(
        n=len(images),
        failures=len(images) - len(answered),
        top1=topk_accuracy(ranked, labels, k=1),
        top1_interval=bootstrap_interval(right),
        topk={k: topk_accuracy(ranked, labels, k=k) for k in served},
        recall={k: recall_at_k(retrieved, labels, k=k) for k in served},
        retrieval_top1=recall_at_k(retrieved, labels, k=1),
        mean_per_class=mean_per_class_accuracy([names[0] if names else None for names in ranked], labels),
        calibration_error=expected_calibration_error(sure, hit) if answered else None,
        brier=brier_score(sure, hit) if answered else None,
        auroc_right=area_under_roc(sure, hit) if any(hit) and not all(hit) else None,
        call_rate=None if recognizer.ranker is None or not answered else 1.0 - counts["skipped"] / len(answered),
        rejected=sum(image.unknown for image in answered),
        foreign=sum(foreign),
        foreign_rejected=sum(f and image.unknown for f, image in zip(foreign, answered, strict=True)),
        open_top1=sum(
            image.unknown if f else r and not image.unknown for f, r, image in zip(foreign, hit, answered, strict=True)
        )
        / len(images),
        unknown_auroc=area_under_roc(outside, foreign) if some else None,
        # the positives are the images that the memory knows
        unknown_fpr95=false_positive_rate_at([-v for v in outside], [not f for f in foreign]) if some else None,
        top1_accepted=sum(accepted) / len(accepted) if accepted else None,
        statuses={status: counts[status] for status in _STATUSES},
        retrieval_ms=sum(image.retrieval_ms for image in answered) / max(1, len(answered)),
        ranking_ms=sum(image.ranking_ms for image in answered) / max(1, len(answered)),
        version=version("rarvision"),
        dataset=dataset.name,
        encoder=recognizer.memory.encoder_name,
        ranker=None if recognizer.ranker is None else recognizer.ranker.name,
        risk_coverage=_thinned(sure, hit) if answered else ((), ()),
        configuration=dict(configuration),
    )


def _thinned(sure: Sequence[float], hit: Sequence[bool]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    coverage, risk = risk_coverage(sure, hit)
    places = np.unique(np.linspace(0, len(coverage) - 1, _CURVE_POINTS).round().astype(np.int64))
    return tuple(coverage[places].tolist()), tuple(risk[places].tolist())
