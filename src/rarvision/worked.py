"""Worked examples from a memory: images of its own, with the candidates that they have when they are left out."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import final

import numpy as np
from jaxtyping import Int

from rarvision.errors import ImageError, OptionError
from rarvision.exemplars import entry_image
from rarvision.ranking import NoExample, WorkedExample
from rarvision.retrieval import Retriever

__all__ = ["WorkedExamples"]

_SAMPLE = 64
_KEPT = 2  # so that an image that is one of them gets the other


@final
class WorkedExamples:
    """Chooses them, once for each revision of the memory; safe among threads.

    Of a sample of the images whose category can be found without them, each is left out of the memory and retrieved
    for. Taken are the first two that can still be opened and whose category is among the candidates: rather not as the
    first of them, since an answer that differs from retrieval's teaches more than copying. The same memory and
    retriever give the same examples.

    Args:
        retriever: Proposes the candidates, as for the images that are asked about.
        seed: Of the sample, and of the order in which an example names its candidates.

    Raises:
        OptionError: The retriever repeats categories (``distinct=False``).
    """

    def __init__(self, retriever: Retriever, *, seed: int = 0) -> None:
        if not retriever.distinct:
            raise OptionError(
                "a worked example is an image of the memory that is left out of it, which needs a retriever with "
                "distinct=True; leave worked_example or distinct=False out"
            )
        self._retriever = retriever
        self._memory = retriever.memory
        self._seed = seed
        self._lock = threading.Lock()
        self._revision = -1
        self._examples: dict[int, WorkedExample] = {}  # by entry
        self._none = NoExample(reason="")

    def of(self, without: Sequence[int | None]) -> list[WorkedExample | NoExample]:
        """The example of each question.

        Args:
            without: For each, the entry that must not be its example, since it is the image itself; None for none.

        Returns:
            The same object for all questions that may have it; else why there is none.
        """
        with self._lock:
            if self._memory.revision != self._revision:
                self._choose()
            return [self._example(entry) for entry in without]

    def _example(self, without: int | None) -> WorkedExample | NoExample:
        others = (example for entry, example in self._examples.items() if entry != without)
        alone = NoExample(reason="the one image of the memory that serves is the one that is asked about; add images")
        return next(others, alone if self._examples else self._none)

    def _choose(self) -> None:
        with self._memory.snapshot():  # what is sampled must still be there when it is left out
            revision = self._memory.revision
            ids, codes = self._sample()
            self._examples = dict(islice(self._serving(ids, codes), _KEPT))
        if not self._memory.count("image"):
            reason = "the memory holds no images; add some"
        elif not len(ids):
            reason = "each of the memory's images is all that tells of its category; add images to the categories"
        else:
            reason = (
                f"of {len(ids)} images of the memory none can still be opened and has its category retrieved when it "
                "is left out; add images to the categories, or bring back those that are gone"
            )
        self._none = NoExample(reason=reason)
        self._revision = revision

    def _sample(self) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Ids and category codes of up to 64 images whose category is within reach without them."""
        ids, codes = self._memory.table("image")
        reached = np.zeros(len(ids), dtype=bool)
        if self._retriever.source != "text" and len(ids):
            _, place, counts = np.unique(codes, return_inverse=True, return_counts=True)
            reached |= counts[place] > 1
        if self._retriever.source != "image":
            reached |= np.isin(codes, self._memory.table("text")[1])
        rows = np.flatnonzero(reached)
        chosen = np.random.default_rng(self._seed).choice(rows, size=min(_SAMPLE, len(rows)), replace=False)
        return ids[chosen], codes[chosen]

    def _serving(self, ids: Int[np.ndarray, " n"], codes: Int[np.ndarray, " n"]) -> Iterator[tuple[int, WorkedExample]]:
        """Entries that serve, with their examples, the better ones first; images are opened as they are asked for."""
        names = self._memory.category_names()
        found = []
        for entry, code, candidates in zip(
            ids.tolist(), codes.tolist(), self._retriever.retrieve_left_out(ids) if len(ids) else (), strict=True
        ):
            truth, listed = names[code], tuple(candidate.category for candidate in candidates)
            if truth in listed and len(listed) > 1:
                found.append((entry, truth, listed))
        for entry, truth, listed in sorted(found, key=lambda each: each[2][0] == each[1]):  # stable
            try:
                image = entry_image(self._memory, entry)
            except ImageError:
                image = None
            if image is not None:
                order = np.random.default_rng([self._seed, entry]).permutation(len(listed))
                yield (
                    entry,
                    WorkedExample(image=image, truth=truth, candidates=listed, order=tuple(map(int, order))),
                )
