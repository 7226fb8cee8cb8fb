"""Whether outcomes bear out what the paper says: means over datasets, paired over images, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float

from rarvision.experiments.outcomes import Outcome
from rarvision.experiments.spec import Claim, Spec
from rarvision.metrics import cluster_hits, paired_test
from rarvision.reporting import EvaluatedImage
from rarvision.runs import read_run

__all__ = ["Verdict", "judge"]

Word = Literal["holds", "does not hold", "undecided", "not measured"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the outcomes say of a claim.

    Attributes:
        text: The claim.
        verdict: ``holds`` where it does at all places beyond chance (95 % interval over images); ``does not hold``
            where the contrary does at some place and it at none; ``not measured`` where a row is missing; else
            ``undecided``. Where there is no interval, which the evidence says, the difference alone decides.
        evidence: The figures, a sentence.
    """

    text: str
    verdict: Word
    evidence: str

    def to_dict(self) -> dict[str, str]:
        """JSON values."""
        return asdict(self)


_Difference = tuple[float, float, float, int]
"""A mean difference, its 95 % interval's ends (NaN where there is none), and how many datasets it is over."""


def judge(spec: Spec, outcomes: Sequence[Outcome], folder: Path) -> list[Verdict]:
    """A verdict on each of a spec's claims.

    Args:
        spec: What was measured.
        outcomes: What came of it, any part of it.
        folder: Where the files with a line an image lie; where they are gone there are no intervals.
    """
    images = _Images(folder)
    found = []
    for claim in spec.claims:
        if claim.kind in ("gain", "alike"):
            found.append(_gain(claim, spec, outcomes, images))
        elif claim.kind == "flat":
            found.append(_flat(claim, spec, outcomes, images))
        else:
            found.append(_trend(claim, spec, outcomes, images))
    return found


class _Images:
    """Files with a line an image, read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Mapping[str, EvaluatedImage] | None] = {}

    def of(self, outcome: Outcome) -> Mapping[str, EvaluatedImage] | None:
        """By source; None where there is no such file."""
        name = outcome.images
        if name not in self._known:
            path = self._folder / name
            there = bool(name) and name.startswith(("images/", "naming/")) and path.is_file()
            self._known[name] = read_run(path, EvaluatedImage.read)[1] if there else None
        return self._known[name]


def _hits(images: Mapping[str, EvaluatedImage], sources: Sequence[str], metric: str) -> Float[np.ndarray, " n"] | None:
    """Right or wrong, image by image; None for what is not counted image by image."""
    if metric == "cacc":  # clusters are of all images
        hits, _ = cluster_hits(
            [each.ranked[0] if each.ranked else None for each in images.values()],
            [each.label for each in images.values()],
        )
        known = dict(zip(images, hits.tolist(), strict=True))
        return np.array([known[source] for source in sources], dtype=np.float64)
    for name, attribute in (("top", "ranked"), ("recall", "retrieved")):
        if metric.startswith(name) and metric[len(name) :].isdigit():
            k = int(metric[len(name) :])
            found = [images[source] for source in sources]
            return np.array([each.label in getattr(each, attribute)[:k] for each in found], dtype=np.float64)
    return None


def _difference(
    first: Sequence[Outcome], second: Sequence[Outcome], metrics: tuple[str, str], images: _Images
) -> _Difference | None:
    """The mean over datasets of how much better the first is, paired by dataset and seed."""
    pairs = []
    by_key = {(each.column, each.seed): each for each in second}
    for one in first:
        two = by_key.get((one.column, one.seed))
        if two is None:
            continue
        a, b = one.values.get(metrics[0]), two.values.get(metrics[1])
        if a is not None and b is not None:
            pairs.append((one, two, a - b))
    if not pairs:
        return None
    columns = sorted({one.column for one, _, _ in pairs})
    by_column = {name: [delta for one, _, delta in pairs if one.column == name] for name in columns}
    mean = float(np.mean([np.mean(deltas) for deltas in by_column.values()]))
    rows = []
    by_images: dict[tuple[str, str], list[Float[np.ndarray, " n"]]] = {}  # seeds of the same images are no more images
    for one, two, delta in pairs:
        of_one, of_two = images.of(one), images.of(two)
        if of_one is None or of_two is None or of_one.keys() != of_two.keys():
            return mean, float("nan"), float("nan"), len(columns)
        sources = sorted(of_one)  # those that were tried again stand last in their file
        right, other = _hits(of_one, sources, metrics[0]), _hits(of_two, sources, metrics[1])
        if right is None or other is None or abs(float((right - other).mean()) - delta) > 1e-9:
            return mean, float("nan"), float("nan"), len(columns)
        by_images.setdefault((one.column, "\0".join(sources)), []).append(right - other)
    for (column, _), several in by_images.items():
        weight = len(several) / (len(several[0]) * len(columns) * len(by_column[column]))
        rows.append(np.mean(several, axis=0) * weight)
    deltas = np.concatenate(rows) * sum(map(len, rows))
    low, high = paired_test(np.zeros_like(deltas), deltas).interval
    return mean, low, high, len(columns)


def _at(outcomes: Sequence[Outcome], row: str, at: Mapping[str, Any]) -> list[Outcome]:
    """A row's outcomes at a place; those of a row that the axis does not matter to hold at all."""
    return [each for each in outcomes if each.row == row and (not each.at or dict(each.at) == dict(at))]


def _told(difference: _Difference) -> str:
    mean, low, high, _ = difference
    interval = " (without interval)" if np.isnan(low) else f" ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{100 * mean:+.1f}{interval}"


def _gain(claim: Claim, spec: Spec, outcomes: Sequence[Outcome], images: _Images) -> Verdict:
    told, better, worse, places = [], 0, 0, 0
    datasets = 0
    for at in spec.places:
        difference = _difference(
            _at(outcomes, claim.first, at), _at(outcomes, claim.second, at), (claim.metric, claim.metric), images
        )
        if difference is None:
            continue
        mean, low, high, count = difference
        places, datasets = places + 1, max(datasets, count)
        ends = (mean, mean) if np.isnan(low) else (low, high)
        if claim.kind == "gain":
            better, worse = better + (ends[0] > 0), worse + (ends[1] < 0)
        else:
            better += max(abs(ends[0]), abs(ends[1])) <= claim.margin
            worse += ends[0] > claim.margin or ends[1] < -claim.margin
        where = "" if spec.axis is None else f"{spec.axis.title} {next(iter(at.values()))}: "
        told.append(f"{where}{_told(difference)}")
    if not places:
        return Verdict(text=claim.text, verdict="not measured", evidence=_missing(spec, claim, outcomes))
    word: Word = "holds" if better == places else "does not hold" if worse and not better else "undecided"
    rows = f"{_title(spec, claim.first)} over {_title(spec, claim.second)}"
    evidence = (
        f"{rows}, points of {_metric(spec, claim.metric)}, mean of {datasets} {_datasets(datasets)}: {'; '.join(told)}."
    )
    return Verdict(text=claim.text, verdict=word, evidence=evidence)


def _trend(claim: Claim, spec: Spec, outcomes: Sequence[Outcome], images: _Images) -> Verdict:
    metrics = claim.metric.split(",")
    if len(metrics) > 1:
        series = [(metric, _at(outcomes, claim.first, spec.places[0]), metric) for metric in metrics]
    else:
        series = [(str(next(iter(at.values()), "")), _at(outcomes, claim.first, at), metrics[0]) for at in spec.places]
    series = _shared([each for each in series if _mean(each[1], each[2]) is not None])
    if len(series) < 2:
        evidence = _alone(spec, claim, [label for label, *_ in series]) or _missing(spec, claim, outcomes)
        return Verdict(text=claim.text, verdict="not measured", evidence=evidence)
    means = [float(_mean(found, metric) or 0.0) for _, found, metric in series]
    sign = 1 if claim.kind == "rises" else -1
    first, last = series[0], series[-1]
    difference = _difference(last[1], first[1], (last[2], first[2]), images)
    word: Word = "undecided"
    if difference is not None:
        mean, low, high, _ = difference
        ends = (mean, mean) if np.isnan(low) else (low, high)
        word = "holds" if min(sign * ends[0], sign * ends[1]) > 0 else word
        word = "does not hold" if max(sign * ends[0], sign * ends[1]) < 0 else word
    told = ", ".join(f"{label}: {100 * mean:.1f}" for (label, _, _), mean in zip(series, means, strict=True))
    over = "" if difference is None else f"; from first to last {_told(difference)} points"
    return Verdict(text=claim.text, verdict=word, evidence=f"{_title(spec, claim.first)}: {told}{over}.")


def _flat(claim: Claim, spec: Spec, outcomes: Sequence[Outcome], images: _Images) -> Verdict:
    series = [(at, _at(outcomes, claim.first, at), claim.metric) for at in spec.places]
    series = _shared([each for each in series if _mean(each[1], each[2]) is not None])
    known = [(at, float(_mean(found, metric) or 0.0)) for at, found, metric in series]
    if len(known) < 2:
        places = [str(next(iter(at.values()), "")) for at, _ in known]
        evidence = _alone(spec, claim, places) or _missing(spec, claim, outcomes)
        return Verdict(text=claim.text, verdict="not measured", evidence=evidence)
    ordered = sorted(known, key=lambda each: each[1])
    (lowest, low_mean), (highest, high_mean) = ordered[0], ordered[-1]
    between = _difference(
        next(found for at, found, _ in series if at is highest),
        next(found for at, found, _ in series if at is lowest),
        (claim.metric, claim.metric),
        images,
    )
    low = high = high_mean - low_mean
    if between is not None and not np.isnan(between[1]):
        low, high = between[1], between[2]
    word: Word = "holds" if high <= claim.margin else "does not hold" if low > claim.margin else "undecided"
    told = ", ".join(f"{next(iter(at.values()))}: {100 * mean:.1f}" for at, mean in known)
    most = "" if between is None else f"; from lowest to highest {_told(between)} points"
    evidence = f"{_title(spec, claim.first)}: {told}{most}; {100 * claim.margin:g} would be little."
    return Verdict(text=claim.text, verdict=word, evidence=evidence)


_Place = TypeVar("_Place")


def _shared(series: list[tuple[_Place, list[Outcome], str]]) -> list[tuple[_Place, list[Outcome], str]]:
    """The outcomes of datasets and seeds that have a figure at every place: else means would be of different ones."""
    keys = [
        {(each.column, each.seed) for each in found if each.values.get(metric) is not None}
        for _, found, metric in series
    ]
    common = set.intersection(*keys) if keys else set()
    left = [
        (at, [each for each in found if (each.column, each.seed) in common], metric) for at, found, metric in series
    ]
    return left if common else []


def _mean(outcomes: Sequence[Outcome], metric: str) -> float | None:
    """Over datasets of the mean over seeds; None where some have none."""
    by_column: dict[str, list[float]] = {}
    for outcome in outcomes:
        value = outcome.values.get(metric)
        if value is not None:
            by_column.setdefault(outcome.column, []).append(value)
    return float(np.mean([np.mean(values) for values in by_column.values()])) if by_column else None


def _alone(spec: Spec, claim: Claim, places: Sequence[str]) -> str:
    """There is a figure, but nothing along the axis to set it against; empty where there is none."""
    return f"{_title(spec, claim.first)} has figures at {places[0]} alone; two places are needed." if places else ""


def _missing(spec: Spec, claim: Claim, outcomes: Sequence[Outcome]) -> str:
    rows = [key for key in (claim.first, claim.second) if key]
    why = {each.why for each in outcomes if each.row in rows and each.why}
    return f"No figures of {' and '.join(_title(spec, key) for key in rows)}" + (
        f": {'; '.join(sorted(why))}." if why else "."
    )


def _title(spec: Spec, row: str) -> str:
    return spec.row(row).title if any(each.key == row for each in spec.rows) else row


def _metric(spec: Spec, key: str) -> str:
    return next((metric.title for metric in spec.metrics if metric.key == key), key)


def _datasets(count: int) -> str:
    return "dataset" if count == 1 else "datasets"
