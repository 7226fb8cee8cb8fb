"""Waiting that can be interrupted: work runs in daemon threads, which neither Ctrl-C nor the program's end joins."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, InvalidStateError, wait
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar, final

__all__ = ["Errand", "ordered", "ordered_stream"]

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class _Flag:
    """Up once an errand is over; takes along what is waited for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._awaited: set[Future[Any]] = set()
        self.up = False

    def put_up(self) -> None:
        with self._lock:
            self.up = True
            awaited = list(self._awaited)
        for future in awaited:
            future.cancel()

    @contextlib.contextmanager
    def watched(self, future: Future[Any]) -> Iterator[None]:
        """Cancel it if the flag goes up inside, or is."""
        with self._lock:
            self._awaited.add(future)
        try:
            if self.up:
                future.cancel()
            yield
        finally:
            with self._lock:
                self._awaited.discard(future)


@final
class Errand:
    """Work that can be called off, whoever does it: then nobody waits for anything in it any more.

    Args:
        parts_of: Where one of them is called off, so is this.
    """

    def __init__(self, *parts_of: Errand) -> None:
        self._own = _Flag()
        self.flags: tuple[_Flag, ...] = (self._own, *(flag for errand in parts_of for flag in errand.flags))

    @staticmethod
    def here(*others: Errand) -> Errand:
        """A part of the errand that the calling thread is on, if any, and of others."""
        current = _current.get()
        return Errand(*others) if current is None else Errand(current, *others)

    @property
    def over(self) -> bool:
        """Whether it was called off."""
        return any(flag.up for flag in self.flags)

    def call_off(self) -> None:
        """Let all who wait stop waiting."""
        self._own.put_up()

    def result(self, future: Future[_Out], *, timeout_s: float | None = None) -> _Out:
        """Wait for what comes of something.

        Raises:
            CancelledError: The errand was called off; of `concurrent.futures`.
            TimeoutError: It took too long.
        """
        with contextlib.ExitStack() as stack:
            for flag in self.flags:
                stack.enter_context(flag.watched(future))
            return future.result(timeout=timeout_s)


_current: ContextVar[Errand | None] = ContextVar("errand", default=None)


def _fulfil(future: Future[_Out], work: Callable[[], _Out]) -> None:
    with contextlib.suppress(InvalidStateError):  # it was cancelled: nobody asks
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            future.set_exception(error)


class _Crew:
    """At most so many threads, which work off what they are given in order, until they are called off."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._at_work = self._idle = 0
        self._changed = threading.Condition()
        self._left: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._errand = Errand.here()

    def submit(self, work: Callable[[], _Out]) -> Future[_Out]:
        """Have it done."""
        future: Future[_Out] = Future()
        with self._changed:
            self._left.append((future, work))
            start = len(self._left) > self._idle and self._at_work < self._threads
            self._at_work += start
            if not start:
                self._changed.notify()
        if start:
            threading.Thread(target=self._work, name="rarvision-ask", daemon=True).start()
        return future

    def call_off(self) -> None:
        """Begin nothing more, and let what is under way stop waiting."""
        self._errand.call_off()
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        _current.set(self._errand)
        while True:
            with self._changed:
                self._idle += 1
                self._changed.wait_for(lambda: self._left or self._errand.over)
                self._idle -= 1
                if not self._left:
                    return
                future, work = self._left.popleft()
            if self._errand.over:
                future.set_exception(CancelledError())
            else:
                _fulfil(future, work)
            del future, work  # what is done holds nothing while the next one takes its time


def ordered(ask: Callable[[_In], _Out], items: Sequence[_In], *, threads: int) -> list[_Out]:
    """Answers in the order of the items, so many at a time.

    The first failure is raised at once, as an interruption is: what has not begun is not begun, and what is under way
    is called off.
    """
    crew = _Crew(threads)
    try:
        answers = [crew.submit(partial(ask, item)) for item in items]
        done, _ = wait(answers, return_when=FIRST_EXCEPTION)
        for answer in done:
            answer.result()
        return [answer.result() for answer in answers]
    finally:
        crew.call_off()


def ordered_stream(
    ask: Callable[[_In], _Out],
    items: Iterable[_In],
    *,
    threads: int,
    weight: Callable[[_In], float],
    weight_answered: float,
) -> Generator[_Out]:
    """Answers in the order of the items, of which there may be any number; asked ahead of whoever takes the answers.

    Args:
        ask: Called in so many threads.
        items: Consumed by the caller's thread, as answers are taken.
        threads: How many.
        weight: Of an item: no more are taken while those under way weigh 1 or more together.
        weight_answered: Of an item whose answer waits for those before it.

    Yields:
        What comes of each. A failure is raised when its turn comes; nothing is begun after it. That, an interruption,
        and closing call off what is under way.
    """
    crew = _Crew(threads)
    stream = iter(items)
    ahead: deque[tuple[Future[_Out], float]] = deque()
    changed, failed, last = threading.Event(), threading.Event(), threading.Event()

    def note(answer: Future[_Out]) -> None:
        if answer.exception() is not None:
            failed.set()
        changed.set()

    def take() -> None:
        for item in stream:
            answer = crew.submit(partial(ask, item))
            ahead.append((answer, weight(item)))
            answer.add_done_callback(note)
            return
        last.set()

    try:
        while True:
            changed.clear()
            if ahead and ahead[0][0].done():
                yield ahead.popleft()[0].result()
            elif not (last.is_set() or failed.is_set()) and _weight(ahead, weight_answered) < 1.0:
                take()
            elif ahead:
                changed.wait()
            else:
                return
    finally:
        crew.call_off()


def _weight(ahead: Iterable[tuple[Future[Any], float]], answered: float) -> float:
    return sum(answered if answer.done() else weight for answer, weight in ahead)
