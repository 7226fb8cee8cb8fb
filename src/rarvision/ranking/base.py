"""What every ranker is: names in retrieval's order go in, a permutation of them comes out."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL.Image import Image

from rarvision.errors import InputError
from rarvision.ranking.showing import Showing, Shown, Subject, subjects_of
from rarvision.ranking.worked import NoExample, WorkedExample
from rarvision.types import Ranking

__all__ = ["BaseRanker"]


class BaseRanker(abc.ABC):
    """Ranks candidate names for images; an author writes `name` and `_rank_distinct`.

    The base asks for each repeated name once, answers lists of none or one without asking, and checks what comes back.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """For reports: the model and how it is asked."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that changes the outcome, as JSON values; `evaluate` refuses to resume under other settings."""
        return {"name": self.name}

    @property
    def strategy(self) -> str:
        """The strategy's name, as it appears in each `Ranking`."""
        return self.name

    @property
    def showing(self) -> Showing:
        """What it wants to be given beside the candidates' names; nothing unless an author says so."""
        return Showing()

    @property
    def parallel_calls(self) -> int:
        """Calls of `rank_batch` that may be under way at a time, in several threads; 1 where they must not overlap."""
        return 1

    def _rank_shown(self, subjects: Sequence[Subject], names: Sequence[tuple[str, ...]]) -> list[Ranking]:
        """For authors whose rankers show more than names: as `_rank_distinct`, with what is known beside them."""
        return self._rank_distinct([subject.image for subject in subjects], names)

    @abc.abstractmethod
    def _rank_distinct(self, images: Sequence[Image], names: Sequence[tuple[str, ...]]) -> list[Ranking]:
        """Rank at least two distinct names for each RGB image."""

    def rank(self, image: Image, names: Sequence[str]) -> Ranking:
        """Rank the names for one image; see `rank_batch`."""
        return self.rank_batch([image], [names])[0]

    def rank_batch(
        self,
        images: Sequence[Image],
        names: Sequence[Sequence[str]],
        shown: Sequence[Sequence[Shown]] | None = None,
        worked: Sequence[WorkedExample | NoExample] | None = None,
    ) -> list[Ranking]:
        """Rank each image's names.

        Args:
            images: n RGB images.
            names: Each image's candidates in retrieval's order; any number, repeated names allowed.
            shown: What may be shown of each of them, for rankers that ask for it (`showing`); None for nothing.
            worked: For each image the example to begin with, or why there is none, for rankers that ask for it.

        Returns:
            n rankings, whose ``order`` counts in the given names. Places of a repeated name stay together.

        Raises:
            InputError: The counts differ, or a name is blank.
            ChatError: The MLLM cannot be asked. An answer that cannot be read is a status, not an error.
        """
        subjects = subjects_of(images, names, shown, worked)
        for candidates in names:
            if any(not name.strip() for name in candidates):
                raise InputError(f"candidate names must not be blank, got {list(candidates)!r}")
        distinct = [tuple(dict.fromkeys(candidates)) for candidates in names]
        asked = [i for i, candidates in enumerate(distinct) if len(candidates) > 1]
        answers: dict[int, Ranking] = {}
        if asked:
            rankings = self._rank_shown([subjects[i] for i in asked], [distinct[i] for i in asked])
            answers = dict(zip(asked, rankings, strict=True))
        return [
            _spread(answers.get(i) or _trivial(len(distinct[i]), self.strategy), distinct[i], candidates)
            for i, candidates in enumerate(names)
        ]


def _trivial(n: int, strategy: str) -> Ranking:
    return Ranking(order=tuple(range(n)), log_scores=(0.0,) * n, strategy=strategy)


def _spread(ranking: Ranking, distinct: Sequence[str], names: Sequence[str]) -> Ranking:
    """A ranking of distinct names -> of the names with their repeats."""
    if len(ranking.order) != len(distinct):
        raise InputError(f"the ranker returned {len(ranking.order)} places for {len(distinct)} names")
    if len(distinct) == len(names):
        return ranking
    index = {name: i for i, name in enumerate(distinct)}
    places: list[list[int]] = [[] for _ in distinct]
    for place, name in enumerate(names):
        places[index[name]].append(place)
    scores = ranking.log_scores
    return replace(
        ranking,
        order=tuple(place for i in ranking.order for place in places[i]),
        log_scores=None if scores is None else tuple(scores[index[name]] for name in names),
    )
