"""The one path from an image to a prediction: encode, retrieve, rank, mix. Baselines are its presets."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from rarvision.asking import Asker, Question, as_arguments
from rarvision.calibration import Calibration, FitStatus, RankerFit, RankerWeight
from rarvision.chat.threads import ordered_stream
from rarvision.encoders import Views, check_views
from rarvision.errors import ImageError, MemoryEmptyError, OptionError, RarvisionError
from rarvision.exemplars import Exemplars
from rarvision.judging import Judge
from rarvision.memory.base import Memory
from rarvision.queries import (
    Query,
    RecognitionFailure,
    Recognizable,
    RegionView,
    check_region_view,
    iter_queries,
)
from rarvision.ranking import BaseRanker, NoExample, OptionPrior, Ranker, Showing, Shown, WorkedExample
from rarvision.regions import CropRule
from rarvision.retrieval import Retriever
from rarvision.taxonomy import Taxonomy
from rarvision.types import Candidate, CategoryScores, Prediction, Ranking
from rarvision.worked import WorkedExamples

__all__ = ["RecognitionFailure", "Recognizable", "Recognizer"]

_READ_AHEAD = 8
_MAX_BATCH_PIXELS = 64_000_000
_LIGHT = 0.25  # what an image weighs that is not held any more, as it has its answer


@dataclass(frozen=True, slots=True)
class _Case:
    """An image on its way: what was retrieved for it in each order, and what the ranker is asked, or has answered."""

    source: str
    failure: RecognitionFailure | None = None
    shown: Sequence[Sequence[Candidate]] = ()
    answers: Sequence[Question | Ranking | ImageError | None] = ()
    scores: CategoryScores | None = None
    retrieval_ms: float = 0.0
    ranking_ms: float = 0.0

    @property
    def questions(self) -> list[Question]:
        """Those without an answer."""
        return [answer for answer in self.answers if isinstance(answer, Question)]


class Recognizer:
    """Retrieves candidate categories from a memory and has an MLLM rank them (the paper's section 3).

    ``ranker=None`` is retrieval alone: with ``Retriever(memory, source="image", aggregate="nearest")`` the paper's
    CLIP + kNN baseline. ``ranker_weight="replace"`` is the paper's RAR: the ranker's order, whatever retrieval thinks.

    Args:
        memory: The external memory; its encoder encodes the images.
        ranker: Ranks the candidates; None predicts retrieval's first.
        k: Candidates of each image; 5 by default. With a ``retriever``, its own ``k`` holds.
        retriever: How neighbours become candidates; ``Retriever(memory, k=k)`` by default.
        ranker_weight: Weight of the ranker's log-scores beside retrieval's prior: 0 is retrieval alone, ``"replace"``
            the ranker alone. None takes the parameters' own: fitted, or 1.
        calibration: The parameters of the mix and of "not retrieved"; None takes the fit's, or the shipped ones.
        fit: ``kept``: what the memory keeps for this retriever and ranker, if it does (`rarvision.fit_recognizer` and
            ``rarvision fit`` make it); or a fit of your own; or None. `Prediction.fit` says what it was.
        gate: When the ranker need not be asked, since retrieval is sure enough: None or False asks always, True as
            fitted, a number keeps this share of the ranker's gain. Such a ranking has the status ``skipped``.
        reject: When the answer is "unknown": False never, True from the fitted threshold on, a number from this
            probability of "not retrieved" on.
        taxonomy: A tree over the categories: predictions then also answer at each level, and at the deepest sure one.
        sure: Probability from which an answer at a level is sure; True takes the threshold fitted for this tree.
        allow_fallback: What to do where the MLLM cannot answer: raise (False), or predict from retrieval and say so
            in the prediction's ``ranking.status``, ``reason`` and ``unanswered`` (True). Where nothing answers twice in
            a row, nothing is asked for half a minute, then one question. A strategy that the MLLM does not serve is
            raised either way. An image that the MLLM's preprocessing refuses fails alone (False), or falls back.
        batch_size: Images that are encoded and ranked together.
        views: What is encoded of each image, see `rarvision.encoders.Views`: several views cost as many forward passes.
        crop: How a sample with a box becomes the crop that is encoded and shown (section 3.2); None for the box alone.
        region_view: What the ranker sees of a sample with a box, see `rarvision.queries.RegionView`.
        keep_scores: Whether predictions carry retrieval's scores of all categories, `Prediction.scores`.

    Raises:
        InputError: The taxonomy lacks categories of the memory.
        OptionError: An option is out of range or no such thing, ``k`` contradicts the retriever's, or the ranker wants
            a worked example and the retriever has ``distinct=False``.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        ranker: BaseRanker | None = None,
        k: int | None = None,
        retriever: Retriever | None = None,
        ranker_weight: RankerWeight | None = None,
        calibration: Calibration | None = None,
        fit: RankerFit | Literal["kept"] | None = "kept",
        gate: bool | float | None = None,
        reject: bool | float = False,
        taxonomy: Taxonomy | None = None,
        sure: bool | float = 0.9,
        allow_fallback: bool = False,
        batch_size: int = 32,
        views: Views = "whole",
        crop: CropRule | None = None,
        region_view: RegionView = "crop",
        keep_scores: bool = False,
    ) -> None:
        if batch_size < 1:
            raise OptionError(f"batch_size must be at least 1, got {batch_size}")
        if retriever is None:
            retriever = Retriever(memory, k=5 if k is None else k)
        elif retriever.memory is not memory:
            raise OptionError("the retriever searches another memory; make it from the one given to the recognizer")
        elif k is not None and k != retriever.k:
            raise OptionError(f"k={k} contradicts the retriever's k={retriever.k}; give one of them")
        if crop is not None and not isinstance(crop, CropRule):
            raise OptionError(f"crop must be a CropRule, such as CropRule(scale=1.6), or None, got {crop!r}")
        self._memory = memory
        self._ranker = ranker
        self._retriever = retriever
        self._allow_fallback = allow_fallback
        self._batch_size = batch_size
        self._views = check_views(views)
        self._crop = crop
        self._region_view = check_region_view(region_view)
        self._keep_scores = keep_scores
        self._asker = None if ranker is None else Asker(ranker, allow_fallback=allow_fallback)
        self._parallel = 1 if ranker is None else ranker.parallel_calls
        showing = Showing() if ranker is None else ranker.showing
        self._exemplars = Exemplars(memory, showing)
        self._worked = WorkedExamples(retriever) if showing.worked_example else None
        self._judging: dict[str, Any] = {
            "calibration": calibration,
            "fit": fit,
            "ranker_weight": ranker_weight,
            "gate": gate,
            "reject": reject,
            "taxonomy": taxonomy,
            "sure": sure,
        }
        self._judge = Judge(memory, self._parts, **self._judging)

    @property
    def memory(self) -> Memory:
        """The external memory."""
        return self._memory

    @property
    def ranker(self) -> BaseRanker | None:
        """The ranker, if any."""
        return self._ranker

    @property
    def retriever(self) -> Retriever:
        """What turns neighbours into candidates."""
        return self._retriever

    @property
    def taxonomy(self) -> Taxonomy | None:
        """The tree over the categories, if any."""
        return self._judge.taxonomy

    @property
    def k(self) -> int:
        """Candidates of each image."""
        return self._retriever.k

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that changes a prediction, as JSON values: what two runs must share to be compared or joined."""
        return {
            "encoder": self._memory.encoder_name,
            "encoder_fingerprint": self._memory.encoder_fingerprint,
            "memory_content": self._memory.content_hash,
            "entries": self._memory.count(),
            "categories": len(self._memory.categories()),
            **self._parts,
            **self._judge.settings,
            "allow_fallback": self._allow_fallback,
        }

    @property
    def fit(self) -> FitStatus:
        """What the probabilities rest on now."""
        return self._judge.status

    @property
    def _parts(self) -> dict[str, Any]:
        """What a fit is valid for."""
        return {
            "views": self._views,
            "retriever": self._retriever.settings,
            "ranker": None if self._ranker is None else dict(self._ranker.settings),
            **({} if self._crop is None else {"crop": asdict(self._crop)}),
            **({} if self._region_view == "crop" else {"region_view": self._region_view}),
        }

    def recognize(self, image: Recognizable) -> Prediction:
        """Recognise one image.

        Raises:
            ImageError: It cannot be read.
            MemoryEmptyError: The memory holds nothing.
            ChatError: The MLLM cannot answer, and ``allow_fallback`` is off.
        """
        (outcome,) = self.recognize_batch([image])
        if isinstance(outcome, RecognitionFailure):
            raise outcome.error
        return outcome

    def recognize_batch(self, images: Iterable[Recognizable]) -> list[Prediction | RecognitionFailure]:
        """Recognise several images; see `iter_recognize`."""
        return list(self.iter_recognize(images))

    def iter_recognize(self, images: Iterable[Recognizable]) -> Generator[Prediction | RecognitionFailure]:
        """Recognise a stream of images of any length in bounded memory.

        Images are read ahead in a few threads; a batch is closed early where its images are large. A ranker that takes
        several calls at a time, such as one over HTTP, is asked about each image as soon as it may be, across batches:
        fewer at a time where the images are large.

        Args:
            images: Consumed as the outcomes are.

        Yields:
            One outcome an image, in order. An image that cannot be read or encoded, or that the MLLM's preprocessing
            refuses, is a `RecognitionFailure`.

        Raises:
            MemoryEmptyError: The memory holds nothing.
            ChatError: The MLLM cannot answer, and ``allow_fallback`` is off.
        """
        with closing(self.iter_reordered(images, lambda _source, n: [range(n)])) as outcomes:
            for outcome in outcomes:
                yield outcome if isinstance(outcome, RecognitionFailure) else outcome[0]

    def iter_reordered(
        self, images: Iterable[Recognizable], orders: Callable[[str, int], Sequence[Sequence[int]]]
    ) -> Generator[tuple[Prediction, ...] | RecognitionFailure]:
        """Recognise images with their candidates shown to the ranker in given orders, each order on its own.

        An image is encoded once, and the ranker is asked about all its orders together.

        Args:
            images: As of `iter_recognize`.
            orders: Of a source and its number of candidates: permutations of their places, at least one. The candidate
                at place ``order[i]`` of retrieval's list is shown at i.

        Yields:
            For each image one prediction an order, whose ``retrieved`` are the names as shown; or its failure.

        Raises:
            MemoryEmptyError: The memory holds nothing.
            ChatError: The MLLM cannot answer, and ``allow_fallback`` is off.
        """
        with (
            closing(self._loaded(images)) as loaded,
            closing(self._answered(self._cases(self._batches(loaded), orders))) as answered,
        ):
            for group in answered:
                for case in group:
                    yield self._outcome(case)

    def estimate_bias(self, images: Iterable[Recognizable]) -> OptionPrior:
        """Estimate the ranker's prior of letters and places from the candidates of a few images; see `Ranker`.

        Args:
            images: A few dozen, all in memory at once; labels are not looked at. What cannot be read is left out.

        Raises:
            OptionError: There is no ranker that shows a list and gives scores.
            InputError: No image could be used.
            MemoryEmptyError: The memory holds nothing.
            ChatError: The MLLM cannot answer.
        """
        if not isinstance(self._ranker, Ranker):
            raise OptionError("a prior of letters and places is a Ranker's; this recognizer has none")
        questions: list[Question] = []
        with closing(self._loaded(images)) as every:
            for batch in self._batches(every):
                loaded, found, _, _ = self._retrieve_loaded(batch)
                questions += self._questions(loaded, found)
        return self._ranker.estimate_bias(**as_arguments(questions))

    def with_ranker(self, ranker: BaseRanker | None) -> Recognizer:
        """The same recognizer with another ranker."""
        return self._with(ranker=ranker)

    def with_scores(self) -> Recognizer:
        """The same recognizer, whose predictions carry retrieval's scores of all categories."""
        return self._with(keep_scores=True)

    def _with(self, **changed: Any) -> Recognizer:
        options: dict[str, Any] = {
            "ranker": self._ranker,
            "retriever": self._retriever,
            **self._judging,
            "allow_fallback": self._allow_fallback,
            "batch_size": self._batch_size,
            "views": self._views,
            "crop": self._crop,
            "region_view": self._region_view,
            "keep_scores": self._keep_scores,
        }
        return Recognizer(self._memory, **{**options, **changed})

    def _loaded(self, images: Iterable[Recognizable]) -> Generator[Query | RecognitionFailure]:
        ahead = max(1, min(_READ_AHEAD, self._batch_size))
        return iter_queries(images, self._crop, self._region_view, ahead=ahead)

    def _batches(self, loaded: Iterable[Query | RecognitionFailure]) -> Iterator[list[Query | RecognitionFailure]]:
        batch: list[Query | RecognitionFailure] = []
        pixels = 0
        for item in loaded:
            batch.append(item)
            pixels += item.pixels if isinstance(item, Query) else 0
            if len(batch) >= self._batch_size or pixels >= _MAX_BATCH_PIXELS:
                yield batch
                batch, pixels = [], 0
        if batch:
            yield batch

    def _cases(
        self,
        batches: Iterable[Sequence[Query | RecognitionFailure]],
        orders: Callable[[str, int], Sequence[Sequence[int]]],
    ) -> Iterator[list[_Case]]:
        """What is to be asked together: a batch, or each image where the ranker takes several calls at a time."""
        for batch in batches:
            started = time.perf_counter()
            self._judge.refresh()
            good, found, failures, scores = self._retrieve_loaded(batch)
            retrieval_ms = (time.perf_counter() - started) * 1000 / max(1, len(good))
            shown = [
                [[candidates[place] for place in order] for order in orders(item.source, len(candidates))]
                for item, candidates in zip(good, found, strict=True)
            ]
            questions = iter(
                self._gated(
                    [item for item, each in zip(good, shown, strict=True) for _ in each],
                    [candidates for each in shown for candidates in each],
                )
            )
            done = iter(
                _Case(item.source, None, each, [next(questions) for _ in each], of_item, retrieval_ms)
                for item, each, of_item in zip(good, shown, scores, strict=True)
            )
            cases = [next(done) if failure is None else _Case(failure.source, failure) for failure in failures]
            yield from [cases] if self._parallel == 1 else ([case] for case in cases)

    def _gated(self, items: Sequence[Query], found: Sequence[Sequence[Candidate]]) -> list[Question | Ranking | None]:
        """What to ask about each image; a ranking where retrieval is sure of it, None where there is no ranker."""
        if self._ranker is None:
            return [None] * len(items)
        strategy, gated = self._ranker.strategy, self._judge.gated
        skipped = [self._judge.skip(candidates, strategy) if gated else None for candidates in found]
        asked = [i for i, ranking in enumerate(skipped) if ranking is None]
        questions = iter(self._questions([items[i] for i in asked], [found[i] for i in asked]))
        return [next(questions) if ranking is None else ranking for ranking in skipped]

    def _questions(self, items: Sequence[Query], found: Sequence[Sequence[Candidate]]) -> list[Question]:
        nothing = [None] * len(items)
        shown: Sequence[Sequence[Shown] | None] = self._exemplars.of(found) or nothing
        worked: Sequence[WorkedExample | NoExample | None] = self._worked.of(nothing) if self._worked else nothing
        return [
            Question(item.view, [candidate.category for candidate in candidates], each, example)
            for item, candidates, each, example in zip(items, found, shown, worked, strict=True)
        ]

    def _answered(self, groups: Iterable[list[_Case]]) -> Generator[list[_Case]]:
        """The same in the same order, ranked; as many at a time as the ranker takes."""
        if self._parallel == 1:
            yield from map(self._ask, groups)
            return
        ahead = 2 * self._parallel + self._batch_size  # as many wait as are under way, and a batch is encoded meanwhile

        def weight(group: list[_Case]) -> float:
            pixels = max((q.image.width * q.image.height for case in group for q in case.questions), default=0)
            return max(1 / ahead, pixels / _MAX_BATCH_PIXELS) if pixels else _LIGHT / ahead

        yield from ordered_stream(
            self._ask, groups, threads=self._parallel, weight=weight, weight_answered=_LIGHT / ahead
        )

    def _ask(self, group: list[_Case]) -> list[_Case]:
        """With the answers to its questions; called in several threads where the ranker takes several calls."""
        questions = [question for case in group for question in case.questions]
        if self._asker is None or not questions:
            return group
        found, seconds = self._asker.ask(questions)
        answers, good = iter(found), sum(case.failure is None for case in group)
        return [
            replace(
                case,
                answers=[next(answers) if isinstance(each, Question) else each for each in case.answers],
                ranking_ms=1000 * seconds / good,
            )
            for case in group
        ]

    def _outcome(self, case: _Case) -> tuple[Prediction, ...] | RecognitionFailure:
        """Predictions from what was retrieved and answered, or why there are none."""
        if case.failure is not None:
            return case.failure
        refused = [answer for answer in case.answers if isinstance(answer, ImageError)]
        if refused:
            return RecognitionFailure(source=case.source, error=refused[0])
        times = {"retrieval_ms": case.retrieval_ms, "ranking_ms": case.ranking_ms}
        return tuple(
            self._judge.predict(case.source, candidates, ranking, scores=case.scores, **times)
            for candidates, ranking in zip(case.shown, case.answers, strict=True)
            if not isinstance(ranking, ImageError | Question)
        )

    def _retrieve_loaded(
        self, batch: Sequence[Query | RecognitionFailure]
    ) -> tuple[
        list[Query],
        Sequence[Sequence[Candidate]],
        list[RecognitionFailure | None],
        Sequence[CategoryScores | None],
    ]:
        """What could be encoded, its candidates, for each of the batch its failure or None, and all scores if kept."""
        vectors: list[Float[np.ndarray, " dim"]] = []
        good: list[Query] = []
        failures: list[RecognitionFailure | None] = []
        for item, vector in zip(batch, self._encode(batch), strict=True):
            if isinstance(item, Query) and isinstance(vector, np.ndarray):
                good.append(item)
                vectors.append(vector)
                failures.append(None)
            elif isinstance(vector, RarvisionError):
                failures.append(RecognitionFailure(source=item.source, error=vector))
            elif isinstance(item, RecognitionFailure):
                failures.append(item)
        found: Sequence[Sequence[Candidate]] = []
        scores: Sequence[CategoryScores | None] = [None] * len(good)
        if good and self._keep_scores:
            found, scores = self._retriever.retrieve_scored(np.stack(vectors))
        elif good:
            found = self._retriever.retrieve(np.stack(vectors))
        if not all(found):
            raise MemoryEmptyError("the memory holds nothing that could be retrieved; add images or names first")
        return good, found, failures, scores

    def _encode(
        self, batch: Sequence[Query | RecognitionFailure]
    ) -> list[Float[np.ndarray, " dim"] | RarvisionError | None]:
        """A unit vector for each loaded image, or the error where it cannot be encoded."""
        encoder = self._memory.encoder
        images = [item.image for item in batch if isinstance(item, Query)]
        vectors: list[Float[np.ndarray, " dim"] | RarvisionError] = []
        try:
            if images:
                vectors = list(encoder.encode_images(images, batch_size=self._batch_size, views=self._views))
        except RarvisionError:
            for image in images:  # one by one, so that only the culprit fails
                try:
                    vectors.append(encoder.encode_images([image], views=self._views)[0])
                except RarvisionError as error:
                    vectors.append(error)
        encoded = iter(vectors)
        return [next(encoded) if isinstance(item, Query) else None for item in batch]
