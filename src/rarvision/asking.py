"""Asking a ranker about images and their candidates, in several threads too; what an image gets where none answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from PIL.Image import Image

from rarvision.errors import (
    ChatError,
    ChatProtocolError,
    ChatUnavailableError,
    ChatUnsupportedError,
    ImageError,
)
from rarvision.ranking import BaseRanker, NoExample, Shown, WorkedExample
from rarvision.ranking.outage import Outage, fallback
from rarvision.types import Ranking

__all__ = ["Asker", "Question", "as_arguments"]


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """An image, its candidates' names in the order in which they are shown, and what may be shown beside them."""

    image: Image
    names: Sequence[str]
    shown: Sequence[Shown] | None = None
    worked: WorkedExample | NoExample | None = None


def as_arguments(questions: Sequence[Question]) -> dict[str, Any]:
    """What `BaseRanker.rank_batch` is given; nothing beside the names where a ranker wants nothing."""
    shown, worked = [question.shown for question in questions], [question.worked for question in questions]
    return {
        "images": [question.image for question in questions],
        "names": [question.names for question in questions],
        **({"shown": shown} if any(each is not None for each in shown) else {}),
        **({"worked": worked} if any(each is not None for each in worked) else {}),
    }


@final
class Asker:
    """Has questions ranked; where that fails one by one, so that only what fails goes without an answer.

    Args:
        ranker: Who is asked.
        allow_fallback: Whether a question that the MLLM cannot answer gets retrieval's order, or its error is raised.
    """

    def __init__(self, ranker: BaseRanker, *, allow_fallback: bool) -> None:
        self._ranker = ranker
        self._allow_fallback = allow_fallback
        self._outage = Outage()
        self._lock = threading.Lock()
        self._since = self._shared_s = 0.0
        self._under_way = 0

    def ask(self, questions: Sequence[Question]) -> tuple[list[Ranking | ImageError], float]:
        """A ranking for each question, or the error where the MLLM's preprocessing refuses its image.

        Returns:
            The answers, and how many seconds they took: of calls at the same time, each gets an equal share.

        Raises:
            ChatError: The MLLM cannot answer, and there is no fallback; or it does not serve such questions at all.
        """
        start = self._shared_seconds(begun=1)
        try:
            answers = self._unless_down(questions)
        finally:
            end = self._shared_seconds(begun=-1)
        return answers, end - start

    def _shared_seconds(self, *, begun: int) -> float:
        """Seconds so far in which something was asked, each divided by the number of calls that were under way."""
        with self._lock:
            now = time.perf_counter()
            self._shared_s += (now - self._since) / self._under_way if self._under_way else 0.0
            self._since = now
            self._under_way += begun
            return self._shared_s

    def _unless_down(self, questions: Sequence[Question]) -> list[Ranking | ImageError]:
        """Ask, but where nothing answered lately: then one question at a time finds out."""
        rankings: list[Ranking | ImageError] = []
        if questions and self._outage.suspected:
            with self._outage.finding_out:
                if self._outage.suspected and not self._outage.waiting:
                    rankings.append(self._alone(questions[0]))
                left = questions[len(rankings) :]
                if self._outage.suspected:
                    return [*rankings, *map(self._not_asked, left)]
        return [*rankings, *self._together(questions[len(rankings) :])]

    def _together(self, questions: Sequence[Question]) -> list[Ranking | ImageError]:
        """As a batch; where that fails one by one, until the MLLM is taken to be down: only what fails falls back."""
        if len(questions) == 1:
            return [self._alone(questions[0])]
        try:
            return list(self._rank(questions))
        except (ChatError, ImageError) as error:
            if self._must_raise(error):
                raise
        return [self._not_asked(each) if self._outage.suspected else self._alone(each) for each in questions]

    def _alone(self, question: Question) -> Ranking | ImageError:
        try:
            (ranking,) = self._rank([question])
        except (ChatError, ImageError) as error:
            if self._must_raise(error):
                raise
            self._outage.note(error)
            if isinstance(error, ImageError) and not self._allow_fallback:
                return error
            no_answer = isinstance(error, ChatUnavailableError | ChatProtocolError)
            reason = f"{type(error).__name__}: {error}"
            return fallback(len(question.names), self._ranker.strategy, reason, unanswered=no_answer)
        self._outage.note(None)
        return ranking

    def _not_asked(self, question: Question) -> Ranking:
        return self._outage.not_asked(len(question.names), self._ranker.strategy)

    def _must_raise(self, error: ChatError | ImageError) -> bool:
        """Whether an error is more than one image's."""
        return isinstance(error, ChatUnsupportedError) or (isinstance(error, ChatError) and not self._allow_fallback)

    def _rank(self, questions: Sequence[Question]) -> Sequence[Ranking]:
        return self._ranker.rank_batch(**as_arguments(questions))
