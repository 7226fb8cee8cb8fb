"""When the MLLM does not answer: how long it is left alone, and the ranking that an image gets meanwhile."""

from __future__ import annotations

import threading
import time

from rarvision.errors import ChatUnavailableError
from rarvision.types import Ranking

__all__ = ["Outage", "fallback"]

_GIVE_UP_AFTER = 2
_ASK_AGAIN_AFTER_S = 30.0


class Outage:
    """Whether the MLLM is taken to be down: after a few questions in a row that nothing answered.

    Attributes:
        finding_out: Held by who asks while the MLLM is taken to be down: others wait for what comes of it.
    """

    def __init__(self) -> None:
        self.finding_out = threading.Lock()
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._until = 0.0
        self._reason = ""

    @property
    def suspected(self) -> bool:
        """Whether it did not answer lately: then it is not asked, or one question to begin with."""
        return self._in_a_row >= _GIVE_UP_AFTER

    @property
    def waiting(self) -> bool:
        """Whether it is not to be asked now."""
        return self.suspected and time.monotonic() < self._until

    def note(self, error: Exception | None) -> None:
        """What came of a question."""
        with self._lock:
            if not isinstance(error, ChatUnavailableError):
                self._in_a_row = 0
                return
            self._in_a_row += 1
            self._until = time.monotonic() + _ASK_AGAIN_AFTER_S
            self._reason = (
                f"not asked, since {self._in_a_row} questions in a row had no answer and {_ASK_AGAIN_AFTER_S:g} s are "
                f"not over: {type(error).__name__}: {error}"
            )

    def not_asked(self, n: int, strategy: str) -> Ranking:
        """What an image gets that the MLLM was not asked about."""
        return fallback(n, strategy, self._reason, unanswered=True)


def fallback(n: int, strategy: str, reason: str, *, unanswered: bool) -> Ranking:
    """Retrieval's order."""
    return Ranking(order=tuple(range(n)), strategy=strategy, status="fallback", reason=reason, unanswered=unanswered)
