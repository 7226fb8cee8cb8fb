"""Lines to a server, each with a thread of its own: so many questions at a time, first come, first served."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, final

from rarvision.chat.threads import Errand

__all__ = ["Lanes", "Turn"]


class _Line(Protocol):
    def close(self) -> None: ...


_L = TypeVar("_L", bound=_Line)
_T = TypeVar("_T")


@dataclass(eq=False)
class _Job:
    """One attempt: what it does with a line, for whom, and what comes of it."""

    turn: Turn[Any]
    work: Callable[[Any], Any]
    answer: Future[Any]
    lane: _Lane[Any] | None = None
    begun_at: float | None = None


@dataclass(eq=False)
class _Lane(Generic[_L]):
    line: _L
    inbox: queue.SimpleQueue[_Job | None] = field(default_factory=queue.SimpleQueue)


@final
class Lanes(Generic[_L]):
    """Lines, opened as they are needed, and the questions that wait for one, first come, first served.

    A daemon thread does all that is done with a line, so that whatever holds it up can be left alone; the line is then
    closed, and not used again. A line whose question is answered takes the next one itself, without waiting for whoever
    asked.

    Args:
        places: Questions under way at a time, with their pauses between attempts.
        open_line: Makes a line, such as an HTTP client for one request at a time.
    """

    def __init__(self, places: int, open_line: Callable[[], _L]) -> None:
        self._free = places
        self._open_line = open_line
        self._lock = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self._all: set[_Lane[_L]] = set()
        self._idle: list[_Lane[_L]] = []

    def open(self) -> None:
        """Open the first line, to see whether that can be done."""
        with self._lock:
            self._idle.append(self._new())

    def close(self) -> None:
        """Close all lines; what is under way on them fails, or is left alone."""
        with self._lock:
            lanes = list(self._all)
            self._all.clear()
            self._idle.clear()
        for lane in lanes:
            _close(lane)

    def _new(self) -> _Lane[_L]:
        lane = _Lane(self._open_line())
        self._all.add(lane)
        threading.Thread(target=self._serve, args=(lane,), name="rarvision-http", daemon=True).start()
        return lane

    def _submit(self, job: _Job) -> None:
        """Begin it, or have it wait."""
        with self._lock:
            if not job.turn.has_place:
                if not self._free:
                    self._waiting.append(job)
                    return
                self._free -= 1
                job.turn.has_place = True
            self._begin(job)

    def _begin(self, job: _Job) -> None:
        job.lane = self._idle.pop() if self._idle else self._new()
        job.lane.inbox.put(job)

    def _give_up(self, job: _Job) -> None:
        """Leave an attempt alone that nobody waits for any more."""
        with self._lock:
            lane = job.lane
            if lane is None:
                self._waiting.remove(job)
                return
            if not job.answer.cancel():  # it has come just now
                return
            self._all.discard(lane)
        _close(lane)

    def _leave(self, turn: Turn[_L]) -> None:
        """Pass its place on."""
        with self._lock:
            if turn.has_place:
                turn.has_place = False
                following = self._next()
                if following is not None:
                    self._begin(following)

    def _next(self) -> _Job | None:
        """The first that waits, with the place that has become free."""
        for job in self._waiting:
            if not job.answer.cancelled():
                self._waiting.remove(job)
                job.turn.has_place = True
                return job
        self._free += 1
        return None

    def _serve(self, lane: _Lane[_L]) -> None:
        """A lane's thread."""
        while (job := lane.inbox.get()) is not None:
            while job is not None:
                job.begun_at = time.monotonic()
                error: BaseException | None = None
                value: Any = None
                try:
                    value = job.work(lane.line)
                except BaseException as raised:  # noqa: BLE001 - raised where the answer is asked for
                    error = raised
                job = self._done(lane, job, value, error)
                del value, error  # what was answered is not held while the next one takes its time

    def _done(self, lane: _Lane[_L], job: _Job, value: Any, error: BaseException | None) -> _Job | None:
        """Deliver; what the lane does next, if anything."""
        with self._lock:
            try:
                if error is None:
                    job.answer.set_result(value)
                else:
                    job.answer.set_exception(error)
            except InvalidStateError:  # given up: the line is closed by who did
                return None
            if lane not in self._all:
                return None
            if error is None:
                job.turn.has_place = False
                following = self._next()
                if following is not None:
                    following.lane = lane
                    return following
            self._idle.append(lane)
        return None


@final
class Turn(Generic[_L]):
    """A question's turn, from its first attempt to its last; use it as a context manager.

    Args:
        lanes: On which it is asked.
        errand: Whose it is: attempts end when that is called off.
    """

    def __init__(self, lanes: Lanes[_L], errand: Errand) -> None:
        self._lanes = lanes
        self._errand = errand
        self.has_place = False
        """Whether it holds one of the places; changed by the lanes alone."""

    def __enter__(self) -> Turn[_L]:
        return self

    def __exit__(self, *_: object) -> None:
        self._lanes._leave(self)  # noqa: SLF001 - the other half of it

    def attempt(self, work: Callable[[_L], _T], *, timeout_s: float) -> _T:
        """Do something with a line, as soon as there is one.

        Raises:
            TimeoutError: It took longer, not counting the wait for a line; it is left alone.
            CancelledError: The errand was called off.
        """
        answer: Future[_T] = Future()
        job = _Job(self, work, answer)
        self._lanes._submit(job)  # noqa: SLF001
        wait_s = timeout_s
        try:
            while True:
                try:
                    return self._errand.result(answer, timeout_s=wait_s)
                except TimeoutError:
                    wait_s = timeout_s if job.begun_at is None else job.begun_at + timeout_s - time.monotonic()
                    if wait_s <= 0:
                        raise
        finally:
            if not answer.done() or answer.cancelled():
                self._lanes._give_up(job)  # noqa: SLF001


def _close(lane: _Lane[Any]) -> None:
    lane.inbox.put(None)
    with contextlib.suppress(RuntimeError, OSError):  # its thread is in the middle of using it
        lane.line.close()
