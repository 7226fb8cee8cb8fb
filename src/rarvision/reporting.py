"""What an evaluation says: a line an image, and the report over all of them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any, Self

import numpy as np

from rarvision.datasets.base import Dataset
from rarvision.encoders import NameEncoder, SpellingEncoder
from rarvision.metrics import (
    area_under_roc,
    bootstrap_interval,
    brier_score,
    cluster_hits,
    expected_calibration_error,
    false_positive_rate_at,
    hits_at,
    mean_per_class_accuracy,
    mean_per_class_interval,
    name_similarities,
    recall_at_k,
    risk_coverage,
    topk_accuracy,
)
from rarvision.pipeline import RecognitionFailure, Recognizer
from rarvision.runs import markdown_table
from rarvision.taxonomy import Taxonomy
from rarvision.types import Prediction

__all__ = ["EvaluatedImage", "LevelFigures", "Report", "SureFigures", "report_of"]

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
        levels: With a taxonomy: the most probable group at each level and its probability, coarsest first.
        sure: The level of the deepest sure answer; None where not even the coarsest is sure.
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
    levels: tuple[tuple[str, float], ...] = ()
    sure: str | None = None
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
        kept: dict[str, Any] = {key: tuple(map(sys.intern, values[key])) for key in ("ranked", "retrieved")}
        kept["levels"] = tuple((sys.intern(name), float(share)) for name, share in values.get("levels", ()))
        return cls(**{**values, **kept, "reason": None, "raw": None})

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
            levels=tuple((level.name, level.probability) for level in outcome.levels),
            sure=None if outcome.sure is None else outcome.sure.level,
            status=None if ranking is None else ranking.status,
            reason=None if ranking is None else ranking.reason,
            unanswered=ranking is not None and ranking.unanswered,
            raw=None if ranking is None else ranking.raw,
            retrieval_ms=outcome.retrieval_ms,
            ranking_ms=outcome.ranking_ms,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelFigures:
    """How good the answers are at one level of a taxonomy; shares are of all images.

    Attributes:
        top1: Share whose first name lies in the true group.
        top1_interval: Its 95 % bootstrap interval over images.
        summed: Share whose most probable group, probabilities summed, is the true one.
        sure: Share whose deepest sure answer is at this level.
        sure_right: Of these, the share that is right; None where there are none.
    """

    top1: float
    top1_interval: tuple[float, float]
    summed: float
    sure: float
    sure_right: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SureFigures:
    """How good the answers at the deepest sure level are, over all levels.

    Attributes:
        threshold: Probability from which a level is sure.
        answered: Share of the images that have a sure answer at some level.
        right: Of these, the share that is right; None where there are none.
        right_interval: Its 95 % bootstrap interval over these images; None likewise.
    """

    threshold: float
    answered: float
    right: float | None
    right_interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """How good a recogniser is on a dataset. All accuracies are shares, 0 to 1, of all n images.

    Attributes:
        n: Images, failures included; a failure counts as wrong.
        failures: Images without an answer.
        top1: Accuracy of the first name.
        top1_interval: Its 95 % bootstrap interval over images.
        intervals: The same of the other figures: ``top5``, ``recall5``, …, ``retrieval_top1``, ``mean_per_class``,
            ``cacc`` (with the assignment of all images) and ``sacc``; ``open_top1`` where there are foreign images.
        topk: Accuracy of the first k ranked names, by k.
        recall: Share whose label is among the first k that retrieval found, by k: what ranking can reach at most.
        retrieval_top1: Accuracy of retrieval's first.
        mean_per_class: Top-1 averaged over the true categories.
        cacc: Clustering accuracy of the first names, see `rarvision.metrics.cluster_hits`: names need mean nothing.
        sacc: Mean cosine of the first name and the true one, by ``name_encoder``; a failure counts as 0.
        name_encoder: What ``sacc`` is computed with; figures by different ones are not comparable.
        taxonomy: The name of the tree over the categories, if any.
        levels: By level, coarsest first; empty without a taxonomy.
        sure: Over all levels; None without a taxonomy.
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
    cacc: float
    sacc: float
    name_encoder: str
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
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    taxonomy: str | None = None
    levels: Mapping[str, LevelFigures] = field(default_factory=dict)
    sure: SureFigures | None = None
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
        values["intervals"] = {name: list(interval) for name, interval in self.intervals.items()}
        values["topk"] = {str(k): value for k, value in self.topk.items()}
        values["recall"] = {str(k): value for k, value in self.recall.items()}
        return {**values, "fallback_rate": self.fallback_rate, "repaired_rate": self.repaired_rate}

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def table(self) -> list[tuple[str, str]]:
        """Rows for people: what, and its value with its unit."""
        rows = [
            ("dataset", self.dataset),
            ("encoder", self.encoder or "unknown"),
            ("ranker", self.ranker or "none (retrieval only)"),
            ("images", f"{self.n:,}"),
            ("failures", f"{self.failures:,}"),
            ("top-1", f"{self.top1:.1%} {_between(self.top1_interval, '95 % interval ')}"),
            *((f"top-{k}", self._share(value, f"top{k}")) for k, value in self.topk.items() if k != 1),
            ("retrieval top-1", self._share(self.retrieval_top1, "retrieval_top1")),
            *((f"recall@{k}", self._share(value, f"recall{k}")) for k, value in self.recall.items() if k != 1),
            ("mean per class", self._share(self.mean_per_class, "mean_per_class")),
            *self._names_table(),
            *self._levels_table(),
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
            rows.append(("right, unknown included", self._share(self.open_top1, "open_top1")))
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

    def _share(self, value: float, name: str) -> str:
        interval = self.intervals.get(name)
        return f"{value:.1%}" if interval is None else f"{value:.1%} {_between(interval)}"

    def _names_table(self) -> list[tuple[str, str]]:
        """What says something where the memory's names are not the labels, or where somebody chose an encoder."""
        if not self.foreign and self.name_encoder == SpellingEncoder().name:
            return []
        low, high = self.intervals["sacc"]
        return [
            ("cACC", self._share(self.cacc, "cacc")),
            ("sACC", f"{100 * self.sacc:.1f} ({100 * low:.1f} to {100 * high:.1f})"),
            ("sACC by", self.name_encoder),
        ]

    def _levels_table(self) -> list[tuple[str, str]]:
        rows = [
            (f"right at {level}", f"{each.top1:.1%} {_between(each.top1_interval)}, summed {each.summed:.1%}")
            for level, each in self.levels.items()
        ]
        if self.sure is None:
            return rows
        told = f"{self.sure.answered:.1%} of the images"
        if self.sure.right is not None and self.sure.right_interval is not None:
            told += f", {self.sure.right:.1%} of them right {_between(self.sure.right_interval)}"
        rows.append((f"sure from {self.sure.threshold:.0%} on", told))
        for level, each in self.levels.items():
            if each.sure_right is not None:
                rows.append((f"sure of the {level}", f"{each.sure:.1%}, {each.sure_right:.1%} of them right"))
        return rows

    def to_markdown(self) -> str:
        """A table in Markdown."""
        return markdown_table(self.table())


def report_of(
    images: Sequence[EvaluatedImage],
    recognizer: Recognizer,
    dataset: Dataset,
    configuration: Mapping[str, Any],
    *,
    ks: Sequence[int],
    name_encoder: NameEncoder,
) -> Report:
    """The report over images, in any order; for the arguments see `rarvision.evaluate`."""
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
    guesses = [names[0] if names else None for names in ranked]
    clustered = cluster_hits(guesses, labels)[0]
    vectors = name_encoder.encode({*labels, *(name for name in guesses if name is not None)})
    alike = name_similarities(guesses, labels, vectors)
    each = {f"top{k}": hits_at(ranked, labels, k=k) for k in served}
    each |= {f"recall{k}": hits_at(retrieved, labels, k=k) for k in served if k > 1}
    each["retrieval_top1"] = hits_at(retrieved, labels)
    intervals = {name: bootstrap_interval(hits) for name, hits in each.items()}
    intervals |= {
        "mean_per_class": mean_per_class_interval(right, labels),
        "cacc": bootstrap_interval(clustered),
        "sacc": bootstrap_interval(alike),
    }
    open_right = [
        image.unknown if f else r and not image.unknown for f, r, image in zip(foreign, hit, answered, strict=True)
    ]
    if any(foreign):
        intervals["open_top1"] = bootstrap_interval([*open_right, *[False] * (len(images) - len(answered))])
    accepted = [right for right, image in zip(hit, answered, strict=True) if not image.unknown]
    return Report(
        n=len(images),
        failures=len(images) - len(answered),
        top1=topk_accuracy(ranked, labels, k=1),
        top1_interval=intervals.pop("top1"),
        intervals=intervals,
        topk={k: topk_accuracy(ranked, labels, k=k) for k in served},
        recall={k: recall_at_k(retrieved, labels, k=k) for k in served},
        retrieval_top1=recall_at_k(retrieved, labels, k=1),
        mean_per_class=mean_per_class_accuracy(guesses, labels),
        cacc=float(clustered.mean()),
        sacc=float(alike.mean()),
        name_encoder=name_encoder.name,
        **_level_figures(images, guesses, recognizer.taxonomy, configuration),
        calibration_error=expected_calibration_error(sure, hit) if answered else None,
        brier=brier_score(sure, hit) if answered else None,
        auroc_right=area_under_roc(sure, hit) if any(hit) and not all(hit) else None,
        call_rate=None if recognizer.ranker is None or not answered else 1.0 - counts["skipped"] / len(answered),
        rejected=sum(image.unknown for image in answered),
        foreign=sum(foreign),
        foreign_rejected=sum(f and image.unknown for f, image in zip(foreign, answered, strict=True)),
        open_top1=sum(open_right) / len(images),
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


def _level_figures(
    images: Sequence[EvaluatedImage],
    guesses: Sequence[str | None],
    tree: Taxonomy | None,
    configuration: Mapping[str, Any],
) -> dict[str, Any]:
    """The report's fields about a taxonomy."""
    if tree is None:
        return {}
    labels = [image.label for image in images]
    first = tree.hits(guesses, labels)
    summed = np.array(
        [tree.right(_by_level(image, tree), image.label, groups=True) for image in images], dtype=bool
    ).reshape(first.shape)
    place = {level: depth for depth, level in enumerate(tree.levels)}
    depths = np.array([-1 if image.sure is None else place[image.sure] for image in images])
    given = depths >= 0
    right = summed[np.arange(len(images)), depths]
    figures = {}
    for depth, level in enumerate(tree.levels):
        here = depths == depth
        figures[level] = LevelFigures(
            top1=float(first[:, depth].mean()),
            top1_interval=bootstrap_interval(first[:, depth]),
            summed=float(summed[:, depth].mean()),
            sure=float(here.mean()),
            sure_right=float(right[here].mean()) if here.any() else None,
        )
    return {
        "taxonomy": tree.name,
        "levels": figures,
        "sure": SureFigures(
            threshold=float(configuration["taxonomy"]["sure"]),
            answered=float(given.mean()),
            right=float(right[given].mean()) if given.any() else None,
            right_interval=bootstrap_interval(right[given]) if given.any() else None,
        ),
    }


def _by_level(image: EvaluatedImage, tree: Taxonomy) -> list[str | None]:
    """The most probable group at each level; None for a failure, or where the tree knows no candidate."""
    missing = len(tree.levels) - len(image.levels)  # at the coarse end: a candidate is always in its own level
    return [None] * missing + [name for name, _ in image.levels]


def _between(interval: tuple[float, float], title: str = "") -> str:
    """An interval for people; resampling images that are all alike gives none."""
    low, high = interval
    return "(no interval: all alike)" if low == high else f"({title}{low:.1%} to {high:.1%})"


def _thinned(sure: Sequence[float], hit: Sequence[bool]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    coverage, risk = risk_coverage(sure, hit)
    places = np.unique(np.linspace(0, len(coverage) - 1, _CURVE_POINTS).round().astype(np.int64))
    return tuple(coverage[places].tolist()), tuple(risk[places].tolist())
