"""Neighbours become candidates: grouping entries by category, and fusing images with texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal, final

import numpy as np
from jaxtyping import Bool, Float, Int

from rarvision.errors import MemoryEmptyError, OptionError
from rarvision.index import top_k
from rarvision.memory import Hits, Memory
from rarvision.types import Candidate, Modality

__all__ = ["Aggregate", "LeaveOneOut", "Retriever", "Source", "leave_one_out"]

Source = Literal["fused", "image", "text"]
Aggregate = Literal["blend", "nearest", "sum", "vote", "prototype"]

_SOURCES = ("fused", "image", "text")
_AGGREGATES = ("blend", "nearest", "sum", "vote", "prototype")
_DEFAULT_AGGREGATE: Final = "blend"
_NEIGHBOURS = 512
_VOTERS = 20
_EXEMPLARS = 16
_SCORES_AT_ONCE = 4_000_000
_SCALE_SAMPLES = 256


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """Scores of categories that are not the query's own: what maps text scores onto the scale of image scores."""

    image_mean: float = 0.0
    text_mean: float = 0.0
    ratio: float = 1.0

    def to_image(self, text_scores: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
        return self.image_mean + self.ratio * (text_scores - self.text_mean)


@final
class Retriever:
    """Proposes k categories for an encoded image.

    A category's *image score* comes from the similarities of its images to the query: ``nearest`` the highest one;
    ``prototype`` that of their mean direction; ``blend`` a mix of both, ``prototype_weight`` of the latter; ``vote``
    the category's share of the nearest images, ties decided by the closest one; ``sum`` a soft sum over those images,
    ``log(sum(exp(sharpness * similarity))) / sharpness``, which lies between ``vote`` (0) and ``nearest`` (large); the
    exponential kernel is Tip-Adapter's. Its *text score* is the similarity to the mean of its texts.

    Fusion maps text scores linearly onto the scale of image scores, so that the categories that are wrong have the
    same mean and spread by both (estimated on the memory's own images, where there are such categories), and mixes
    them: ``(1 - text_weight) * image + text_weight * text``. A category with only one of the two keeps that one.

    Args:
        memory: What is searched.
        k: Candidates to propose.
        source: ``image``, ``text``, or ``fused``: both, as far as the memory holds both.
        aggregate: How images make an image score; ``nearest`` where ``distinct=False``, which goes with no other (the
            default gives way).
        neighbours: Nearest images that ``nearest``, ``blend``, ``sum`` and ``vote`` look at; by default 20 for
            ``vote`` and ``sum``, else 512. More are fetched where they do not hold k categories; a category beyond
            them counts as just as near as the last one that was seen.
        distinct: True for k different categories. False for the categories of the k nearest entries, with repeats, as
            the paper's authors do; it goes with one source, and looks at k neighbours.
        text_weight: Share of the text score, 0 to 1.
        text_ratio: Spread of image scores over spread of text scores; estimated by default.
        prototype_weight: Share of the prototype in ``blend``, 0 to 1.
        sharpness: Of the soft sum.

    Raises:
        OptionError: A value out of range, or options that contradict each other.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        k: int = 5,
        source: Source = "fused",
        aggregate: Aggregate = _DEFAULT_AGGREGATE,
        neighbours: int | None = None,
        distinct: bool = True,
        text_weight: float = 0.5,
        text_ratio: float | None = None,
        prototype_weight: float = 0.8,
        sharpness: float = 50.0,
    ) -> None:
        _one_of("source", source, _SOURCES)
        _one_of("aggregate", aggregate, _AGGREGATES)
        _at_least_one("k", k)
        _at_least_one("neighbours", 1 if neighbours is None else neighbours)
        _share("text_weight", text_weight)
        _share("prototype_weight", prototype_weight)
        if not sharpness > 0 or not (text_ratio is None or text_ratio > 0):
            raise OptionError(f"sharpness and text_ratio must be positive, got {sharpness} and {text_ratio}")
        if not distinct and source == "fused":
            raise OptionError("distinct=False counts entries, so it needs one source: choose 'image' or 'text'")
        if not distinct and aggregate not in ("nearest", _DEFAULT_AGGREGATE):
            raise OptionError(
                f"distinct=False takes the nearest entries as they are, so nothing is aggregated by {aggregate!r}; "
                "leave aggregate out, or choose distinct=True"
            )
        if not distinct and neighbours is not None:
            raise OptionError(
                f"distinct=False takes the k={k} nearest entries, whatever neighbours={neighbours} says; "
                "leave neighbours out, or choose distinct=True"
            )
        self.memory = memory
        self.k = k
        self.source = source
        self.aggregate: Aggregate = aggregate if distinct else "nearest"
        self.neighbours = neighbours or (_VOTERS if aggregate in ("vote", "sum") else _NEIGHBOURS)
        self.distinct = distinct
        self.text_weight = text_weight
        self.prototype_weight = prototype_weight
        self.sharpness = sharpness
        self.text_ratio = text_ratio
        self._scale_cache: tuple[int, _Scale] | None = None

    def retrieve(self, vectors: Float[np.ndarray, "n dim"]) -> list[list[Candidate]]:
        """Candidates of each query, best first.

        Args:
            vectors: Unit vectors by the memory's encoder, float32.

        Returns:
            For each query k candidates, or as many as the memory holds. ``similarity`` is the score that they are
            sorted by: cosine-like for all aggregates but ``vote``, whose scores are shares.

        Raises:
            MemoryEmptyError: Nothing of this source to search.
            OptionError: Vectors of the wrong shape, or not finite.
        """
        if not self.distinct:
            return self._entries(vectors, "text" if self.source == "text" else "image")
        codes, modalities = self._categories()
        at_once = max(1, _SCORES_AT_ONCE // (len(codes) + self.neighbours))
        found: list[list[Candidate]] = []
        for start in range(0, len(vectors), at_once):
            found += self._best(vectors[start : start + at_once], codes, modalities)
        return found

    def _entries(self, vectors: Float[np.ndarray, "n dim"], modality: Modality) -> list[list[Candidate]]:
        """The k nearest entries, repeats and all."""
        hits = self.memory.nearest(vectors, self.k, modality=modality)
        names = self.memory.category_names()
        rows = zip(hits.similarities.tolist(), hits.ids.tolist(), hits.categories.tolist(), strict=True)
        return [
            [
                Candidate(category=names[code], similarity=similarity, exemplars=(entry,))
                for similarity, entry, code in zip(*row, strict=True)
                if entry >= 0
            ]
            for row in rows
        ]

    def _categories(self) -> tuple[Int[np.ndarray, " c"], tuple[Modality, ...]]:
        """Codes of the categories within reach, ascending, and the modalities to ask."""
        wanted: tuple[Modality, ...] = ("image", "text") if self.source == "fused" else (self.source,)
        filled = tuple(modality for modality in wanted if self.memory.count(modality))
        if not filled:
            raise MemoryEmptyError(
                f"the memory holds no {' or '.join(f'{each}s' for each in wanted)} to retrieve from; it holds "
                f"{self.memory.count('image')} images and {self.memory.count('text')} texts. Add some, or choose "
                "another source"
            )
        codes = np.unique(np.concatenate([self.memory.prototypes(modality).categories for modality in filled]))
        return codes, filled

    def _best(
        self, vectors: Float[np.ndarray, "n dim"], codes: Int[np.ndarray, " c"], modalities: tuple[Modality, ...]
    ) -> list[list[Candidate]]:
        """Candidates of one block of queries."""
        hits = None
        if "image" in modalities:
            hits, scores = self._image_scores(vectors, codes)
            if "text" in modalities:
                scores = self._fused(scores, self._prototype_scores(vectors, codes, "text"), codes)
        else:
            scores = self._prototype_scores(vectors, codes, "text")
        columns = top_k(scores, self.k)
        values = np.take_along_axis(scores, columns, axis=1)
        names = self.memory.category_names()
        chosen = codes[columns]
        exemplars = self._exemplars(hits, chosen, modalities)
        return [
            [
                Candidate(category=names[code], similarity=value, exemplars=exemplars[row].get(code, ()))
                for code, value in zip(chosen[row].tolist(), values[row].tolist(), strict=True)
                if value > -np.inf
            ]
            for row in range(len(vectors))
        ]

    def _exemplars(
        self, hits: Hits | None, chosen: Int[np.ndarray, "n k"], modalities: tuple[Modality, ...]
    ) -> list[dict[int, tuple[int, ...]]]:
        """For each query, the chosen categories' entries: those found, closest first; else any, images before texts."""
        found: list[dict[int, tuple[int, ...]]] = [{} for _ in chosen]
        if hits is not None:
            for row, wanted in enumerate(chosen):
                of = hits.categories[row]
                for code in wanted.tolist():
                    if len(entries := hits.ids[row][of == code][:_EXEMPLARS]):
                        found[row][code] = tuple(entries.tolist())
        missing = sorted(
            {code for row, wanted in enumerate(chosen.tolist()) for code in wanted if code not in found[row]}
        )
        spare: dict[int, tuple[int, ...]] = {}
        for modality in modalities:
            ids, of = self.memory.table(modality)
            for code in missing:
                if code not in spare and len(entries := ids[of == code][:_EXEMPLARS]):
                    spare[code] = tuple(entries.tolist())
        return [spare | of_row for of_row in found]

    # Scores -----------------------------------------------------------------------------------------------------

    def _image_scores(
        self, vectors: Float[np.ndarray, "n dim"], codes: Int[np.ndarray, " c"]
    ) -> tuple[Hits, Float[np.ndarray, "n c"]]:
        """Image scores by category, ``-inf`` for those without images, and the neighbours that they come from."""
        prototypes = self._prototype_scores(vectors, codes, "image")
        hits = self._neighbours(vectors)
        if self.aggregate == "prototype":
            return hits, prototypes
        rows = np.broadcast_to(np.arange(len(vectors))[:, None], hits.ids.shape)
        columns = np.searchsorted(codes, hits.categories)
        there = hits.ids >= 0
        floor = np.where(there, hits.similarities, np.inf).min(axis=1, keepdims=True)
        nearest = np.where(np.isfinite(prototypes), floor, -np.inf).astype(np.float64)
        np.maximum.at(nearest, (rows[there], columns[there]), hits.similarities[there])
        if self.aggregate == "nearest":
            return hits, nearest
        if self.aggregate == "blend":
            weight = self.prototype_weight
            return hits, (1.0 - weight) * nearest + weight * prototypes
        near = there.copy()
        near[:, self.neighbours :] = False
        total = np.zeros_like(nearest)
        if self.aggregate == "vote":
            np.add.at(total, (rows[near], columns[near]), 1.0)
            return hits, (total + (nearest + 1.0) / 4.0) / self.neighbours
        kernel = np.exp(self.sharpness * (hits.similarities[near].astype(np.float64) - 1.0))
        np.add.at(total, (rows[near], columns[near]), kernel)
        with np.errstate(divide="ignore"):
            soft = 1.0 + np.log(total) / self.sharpness
        return hits, np.maximum(soft, nearest)

    def _neighbours(self, vectors: Float[np.ndarray, "n dim"]) -> Hits:
        """Enough nearest images for k different categories, at least `neighbours`."""
        count = self.memory.count("image")
        enough = min(self.k, len(self.memory.prototypes("image").categories))
        wanted = min(count, max(self.neighbours, self.k))
        while True:
            hits = self.memory.nearest(vectors, wanted, modality="image")
            ordered = np.sort(hits.categories, axis=1)
            different = 1 + np.count_nonzero(np.diff(ordered, axis=1), axis=1) - (ordered[:, 0] < 0)
            if wanted == count or bool((different >= enough).all()):
                return hits
            wanted = min(count, 4 * wanted)

    def _prototype_scores(
        self, vectors: Float[np.ndarray, "n dim"], codes: Int[np.ndarray, " c"], modality: Modality
    ) -> Float[np.ndarray, "n c"]:
        """Similarity to each category's mean direction, ``-inf`` where it has no entries of this modality."""
        prototypes = self.memory.prototypes(modality)
        scores = np.full((len(vectors), len(codes)), -np.inf)
        scores[:, np.searchsorted(codes, prototypes.categories)] = vectors @ prototypes.vectors.T
        return scores

    def _fused(
        self, image: Float[np.ndarray, "n c"], text: Float[np.ndarray, "n c"], codes: Int[np.ndarray, " c"]
    ) -> Float[np.ndarray, "n c"]:
        """The mix of both scores on the scale of image scores; the one there is where the other is missing."""
        mapped = self._scale(codes).to_image(text)
        with np.errstate(invalid="ignore"):  # 0 * inf, replaced by the next line
            mixed = (1.0 - self.text_weight) * image + self.text_weight * mapped
        return np.where(np.isneginf(image), mapped, np.where(np.isneginf(mapped), image, mixed))

    def _scale(self, codes: Int[np.ndarray, " c"]) -> _Scale:
        """Estimated once for each revision of the memory, on evenly spaced images of it."""
        revision = self.memory.revision
        if self._scale_cache is None or self._scale_cache[0] != revision:
            ids, own = self.memory.table("image")
            chosen = np.unique(np.linspace(0, len(ids) - 1, min(len(ids), _SCALE_SAMPLES)).round().astype(np.int64))
            vectors = self.memory.vectors(ids[chosen])
            wrong = codes != own[chosen, None]
            if self.aggregate == "vote":
                image = self._image_scores(vectors, codes)[1]
            else:  # means are known for all categories, neighbours only for the near ones
                image = self._prototype_scores(vectors, codes, "image")
            text = self._prototype_scores(vectors, codes, "text")
            by_image, by_text = _mean_and_spread(image, wrong), _mean_and_spread(text, wrong)
            if by_image is None or by_text is None:
                scale = _Scale(ratio=self.text_ratio or 1.0)
            else:
                ratio = by_image[1] / by_text[1] if by_image[1] > 0 and by_text[1] > 0 else 1.0
                scale = _Scale(image_mean=by_image[0], text_mean=by_text[0], ratio=self.text_ratio or ratio)
            self._scale_cache = (revision, scale)
        return self._scale_cache[1]


def _mean_and_spread(scores: Float[np.ndarray, "n c"], wrong: Bool[np.ndarray, "n c"]) -> tuple[float, float] | None:
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


# Leaving one out -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaveOneOut:
    """How well the memory's images recognise one another; shares from 0 to 1.

    Attributes:
        top1: Images whose nearest other image is of their category.
        recall_at_5_images: Images with one of their category among the 5 nearest other images.
        recall_at_5_categories: Images whose category is among the 5 nearest categories, each by its nearest image.
        entries: Images asked; those that are alone in their category cannot be found and count as missed.
        categories: Categories of these images.
    """

    top1: float
    recall_at_5_images: float
    recall_at_5_categories: float
    entries: int
    categories: int

    def to_dict(self) -> dict[str, float | int]:
        """JSON values."""
        return asdict(self)


def leave_one_out(memory: Memory, *, block: int = 512, progress: Callable[[int], None] | None = None) -> LeaveOneOut:
    """Ask the memory for each of its images, that image left out; by exact cosine search, whatever its index is.

    Args:
        memory: With at least two images.
        block: Queries compared at once.
        progress: Called with the number of images dealt with so far.

    Raises:
        MemoryEmptyError: Fewer than two images.

    Source: the paper's 1-NN baseline; figures for the authors' own memories stand in the tests.
    """
    _at_least_one("block", block)
    ids, codes = memory.table("image")
    if len(ids) < 2:
        raise MemoryEmptyError(f"leaving one image out needs at least two, the memory holds {len(ids)}")
    order = np.argsort(codes, kind="stable")  # categories side by side, so that each is one slice
    codes = codes[order]
    vectors = memory.vectors(ids[order])
    categories, starts, positions = np.unique(codes, return_index=True, return_inverse=True)
    nearest_right = image_hits = category_hits = 0
    for start in range(0, len(ids), block):
        rows = np.arange(start, min(start + block, len(ids)))
        scores = vectors[rows] @ vectors.T
        scores[np.arange(len(rows)), rows] = -np.inf
        own = positions[rows]
        closest = top_k(scores, min(5, len(ids) - 1))
        right = positions[closest] == own[:, None]
        nearest_right += int(right[:, 0].sum())
        image_hits += int(right.any(axis=1).sum())
        by_category = np.maximum.reduceat(scores, starts, axis=1)
        best = top_k(by_category, 5)
        found = (best == own[:, None]) & np.isfinite(np.take_along_axis(by_category, best, axis=1))
        category_hits += int(found.any(axis=1).sum())
        if progress is not None:
            progress(int(rows[-1]) + 1)
    total = len(ids)
    return LeaveOneOut(
        top1=nearest_right / total,
        recall_at_5_images=image_hits / total,
        recall_at_5_categories=category_hits / total,
        entries=total,
        categories=len(categories),
    )


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise OptionError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise OptionError(f"{name} must be at least 1, got {value}")


def _share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise OptionError(f"{name} must lie between 0 and 1, got {value}")
