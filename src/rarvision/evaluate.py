"""A recogniser on a labelled dataset -> a report; image by image on disk, so that a long run resumes."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from rarvision.datasets.base import Dataset
from rarvision.errors import DatasetError, InputError, OptionError
from rarvision.metrics import (
    bootstrap_interval,
    expected_calibration_error,
    mean_per_class_accuracy,
    recall_at_k,
    topk_accuracy,
)
from rarvision.pipeline import RecognitionFailure, Recognizer
from rarvision.types import Prediction

__all__ = ["EvaluatedImage", "Report", "check_configuration", "evaluate"]

_STATUSES = ("ranked", "repaired", "fallback")
_HASHES = {"memory_content": "the memory's entries", "dataset_fingerprint": "the dataset"}


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
    status: str | None = None
    reason: str | None = None
    unanswered: bool = False
    raw: str | None = None
    retrieval_ms: float = 0.0
    ranking_ms: float = 0.0
    error: str | None = None

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
        statuses: Number of rankings by status; all 0 without a ranker.
        retrieval_ms: Milliseconds an image of encoding and search, mean over the answered images.
        ranking_ms: The same of ranking.
        version: Of this package.
        dataset: The dataset's name.
        encoder: The encoder's name.
        ranker: The ranker's name, None for retrieval alone.
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
    statuses: Mapping[str, int]
    retrieval_ms: float
    ranking_ms: float
    version: str
    dataset: str
    encoder: str
    ranker: str | None
    configuration: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fallback_rate(self) -> float:
        """Share of the rankings that fell back to retrieval's order."""
        return self.statuses["fallback"] / max(1, sum(self.statuses.values()))

    @property
    def repaired_rate(self) -> float:
        """Share of the rankings that had to be completed or corrected."""
        return self.statuses["repaired"] / max(1, sum(self.statuses.values()))

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
            rows.append(("calibration error", f"{self.calibration_error:.3f}"))
        if self.ranker is not None:
            rows += [("fallback rate", f"{self.fallback_rate:.1%}"), ("repaired rate", f"{self.repaired_rate:.1%}")]
        rows.append(("retrieval", f"{self.retrieval_ms:.1f} ms an image"))
        if self.ranker is not None:
            rows.append(("ranking", f"{self.ranking_ms:.1f} ms an image"))
        return [*rows, ("rarvision", self.version)]

    def to_markdown(self) -> str:
        """A table in Markdown."""
        cells = [(what, value.replace("|", "\\|").replace("\n", " ")) for what, value in self.table()]
        return "\n".join(["| | |", "|---|---|", *(f"| {what} | {value} |" for what, value in cells)])


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
    labels = _labels(dataset)
    configuration = {
        "rarvision": version("rarvision"),
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        **recognizer.settings,
    }
    done: dict[str, EvaluatedImage] = {}  # by source; without the MLLM's words, which only the file keeps
    if out is None:
        _run(recognizer, dataset, labels, done, file=None, progress=progress)
    else:
        path = Path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        done, end = _read_done(path, configuration) if resume and path.exists() else ({}, 0)
        with path.open("a", encoding="utf-8", newline="\n") as file:
            os.truncate(file.fileno(), end)  # without the line that an interruption cut short
            if end == 0:
                _write_line(file, {"configuration": configuration})
            _run(recognizer, dataset, labels, done, file=file, progress=progress)
    images = [done[source] for source in labels]
    return _report(images, recognizer, dataset, configuration, sorted({1, recognizer.k, *ks}))


def _labels(dataset: Dataset) -> dict[str, str]:
    """Labels by source, checked before anything is recognised."""
    labels: dict[str, str] = {}
    for item in dataset.items:
        if item.label is None:
            raise DatasetError(f"{dataset.name}: {item.source} has no label; evaluation needs one for every image")
        if item.source in labels:
            raise DatasetError(f"{dataset.name}: the source {item.source} occurs twice; sources must be unique")
        labels[item.source] = item.label
    if not labels:
        raise DatasetError(f"{dataset.name}: there are no images to evaluate")
    return labels


def _run(
    recognizer: Recognizer,
    dataset: Dataset,
    labels: Mapping[str, str],
    done: dict[str, EvaluatedImage],
    *,
    file: IO[str] | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Recognise what is not done yet, writing each outcome at once."""
    finished = sum(source in done for source in labels)
    if progress is not None:
        progress(finished, len(labels))
    left = (dataset[i] for i, item in enumerate(dataset.items) if item.source not in done)
    with closing(recognizer.iter_recognize(left)) as outcomes:
        for outcome in outcomes:
            image = EvaluatedImage.of(outcome, labels[outcome.source])
            if file is not None:
                _write_line(file, asdict(image))
            done[image.source] = _for_report(image)
            finished += 1
            if progress is not None:
                progress(finished, len(labels))


def _write_line(file: IO[str], value: Mapping[str, Any]) -> None:
    file.write(json.dumps(value, allow_nan=False) + "\n")
    file.flush()


def _for_report(image: EvaluatedImage) -> EvaluatedImage:
    """Without the MLLM's words, and with each name once in memory: a report over a million images is to fit."""
    ranked, retrieved = (tuple(map(sys.intern, names)) for names in (image.ranked, image.retrieved))
    return replace(image, ranked=ranked, retrieved=retrieved, reason=None, raw=None)


def _read_done(path: Path, configuration: Mapping[str, Any]) -> tuple[dict[str, EvaluatedImage], int]:
    """The answers that an earlier run with the same configuration wrote, and where the last complete line ends.

    What failed then, or had no answer, is left out: it is tried again. Where there is nothing else, the file is started
    anew: a server that is down does not say its model's name, so the configuration may differ.
    """
    advice = "give another file, or resume=False (--no-resume) to start it anew"
    done: dict[str, EvaluatedImage] = {}
    there: dict[str, Any] = {}
    images = end = 0
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    values = json.loads(line)
                    if end == 0:
                        there = dict(values["configuration"])
                    else:
                        images += 1
                        names = {key: tuple(values[key]) for key in ("ranked", "retrieved")}
                        image = EvaluatedImage(**{**values, **names})
                        if image.error is None and not image.unanswered:
                            done[image.source] = _for_report(image)
                    end += len(line)
                elif end == 0:
                    raise InputError(f"{path}: is not the file of an evaluation (no complete line); {advice}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is not the file of an evaluation ({error}); {advice}") from error
    if end and (done or not images):
        check_configuration(path, there, configuration, advice)
    elif there != json.loads(json.dumps(configuration)):
        return {}, 0
    return done, end


def check_configuration(path: Path, there: Mapping[str, Any], now: Mapping[str, Any], advice: str) -> None:
    """Refuse to mix results of different configurations.

    Raises:
        InputError: They differ; says in what, and what to do by ``advice``.
    """
    expected = json.loads(json.dumps(now))
    differing = [key for key in {**there, **expected} if there.get(key) != expected.get(key)]
    if differing:
        changes = "; ".join(
            f"{key}: {_HASHES[key]} changed since"
            if key in _HASHES and key in there
            else f"{key}: {there.get(key)!r:.80} there, {expected.get(key)!r:.80} now"
            for key in differing
        )
        raise InputError(f"{path}: holds the results of another configuration ({changes}); {advice}")


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
    return Report(
        n=len(images),
        failures=len(images) - len(answered),
        top1=topk_accuracy(ranked, labels, k=1),
        top1_interval=bootstrap_interval(right),
        topk={k: topk_accuracy(ranked, labels, k=k) for k in served},
        recall={k: recall_at_k(retrieved, labels, k=k) for k in served},
        retrieval_top1=recall_at_k(retrieved, labels, k=1),
        mean_per_class=mean_per_class_accuracy([names[0] if names else None for names in ranked], labels),
        calibration_error=expected_calibration_error(
            [min(1.0, image.probability) for image in answered],
            [image.ranked[0] == image.label for image in answered],
        )
        if answered
        else None,
        statuses={status: counts[status] for status in _STATUSES},
        retrieval_ms=sum(image.retrieval_ms for image in answered) / max(1, len(answered)),
        ranking_ms=sum(image.ranking_ms for image in answered) / max(1, len(answered)),
        version=version("rarvision"),
        dataset=dataset.name,
        encoder=recognizer.memory.encoder_name,
        ranker=None if recognizer.ranker is None else recognizer.ranker.name,
        configuration=dict(configuration),
    )
