"""Mapping in a few threads, in order, with a bounded number of items in flight."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["chunked_map", "ordered_map", "worker_pool"]

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def ordered_map(
    function: Callable[[_In], _Out], items: Iterable[_In], *, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[_Out]:
    """Map in a pool, in order, with at most ``ahead`` items in flight; ``items`` is consumed by the caller's thread."""
    waiting: deque[Future[_Out]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def chunked_map(
    function: Callable[[_In], _Out], items: Iterable[_In], *, pool: ThreadPoolExecutor, size: int
) -> Iterator[_Out]:
    """Map in a pool, in order, ``size`` items at a time; between them, while the caller computes, the pool rests."""
    stream = iter(items)
    while chunk := list(itertools.islice(stream, size)):
        yield from list(pool.map(function, chunk))


def _decoders() -> int:
    """Threads that decode: the processors that this process may use, at least 2, as some wait for a disk."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, max(2, usable))


@contextmanager
def worker_pool(threads: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """A pool that, when the block ends for whatever reason, drops what it has not begun."""
    pool = ThreadPoolExecutor(threads or _decoders(), thread_name_prefix="rarvision-read")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
