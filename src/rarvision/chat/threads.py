"""Waiting that can be interrupted: work runs in daemon threads, which neither Ctrl-C nor the program's end joins."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, InvalidStateError, wait
from typing import TypeVar

__all__ = ["in_background", "ordered"]

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def in_background(work: Callable[[], _Out], *, name: str) -> Future[_Out]:
    """Start the work in a daemon thread of its own; whoever waits for it may stop waiting, or be told to (`cancel`)."""
    future: Future[_Out] = Future()

    def run() -> None:
        with contextlib.suppress(InvalidStateError):  # it was cancelled: nobody asks
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def ordered(ask: Callable[[_In], _Out], items: Sequence[_In], *, threads: int) -> list[_Out]:
    """Answers in the order of the items, so many at a time.

    The first failure is raised at once, as an interruption is: what has not begun is not begun, and what is under way
    is not waited for.
    """
    left = iter(range(len(items)))
    lock, over = threading.Lock(), threading.Event()
    answers: dict[int, _Out] = {}

    def work() -> None:
        while not over.is_set():
            with lock:
                place = next(left, None)
            if place is None:
                return
            answers[place] = ask(items[place])

    workers = [in_background(work, name=f"rarvision-http-{number}") for number in range(min(threads, len(items)))]
    try:
        done, _ = wait(workers, return_when=FIRST_EXCEPTION)
        for worker in done:
            worker.result()
    finally:
        over.set()
    return [answers[place] for place in range(len(items))]
