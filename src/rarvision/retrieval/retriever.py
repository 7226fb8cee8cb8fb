"""The retriever: scores of categories by their images and texts, and the best of them as candidates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal, final

import numpy as np
from jaxtyping import Float, Int

from rarvision.errors import MemoryEmptyError, OptionError
from rarvision.index import top_k
from rarvision.memory import Hits, Memory
from rarvision.retrieval.aggregating import aggregated
from rarvision.retrieval.checks import Aggregate, Source, check_retrieval, share
from rarvision.retrieval.entries import every_category, exemplar_ids
from rarvision.retrieval.leaving_out import Held, dropped
from rarvision.retrieval.statistics import (
    DEFAULT_TEXT_WEIGHT,
    Hubness,
    Scale,
    TextWeightFit,
    best_weight,
    hub_offsets,
    mean_and_spread,
    mixed,
    spaced,
    without,
)
from rarvision.types import Candidate, CategoryScores, Modality

__all__ = ["Aggregate", "Retriever", "Source"]

_SHARES: tuple[Aggregate, ...] = ("vote", "weighted", "tip")  # scores that are no cosines
_SHARPNESS: Final = {"tip": 5.5}
_DEFAULT_AGGREGATE: Final = "blend"
_NEIGHBOURS = 512
_VOTERS = 20
_SCORES_AT_ONCE = 4_000_000
_SCALE_SAMPLES = 256
_HUB_SAMPLES = 1_024
_FIT_SAMPLES = 512
_TEXT_LOGITS = 100.0  # CLIP's own logit scale, which Tip-Adapter's alpha of 1 refers to


@final
class Retriever:
    """Proposes k categories for an encoded image.

    A category's *image score* comes from the similarities of its images to the query: ``nearest`` the highest one;
    ``prototype`` that of their mean direction; ``blend`` a mix of both, ``prototype_weight`` of the latter; ``vote``
    the category's share of the nearest images, ties decided by the closest one; ``weighted`` that share with each
    image counting as much as its similarity; ``sum`` a soft sum over those images,
    ``log(sum(exp(sharpness * similarity))) / sharpness``, which lies between ``vote`` (0) and ``nearest`` (large);
    ``tip`` Tip-Adapter's cache, ``sum(exp(-sharpness * (1 - similarity)))``. Its *text score* is the similarity to the
    mean of its texts.

    Fusion maps text scores linearly onto the scale of image scores, so that the categories that are wrong have the
    same mean and spread by both (estimated on the memory's own images, where there are such categories), and mixes
    them: ``(1 - text_weight) * image + text_weight * text``. A category with only one of the two keeps that one.
    ``tip`` adds 100 times the similarity of the texts instead, as its authors do: their alpha is
    ``(1 - text_weight) / text_weight``, 1 by default.

    Args:
        memory: What is searched.
        k: Candidates to propose.
        source: ``image``, ``text``, or ``fused``: both, as far as the memory holds both. ``none`` proposes all
            categories, sorted by name: an MLLM without retrieval, as in Tables 7 and 13.
        aggregate: How images make an image score; ``nearest`` where ``distinct=False``, which goes with no other (the
            default gives way).
        neighbours: Nearest images that all aggregates but ``prototype`` look at; by default 20 for ``vote``,
            ``weighted`` and ``sum``, else 512. More are fetched where they do not hold k categories; a category beyond
            them counts as just as near as the last one that was seen.
        distinct: True for k different categories. False for the categories of the k nearest entries, with repeats, as
            the paper's authors do; it goes with one source, and looks at k neighbours.
        text_weight: Share of the text score, 0 to 1; ``"auto"``: see `fit_text_weight`.
        text_ratio: Spread of image scores over spread of text scores; estimated by default.
        prototype_weight: Share of the prototype in ``blend``, 0 to 1.
        sharpness: Of ``sum`` (50 by default) and ``tip`` (5.5, its authors' beta).
        hubness: Correction of categories that are near to everything, from the scores that up to 1,024 of the memory's
            images (evenly spaced; once for each revision: their similarities to all categories' means) give to
            categories that are not their own: ``mean``, ``csls`` or ``softmax``, see
            `rarvision.retrieval.statistics.hub_offsets`. Goes with scores that are cosines.

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
        text_weight: float | Literal["auto"] = DEFAULT_TEXT_WEIGHT,
        text_ratio: float | None = None,
        prototype_weight: float = 0.8,
        sharpness: float | None = None,
        hubness: Hubness = "none",
    ) -> None:
        check_retrieval(
            k=k,
            source=source,
            aggregate=aggregate,
            default_aggregate=_DEFAULT_AGGREGATE,
            neighbours=neighbours,
            distinct=distinct,
            hubness=hubness,
            shares=_SHARES,
        )
        if isinstance(text_weight, str):
            if text_weight != "auto":
                raise OptionError(f"text_weight must be a number from 0 to 1, or 'auto', got {text_weight!r}")
        else:
            share("text_weight", text_weight)
        share("prototype_weight", prototype_weight)
        if sharpness is None:
            sharpness = _SHARPNESS.get(aggregate, 50.0)
        if not sharpness > 0 or not (text_ratio is None or text_ratio > 0):
            raise OptionError(f"sharpness and text_ratio must be positive, got {sharpness} and {text_ratio}")
        self.memory = memory
        self.k = k
        self.source = source
        self.aggregate: Aggregate = aggregate if distinct else "nearest"
        self.neighbours = neighbours or (_VOTERS if aggregate in ("vote", "weighted", "sum") else _NEIGHBOURS)
        self.distinct = distinct
        self.text_weight: float | Literal["auto"] = text_weight
        self.hubness: Hubness = hubness
        self.prototype_weight = prototype_weight
        self.sharpness = sharpness
        self.text_ratio = text_ratio
        self._scale_cache: tuple[int, Scale] | None = None
        self._fit_cache: tuple[int, TextWeightFit] | None = None
        self._hub_cache: tuple[int, dict[Modality, Float[np.ndarray, " c"]]] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """All that changes what is retrieved, as JSON values."""
        names = ("k", "source", "aggregate", "neighbours", "distinct", "text_weight", "text_ratio")
        return {name: getattr(self, name) for name in (*names, "prototype_weight", "sharpness", "hubness")}

    def retrieve(self, vectors: Float[np.ndarray, "n dim"]) -> list[list[Candidate]]:
        """Candidates of each query, best first.

        Args:
            vectors: Unit vectors by the memory's encoder, float32.

        Returns:
            For each query k candidates, or as many as the memory holds. ``similarity`` is the score that they are
            sorted by: cosine-like, but for ``vote`` and ``weighted``, whose scores are shares, and ``tip``, a sum.

        Raises:
            MemoryEmptyError: Nothing of this source to search.
            OptionError: Vectors of the wrong shape, or not finite.
        """
        if self.source == "none":
            return [every_category(self.memory, self.k)] * len(vectors)
        if not self.distinct:
            return self._entries(vectors, "text" if self.source == "text" else "image")
        return [candidates for found, _ in self._blocks(vectors) for candidates in found]

    def retrieve_scored(
        self, vectors: Float[np.ndarray, "n dim"]
    ) -> tuple[list[list[Candidate]], list[CategoryScores]]:
        """Candidates as `retrieve` gives them, and the scores of all categories that they were chosen by.

        Raises:
            OptionError: ``distinct=False``, which scores entries; or as `retrieve`.
        """
        if not self.distinct:
            raise OptionError("distinct=False scores entries, not categories: use distinct=True for all scores")
        names = self.memory.category_names()
        ordered = tuple(names[code] for code in self._categories()[0].tolist())
        blocks = list(self._blocks(vectors))
        return (
            [candidates for found, _ in blocks for candidates in found],
            [CategoryScores(ordered, row) for _, scores in blocks for row in scores],
        )

    def _blocks(
        self, vectors: Float[np.ndarray, "n dim"]
    ) -> Iterator[tuple[list[list[Candidate]], Float[np.ndarray, "n c"]]]:
        """Candidates and scores of so many queries as fit in memory."""
        codes, modalities = self._categories()
        at_once = max(1, _SCORES_AT_ONCE // (len(codes) + self.neighbours))
        for start in range(0, len(vectors), at_once):
            yield self._best(vectors[start : start + at_once], codes, modalities)

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
        if self.source == "none":
            raise OptionError("source='none' scores nothing; choose 'fused', 'image' or 'text'")
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
        self,
        vectors: Float[np.ndarray, "n dim"],
        codes: Int[np.ndarray, " c"],
        modalities: tuple[Modality, ...],
        held: Held | None = None,
    ) -> tuple[list[list[Candidate]], Float[np.ndarray, "n c"]]:
        """Candidates and scores of one block of queries."""
        hits = by_image = by_text = None
        if "image" in modalities:
            hits, by_image = self._image_scores(vectors, codes, held)
            scores = by_image
            if "text" in modalities:
                weight = self.fit_text_weight().weight if self.text_weight == "auto" else self.text_weight
                by_text = self._mapped_texts(vectors, codes)
                scores = mixed(by_image, by_text, weight)
        else:
            scores = by_text = self._text_scores(vectors, codes)
        if held is not None and held.foreign:
            scores[held.own[:, None] == codes] = -np.inf
        columns = top_k(scores, self.k)
        values = np.take_along_axis(scores, columns, axis=1)
        parts = [
            np.full(columns.shape, -np.inf) if part is None else np.take_along_axis(part, columns, axis=1)
            for part in (by_image, by_text)
        ]
        names = self.memory.category_names()
        chosen = codes[columns]
        exemplars = exemplar_ids(self.memory, hits, chosen, modalities)
        found = [
            [
                Candidate(
                    category=names[code],
                    similarity=value,
                    exemplars=exemplars[row].get(code, ()),
                    image_similarity=image if image > -np.inf else None,
                    text_similarity=text if text > -np.inf else None,
                )
                for code, value, image, text in zip(
                    chosen[row].tolist(), values[row].tolist(), *(part[row].tolist() for part in parts), strict=True
                )
                if value > -np.inf
            ]
            for row in range(len(vectors))
        ]
        return found, scores

    # Scores -----------------------------------------------------------------------------------------------------

    def _image_scores(
        self, vectors: Float[np.ndarray, "n dim"], codes: Int[np.ndarray, " c"], held: Held | None = None
    ) -> tuple[Hits, Float[np.ndarray, "n c"]]:
        """Image scores by category, ``-inf`` for those without images, and the neighbours that they come from."""
        prototypes = self._prototype_scores(vectors, codes, "image")
        hits = self._neighbours(vectors, 0 if held is None else 1)
        if held is not None:
            prototypes = self._leave_out(prototypes, vectors, codes, held)
            hits = dropped(hits, held.ids)
        scores = aggregated(
            hits,
            prototypes,
            codes,
            self.aggregate,
            neighbours=self.neighbours,
            prototype_weight=self.prototype_weight,
            sharpness=self.sharpness,
        )
        if held is not None and held.even and self.aggregate in _SHARES:
            known, counts = self.memory.prototypes("image").categories, self.memory.prototypes("image").counts
            count = counts[np.searchsorted(known, held.own)]
            own = np.arange(len(vectors)), np.searchsorted(codes, held.own)
            scores[own] *= np.where(count > 1, count / np.maximum(count - 1, 1), 1.0)
        if self.hubness != "none":
            scores = scores - self._hubs(codes, "image")
        return hits, scores

    def _leave_out(
        self,
        scores: Float[np.ndarray, "n c"],
        vectors: Float[np.ndarray, "n dim"],
        codes: Int[np.ndarray, " c"],
        held: Held,
    ) -> Float[np.ndarray, "n c"]:
        """Similarities to means, each query's own category's without the query."""
        ids, of = self.memory.table("image")
        scores = scores.copy()
        for code in np.unique(held.own):
            members = ids[of == code]
            rows = self.memory.vectors(members)
            for query in np.flatnonzero(held.own == code):
                others = rows[members != held.ids[query]]
                scores[query, np.searchsorted(codes, code)] = without(
                    vectors[query], others, rows if held.even else others
                )
        return scores

    def _neighbours(self, vectors: Float[np.ndarray, "n dim"], more: int = 0) -> Hits:
        """Enough nearest images for k different categories, at least `neighbours`, and ``more``."""
        count = self.memory.count("image")
        enough = min(self.k, len(self.memory.prototypes("image").categories))
        wanted = min(count, max(self.neighbours, self.k) + more)
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

    def _text_scores(
        self, vectors: Float[np.ndarray, "n dim"], codes: Int[np.ndarray, " c"]
    ) -> Float[np.ndarray, "n c"]:
        scores = self._prototype_scores(vectors, codes, "text")
        return scores if self.hubness == "none" else scores - self._hubs(codes, "text")

    def _mapped_texts(
        self, vectors: Float[np.ndarray, "n dim"], codes: Int[np.ndarray, " c"]
    ) -> Float[np.ndarray, "n c"]:
        """Text scores on the scale of image scores."""
        texts = self._text_scores(vectors, codes)
        return _TEXT_LOGITS * texts if self.aggregate == "tip" else self._scale(codes).to_image(texts)

    def _own_images(self, most: int) -> tuple[Float[np.ndarray, "n dim"], Held]:
        """Evenly spaced images of the memory."""
        ids, own = self.memory.table("image")
        chosen = spaced(len(ids), most)
        return self.memory.vectors(ids[chosen]), Held(ids=ids[chosen], own=own[chosen])

    def _hubs(self, codes: Int[np.ndarray, " c"], modality: Modality) -> Float[np.ndarray, " c"]:
        """Estimated once for each revision of the memory."""
        revision = self.memory.revision
        if self._hub_cache is None or self._hub_cache[0] != revision:
            self._hub_cache = (revision, {})
        cache = self._hub_cache[1]
        if modality not in cache:
            if not self.memory.count("image"):
                raise MemoryEmptyError(
                    f"hubness={self.hubness!r} is learnt from the memory's images, and it holds none; add some, or "
                    "choose hubness='none'"
                )
            vectors, held = self._own_images(_HUB_SAMPLES)
            scores = self._prototype_scores(vectors, codes, modality)
            cache[modality] = hub_offsets(scores, codes != held.own[:, None], self.hubness)
        return cache[modality]

    def _scale(self, codes: Int[np.ndarray, " c"]) -> Scale:
        """Estimated once for each revision of the memory, on evenly spaced images of it."""
        revision = self.memory.revision
        if self._scale_cache is None or self._scale_cache[0] != revision:
            vectors, held = self._own_images(_SCALE_SAMPLES)
            wrong = codes != held.own[:, None]
            if self.aggregate in _SHARES:
                image = self._image_scores(vectors, codes)[1]
            else:  # means are known for all categories, neighbours only for the near ones
                image = self._prototype_scores(vectors, codes, "image")
                if self.hubness != "none":
                    image = image - self._hubs(codes, "image")
            text = self._text_scores(vectors, codes)
            by_image, by_text = mean_and_spread(image, wrong), mean_and_spread(text, wrong)
            if by_image is None or by_text is None:
                scale = Scale(ratio=self.text_ratio or 1.0)
            else:
                ratio = by_image[1] / by_text[1] if by_image[1] > 0 and by_text[1] > 0 else 1.0
                scale = Scale(image_mean=by_image[0], text_mean=by_text[0], ratio=self.text_ratio or ratio)
            self._scale_cache = (revision, scale)
        return self._scale_cache[1]

    def left_out(
        self, ids: Int[np.ndarray, " n"], *, even: bool = False
    ) -> tuple[Int[np.ndarray, " c"], Float[np.ndarray, "n c"], Float[np.ndarray, "n c"]]:
        """Scores that images of the memory would get, were they not in it.

        What `hubness` and the scale of fusion are learnt from stays the whole memory.

        Args:
            ids: Entry ids of images.
            even: An image that is missing puts its category at a disadvantage against those that kept all of theirs:
                its mean of fewer images is longer before it is normalised, its share of the votes smaller. True makes
                up for that: the mean is divided by the length that it has with the image, shares are multiplied by
                ``n / (n - 1)``.

        Returns:
            Codes of the categories, ascending; for each image their image scores, ``-inf`` where no image is left, and
            their text scores on the scale of image scores, ``-inf`` where there is no text.
        """
        own = self._own_of(ids)
        modalities: tuple[Modality, ...] = ("image", "text")
        codes = np.unique(np.concatenate([self.memory.prototypes(m).categories for m in modalities]))
        texts = bool(self.memory.count("text"))
        by_image = np.full((len(ids), len(codes)), -np.inf)
        by_text = by_image.copy()
        at_once = max(1, _SCORES_AT_ONCE // (len(codes) + self.neighbours))
        for start in range(0, len(ids), at_once):
            part = slice(start, start + at_once)
            held = Held(ids=ids[part], own=own[part], even=even)
            vectors = self.memory.vectors(held.ids)
            by_image[part] = self._image_scores(vectors, codes, held)[1]
            if texts:
                by_text[part] = self._mapped_texts(vectors, codes)
        return codes, by_image, by_text

    def retrieve_left_out(self, ids: Int[np.ndarray, " n"], *, foreign: bool = False) -> list[list[Candidate]]:
        """Candidates that images of the memory would get, were they not in it; see `left_out` with ``even``.

        Args:
            ids: Entry ids of images.
            foreign: Leave each image's whole category out, as if the memory did not know it.

        Returns:
            As `retrieve`.

        Raises:
            OptionError: An id that is no image's, or ``distinct=False``.
        """
        if not self.distinct:
            raise OptionError("leaving images out needs distinct=True; the paper's mode takes the nearest entries")
        codes, modalities = self._categories()
        own = self._own_of(ids)
        at_once = max(1, _SCORES_AT_ONCE // (len(codes) + self.neighbours))
        found: list[list[Candidate]] = []
        for start in range(0, len(ids), at_once):
            part = slice(start, start + at_once)
            held = Held(ids=ids[part], own=own[part], even=True, foreign=foreign)
            found += self._best(self.memory.vectors(held.ids), codes, modalities, held)[0]
        return found

    def _own_of(self, ids: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Category codes of images; `OptionError` where an id is none."""
        table, own = self.memory.table("image")
        place = np.minimum(np.searchsorted(table, ids), len(table) - 1)
        if not len(table) or not np.array_equal(table[place], ids):
            raise OptionError("only images of the memory can be left out; some of these ids are none")
        return own[place]

    # Fitting ----------------------------------------------------------------------------------------------------

    def fit_text_weight(self) -> TextWeightFit:
        """Find the share of text scores by which the memory's own images, left out one at a time, are known best.

        Up to 512 evenly spaced images are asked, 21 shares tried; nothing but the memory is used, and the same memory
        gives the same share. Leaving an image out is made no disadvantage to its category (``even`` of `left_out`);
        images that are alone in their category are not asked. Kept for each revision of the memory.

        Returns:
            The share, and the whole curve.

        Raises:
            MemoryEmptyError: The memory lacks images or texts.
        """
        revision = self.memory.revision
        if self._fit_cache is None or self._fit_cache[0] != revision:
            if not (self.memory.count("image") and self.memory.count("text")):
                raise MemoryEmptyError(
                    "the share of texts is fitted on a memory with images and texts; this one holds "
                    f"{self.memory.count('image')} images and {self.memory.count('text')} texts"
                )
            ids, own = self.memory.table("image")
            known, counts = np.unique(own, return_counts=True)
            several = np.isin(own, known[counts > 1])
            chosen = spaced(int(several.sum()), _FIT_SAMPLES) if several.any() else np.empty(0, dtype=np.int64)
            codes, images, texts = self.left_out(ids[several][chosen], even=True)
            fit = best_weight(images, texts, np.searchsorted(codes, own[several][chosen]))
            self._fit_cache = (revision, fit)
        return self._fit_cache[1]
